"""The weighted sum of updates, exactly (task arithmetic, arXiv:2212.04089, section 2).

    D = sum_i w_i D_i = sum_i w_i scaling_i B_i A_i = [w_1 s_1 B_1 ...] [A_1; ...]

Factors are concatenated and ranks add up; nothing is lost. On factors (`--space factors`) A and B
are summed separately, which adds the cross terms B_i A_j and is not the sum of the updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from adaptool.canonical import LowRank, Window
from adaptool.canonical.algebra import add
from adaptool.canonical.blending import Blend, Operand, Rule
from adaptool.methods import Parameter, Part, Settings
from adaptool.methods._election import weighted_sum

if TYPE_CHECKING:
    import torch

SUMMARY = "the weighted sum, exactly; ranks add up"
PARAMETERS: tuple[Parameter, ...] = ()


def merge(parts: Sequence[Part], settings: Settings) -> LowRank:
    """The sum with concatenated factors; rank is the sum of ranks."""
    del settings
    return add(parts)


def rule(settings: Settings) -> Rule:
    """The weighted sum of values."""
    del settings
    return _Sum()


@dataclass(frozen=True)
class _Sum:
    whole_rows: bool = False

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        return partial(_blend, [operand.weight for operand in operands])


def _blend(weights: Sequence[float], values: Sequence[torch.Tensor],
           window: Window) -> torch.Tensor:  # fmt: skip
    del window
    return weighted_sum(values, weights)
