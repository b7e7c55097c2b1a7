"""Bytes with one scale for the whole weight, or one for each of its columns.

What quantize_dynamic makes (MatMulInteger) and quantize_static (DequantizeLinear). The scales of a
row depend on all the others, so an encoding must be fitted to the values before it packs them:
`fitted` gives one that reads them, once, when the first row is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

from adaptool.canonical.dtypes import DType
from adaptool.canonical.forms import Values
from adaptool.canonical.tensors import LazyTensor
from adaptool.encodings.onnx.levels import linear_scale, nearest_even

if TYPE_CHECKING:
    import torch

_REDUCED = 64
"""quantize_dynamic(reduce_range=True) uses seven bits, for processors whose sums overflow."""


@dataclass(frozen=True)
class Grid:
    """Scales and zero points, float32 [1] or [width]."""

    scales: torch.Tensor
    zeros: torch.Tensor


@dataclass(frozen=True, eq=False)
class Affine:
    """The encoding of a weight with rows of `width` values; see Encoding.

    Attributes:
        levels: type of the levels: int8 or uint8.
        width: values of a row.
        by_column: every column has a scale of its own.
        scale: type of the scales.
        find: gives the grid; called once.
        stored: the levels as they are, to see which of them are used.
    """

    levels: DType
    width: int
    by_column: bool
    scale: DType
    find: Callable[[], Grid]
    stored: LazyTensor
    _lock: Lock

    @property
    def name(self) -> str:
        """As in "int8 with one scale"."""
        return f"{self.levels.value} with {'a scale per column' if self.by_column else 'one scale'}"

    @property
    def block(self) -> int:
        """Values of one block: a row."""
        return self.width

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return self.width

    @cached_property
    def _found(self) -> Grid:
        return self.find()

    @property
    def grid(self) -> Grid:
        """Scales and zero points, read or found when they are first asked for."""
        with self._lock:
            return self._found

    def fitted(self, values: Values) -> Affine:
        """An encoding like this one with the grid that suits these values."""
        return Affine(self.levels, self.width, self.by_column, self.scale,
                      lambda: self._fit(values), self.stored, Lock())  # fmt: skip

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n * width] -> float32 [n * width]."""
        levels = packed.view(self.levels.torch).float().view(-1, self.width)
        return levels.sub_(self.grid.zeros).mul_(self.grid.scales).view(-1)

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Float32 [rows, width] -> uint8 [rows * width]; importance is not used."""
        import torch

        del importance
        limits = torch.iinfo(self.levels.torch)
        levels = nearest_even(values / self.grid.scales, noise).add_(self.grid.zeros)
        levels = levels.clamp_(limits.min, limits.max)
        return levels.to(self.levels.torch).contiguous().view(torch.uint8).view(-1)

    def _fit(self, values: Values) -> Grid:
        import torch

        low = torch.full((self.width,), torch.inf)
        high = torch.full((self.width,), -torch.inf)
        for piece in values.stream(align=self.width):
            rows = piece.float().view(-1, self.width)
            low, high = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))
        if not self.by_column:
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        symmetric = self.levels is DType.INT8 and not bool(self.grid.zeros.any())
        least, most = self._limits(symmetric=symmetric)
        scales, zeros = linear_scale(low, high, least, most, symmetric=symmetric)
        return Grid(scales.to(self.scale.torch).float(), zeros)

    def _limits(self, *, symmetric: bool) -> tuple[int, int]:
        """The levels that the quantiser chose from: all, or half of them."""
        used = [piece.to(dtype=_int16()).aminmax() for piece in self.stored.stream()]
        lowest = min((int(low) for low, _ in used), default=0)
        highest = max((int(high) for _, high in used), default=0)
        if self.levels is DType.UINT8:
            return 0, 127 if highest < 128 else 255
        reduced = max(-lowest, highest) <= _REDUCED
        if symmetric:
            return (-_REDUCED, _REDUCED) if reduced else (-127, 127)
        return (-_REDUCED, _REDUCED) if reduced else (-128, 127)


def _int16() -> torch.dtype:
    import torch

    return torch.int16
