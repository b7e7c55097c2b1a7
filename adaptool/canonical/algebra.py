"""The algebra of low-rank updates, on factors: the dense update is never formed.

With K = sum of ranks, the costs are O((in + out) K^2 + K^3); all of it in float64, so that even
updates that nearly cancel keep float32 precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING

from adaptool.canonical.tensors import from_values
from adaptool.canonical.updates import LowRank

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Spectrum:
    """scaling * B A = U diag(s) V', thin.

    Attributes:
        u: [out, rank], orthonormal columns, float64.
        s: [rank], descending.
        vt: [rank, in * kernel], orthonormal rows.
    """

    u: torch.Tensor
    s: torch.Tensor
    vt: torch.Tensor


def singular_values(update: LowRank) -> torch.Tensor:
    """Singular values of scaling * B A: [rank], descending, float64.

    With B = Q_b R_b and A' = Q_a R_a they are those of the small matrix R_b R_a'.
    """
    import torch

    a, b = _factors(update)
    core = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.T, mode="r").R.T
    values: torch.Tensor = torch.linalg.svdvals(core) * abs(update.scaling)
    return values


def decompose(update: LowRank) -> Spectrum:
    """Singular value decomposition from the QR of both factors and the SVD of the small core."""
    import torch

    a, b = _factors(update)
    left, right = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(left.R @ right.R.T * update.scaling, full_matrices=False)
    return Spectrum(left.Q @ u, s, vt @ right.Q.T)


def add(parts: Sequence[tuple[LowRank, float]]) -> LowRank:
    """The weighted sum of updates of one weight, exactly: factors concatenated, ranks add up.

    Weights and strengths go into B; the result's scaling is 1.

    Raises ValueError if there are none, or their shapes differ.
    """
    import torch

    if not parts or len({(update.shape, update.embedding) for update, _ in parts}) != 1:
        raise ValueError("updates of one weight have one shape")
    first = parts[0][0]
    factors = [(*_factors(update), weight * update.scaling) for update, weight in parts]
    a = torch.cat([a for a, _, _ in factors])
    b = torch.cat([b * strength for _, b, strength in factors], dim=1)
    return _made(first, a, b)


def truncate(update: LowRank, rank: int) -> LowRank:
    """The best approximation of at most `rank` in the Frobenius norm (Eckart and Young 1936).

    The factors come back balanced, each with the square roots of the singular values, which
    serves narrow types best; the scaling is 1.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError("a rank is at least 1")
    spectrum = decompose(update)
    root = spectrum.s[:rank].sqrt()
    return _made(update, root[:, None] * spectrum.vt[:rank], spectrum.u[:, :rank] * root)


def truncation_error(values: torch.Tensor, rank: int) -> float:
    """|dW - truncated|_F of a spectrum cut after `rank` values."""
    return sqrt(float(values[rank:].square().sum()))


def _factors(update: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return update.factors(torch.float64, torch.device("cpu"))


def _made(like: LowRank, a: torch.Tensor, b: torch.Tensor) -> LowRank:
    shaped = a.float().reshape(a.shape[0], *like.a.shape[1:])
    return replace(like, a=from_values(shaped), b=from_values(b.float().contiguous()), scaling=1.0)
