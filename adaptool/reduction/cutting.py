"""One low-rank update: what its ranks bring and cost, and the update at a smaller rank."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from math import copysign, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical import DType, ExpertLowRank, LowRank, Site
from adaptool.canonical.algebra import inner, singular_values, truncate
from adaptool.canonical.parts import Low, matrix, members
from adaptool.canonical.tensors import from_recipe
from adaptool.errors import CorruptInputError

if TYPE_CHECKING:
    import torch

NOISE = 1e-12
"""Singular values below this share of the largest are rounding, no part of the update."""


def energies_of(site: Site, low: Low) -> list[float]:
    """Squared singular values, descending; of experts, summed by position; at least one."""
    import torch

    total = torch.zeros(min(low.rank, *matrix(low)), dtype=torch.float64)
    for member in members(low):
        try:
            values = singular_values(member)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            values = total * float("nan")
        if not values.isfinite().all():
            raise CorruptInputError(
                f"{site}: its factors hold values that are not finite", code="NONFINITE"
            )
        values[values < NOISE * values[0]] = 0
        total += values.square()
    return [float(energy) for energy in total]


def cost_of(low: Low, dtype: DType | None, *, in_bytes: bool) -> int:
    """Values, or bytes as written, of one rank."""
    factors = (low.a, low.b)
    if not in_bytes:
        return sum(factor.count // low.rank for factor in factors)
    return sum((dtype or factor.dtype).nbytes(factor.count // low.rank) for factor in factors)


def cut(low: Low, rank: int, dtype: DType | None) -> Low:
    """The update at a smaller rank, computed when it is asked for; at its own rank, itself."""
    types = (dtype or low.a.dtype, dtype or low.b.dtype)
    if rank == low.rank:
        return replace(low, a=low.a.cast(types[0]), b=low.b.cast(types[1]))
    make = cache(partial(_factors, low, rank, types))
    stack = isinstance(low, ExpertLowRank)
    shapes = (
        (*low.a.shape[:1], rank, *low.a.shape[2:]) if stack else (rank, *low.a.shape[1:]),
        (*low.b.shape[:-1], rank),
    )
    a = from_recipe(shapes[0], types[0], lambda: make()[0])
    b = from_recipe(shapes[1], types[1], lambda: make()[1])
    return replace(low, a=a, b=b)


def _factors(low: Low, rank: int, types: tuple[DType, DType]) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B, balanced, such that the module's scaling stays what it was.

    What else was trained at this module's strength (`lora_bias`) then stays right as it is.
    """
    import torch

    root = sqrt(abs(low.scaling)) or 1.0
    parts = [truncate(member, rank) for member in members(low)]
    a = [part.a.values().div_(root).to(types[0].torch) for part in parts]
    b = [part.b.values().div_(copysign(root, low.scaling)).to(types[1].torch) for part in parts]
    return (a[0], b[0]) if isinstance(low, LowRank) else (torch.stack(a), torch.stack(b))


def distance(old: Low, new: Low) -> float:
    """|dW - dW'|_F^2 of two updates of one weight, from products of their factors.

    Both are stored in 32 bits or fewer, so float64 leaves a relative error below 1e-7.
    """
    if old is new or (old.a is new.a and old.b is new.b):
        return 0.0
    pairs = zip(members(old), members(new), strict=True)
    return sum(max(inner(o, o) - 2 * inner(o, n) + inner(n, n), 0.0) for o, n in pairs)
