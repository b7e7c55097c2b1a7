"""TIES-Merging (Yadav et al. 2023, arXiv:2306.01708): trim, elect signs, disjoint mean.

    D_i  <- top(D_i, density)                trim (step 1; the paper keeps k = 20 %)
    D     = disjoint mean of w_i D_i         elect and merge (steps 2 and 3, see `_election`)

The paper's lambda is the common size of the weights. As in the paper the values that agree are
averaged, not summed: an adapter with itself, at 1 and 1, gives itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.blending import Blend, Operand, Rule
from adaptool.methods import Parameter, Settings
from adaptool.methods._election import DENSITY, ELECTION, Election, election_of
from adaptool.methods._selection import threshold, trimmed

if TYPE_CHECKING:
    import torch

SUMMARY = "small values trimmed, signs elected, those that agree averaged"
PARAMETERS: tuple[Parameter, ...] = (DENSITY, *ELECTION)


def rule(settings: Settings) -> Rule:
    """Trim, elect, average."""
    return _Ties(settings.number("density"), election_of(settings))


@dataclass(frozen=True)
class _Ties:
    density: float
    election: Election
    whole_rows: bool = False

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        limits = [threshold(operand, self.density) for operand in operands]
        weights = [operand.weight for operand in operands]

        def blend(values: Sequence[torch.Tensor], window: Window) -> torch.Tensor:
            del window
            return self.election.outcome(trimmed(values, limits), weights)

        return blend
