"""Rows in groups of values, each with a scale and maybe a zero point.

MatMulNBits stores [out, in] with 2, 4 or 8 bits and pads the last group of a row; so does
GatherBlockQuantized, without the padding; DequantizeLinear (opset 21) states a block size and an
axis. value = (level - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from adaptool.canonical.dtypes import DType
from adaptool.encodings.onnx.levels import (
    PackedRows,
    linear_scale,
    nearest_away,
    nearest_even,
    pack,
    unpack,
)

if TYPE_CHECKING:
    import torch


_Divide = Callable[["torch.Tensor"], "torch.Tensor"]


class Rule(Enum):
    """Who chooses scales, and how: by the quantiser that makes such weights."""

    MLAS = "mlas"
    """ONNX Runtime's kernels: the value of greatest size becomes the lowest level."""
    NUMPY = "numpy"
    """The same in Python, for GatherBlockQuantized: divides, and rounds halves to the even."""
    LINEAR = "linear"
    """quantize_static and quantize_dynamic: compute_scale_zp."""


class Zeros(Enum):
    """How zero points are stored."""

    NONE = "none"
    PACKED = "packed"
    SCALED = "scaled"
    """As numbers of the scales' type."""


@dataclass(frozen=True, slots=True)
class Blockwise(PackedRows):
    """The encoding of a weight with rows of `width` values; see Encoding.

    Attributes:
        bits: of a level: 2, 4 or 8.
        group: values that share a scale.
        width: values of a row.
        scale: type of the scales.
        zeros: how zero points are stored; with NONE zero is at `middle`.
        middle: the level of zero where none is stored.
        signed: levels are two's complement.
        padded: the last group of a row is stored in full.
        rule: how scales are chosen.
    """

    bits: int
    group: int
    width: int
    scale: DType = DType.FLOAT32
    zeros: Zeros = Zeros.NONE
    middle: int = 0
    signed: bool = False
    padded: bool = False
    rule: Rule = Rule.MLAS

    @property
    def name(self) -> str:
        """As in "int4 in groups of 32"."""
        return f"{'' if self.signed else 'u'}int{self.bits} in groups of {self.group}"

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.width // self.group)

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of a row's levels, scales and zero points."""
        stored = self.groups * self.group if self.padded else self.width
        scales = self.groups * self.scale.bits // 8
        zeros = {Zeros.NONE: 0, Zeros.PACKED: (self.groups * self.bits + 7) // 8,
                 Zeros.SCALED: scales}[self.zeros]  # fmt: skip
        return stored * self.bits // 8, scales, zeros

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n * size] -> float32 [n * width]."""
        import torch

        levels, scales, zeros = self.split(packed)
        steps = self._numbers(scales).unsqueeze(-1)
        values = self._signed(unpack(levels, self.bits))
        if self.groups > 1 and values.shape[1] % self.group:
            values = torch.nn.functional.pad(values, (0, -values.shape[1] % self.group))
        grouped = values.view(values.shape[0], self.groups, -1)
        grouped = (grouped - self._zeros(zeros)).mul_(steps)
        return grouped.flatten(1)[:, : self.width].reshape(-1)

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Float32 [rows, width] -> uint8 [rows * size]; importance is not used."""
        import torch

        del importance
        grouped, chance = self._grouped(values), None if noise is None else self._grouped(noise)
        scale, zero, divisor = self._fit(grouped)
        least = -self._half if self.signed else 0
        positions = divisor(grouped)
        if self.rule is Rule.MLAS:
            lift = -least
            levels = nearest_away(positions + (zero + lift), chance) - lift
        elif self.rule is Rule.NUMPY:
            levels = nearest_even(positions + zero, chance)
        else:
            levels = nearest_even(positions, chance) + zero
        levels = levels.clamp_(least, least + 2**self.bits - 1).flatten(1)
        stored = levels[:, : self.width]
        if self.padded:
            stored = torch.nn.functional.pad(stored, (0, levels.shape[1] - self.width))
        parts = [pack(self._bytes(stored), self.bits), self._raw(scale.squeeze(-1))]
        if self.zeros is Zeros.PACKED:
            filled = self._half if self.padded else 0  # as the kernels leave the rest of a byte
            whole = torch.nn.functional.pad(
                zero.squeeze(-1), (0, -self.groups % (8 // self.bits)), value=filled
            )
            parts.append(pack(self._bytes(whole), self.bits))
        elif self.zeros is Zeros.SCALED:
            parts.append(self._raw(zero.squeeze(-1)))
        return torch.cat(parts, 1).reshape(-1)

    @property
    def _half(self) -> int:
        return 1 << self.bits - 1

    def _fit(self, grouped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, _Divide]:
        """Scales and zero points [n, groups, 1], and what brings values to levels."""
        import torch

        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        if self.rule is Rule.LINEAR:
            top = self._half - 1
            least, most = (-top, top) if self.signed else (0, 2 * self._half - 1)
            scale, zero = linear_scale(low, high, least, most, symmetric=self.signed)
            return scale, zero, lambda values: values / scale
        zero = torch.full_like(low, self.middle)
        if self.zeros is Zeros.NONE:
            scale = torch.where(high.abs() > low.abs(), high, low) / -float(self._half)
        else:
            low, high = low.clamp(max=0), high.clamp(min=0)
            scale = (high - low) / float(2 * self._half - 1)
            empty = self._half if self.rule is Rule.NUMPY else 0
            zero = torch.where(scale == 0, empty, -low / scale)
            if self.zeros is Zeros.PACKED:
                zero = nearest_away(zero, None).clamp_(0, 2 * self._half - 1)
            zero = zero - self._half if self.signed else zero
        if self.rule is Rule.NUMPY:
            return scale, zero, lambda v: torch.where(scale == 0, 0.0, v / scale)
        step = scale
        if self.zeros is not Zeros.NONE and self.scale is DType.FLOAT16:  # the kernel's ways
            step = scale.half().float()
        inverse = torch.where(step == 0, 0.0, step.reciprocal())
        return scale, zero, lambda v: v * inverse

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        import torch

        missing = self.groups * self.group - self.width if self.groups > 1 or self.padded else 0
        whole = torch.nn.functional.pad(values, (0, missing)) if missing else values
        return whole.view(values.shape[0], self.groups, -1)

    def _signed(self, levels: torch.Tensor) -> torch.Tensor:
        import torch

        if not self.signed:
            return levels.to(torch.float32)
        return (levels ^ self._half).to(torch.float32).sub_(self._half)

    def _bytes(self, levels: torch.Tensor) -> torch.Tensor:
        import torch

        return levels.to(torch.int16).bitwise_and((1 << self.bits) - 1).to(torch.uint8)

    def _zeros(self, stored: torch.Tensor) -> torch.Tensor | float:
        if self.zeros is Zeros.NONE:
            return float(self.middle)
        if self.zeros is Zeros.SCALED:
            return self._numbers(stored).unsqueeze(-1)
        return self._signed(unpack(stored, self.bits)[:, : self.groups]).unsqueeze(-1)

    def _numbers(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.contiguous().view(self.scale.torch).float()

    def _raw(self, numbers: torch.Tensor) -> torch.Tensor:
        import torch

        return numbers.to(self.scale.torch).contiguous().view(torch.uint8)
