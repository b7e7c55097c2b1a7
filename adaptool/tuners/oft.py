"""OFT: the inputs of a weight rotated block by block (arXiv:2306.07280; OFTv2, arXiv:2506.19847).

W' = W R', R block-diagonal over the inputs.  A block follows from a skew-symmetric Q, of which the
file holds the upper triangle by rows: R = (I - Q)(I + Q)^-1, or, with `use_cayley_neumann`, the
truncated series I + 2 Q + 2 Q^2 + ... of the rotation the other way round, whose last power has the
factor 1.  An embedding's rows are rotated: W' = W R.  With `coft`, Q stays within a small ball.

Of convolutions only those with a kernel of one are taken.  For others PEFT's forward adds up
overlapping patches, so that even R = I changes the model; no weight computes that, and what PEFT
merges is another model than the trained one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod, sqrt
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Site, Update, Window
from adaptool.canonical.verbs import Span
from adaptool.errors import IncompatibleError
from adaptool.tuners._blocks import cayley, rotate_columns
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_LINEAR, _EMBEDDING = "oft_R.weight", "oft_embedding_R.weight"

suffixes = (_LINEAR, _EMBEDDING)
shared = ()

_MOST_TERMS = 1000


@dataclass(frozen=True, kw_only=True)
class Rotated(Transform):
    """W R', or W R for an embedding.

    Attributes:
        side: size of a block.
        terms: of the series; None for the exact R.
        radius: of the ball that each Q is drawn into; None for none.
        shares: one block stands for all.
        where: file and module, for messages.
    """

    kind: ClassVar[str] = "rotation"
    peft_type: ClassVar[str] = "OFT"
    span: ClassVar[Span] = Span.ROWS

    side: int
    terms: int | None
    radius: float | None
    shares: bool
    where: str

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the blocks are as long as a row, or their one is a part of it."""
        (tensor,) = self.tensors.values()
        width = prod(shape[1:])
        if len(shape) < 2 or self.shares:
            return len(shape) > 1 and width % self.side == 0
        return tensor.shape[0] * self.side == width

    def fitted(self, shape: tuple[int, ...], shapes: Mapping[Site, tuple[int, ...]]) -> Update:
        """As for every transform.

        Raises IncompatibleError for a convolution with a kernel larger than one.
        """
        if prod(shape[2:]) != 1:
            raise IncompatibleError(
                f"{self.where}: PEFT's OFT of a convolution with a kernel of {list(shape[2:])} is "
                "no change of its weight",
                hint="use it with PEFT, unmerged",
                code="UNSUPPORTED_VARIANT",
            )
        return super().fitted(shape, shapes)

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each row by itself."""
        ((suffix, tensor),) = self.tensors.items()
        blocks = self._blocks(tensor.values().to(device, dtype))
        blocks = blocks.mT if suffix == _EMBEDDING else blocks

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            return rotate_columns(weight, blocks)

        return change

    def _blocks(self, triangles: torch.Tensor) -> torch.Tensor:
        import torch

        rows, cols = torch.triu_indices(self.side, self.side, 1, device=triangles.device)
        skew = triangles.new_zeros(triangles.shape[0], self.side, self.side)
        skew[:, rows, cols] = triangles
        skew = skew - skew.mT
        if self.radius is not None:
            norm = skew.norm(dim=(1, 2), keepdim=True)
            skew = torch.where(norm <= self.radius, skew, skew * (self.radius / norm))
        return cayley(skew) if self.terms is None else _series(skew, self.terms)


def _series(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """I + 2 Q + 2 Q^2 + ... + Q^(terms - 1); three terms are taken as four (PEFT)."""
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    total = total.expand_as(skew).clone()
    last = max(terms, 4) - 1 if terms > 2 else terms - 1
    power = skew
    for exponent in range(1, last + 1):
        is_last = exponent == last and terms > 2
        total += power if is_last else 2 * power
        power = power @ skew
    return total


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`oft_R` or `oft_embedding_R` [blocks, side * (side - 1) / 2]."""
    suffix = _EMBEDDING if parts.has(_EMBEDDING) else _LINEAR
    triangles = parts.need(suffix, None, None)
    blocks, count = triangles.shape
    side = (1 + isqrt(1 + 8 * count)) // 2
    if side * (side - 1) // 2 != count:
        raise parts.corrupt(f"{suffix} {list(triangles.shape)} holds no triangle of a square")
    shares = options.flag("block_share")
    if shares and blocks != 1:
        raise parts.corrupt(f"{blocks} blocks, where one is shared (block_share)")
    neumann = options.flag("use_cayley_neumann", default=True)
    terms = options.whole("num_cayley_neumann_terms", 5, least=1) if neumann else None
    if terms is not None and terms > _MOST_TERMS:
        raise options.refusal("num_cayley_neumann_terms", f"at most {_MOST_TERMS}")
    radius = options.number("eps", 6e-5) / sqrt(blocks) if options.flag("coft") else None
    return {
        "weight": Rotated(
            tensors={suffix: triangles},
            side=side,
            terms=terms,
            radius=radius,
            shares=shares,
            where=parts.where,
        )
    }
