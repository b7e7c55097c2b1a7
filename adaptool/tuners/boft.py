"""BOFT: rotations in the pattern of a butterfly, and a factor per output (arXiv:2311.06243, eq. 3).

W' = diag(s) W M', M = M_m ... M_1, M_i = P_i D_i P_i'.  D_i is block-diagonal with the Cayley
transforms (I - Q)(I + Q)^-1 of Q = (R - R') / 2.  P_i sorts half-blocks: in each group of 2^(i-1)
blocks those at even places come first; P_1 moves nothing.  A convolution counts as
[out, in * kernel].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._blocks import cayley, rotate_columns
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_ROTATIONS, _SCALES = "boft_R", "boft_s"

suffixes = (_ROTATIONS, _SCALES)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Butterfly(Transform):
    """diag(s) W M': `boft_R` [m, blocks, side, side], `boft_s` of out values."""

    kind: ClassVar[str] = "butterfly"
    peft_type: ClassVar[str] = "BOFT"
    span: ClassVar[Span] = Span.ROWS

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the blocks are as long as a row, and s as the rows are many."""
        _, blocks, side, _ = self.tensors[_ROTATIONS].shape
        size = self.tensors[_SCALES].count, blocks * side
        return len(shape) > 1 and size == (shape[0], prod(shape[1:]))

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each row by itself."""
        r = self.tensors[_ROTATIONS].values().to(device, dtype)
        scales = self.tensors[_SCALES].values().to(device, dtype).reshape(-1, 1)
        _, blocks, side, _ = r.shape
        levels = [
            (cayley((one - one.mT) / 2), _sorted_halves(blocks, side, level).to(device))
            for level, one in enumerate(r)
        ]

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            for rotations, order in levels:
                weight = rotate_columns(weight[:, order.argsort()], rotations)[:, order]
            return weight * scales[window.rows]

        return change


def _sorted_halves(blocks: int, side: int, level: int) -> torch.Tensor:
    """int64 [blocks * side]: the column that stands at each place after P_level."""
    import torch

    places = torch.arange(blocks * side)
    if level == 0:
        return places
    halves = places.reshape(blocks >> level, -1, side // 2)
    return torch.cat([halves[:, 0::2], halves[:, 1::2]], dim=1).reshape(-1)


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`boft_R` [m, blocks, side, side], `boft_s` [out, 1], of a convolution [1, out]."""
    r = parts.need(_ROTATIONS, None, None, None, None)
    levels, blocks, side, other = r.shape
    scales = parts.need(_SCALES, None, None)
    if side != other or 1 not in scales.shape:
        raise parts.corrupt(f"boft_R {list(r.shape)}, boft_s {list(scales.shape)}")
    if levels > 1 and (side % 2 or blocks % (1 << (levels - 1))):
        raise parts.corrupt(f"{blocks} blocks of {side} make no butterfly of {levels} levels")
    return {"weight": Butterfly(tensors={_ROTATIONS: r, _SCALES: scales})}
