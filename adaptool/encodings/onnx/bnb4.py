"""MatMulBnb4: bitsandbytes' four-bit floats, of which each group shares its greatest size.

value = code[level] * absmax; the first of two levels is in the high half of a byte. The codes are
those of bitsandbytes (Dettmers et al. 2023, QLoRA, appendix E) as ONNX Runtime has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical.dtypes import DType
from adaptool.encodings.onnx.levels import PackedRows

if TYPE_CHECKING:
    import torch

CODES = {
    "fp4": (
        0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
        -0.0, -5.208333333e-03, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25,
    ),
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
}  # fmt: skip
"""Values of the levels 0 to 15."""

_FAINT = 1e-30


@dataclass(frozen=True, slots=True)
class Bnb4(PackedRows):
    """The encoding of a weight with rows of `width` values; see Encoding.

    Attributes:
        code: "fp4" or "nf4".
        group: values that share a scale; divides `width`, which is even.
        width: values of a row.
        scale: type of the scales.
    """

    code: str
    group: int
    width: int
    scale: DType = DType.FLOAT32

    @property
    def name(self) -> str:
        """As in "nf4 in groups of 64"."""
        return f"{self.code} in groups of {self.group}"

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of a row's levels and scales, and none of zero points."""
        return self.width // 2, self.width // self.group * self.scale.bits // 8, 0

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n * size] -> float32 [n * width]."""
        import torch

        levels, scales, _ = self.split(packed)
        both = torch.stack((levels >> 4, levels & 15), -1).to(torch.int64)
        table = torch.tensor(CODES[self.code], device=packed.device)
        steps = scales.contiguous().view(self.scale.torch).float()
        grouped = table[both].view(levels.shape[0], -1, self.group)
        return grouped.mul_(steps.unsqueeze(-1)).reshape(-1)

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Float32 [rows, width] -> uint8 [rows * size]; importance is not used."""
        import torch

        del importance
        rows = values.shape[0]
        grouped = values.view(rows, -1, self.group)
        largest = grouped.abs().amax(-1, keepdim=True)
        inverse = torch.where(largest == 0, 0.0, largest.reciprocal())
        positions = (grouped * inverse).view(rows, self.width)
        table = torch.tensor(CODES[self.code], device=values.device)
        order = torch.where((table == 0) & table.signbit(), -_FAINT, table).argsort()
        ordered = table[order]
        if noise is None:
            bounds = (ordered[1:] + ordered[:-1]) / 2
            bounds[bounds == 0] = -_FAINT  # zero itself is the positive one
            found = torch.searchsorted(bounds, positions.contiguous())
        else:
            upper = torch.searchsorted(ordered, positions.contiguous()).clamp_(1, 15)
            below, above = ordered[upper - 1], ordered[upper]
            gap = torch.where(above > below, above - below, 1.0)
            found = torch.where((positions - below) / gap > noise, upper, upper - 1)
        levels = order[found].to(torch.uint8).view(rows, -1, 2)
        scales = largest.squeeze(-1).to(self.scale.torch).contiguous().view(torch.uint8)
        return torch.cat((levels[..., 0] << 4 | levels[..., 1], scales), 1).reshape(-1)
