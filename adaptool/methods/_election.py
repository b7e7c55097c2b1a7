"""Sign election and the mean of those that agree: the second half of TIES, DARE, DELLA, KnOTS.

TIES-Merging (arXiv:2306.01708), section 4, steps 2 and 3, for every value p:

    gamma_p = sgn(sum_t tau_t,p)          elect      (0 counts as +1)
    A_p     = {t : sgn(tau_t,p) = gamma_p}
    tau_p   = mean of tau_t,p over t in A_p          disjoint mean

The paper has no weights: here tau_t = w_t D_t, so that a negative weight votes for the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.methods import Choice, Number, Parameter, Settings

if TYPE_CHECKING:
    import torch

DENSITY = Number("density", 0.2, 0.0, 1.0, "share of the largest values that is kept")

ELECTION: tuple[Parameter, ...] = (
    Choice("majority", "total", ("total", "frequency"), "votes count by their size, or one each"),
    Choice("elect", "weighted", ("weighted", "plain"),
           "updates vote with their weights, or without (as PEFT does)"),
    Choice("divide", "count", ("count", "weights"),
           "the sum of those that agree, by their number or by their weights"),
)  # fmt: skip


@dataclass(frozen=True)
class Election:
    """How signs are elected and what those that agree make together."""

    by_frequency: bool = False
    plain: bool = False
    by_weights: bool = False

    def outcome(self, values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """One value per place, of unweighted values all of one shape."""
        import torch

        strong = [value * weight for value, weight in zip(values, weights, strict=True)]
        voters = values if self.plain else strong
        votes = torch.zeros_like(values[0])
        for voter in voters:
            votes += voter.sign() if self.by_frequency else voter
        upward = votes >= 0
        total, divisor = torch.zeros_like(votes), torch.zeros_like(votes)
        for voter, value, weight in zip(voters, strong, weights, strict=True):
            agrees = ((voter > 0) == upward).logical_and_(voter != 0)
            total += value.mul_(agrees)
            divisor.add_(agrees, alpha=abs(weight) if self.by_weights else 1.0)
        return total.div_(divisor.masked_fill_(divisor == 0, 1.0))


def election_of(settings: Settings) -> Election:
    """The election that the parameters in ELECTION ask for."""
    return Election(
        by_frequency=settings.word("majority") == "frequency",
        plain=settings.word("elect") == "plain",
        by_weights=settings.word("divide") == "weights",
    )


def weighted_sum(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Sum of w_t times value_t, as a new tensor."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value, alpha=weight)
    return total
