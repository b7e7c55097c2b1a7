"""Magnitude pruning: of each update only the largest values, then the weighted sum.

    D = sum_i w_i top(D_i, density),   top keeps the int(density * count) largest |D_i,p|

over the whole matrix (Han et al., arXiv:1506.02626, applied to task vectors; PEFT calls it
magnitude_prune). Kept values are not rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.blending import Blend, Operand, Rule
from adaptool.methods import Parameter, Settings
from adaptool.methods._election import DENSITY, weighted_sum
from adaptool.methods._selection import threshold, trimmed

if TYPE_CHECKING:
    import torch

SUMMARY = "small values dropped, then the weighted sum"
PARAMETERS: tuple[Parameter, ...] = (DENSITY,)


def rule(settings: Settings) -> Rule:
    """Prune, then sum."""
    return _Magnitude(settings.number("density"))


@dataclass(frozen=True)
class _Magnitude:
    density: float
    whole_rows: bool = False

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        limits = [threshold(operand, self.density) for operand in operands]
        weights = [operand.weight for operand in operands]

        def blend(values: Sequence[torch.Tensor], window: Window) -> torch.Tensor:
            del window
            return weighted_sum(trimmed(values, limits), weights)

        return blend
