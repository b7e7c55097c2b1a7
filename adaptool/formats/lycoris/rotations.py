"""LyCORIS' OFT and BOFT: the outputs of a weight rotated block by block.

PEFT's OFT rotates the inputs; here W' = diag(s) R W.  With X of a block, Q = X - X', and Q drawn
into a ball around zero where a bound is stated (COFT, arXiv:2306.07280):

    diagonal    R = (I - Q)(I + Q)^-1 for each block
    butterfly   R = R_m ... R_1, R_i = P_i' (I + Q_i)(I - Q_i)^-1 P_i  (arXiv:2311.06243, eq. 3)

P_i brings rows together that stand 2^(i-1) * b / 2 apart.  The bound is one for all blocks of a
module: |Q| over all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._blocks import cayley, rotate_columns
from adaptool.tuners._forms import Change, Transform

if TYPE_CHECKING:
    import torch

_BLOCKS, _RESCALE = "oft_blocks", "rescale"
_EPSILON = 1e-8
"""What LyCORIS adds to |Q|."""


@dataclass(frozen=True, kw_only=True)
class RowRotation(Transform):
    """diag(s) R W: `oft_blocks` [n, b, b] or [m, n, b, b], `rescale` of n * b values.

    Attributes:
        bound: of |Q|, None for none.
    """

    kind: ClassVar[str] = "row-rotation"
    span: ClassVar[Span] = Span.COLUMNS

    bound: float | None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the blocks are as high as the weight."""
        *_, count, side, _ = self.tensors[_BLOCKS].shape
        return len(shape) > 1 and count * side == shape[0]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each column by itself."""
        levels = self._levels(self.tensors[_BLOCKS].values().to(device, dtype))
        rescale = self.tensors.get(_RESCALE)
        scales = None if rescale is None else rescale.values().to(device, dtype).reshape(-1, 1)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            for rotations, order in levels:
                turned = rotate_columns(weight[order].T, rotations).T
                weight = turned[order.argsort()]
            return weight if scales is None else weight * scales[window.rows]

        return change

    def _levels(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Rotations [n, b, b] and the order of rows in which they are applied."""
        import torch

        skew = x - x.mT
        if self.bound is not None:
            norm = skew.norm() + _EPSILON
            skew = skew * (self.bound / norm) if bool(norm > self.bound) else skew
        *_, count, side, _ = x.shape
        rows = torch.arange(count * side, device=x.device)
        if x.dim() == 3:
            return [(cayley(skew), rows)]
        orders = [rows.reshape(-1, 2, (1 << i) * (side // 2)).mT.reshape(-1) for i in range(len(x))]
        return [(cayley(-one), order) for one, order in zip(skew, orders, strict=True)]
