"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, disjoint mean.

    D_i  <- top(D_i, density)                trim (step 1; the paper keeps k = 20 %)
    D     = disjoint mean of w_i D_i         elect and merge (steps 2 and 3, see `_election`)

The paper's lambda is the common size of the weights. As in the paper the values that agree are
averaged, not summed: an adapter with itself, at 1 and 1, gives itself.
"""

from __future__ import annotations

from adaptool.canonical.blending import Rule
from adaptool.methods import Parameter, Settings
from adaptool.methods._election import DENSITY, ELECTION, election_of
from adaptool.methods._selection import Trimming

SUMMARY = "small values trimmed, signs elected, those that agree averaged"
PARAMETERS: tuple[Parameter, ...] = (DENSITY, *ELECTION)


def rule(settings: Settings) -> Rule:
    """Trim, elect, average."""
    return Trimming(settings.number("density"), election_of(settings))
