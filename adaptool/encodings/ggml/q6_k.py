"""Q6_K: sixteen groups of 16, scale * (level - 32), scales of eight bits.

Bytes of a block of 256: 128 of low nibbles, 64 of high pairs of bits, 16 scales, d (half).
Source: ggml-common.h, block_q6_K.
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
from adaptool.encodings.ggml.packing import pack_planes, unpack_nibbles, unpack_planes
from adaptool.encodings.ggml.symmetric import (
    SymmetricProblem,
    clamp_levels,
    find_levels,
    store_symmetric,
)
from adaptool.encodings.ggml.weights import weigh

_GROUPS, _LENGTH = 16, 16
_PLACES = (-32.0, -29.0, -29.5, -30.0, -30.5, -31.0, -31.5, -32.5)
"""Where a trial puts the extreme value of a group."""


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    # of every 128 levels the nibbles of 0..63 lie below those of 64..127
    levels = unpack_nibbles(packed[:, :128], 64).view(-1, 2, 4, 32)
    high = unpack_planes(packed[:, 128:192].reshape(-1, 32), 2).view(-1, 2, 4, 32)
    levels |= high << 4
    scales = packed[:, 192:208].contiguous().view(torch.int8).to(torch.float32)
    steps = (scales * read_halves(packed, 208)).unsqueeze(2)
    values = levels.to(torch.float32).sub_(32).view(-1, _GROUPS, _LENGTH)
    return values.mul_(steps).view(-1, _GROUPS * _LENGTH)


def _pack(blocks: Blocks) -> torch.Tensor:
    values = blocks.values.view(_GROUPS, _LENGTH, -1)
    if blocks.importance is None:
        weights = weigh(blocks, values, breadth=0)
    else:
        weights = blocks.importance.view(values.shape)
    problem = SymmetricProblem(values, weights, clamp_levels(32))
    scales, d = store_symmetric(problem, problem.fit(_PLACES), 128)
    levels = find_levels(problem, scales, d, 32, blocks.noise).add_(32).to(torch.uint8)
    quarters = levels.view(2, 4, 32, -1)
    low = quarters & 15
    return lay(torch.cat((
        (low[:, :2] | (low[:, 2:] << 4)).view(128, -1),
        pack_planes((quarters >> 4).transpose(0, 1), 2).view(64, -1),
        scales.to(torch.int8).view(torch.uint8),
        half_bytes(d),
    )))  # fmt: skip


SCHEMES = {"Q6_K": Scheme(_unpack, _pack)}
