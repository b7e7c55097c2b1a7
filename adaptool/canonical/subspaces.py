"""Bases that all updates of one weight have in common, and the updates as small matrices in them.

With B = [B_1 ... B_T] = U_B S V' and A = [A_1; ...; A_T] = U S V_A', both thin, every update is

    D_i = U_B M_i V_A',    M_i = s_i (U_B' B_i) (A_i V_A)          at most K x K, K = sum of ranks

without loss (Core Space, arXiv:2509.17786, section 4). Norms, products and singular values of the
M_i are those of the D_i; single values are not, so that what works value by value (TIES, DARE)
gives another result there than on the dense updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical.algebra import Spectrum, from_spectrum
from adaptool.canonical.updates import LowRank

if TYPE_CHECKING:
    import torch

NEGLIGIBLE = 1e-7
"""Singular values of an update below this part of the largest are rounding of float32 factors."""
DEPENDENT = 1e-12
"""The same of factors side by side, which may be of very different sizes: rounding of float64."""


@dataclass(frozen=True)
class Subspace:
    """Updates of one weight in bases that they share, all float64.

    Attributes:
        left: [out, K_b], orthonormal columns.
        right: [K_a, in * kernel], orthonormal rows.
        cores: of each update the matrix [K_b, K_a] with D = left @ core @ right.
        like: an update that tells the shape of the weight.
    """

    left: torch.Tensor
    right: torch.Tensor
    cores: tuple[torch.Tensor, ...]
    like: LowRank

    def lifted(self, core: torch.Tensor) -> LowRank:
        """The product left @ core @ right as balanced factors, of the rank that `core` has."""
        import torch

        u, s, vt = torch.linalg.svd(core, full_matrices=False)
        rank = significant(s)
        return low_rank(Spectrum(self.left @ u[:, :rank], s[:rank], vt[:rank] @ self.right),
                        self.like)  # fmt: skip


def shared_subspace(updates: Sequence[LowRank]) -> Subspace:
    """The bases spanned by all factors, and every update in them."""
    import torch

    factors = [update.factors(torch.float64, torch.device("cpu")) for update in updates]
    left = _basis(torch.cat([b for _, b in factors], dim=1))
    right = _basis(torch.cat([a for a, _ in factors]).T).T
    cores = tuple(
        (left.T @ b) @ (a @ right.T) * update.scaling
        for (a, b), update in zip(factors, updates, strict=True)
    )
    return Subspace(left, right, cores, updates[0])


def low_rank(spectrum: Spectrum, like: LowRank) -> LowRank:
    """The product u diag(s) vt as an update of the weight of `like`; s may be negative."""
    signed = Spectrum(spectrum.u * spectrum.s.sign(), spectrum.s.abs(), spectrum.vt)
    return from_spectrum(signed, len(spectrum.s), like.shape[2:], like.embedding)


def significant(values: torch.Tensor, part: float = NEGLIGIBLE) -> int:
    """How many of the descending singular values are above this part of the largest; at least 1."""
    return max(1, int((values > part * values[0]).sum()))


def polar(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with orthonormal columns that is closest to a tall one [rows, cols].

    It is P Q' of the singular value decomposition P S Q' (orthogonal Procrustes problem).
    """
    import torch

    p, _, qt = torch.linalg.svd(matrix, full_matrices=False)
    closest: torch.Tensor = p @ qt
    return closest


def _basis(matrix: torch.Tensor) -> torch.Tensor:
    """Left singular vectors of a tall matrix, those with a value."""
    import torch

    q, r = torch.linalg.qr(matrix)
    u, s, _ = torch.linalg.svd(r, full_matrices=False)
    basis: torch.Tensor = q @ u[:, : significant(s, DEPENDENT)]
    return basis
