"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: one group of 32 with one scale, in _1 a least value too.

Scales and least values are halves. Without importance the arithmetic is ggml's, step by step, and
so are the bytes. Source: ggml-common.h for the layout, quantize_row_*_ref and _impl of
ggml-quants.c for the values.
"""

from __future__ import annotations

from functools import partial

import torch

from adaptool.encodings.ggml.affine import AffineProblem
from adaptool.encodings.ggml.blocks import (
    Blocks,
    Scheme,
    first_extremes,
    half_bytes,
    invert,
    lay,
    read_halves,
    round_levels,
    truncate_from_half,
)
from adaptool.encodings.ggml.packing import (
    pack_nibbles,
    pack_planes,
    unpack_nibbles,
    unpack_planes,
)
from adaptool.encodings.ggml.scratch import borrow
from adaptool.encodings.ggml.symmetric import SymmetricProblem, clamp_levels
from adaptool.encodings.ggml.weights import weigh_rows

_LENGTH = 32
_HALF_SPAN = 16
"""Values whose low nibbles lie below the others' in a block."""
_PLACES = {8: (-7.0, -7.6, -8.2, -8.8), 16: (-15.0, -15.6, -16.2, -16.8)}
"""With importance, by the number of negative levels: where a trial puts the extreme value."""
_NUDGES = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0, 1.5, 2.1)
"""With importance: trial ranges in steps beyond the highest level; beyond 1 they clip."""


# -- eight bits ------------------------------------------------------------------------------------


def _unpack_q8_0(packed: torch.Tensor) -> torch.Tensor:
    levels = packed[:, 2:].view(torch.int8).to(torch.float32)
    return levels.mul_(read_halves(packed, 0))


def _pack_q8_0(values: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    positions = borrow("positions", tuple(values.shape), values.device)
    d = torch.abs(values, out=positions).amax(1).div_(127)
    torch.mul(values, invert(d).unsqueeze(1), out=positions)
    if noise is None:
        truncate_from_half(positions)
    else:
        round_levels(positions, noise).clamp_(-127, 127)
    packed = values.new_empty((values.shape[0], 2 + _LENGTH), dtype=torch.uint8)
    packed[:, :2] = half_bytes(d).t()
    packed[:, 2:].view(torch.int8).copy_(positions)
    return packed


# -- four and five bits ----------------------------------------------------------------------------


def _unpack(bits: int, offset: bool, packed: torch.Tensor) -> torch.Tensor:
    levels = unpack_nibbles(packed[:, -_HALF_SPAN:], _HALF_SPAN)
    if bits == 5:
        head = 4 if offset else 2
        levels |= _unpack_fifth(packed[:, head : head + 4]) << 4
    values = levels.to(torch.float32)
    if offset:
        return values.mul_(read_halves(packed, 0)).add_(read_halves(packed, 2))
    return values.sub_(2 ** (bits - 1)).mul_(read_halves(packed, 0))


def _unpack_fifth(packed: torch.Tensor) -> torch.Tensor:
    """Bit j of a little-endian word of 32 belongs to value j: uint8 [n, 4] -> [n, 32]."""
    return unpack_planes(packed, 1).transpose(1, 2).reshape(-1, _LENGTH)


def _pack_symmetric(bits: int, blocks: Blocks) -> torch.Tensor:
    half = 2 ** (bits - 1)
    if blocks.importance is None:
        d = first_extremes(blocks.values) / -half
    else:
        values = blocks.values.unsqueeze(0)
        problem = SymmetricProblem(values, weigh_rows(blocks).unsqueeze(0), clamp_levels(half))
        d = problem.fit(_PLACES[half], 2).view(-1)
    positions = (blocks.values * invert(d)).add_(half)
    levels = _settle(positions, blocks.noise, 2 * half - 1)
    return lay(torch.cat((half_bytes(d), *_pack_levels(bits, levels))))


def _pack_affine(bits: int, blocks: Blocks) -> torch.Tensor:
    top = 2**bits - 1
    if blocks.importance is None:
        least = blocks.values.amin(0)
        d = (blocks.values.amax(0) - least) / top
    else:
        problem = AffineProblem(blocks.values.unsqueeze(0), weigh_rows(blocks).unsqueeze(0), top)
        d, offset = (part.view(-1) for part in problem.fit(_NUDGES, 3))
        least = -offset
    positions = (blocks.values - least).mul_(invert(d))
    levels = _settle(positions, blocks.noise, top)
    parts = (half_bytes(d), half_bytes(least), *_pack_levels(bits, levels))
    return lay(torch.cat(parts))


def _settle(positions: torch.Tensor, noise: torch.Tensor | None, top: int) -> torch.Tensor:
    """Levels of positions that are above -1/2: halves go up, as by C's cast of x + 0.5."""
    lift = 0.5 if noise is None else noise
    return positions.add_(lift).floor_().clamp_(0, top)


def _pack_levels(bits: int, levels: torch.Tensor) -> list[torch.Tensor]:
    if bits == 4:
        return [pack_nibbles(levels, _HALF_SPAN)]
    fifth = levels >= 16
    word = fifth.view(4, 8, -1).transpose(0, 1).to(torch.uint8)
    return [pack_planes(word, 1), pack_nibbles(levels.sub_(fifth * 16.0), _HALF_SPAN)]


SCHEMES = {
    "Q8_0": Scheme(_unpack_q8_0, pack_lying=_pack_q8_0),
    "Q4_0": Scheme(partial(_unpack, 4, False), partial(_pack_symmetric, 4)),
    "Q5_0": Scheme(partial(_unpack, 5, False), partial(_pack_symmetric, 5)),
    "Q4_1": Scheme(partial(_unpack, 4, True), partial(_pack_affine, 4)),
    "Q5_1": Scheme(partial(_unpack, 5, True), partial(_pack_affine, 5)),
}
