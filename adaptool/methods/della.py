"""DELLA-Merging (Deep et al. 2024, arXiv:2406.11617): drop small values more often than large ones.

MagPrune ranks each row's values by size, r = 0 for the smallest of n, and keeps each with

    k_r = density - epsilon / 2 + epsilon * r / (n - 1)          between density -+ epsilon / 2

rescaled by 1 / k_r, which keeps every expectation. (The paper writes p for the rate of dropping,
1 - k, and divides by n; with n - 1 the mean of all k_r is the density exactly.) Then the election
and the mean of TIES (steps 2 and 3), or the weighted sum.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical.blending import Rule
from adaptool.errors import UsageError
from adaptool.methods import Choice, Number, Parameter, Settings
from adaptool.methods._chance import Dropping
from adaptool.methods._election import ELECTION, election_of

if TYPE_CHECKING:
    import torch

SUMMARY = "as dare, but large values are kept more often than small ones"
PARAMETERS: tuple[Parameter, ...] = (
    Number("density", 0.5, 0.001, 1.0, "share of values that is kept, on average"),
    Number("epsilon", 0.2, 0.0, 1.0, "how much more often the largest is kept than the smallest"),
    Choice("sign", "elect", ("elect", "none"), "elect signs and average as TIES, or sum up"),
    *ELECTION,
)


def rule(settings: Settings) -> Rule:
    """Drop by rank and rescale, then elect or sum.

    Raises UsageError if some value would be kept with a probability outside (0, 1].
    """
    density, epsilon = settings.number("density"), settings.number("epsilon")
    if density - epsilon / 2 <= 0 or density + epsilon / 2 > 1:
        raise UsageError(
            f"density={density:g} with epsilon={epsilon:g}: a value would be kept with a "
            "probability that is not between 0 and 1",
            hint="density - epsilon/2 is above 0, density + epsilon/2 at most 1",
        )
    election = election_of(settings) if settings.word("sign") == "elect" else None
    return Dropping(partial(_odds, density, epsilon), election)


def _odds(density: float, epsilon: float, values: torch.Tensor) -> torch.Tensor:
    """k_r of every value, by its rank in its row, which is there from end to end."""
    import torch

    steps = torch.linspace(-0.5, 0.5, values.shape[1], dtype=values.dtype, device=values.device)
    order = values.abs().argsort(dim=1, stable=True)
    ranked = (density + epsilon * steps).expand_as(values)
    return torch.empty_like(values).scatter_(1, order, ranked)
