"""Isotropic merging (Marczak et al. 2025, arXiv:2502.04959): all directions equally strong.

Iso-C, `common=1`:

    sum_i w_i D_i = U S V',    D = mean(S) U V'                              section 4.1

Iso-CTS, `common` below 1 (the paper takes 0.8):

    the first k = common * r directions are those of the sum; each update, less its part in the
    span of these U, gives its own (r - k) / T leading ones; all together are made orthonormal
    (as in `tsv`), and D = mean(S) U V' over the values of all                algorithm 1

r is the rank of the space that the updates span, since beyond it a low-rank sum has no directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adaptool.canonical import LowRank
from adaptool.canonical.algebra import Spectrum
from adaptool.canonical.subspaces import low_rank, polar, shared_subspace, significant
from adaptool.methods import Number, Parameter, Part, Settings

if TYPE_CHECKING:
    import torch

SUMMARY = "all singular values of the sum made equal"
PARAMETERS: tuple[Parameter, ...] = (
    Number("common", 1.0, 0.0, 1.0, "share of directions from the sum; the rest is each update's"),
)


def merge(parts: Sequence[Part], settings: Settings) -> LowRank:
    """The isotropic sum; its rank is at most the sum of ranks."""
    import torch

    space = shared_subspace([update for update, _ in parts])
    strong = [core * weight for core, (_, weight) in zip(space.cores, parts, strict=True)]
    total = torch.stack(strong).sum(dim=0)
    whole = _spectrum(total)
    rank = min(total.shape)
    kept = round(settings.number("common") * rank)
    if kept >= rank:
        found = [whole]
    else:
        shared = Spectrum(whole.u[:, :kept], whole.s[:kept], whole.vt[:kept])
        found = [shared, *(_own(core, shared, (rank - kept) // len(parts)) for core in strong)]
    u = torch.cat([s.u for s in found], dim=1)
    v = torch.cat([s.vt for s in found]).T
    s = torch.cat([s.s for s in found])
    if len(found) > 1:
        u, v = polar(u), polar(v)
    level = torch.full_like(s, float(s.mean()) if len(s) else 0.0)
    return low_rank(Spectrum(space.left @ u, level, v.T @ space.right), space.like)


def _own(core: torch.Tensor, shared: Spectrum, count: int) -> Spectrum:
    """The leading directions of an update outside the shared ones."""
    rest = _spectrum(core - shared.u @ (shared.u.T @ core))
    return Spectrum(rest.u[:, :count], rest.s[:count], rest.vt[:count])


def _spectrum(core: torch.Tensor) -> Spectrum:
    """All directions of a small matrix that have a value."""
    import torch

    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    rank = significant(s)
    return Spectrum(u[:, :rank], s[:rank], vt[:rank])
