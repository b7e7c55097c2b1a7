"""IQ4_NL and IQ4_XS: sixteen levels that stand closer near zero.

IQ4_NL, a block of 32: d (half), 16 of nibbles. IQ4_XS, a block of 256 in eight groups of 32: d,
16 bits of the scales' high pairs, 4 of their low nibbles, 128 of nibbles; the value is
d * (scale - 32) * level. Source: ggml-common.h, block_iq4_nl, block_iq4_xs and kvalues_iq4nl.
"""

from __future__ import annotations

from functools import cache

import torch

from adaptool.encodings.ggml.blocks import Blocks, Scheme, half_bytes, invert, lay, read_halves
from adaptool.encodings.ggml.packing import pack_nibbles, pack_planes, unpack_nibbles, unpack_planes
from adaptool.encodings.ggml.symmetric import SymmetricProblem, find_positions, store_symmetric
from adaptool.encodings.ggml.weights import weigh

_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_SPAN = 16
_GROUPS, _LENGTH = 8, 32
_REACH = 128
_PLACES = (-134.0, -131.0, -128.0, -125.0, -122.0, -119.0, 113.0, 116.0)
"""Where a trial puts the extreme value of a group: at or beyond either end of the levels."""


@cache
def _tabulate(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For every half step from -_REACH to _REACH the nearest level's index, and that level.

    All boundaries between two levels are multiples of one half, so the tables are exact; a
    position on a boundary goes up, as in ggml.
    """
    levels = torch.tensor(_LEVELS, dtype=torch.float32)
    positions = torch.arange(-2 * _REACH, 2 * _REACH + 1) / 2
    indices = torch.bucketize(positions, (levels[1:] + levels[:-1]) / 2, right=True)
    return indices.to(device, torch.float32), levels[indices].to(device)


def _look_up(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    steps = positions.mul_(2).floor_().clamp_(-2 * _REACH, 2 * _REACH).add_(2 * _REACH)
    indices = steps.to(torch.int32).clamp_(min=0)  # which catches what is not a number
    return table.index_select(0, indices.view(-1)).view(positions.shape)


def _round_to_levels(positions: torch.Tensor) -> torch.Tensor:
    return _look_up(_tabulate(positions.device)[1], positions)


def _find_indices(positions: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Indices of levels (float32) nearest to positions, or by chance of the two on either side."""
    if noise is None:
        return _look_up(_tabulate(positions.device)[0], positions)
    levels = torch.tensor(_LEVELS, dtype=torch.float32, device=positions.device)
    positions = positions.clamp_(_LEVELS[0], _LEVELS[-1])
    below = torch.bucketize(positions, levels[1:-1], right=True)
    low, high = levels[below], levels[below + 1]
    return ((positions - low) / (high - low)).add_(noise.view(positions.shape)).floor_().add_(below)


# -- one group -------------------------------------------------------------------------------------


def _levels_of(packed: torch.Tensor) -> torch.Tensor:
    """Nibbles uint8 [n, bytes] -> levels float32 [n, 2 * bytes]."""
    levels = torch.tensor(_LEVELS, dtype=torch.float32, device=packed.device)
    indices = unpack_nibbles(packed, _SPAN).to(torch.int32)
    return levels.index_select(0, indices.view(-1)).view(indices.shape)


def _unpack_nl(packed: torch.Tensor) -> torch.Tensor:
    return _levels_of(packed[:, 2:]).mul_(read_halves(packed, 0))


def _pack_nl(blocks: Blocks) -> torch.Tensor:
    values = blocks.values.unsqueeze(0)
    problem = SymmetricProblem(values, weigh(blocks, values, breadth=2), _round_to_levels)
    d = problem.fit(_PLACES, 1).view(-1).to(torch.float16)
    indices = _find_indices(problem.place(invert(d.to(torch.float32))), blocks.noise).squeeze(0)
    return lay(torch.cat((half_bytes(d), pack_nibbles(indices, _SPAN))))


# -- eight groups ----------------------------------------------------------------------------------


def _unpack_xs(packed: torch.Tensor) -> torch.Tensor:
    low = unpack_planes(packed[:, 4:8], 4).transpose(1, 2).reshape(-1, _GROUPS)
    high = unpack_planes(packed[:, 2:4], 2).transpose(1, 2).reshape(-1, _GROUPS)
    scales = (low | (high << 4)).to(torch.float32).sub_(32).mul_(read_halves(packed, 0))
    levels = _levels_of(packed[:, 8:]).view(-1, _GROUPS, _LENGTH)
    return levels.mul_(scales.unsqueeze(2)).view(-1, _GROUPS * _LENGTH)


def _pack_xs(blocks: Blocks) -> torch.Tensor:
    values = blocks.values.view(_GROUPS, _LENGTH, -1)
    problem = SymmetricProblem(values, weigh(blocks, values, breadth=2), _round_to_levels)
    scales, d = store_symmetric(problem, problem.fit(_PLACES, 1), 32)
    indices = _find_indices(find_positions(problem, scales, d), blocks.noise)
    biased = (scales + 32).to(torch.uint8)
    return lay(torch.cat((
        half_bytes(d),
        pack_planes((biased >> 4).view(2, 4, -1).transpose(0, 1), 2),
        pack_planes((biased & 15).view(4, 2, -1).transpose(0, 1), 4),
        pack_nibbles(indices.view(_GROUPS * _LENGTH, -1), _SPAN),
    )))  # fmt: skip


SCHEMES = {"IQ4_NL": Scheme(_unpack_nl, _pack_nl), "IQ4_XS": Scheme(_unpack_xs, _pack_xs)}
