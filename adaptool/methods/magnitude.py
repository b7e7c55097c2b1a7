"""Magnitude pruning: of each update only the largest values, then the weighted sum.

    D = sum_i w_i top(D_i, density),   top keeps the int(density * count) largest |D_i,p|

over the whole matrix (Han et al., arXiv:1506.02626, applied to task vectors; PEFT calls it
magnitude_prune). Kept values are not rescaled.
"""

from __future__ import annotations

from adaptool.canonical.blending import Rule
from adaptool.methods import Parameter, Settings
from adaptool.methods._election import DENSITY
from adaptool.methods._selection import Trimming

SUMMARY = "small values dropped, then the weighted sum"
PARAMETERS: tuple[Parameter, ...] = (DENSITY,)


def rule(settings: Settings) -> Rule:
    """Prune, then sum."""
    return Trimming(settings.number("density"))
