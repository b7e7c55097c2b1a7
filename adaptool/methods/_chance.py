"""Values dropped at random: the same ones in whatever blocks a matrix is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.blending import Blend, Operand
from adaptool.canonical.noise import uniform
from adaptool.methods._election import Election, weighted_sum

if TYPE_CHECKING:
    import torch


def chances(window: Window, key: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers in [0, 1) for whole rows of a matrix: [rows, cols], float32.

    Each follows from the key and the place alone, row by row.
    """
    rows, width = window.rows, window.shape[1]
    count = (rows.stop - rows.start) * width
    return uniform(key, rows.start * width, count, device).view(-1, width)


@dataclass(frozen=True)
class Dropping:
    """Each value kept with a probability and rescaled by it; then a sum or an election.

    Attributes:
        odds: the probabilities for whole rows of one operand, or one for all.
        election: how the operands are merged; None sums them up.
    """

    odds: Callable[[torch.Tensor], torch.Tensor | float]
    election: Election | None
    whole_rows: bool = True

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        """See Rule."""
        weights = [operand.weight for operand in operands]
        keys = [operand.key for operand in operands]

        def blend(values: Sequence[torch.Tensor], window: Window) -> torch.Tensor:
            kept = [self._pruned(v, window, key) for v, key in zip(values, keys, strict=True)]
            if self.election is None:
                return weighted_sum(kept, weights)
            return self.election.outcome(kept, weights)

        return blend

    def _pruned(self, values: torch.Tensor, window: Window, key: int) -> torch.Tensor:
        odds = self.odds(values)
        return values * (chances(window, key, values.device) < odds) / odds
