"""Q4_K and Q5_K: eight groups of 32, scale * level - minimum, scales and minima of six bits.

Bytes of a block of 256: d (half), dmin (half), twelve of scales and minima, [Q5_K: 32 of fifth
bits,] 128 of nibbles. Source: ggml-common.h, block_q4_K and block_q5_K.
"""

from __future__ import annotations

from functools import partial

import torch

from adaptool.encodings.ggml.affine import AffineProblem, find_levels, store_affine
from adaptool.encodings.ggml.blocks import (
    Blocks,
    Scheme,
    half_bytes,
    lay,
    read_halves,
)
from adaptool.encodings.ggml.packing import (
    pack_nibbles,
    pack_planes,
    pack_scale_pairs,
    unpack_nibbles,
    unpack_planes,
    unpack_scale_pairs,
)
from adaptool.encodings.ggml.weights import weigh

_GROUPS, _LENGTH = 8, 32
_TRIALS = {4: ((-1.0, -0.4, 0.2, 0.8), 2), 5: ((-1.4, -0.7, 0.0, 0.7), 1)}
"""By bits: trial ranges in steps beyond the highest level, and how often each is polished."""


def _unpack(bits: int, packed: torch.Tensor) -> torch.Tensor:
    scales, minima = unpack_scale_pairs(packed[:, 4:16])
    steps = (scales * read_halves(packed, 0)).unsqueeze(2)
    offsets = (minima * read_halves(packed, 2)).unsqueeze(2)
    levels = unpack_nibbles(packed[:, -128:], _LENGTH).view(-1, _GROUPS, _LENGTH)
    if bits == 5:
        levels |= unpack_planes(packed[:, 16:48], 1) << 4
    return levels.to(torch.float32).mul_(steps).sub_(offsets).view(-1, _GROUPS * _LENGTH)


def _pack(bits: int, blocks: Blocks) -> torch.Tensor:
    top = 2**bits - 1
    values = blocks.values.view(_GROUPS, _LENGTH, -1)
    problem = AffineProblem(values, weigh(blocks, values, breadth=2, evenness=1), top)
    stored = store_affine(problem, problem.fit(*_TRIALS[bits]), 63)
    levels = find_levels(problem, stored, blocks.noise)
    parts = [half_bytes(stored.d), half_bytes(stored.dmin),
             pack_scale_pairs(stored.scales, stored.offsets)]  # fmt: skip
    if bits == 5:
        fifth = levels >= 16
        parts.append(pack_planes(fifth.to(torch.uint8), 1))
        levels -= fifth * 16.0
    parts.append(pack_nibbles(levels.view(_GROUPS * _LENGTH, -1), _LENGTH))
    return lay(torch.cat(parts))


SCHEMES = {
    "Q4_K": Scheme(partial(_unpack, 4), partial(_pack, 4)),
    "Q5_K": Scheme(partial(_unpack, 5), partial(_pack, 5)),
}
