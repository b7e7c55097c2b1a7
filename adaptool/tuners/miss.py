"""MiSS: one small block for all pieces of a weight's rows (arXiv:2409.15371, eq. 4 to 6).

With a block S [r, out]: W'[o, i] = W[o, i] + S[i mod r, o].  "mini" stores fewer columns, which
repeat along out.  "bat" has a block S_p [r, r] for every r rows: each piece of r columns of these
rows becomes V + V S_p + S_p.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LowRank, Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._factored import double, factored
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._windowed import Part, Windowed

if TYPE_CHECKING:
    import torch

suffixes = ("miss_block",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Repeated(Windowed):
    """W plus `miss_block` [r, columns], repeated along both sides of the weight.

    Attributes:
        mini: `columns` is a divisor of out; else it is out.
    """

    kind: ClassVar[str] = "repeated-block"
    peft_type: ClassVar[str] = "MISS"
    tells_shape: ClassVar[bool] = False

    mini: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix consists of such blocks; the last one may be cut off."""
        rank, columns = self.tensors["miss_block"].shape
        if len(shape) != 2 or rank > shape[1]:
            return False
        return shape[0] % columns == 0 if self.mini else shape[0] == columns

    def low_rank(self) -> LowRank | None:
        """The block's transpose, repeated, times the identity, repeated."""
        if not self.shape:
            return None
        tensors = self.tensors.values()
        rank = self.tensors["miss_block"].shape[0]
        return factored(tensors, self.size, rank, self._repeated, self.scaling)

    def _repeated(self) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        block = double(self.tensors["miss_block"])
        rank, columns = block.shape
        out, into = self.size
        one = torch.eye(rank, dtype=block.dtype)
        return one[:, torch.arange(into) % rank], block.T[torch.arange(out) % columns]

    def part(self, dtype: torch.dtype, device: torch.device) -> Part:
        """Picks rows and columns of the block."""
        import torch

        block = self.tensors["miss_block"].values().to(device, dtype).T
        columns, rank = block.shape

        def part(window: Window) -> torch.Tensor:
            rows = torch.arange(window.rows.start, window.rows.stop, device=device) % columns
            cols = torch.arange(window.cols.start, window.cols.stop, device=device) % rank
            return block[rows].index_select(1, cols)

        return part


@dataclass(frozen=True, kw_only=True)
class Bat(Transform):
    """V + V S_p + S_p for every block V of the weight; `miss_block` is [out / r, r, r]."""

    kind: ClassVar[str] = "block-affine"
    peft_type: ClassVar[str] = "MISS"
    span: ClassVar[Span] = Span.ROWS

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix consists of whole blocks."""
        pieces, rank, _ = self.tensors["miss_block"].shape
        return len(shape) == 2 and shape[0] == pieces * rank and shape[1] % rank == 0

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each row of the weight by itself, with the block of its rows."""
        blocks = self.tensors["miss_block"].values().to(device, dtype)
        rank = blocks.shape[1]

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            moved = weight.clone()
            first, last = window.rows.start, window.rows.stop
            for p in range(first // rank, -(-last // rank)):
                start, stop = max(p * rank, first), min((p + 1) * rank, last)
                rows = slice(start - first, stop - first)
                pieces = weight[rows].reshape(stop - start, -1, rank)
                added = pieces @ blocks[p] + blocks[p][start - p * rank : stop - p * rank, None]
                moved[rows] += added.reshape(stop - start, -1)
            return moved

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`miss_block` [r, out], [r, mini_r], or [out / r, r, r]."""
    variant = options.raw.get("init_weights")
    if variant == "bat":
        block = parts.need("miss_block", None, None, None)
        if block.shape[1] != block.shape[2]:
            raise parts.corrupt(f"miss_block is {list(block.shape)}, blocks must be square")
        return {"weight": Bat(tensors={"miss_block": block})}
    if isinstance(variant, str) and variant != "mini":
        raise parts.unsupported(f"init_weights={variant[:40]!r}")
    block = parts.need("miss_block", None, None)
    return {"weight": Repeated(tensors={"miss_block": block}, mini=variant == "mini")}
