"""The algebra of low-rank updates, on factors: the dense update is never formed.

With K = sum of ranks, the costs are O((in + out) K^2 + K^3); all of it in float64, so that even
updates that nearly cancel keep float32 precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import TYPE_CHECKING

from adaptool.canonical.tensors import LazyTensor, from_values
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
    # Q comes column-major: products with its transpose run eight times as fast
    return Spectrum((u.T @ left.Q.T).T, s, vt @ right.Q.T)


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
    return replace(first, a=_single(a.reshape(-1, *first.a.shape[1:])), b=_single(b), scaling=1.0)


def truncate(update: LowRank, rank: int) -> LowRank:
    """The best approximation of at most `rank` in the Frobenius norm (Eckart and Young 1936).

    Raises ValueError for a rank below 1.
    """
    return from_spectrum(decompose(update), rank, update.a.shape[2:], update.embedding)


def from_spectrum(
    spectrum: Spectrum, rank: int, kernel: tuple[int, ...] = (), embedding: bool = False
) -> LowRank:
    """The leading `rank` values of a spectrum as float32 factors, with scaling 1.

    Both factors carry the square roots of the singular values: equal norms serve narrow types
    best. A spectrum of fewer values gives fewer.

    Args:
        spectrum: of a matrix [out, in * kernel].
        rank: at least 1.
        kernel: trailing sizes of a convolution's weight.
        embedding: the weight is stored as [in, out], one row per token.

    Raises ValueError for a rank below 1.
    """
    if rank < 1:
        raise ValueError("a rank is at least 1")
    root = spectrum.s[:rank].sqrt()
    a, b = root[:, None] * spectrum.vt[:rank], spectrum.u[:, :rank] * root
    shape = (len(root), spectrum.vt.shape[1] // prod(kernel), *kernel)
    return LowRank(_single(a.reshape(shape)), _single(b), 1.0, embedding)


def inner(one: LowRank, two: LowRank) -> float:
    """<dW1, dW2> = scaling1 * scaling2 * tr((B1' B2) (A2 A1')), in float64."""
    (a1, b1), (a2, b2) = _factors(one), _factors(two)
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum()) * one.scaling * two.scaling


def truncation_error(values: torch.Tensor, rank: int) -> float:
    """|dW - truncated|_F of a spectrum cut after `rank` values."""
    return sqrt(float(values[rank:].square().sum()))


def _factors(update: LowRank) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    return update.factors(torch.float64, torch.device("cpu"))


def _single(values: torch.Tensor) -> LazyTensor:
    return from_values(values.float().contiguous())
