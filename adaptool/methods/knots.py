"""KnOTS (Stoica et al. 2024, arXiv:2410.19735): align updates by one SVD, then merge.

    [D_1 ... D_T] = U S [V_1' ... V_T']      side by side, along the inputs     eq. 3
    D = U S V',   V = merge(V_1, ..., V_T)   value by value                     eq. 4

The V_i are what differs between the updates once all are written in one basis U S of the outputs.
They are [K, in], so no dense update is formed. `merge` is TIES, or the weighted sum, which
alone would give the plain sum of the updates.
"""

from __future__ import annotations

from collections.abc import Sequence

from adaptool.canonical import LowRank
from adaptool.canonical.algebra import Spectrum
from adaptool.canonical.blending import blend_matrices
from adaptool.canonical.subspaces import low_rank, significant
from adaptool.methods import Choice, Parameter, Part, Settings, linear, ties
from adaptool.methods._election import DENSITY, ELECTION

SUMMARY = "updates aligned by one SVD, then TIES on what differs"
PARAMETERS: tuple[Parameter, ...] = (
    Choice("merge", "ties", ("ties", "linear"), "how the aligned parts become one"),
    DENSITY,
    *ELECTION,
)


def merge(parts: Sequence[Part], settings: Settings) -> LowRank:
    """The aligned and merged update; its rank is at most the sum of ranks."""
    import torch

    factors = [update.factors(torch.float64, torch.device("cpu")) for update, _ in parts]
    left = torch.linalg.qr(torch.cat([b for _, b in factors], dim=1))
    sides = [torch.linalg.qr(a.T) for a, _ in factors]
    columns, first = [], 0
    for (a, _), (update, _), side in zip(factors, parts, sides, strict=True):
        band = left.R[:, first : first + a.shape[0]]
        columns.append(band @ side.R.T * update.scaling)
        first += a.shape[0]
    u, s, vt = torch.linalg.svd(torch.cat(columns, dim=1), full_matrices=False)
    rank = significant(s)
    blocks = vt[:rank].split([side.Q.shape[1] for side in sides], dim=1)
    aligned = [v @ side.Q.T for v, side in zip(blocks, sides, strict=True)]
    rule = (ties if settings.word("merge") == "ties" else linear).rule(settings)
    merged = blend_matrices(rule, aligned, [weight for _, weight in parts], range(len(parts)))
    return low_rank(Spectrum(left.Q @ u[:, :rank], s[:rank], merged), parts[0][0])
