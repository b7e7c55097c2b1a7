"""Integers of 2, 4 and 8 bits in bytes, the first in the lowest; and how values become such."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, bytes] -> uint8 [n, bytes * 8 / bits]."""
    import torch

    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    mask = (1 << bits) - 1
    return ((packed.unsqueeze(-1) >> shifts) & mask).flatten(1)


def pack(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, count] -> uint8 [n, ceil(count * bits / 8)]; what is missing in a byte is 0."""
    import torch

    if bits == 8:
        return levels.contiguous()
    each = 8 // bits
    padded = torch.nn.functional.pad(levels, (0, -levels.shape[1] % each))
    parts = padded.reshape(levels.shape[0], -1, each)
    out = parts[..., 0].clone()
    for index in range(1, each):
        out |= parts[..., index] << bits * index
    return out


def split_columns(rows: torch.Tensor, widths: Iterable[int]) -> tuple[torch.Tensor, ...]:
    """[n, sum of widths] -> [n, width] each."""
    ends = [0, *accumulate(widths)]
    return tuple(rows[:, start:end] for start, end in pairwise(ends))


def linear_scale(
    low: torch.Tensor, high: torch.Tensor, least: int, most: int, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points for ranges of values, as ONNX Runtime's compute_scale_zp chooses them.

    Args:
        low, high: float32 [n], the least and the greatest value of each range.
        least, most: the integers that may be used.
        symmetric: put zero into the middle.

    Returns:
        float32 [n] and float32 [n] with whole numbers.
    """
    import torch

    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / (most - least)
    faint = scale < torch.finfo(torch.float32).tiny
    safe = torch.where(faint, 1.0, scale)
    middle = torch.full_like(scale, round((least + most) / 2))
    zero = middle if symmetric else (least - low / safe).round()
    return safe.float(), torch.where(faint, 0.0, zero).float()


def nearest_even(positions: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Round to the nearest, halves to the even; or up with the probability of the fraction."""
    return positions.round() if noise is None else positions.add(noise).floor()


def nearest_away(positions: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Round to the nearest, halves away from zero (C's roundf); or as `nearest_even` by chance."""
    import torch

    if noise is not None:
        return positions.add(noise).floor()
    below_half = torch.tensor(0.5 - 2.0**-25, device=positions.device)
    return positions.add(torch.copysign(below_half, positions)).trunc()


class PackedRows:
    """A scheme of which a block is a whole row of `width` values, stored in `parts`."""

    __slots__ = ()

    width: int

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of a row's levels, scales and zero points."""
        raise NotImplementedError

    @property
    def block(self) -> int:
        """Values of one block: a row."""
        return self.width

    @property
    def size(self) -> int:
        """Bytes of one block."""
        return sum(self.parts)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """uint8 [n * size] -> the rows' levels, scales and zero points, uint8 [n, ...] each."""
        return split_columns(rows.view(-1, self.size), self.parts)
