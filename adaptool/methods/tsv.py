"""TSV-Merge (Gargiulo et al. 2024, arXiv:2412.00081): task singular vectors, decorrelated.

    D_i ~ U_i S_i V_i'               the largest `keep` share of each update's singular values
    U = [U_1 ... U_T],  S = diag(w_1 S_1, ..., w_T S_T),  V = [V_1 ... V_T]
    D = polar(U) S polar(V)'         interference removed: the closest orthonormal columns (eq. 7)

For full updates the paper keeps a share 1 / T, so that T of them fill the space exactly. Low-rank
ones have room for all their values; hence `keep` is 1 unless it is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING

from adaptool.canonical import LowRank
from adaptool.canonical.algebra import Spectrum
from adaptool.canonical.subspaces import low_rank, polar, shared_subspace, significant
from adaptool.methods import Number, Parameter, Part, Settings

if TYPE_CHECKING:
    import torch

SUMMARY = "singular vectors of all updates, made orthogonal to one another"
PARAMETERS: tuple[Parameter, ...] = (
    Number("keep", 1.0, 0.001, 1.0, "share of each update's singular values that is kept"),
)


def merge(parts: Sequence[Part], settings: Settings) -> LowRank:
    """The decorrelated sum; its rank is the number of singular values kept."""
    import torch

    space = shared_subspace([update for update, _ in parts])
    found = [_leading(core, settings.number("keep")) for core in space.cores]
    u = torch.cat([s.u for s in found], dim=1)
    v = torch.cat([s.vt for s in found]).T
    s = torch.cat([s.s * weight for s, (_, weight) in zip(found, parts, strict=True)])
    return low_rank(Spectrum(space.left @ polar(u), s, (space.right.T @ polar(v)).T), space.like)


def _leading(core: torch.Tensor, keep: float) -> Spectrum:
    import torch

    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    rank = ceil(keep * significant(s))
    return Spectrum(u[:, :rank], s[:rank], vt[:rank])
