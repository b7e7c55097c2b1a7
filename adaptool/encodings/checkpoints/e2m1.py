"""Floating-point numbers of four bits: sign, two of exponent, one of mantissa.

Two in a byte, the first in the low nibble. Source: OCP Microscaling Formats v1.0, 5.3.3; E8M0
scales: 5.4.1; the choice of a block's scale: 6.3.
"""

from __future__ import annotations

from functools import cache

import torch

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST_EXPONENT = 2
_BIAS = 127


@cache
def _table() -> torch.Tensor:
    magnitudes = torch.tensor(_MAGNITUDES)
    return torch.cat([magnitudes, -magnitudes])


@cache
def _middles() -> torch.Tensor:
    magnitudes = torch.tensor(_MAGNITUDES)
    return (magnitudes[1:] + magnitudes[:-1]) / 2


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [..., n] -> float32 [..., 2 n]."""
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1)
    return _table()[nibbles.flatten(-2).int()]


def pack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Nibbles uint8 [..., 2 n] -> uint8 [..., n]."""
    return codes[..., ::2] | (codes[..., 1::2] << 4)


def nearest_e2m1(values: torch.Tensor) -> torch.Tensor:
    """float32 -> the nearest nibbles, uint8; ties to the even mantissa, beyond 6 is 6."""
    size = values.abs()
    down = torch.bucketize(size, _middles())
    up = torch.bucketize(size, _middles(), right=True)
    codes = torch.where(down % 2 == 0, down, up)
    return (codes + 8 * values.signbit()).to(torch.uint8)


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """E8M0 scales, uint8 or that type -> float32; 255 is NaN."""
    return exponents.view(torch.float8_e8m0fnu).float()


def encode_blocks(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [blocks, width] -> nibbles uint8 [blocks, width], E8M0 scales uint8 [blocks].

    Of the scale that lets the largest value overflow to 6 and the next one, the better by the
    squared error; values that the format holds come back as they were.
    """
    peaks = values.abs().amax(1)
    exponents = torch.frexp(peaks).exponent - 1 - _LARGEST_EXPONENT
    exponents = torch.where(peaks > 0, exponents, -_BIAS)
    tight, wide = (_encoded(values, exponents + step) for step in (0, 1))
    takes = wide[2] < tight[2]
    codes = torch.where(takes.unsqueeze(1), wide[0], tight[0])
    return codes, torch.where(takes, wide[1], tight[1])


def _encoded(
    values: torch.Tensor, exponents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scales = (exponents + _BIAS).clamp(0, 254).to(torch.uint8)
    unit = power_of_two(scales).unsqueeze(1)
    codes = nearest_e2m1(values / unit)
    error = (_table()[codes.int()] * unit - values).square().sum(1)
    return codes, scales, error
