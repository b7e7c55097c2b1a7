"""Q3_K: sixteen groups of 16, scale * (level - 4), signed scales of six bits.

Bytes of a block of 256: 32 of highest bits, 64 of low pairs of bits, 12 of scales, d (half).
Source: ggml-common.h, block_q3_K.
"""

from __future__ import annotations

import torch

from adaptool.encodings.ggml.blocks import (
    Blocks,
    Scheme,
    half_bytes,
    lay,
    read_halves,
)
from adaptool.encodings.ggml.packing import pack_planes, unpack_planes
from adaptool.encodings.ggml.symmetric import (
    SymmetricProblem,
    clamp_levels,
    find_levels,
    store_symmetric,
)
from adaptool.encodings.ggml.weights import weigh

_GROUPS, _LENGTH = 16, 16
_PLACES = (-4.0, -3.1, -3.4, -3.7, -4.3, -4.6, -4.9)
"""Where a trial puts the extreme value of a group."""


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    scales = _unpack_scales(packed[:, 96:108]) * read_halves(packed, 108)
    levels = unpack_planes(packed[:, 32:96].reshape(-1, 32), 2).view(-1, 8, 32)
    levels |= unpack_planes(packed[:, :32], 1) << 2
    values = levels.to(torch.float32).sub_(4).view(-1, _GROUPS, _LENGTH)
    return values.mul_(scales.unsqueeze(2)).view(-1, _GROUPS * _LENGTH)


def _unpack_scales(packed: torch.Tensor) -> torch.Tensor:
    """Low nibbles of scales 0..7 and 8..15 in eight bytes, high pairs of bits in four."""
    low = torch.cat((packed[:, :8] & 15, packed[:, :8] >> 4), 1)
    high = unpack_planes(packed[:, 8:], 2).view(-1, 16)
    return (low | (high << 4)).to(torch.float32).sub_(32)


def _pack_scales(scales: torch.Tensor) -> torch.Tensor:
    """Signed scales, float32 [16, n] -> uint8 [12, n]."""
    biased = (scales + 32).to(torch.uint8)
    low = (biased[:8] & 15) | (biased[8:] << 4)
    return torch.cat((low, pack_planes((biased >> 4).view(4, 4, -1), 2)))


def _pack(blocks: Blocks) -> torch.Tensor:
    values = blocks.values.view(_GROUPS, _LENGTH, -1)
    problem = SymmetricProblem(values, weigh(blocks, values, breadth=2), clamp_levels(4))
    scales, d = store_symmetric(problem, problem.fit(_PLACES, 1), 32)
    levels = find_levels(problem, scales, d, 4, blocks.noise).add_(4).to(torch.uint8)
    return lay(torch.cat((
        pack_planes(levels.view(8, 32, -1) >> 2, 1),
        pack_planes((levels & 3).view(2, 4, 32, -1).transpose(0, 1), 2).view(64, -1),
        _pack_scales(scales),
        half_bytes(d),
    )))  # fmt: skip


SCHEMES = {"Q3_K": Scheme(_unpack, _pack)}
