"""DARE (Yu et al. 2023, arXiv:2311.03099): drop values at random and rescale the rest.

    m_i,p ~ Bernoulli(density),    D_i,p <- m_i,p D_i,p / density        eq. 1, density = 1 - p

then the weighted sum (`sign=none`), or the election of TIES. What is dropped depends on the seed,
the module, the adapter's place among those that have it and the value's own, nothing else.
"""

from __future__ import annotations

from adaptool.canonical.blending import Rule
from adaptool.methods import Choice, Number, Parameter, Settings
from adaptool.methods._chance import Dropping
from adaptool.methods._election import ELECTION, election_of

SUMMARY = "values dropped at random, the rest rescaled; then a sum or an election"
PARAMETERS: tuple[Parameter, ...] = (
    Number("density", 0.5, 0.001, 1.0, "share of values that is kept, at random"),
    Choice("sign", "none", ("none", "elect"), "sum up, or elect signs and average as TIES"),
    *ELECTION,
)


def rule(settings: Settings) -> Rule:
    """Drop and rescale, then sum or elect."""
    election = election_of(settings) if settings.word("sign") == "elect" else None
    density = settings.number("density")
    return Dropping(lambda _: density, election)
