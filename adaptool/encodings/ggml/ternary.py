"""TQ1_0 and TQ2_0: one scale for 256 values of -1, 0 and 1.

TQ2_0: 64 bytes of four levels each, d (half). TQ1_0: 48 bytes of five levels in base three, 4 bytes
of four, d. A byte of base three holds q * 256 / 243, rounded up, so that each digit is what
overflows when the byte is multiplied by three. Source: ggml-common.h, block_tq1_0 and block_tq2_0.
"""

from __future__ import annotations

import torch

from adaptool.encodings.ggml.blocks import (
    Blocks,
    Scheme,
    half_bytes,
    invert,
    lay,
    read_halves,
    round_levels,
    truncate_from_half,
)
from adaptool.encodings.ggml.packing import pack_planes, unpack_planes

_RUNS = ((0, 160, 32), (160, 240, 16), (240, 256, 4))
"""TQ1_0: first value, end, and how many bytes hold them: value first + k * bytes + j is digit k
of byte j."""


def _find_levels(blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels 0, 1, 2 (uint8 [256, n]) and scales [n]."""
    d = blocks.values.abs().amax(0)
    positions = blocks.values * invert(d)
    if blocks.noise is None:
        levels = truncate_from_half(positions).trunc_()
    else:
        levels = round_levels(positions, blocks.noise)
    return levels.clamp_(-1, 1).add_(1).to(torch.uint8), d


def _unpack_tq2_0(packed: torch.Tensor) -> torch.Tensor:
    levels = unpack_planes(packed[:, :64].reshape(-1, 32), 2).view(-1, 256)
    return levels.to(torch.float32).sub_(1).mul_(read_halves(packed, 64))


def _pack_tq2_0(blocks: Blocks) -> torch.Tensor:
    levels, d = _find_levels(blocks)
    planes = levels.view(2, 4, 32, -1).transpose(0, 1)
    return lay(torch.cat((pack_planes(planes, 2).view(64, -1), half_bytes(d))))


def _unpack_tq1_0(packed: torch.Tensor) -> torch.Tensor:
    levels = torch.empty((packed.shape[0], 256), device=packed.device)
    start = 0
    for first, stop, width in _RUNS:
        left = packed[:, start : start + width].to(torch.int32)
        for place in range(first, stop, width):
            left = left * 3
            levels[:, place : place + width] = left >> 8
            left &= 255
        start += width
    return levels.sub_(1).mul_(read_halves(packed, 52))


def _pack_tq1_0(blocks: Blocks) -> torch.Tensor:
    levels, d = _find_levels(blocks)
    parts = []
    for first, stop, width in _RUNS:
        digits = levels[first:stop].view(-1, width, levels.shape[1]).to(torch.int32)
        joined = torch.zeros_like(digits[0])
        for place in range(5):
            joined = joined * 3 + (digits[place] if place < digits.shape[0] else 0)
        parts.append(((joined * 256 + 242) // 243).to(torch.uint8))
    return lay(torch.cat((*parts, half_bytes(d))))


SCHEMES = {
    "TQ1_0": Scheme(_unpack_tq1_0, _pack_tq1_0),
    "TQ2_0": Scheme(_unpack_tq2_0, _pack_tq2_0),
}
