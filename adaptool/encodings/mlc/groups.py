"""Values in groups to codes and scales, and back: the arithmetic of MLC's group quantisation.

Every step is rounded to the type that the model computes in, as MLC's kernels do it:
scale = max|w| / top, code = round(w / scale + top), halves to the even, between 0 and 2 * top. So
the highest code is never used, and scales are never negative. `find_scales` uses both: for signed
scales and all codes it looks for the least squared error of each group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from adaptool.encodings.ggml.symmetric import SymmetricProblem, clamp_levels
from adaptool.encodings.mlc.casting import out_of_range
from adaptool.encodings.mlc.schemes import Scheme
from adaptool.errors import CorruptInputError

_TRIALS = 12
_NEAR, _FAR = 0.85, 1.3
"""Trials for each sign, and where they put the extreme value of a group, in parts of the range of
levels: beyond 1 it is cut off. On normal values the squared error stays within 0.5 % of the least
there is."""

_MARGIN = 1e-5
"""A found scale must be better by more than the sums of squares are exact."""


class Packed(NamedTuple):
    """Rows as they are stored.

    words: int32 [rows, words].
    scales: in the scheme's stored type [rows, groups].
    faint: groups with values that are not zero and a scale that is, for it is too small for its
        type: they are read as zeros.
    """

    words: torch.Tensor
    scales: torch.Tensor
    faint: int


def quantise(scheme: Scheme, rows: torch.Tensor, *, optimize: bool, name: str) -> Packed:
    """Codes and scales of whole rows.

    Args:
        scheme: one with bits.
        rows: float32 [rows, width].
        optimize: search for the scales.
        name: of the tensor, for messages.

    Raises:
        IncompatibleError: a finite value that the scheme's type cannot hold (OUT_OF_RANGE).
        CorruptInputError: a value is not finite (NOT_FINITE).
    """
    values = _grouped(scheme, rows)
    scale, stored = _scales(scheme, values, name)
    weights = values.to(scheme.dtype.torch)
    codes = (weights / scale).add_(scheme.top).round_().clamp_(0, 2 * scheme.top)
    codes = codes.nan_to_num_(0.0).to(torch.int32)  # 0 / 0, where all values are zero
    if optimize:
        codes, stored = _improved(scheme, values, codes, stored)
    tail = rows.shape[1] % scheme.group
    if tail:
        codes[:, -1, tail:] = 0
    silent = values[(stored == 0).squeeze(-1)]
    faint = int(silent.ne(0).any(-1).sum())
    return Packed(_pack(scheme, codes), stored.squeeze(-1), faint)


def scales_of(scheme: Scheme, rows: torch.Tensor, *, optimize: bool, name: str) -> torch.Tensor:
    """The scales alone that `quantise` gives, for less work where none are searched."""
    if optimize:
        return quantise(scheme, rows, optimize=True, name=name).scales
    return _scales(scheme, _grouped(scheme, rows), name)[1].squeeze(-1)


def dequantise(
    scheme: Scheme, words: torch.Tensor, scales: torch.Tensor, width: int
) -> torch.Tensor:
    """int32 [rows, words] and scales [rows, groups] -> float32 [rows, width].

    Products are rounded to the type that the model computes in.
    """
    shifts = torch.arange(scheme.per_word, dtype=torch.int32) * scheme.bits
    codes = (words.unsqueeze(-1) >> shifts) & ((1 << scheme.bits) - 1)
    grouped = codes.view(words.shape[0], -1, scheme.group)
    values = _read(scheme, grouped - scheme.top, scales.unsqueeze(-1))
    return values.flatten(1)[:, :width]


def _read(scheme: Scheme, levels: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """What the runtime makes of levels and scales, float32."""
    dtype = scheme.dtype.torch
    return (levels.to(dtype) * scales.to(dtype)).float()


def _grouped(scheme: Scheme, rows: torch.Tensor) -> torch.Tensor:
    """[rows, width] -> [rows, groups, group], filled up with zeros."""
    missing = -rows.shape[1] % scheme.group
    whole = torch.nn.functional.pad(rows, (0, missing)) if missing else rows
    return whole.view(rows.shape[0], -1, scheme.group)


def _scales(scheme: Scheme, values: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales by MLC's rule, [rows, groups, 1]: as codes are computed with, and as stored."""
    size = values.abs().amax(-1, keepdim=True)
    scale = size.to(scheme.dtype.torch) / scheme.top
    stored = scale.to(scheme.stored.torch)
    if not bool(_read(scheme, stored.new_tensor(scheme.top), stored).isfinite().all()):
        if bool(size.isfinite().all()):
            raise out_of_range(name, scheme.dtype)
        raise CorruptInputError(
            f"{name}: has a value that is not finite",
            hint="look for NaNs with `adaptool inspect --stats`",
            code="NOT_FINITE",
        )
    return scale, stored


def _improved(
    scheme: Scheme, values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales with a smaller error wherever the search found one, else as they are."""
    half = scheme.top + 1
    standing = values.view(-1, scheme.group).T.contiguous()
    found = find_scales(standing, half).to(scheme.stored.torch)
    exact = found.float()
    inverse = torch.where(exact == 0, 0.0, exact.reciprocal())
    levels = (standing * inverse).round_().clamp_(-scheme.top, half)
    error = _read(scheme, levels, found).sub_(standing).square_().sum(0)
    before = _read(scheme, codes - scheme.top, scales).sub_(values).square_().sum(-1).view(-1)
    better = error < before * (1 - _MARGIN)
    other = levels.add_(scheme.top).T.to(torch.int32).contiguous().view_as(codes)
    better = better.view_as(scales)
    return torch.where(better, other, codes), torch.where(better, found.view_as(scales), scales)


def find_scales(standing: torch.Tensor, half: int) -> torch.Tensor:
    """Signed scales with nearly the least squared error for levels from 1 - half to half.

    Args:
        standing: float32 [group, n], one group in each column.
        half: 8 or 4.

    Returns float32 [n].
    """
    reach = [_NEAR + (_FAR - _NEAR) * i / (_TRIALS - 1) for i in range(_TRIALS)]
    problem = SymmetricProblem(
        standing.unsqueeze(0), torch.ones_like(standing).unsqueeze(0), clamp_levels(half)
    )
    places = [side * half * part for part in reach for side in (-1, 1)]
    return -problem.fit(places).view(-1)  # its levels go from -half to half - 1


def _pack(scheme: Scheme, codes: torch.Tensor) -> torch.Tensor:
    """int32 [rows, groups, group] -> int32 [rows, words], the first code in the lowest bits."""
    parts = codes.view(codes.shape[0], -1, scheme.per_word)
    words = parts[..., 0].clone()
    for index in range(1, scheme.per_word):
        words |= parts[..., index] << scheme.bits * index
    return words
