"""Q2_K: sixteen groups of 16, scale * level - minimum, scales and minima of four bits.

Bytes of a block of 256: 16 of scales (low nibble) and minima (high), 64 of levels, d and dmin
(halves). Source: ggml-common.h, block_q2_K.
"""

from __future__ import annotations

import torch

from adaptool.encodings.ggml.affine import AffineProblem, find_levels, store_affine
from adaptool.encodings.ggml.blocks import Blocks, Scheme, half_bytes, lay, read_halves
from adaptool.encodings.ggml.packing import pack_planes, unpack_planes
from adaptool.encodings.ggml.weights import weigh

_GROUPS, _LENGTH = 16, 16
_TRIALS = ((-0.9, -0.4, 0.1, 0.6, 1.1), 2)
"""Trial ranges in steps beyond the highest level, and how often each is polished."""


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    both = packed[:, :16]
    steps = ((both & 15) * read_halves(packed, 80)).unsqueeze(2)
    offsets = ((both >> 4) * read_halves(packed, 82)).unsqueeze(2)
    # of every 128 levels those of 32 fill one pair of bits
    levels = unpack_planes(packed[:, 16:80].reshape(-1, 32), 2).view(-1, _GROUPS, _LENGTH)
    return levels.to(torch.float32).mul_(steps).sub_(offsets).view(-1, _GROUPS * _LENGTH)


def _pack(blocks: Blocks) -> torch.Tensor:
    values = blocks.values.view(_GROUPS, _LENGTH, -1)
    problem = AffineProblem(values, weigh(blocks, values, breadth=1), 3)
    stored = store_affine(problem, problem.fit(*_TRIALS), 15, (1.0, 0.9))
    levels = find_levels(problem, stored, blocks.noise).to(torch.uint8)
    planes = levels.view(2, 4, 32, -1).transpose(0, 1)
    return lay(torch.cat((
        (stored.scales + stored.offsets * 16).to(torch.uint8),
        pack_planes(planes, 2).view(64, -1),
        half_bytes(stored.d),
        half_bytes(stored.dmin),
    )))  # fmt: skip


SCHEMES = {"Q2_K": Scheme(_unpack, _pack)}
