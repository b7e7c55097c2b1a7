"""The search for scales alone: values ~ scale * level, levels on both sides of zero.

As in `affine`, without an offset; compare make_qx, make_q3 and quantize_row_iq4_nl_impl of
ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from adaptool.encodings.ggml.blocks import TINY, invert, round_levels
from adaptool.encodings.ggml.scratch import borrow_like

Nearest = Callable[[torch.Tensor], torch.Tensor]
"""Positions, in units of the scale -> the nearest levels there are; may reuse its argument."""

SHARES = (1.0, 0.97, 0.94, 0.91)
"""Trials of how much of their range the integers of a block's scales use."""


def clamp_levels(half: int) -> Nearest:
    """The integers from -half to half - 1."""
    return lambda positions: positions.round_().clamp_(-half, half - 1)


class SymmetricProblem:
    """Groups of values and their weights, and the buffers that every trial uses again."""

    def __init__(self, values: torch.Tensor, weights: torch.Tensor, nearest: Nearest) -> None:
        """Values and weights [groups, k, n]."""
        self.values, self.weights, self.nearest = values, weights, nearest
        self._positions = borrow_like("levels", values)
        self._product = borrow_like("product", values)
        self._tiny = values.new_tensor(TINY)
        self._weighted = torch.mul(weights, values, out=borrow_like("weighted", values))

    def place(self, inverse: torch.Tensor) -> torch.Tensor:
        """Where values lie among the levels, values / scale; in a shared buffer."""
        return torch.mul(self.values, inverse, out=self._positions)

    def measure(self, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of l * l and x * l, [groups, 1, n], when every value goes to its nearest level."""
        levels, product = self.nearest(self.place(inverse)), self._product
        torch.mul(self.weights, levels, out=product)
        ll = product.mul_(levels).sum(1, keepdim=True)
        xl = torch.mul(self._weighted, levels, out=product).sum(1, keepdim=True)
        return ll, xl

    def fit(self, places: Sequence[float], polish: int = 0) -> torch.Tensor:
        """The best scale of the trials, in each of which the extreme value lies at that place.

        Of equally good ones the first. A trial is polished: measured again, `polish` times, at the
        scale that it led to.
        """
        per_extreme = invert(find_extremes(self.values))
        scale, best = torch.zeros_like(per_extreme), torch.zeros_like(per_extreme)
        for place in places:
            inverse = per_extreme * place
            for _ in range(1 + polish):
                ll, xl = self.measure(inverse)
                trial = xl / ll.add_(self._tiny)
                gain = xl.mul_(trial)
                scale = torch.where(gain > best, trial, scale)
                torch.maximum(best, gain, out=best)
                inverse = invert(trial) if polish else inverse
        return scale


def find_extremes(values: torch.Tensor) -> torch.Tensor:
    """The value of greatest size in each group, with its sign, [groups, 1, n]."""
    high, low = values.amax(1, keepdim=True), values.amin(1, keepdim=True)
    return torch.where(high > -low, high, low)


def store_symmetric(
    problem: SymmetricProblem, scale: torch.Tensor, half: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Store scales [groups, 1, n] as integers from -half to half - 1 times a half.

    Returns the integers [groups, n] (in float32) and the halves [n]: of some trials the one with
    the least error, each with the half that suits its integers best.
    """
    per_extreme = invert(find_extremes(scale.squeeze(1).unsqueeze(0)))
    best = torch.full_like(per_extreme.view(-1), -torch.inf)
    scales = torch.zeros_like(scale.squeeze(1))
    d = torch.full_like(best, torch.inf, dtype=torch.float16)
    for share in SHARES:
        inverse = per_extreme * (-half * share)
        trial = (scale * inverse).round_().clamp_(-half, half - 1)
        ll, xl = problem.measure(invert(trial) * inverse)
        energy = ll.mul_(trial).mul_(trial).sum((0, 1))
        product = xl.mul_(trial).sum((0, 1))
        fitted = (product / (energy + TINY)).to(torch.float16)
        exact = fitted.to(torch.float32)
        gain = torch.addcmul(product * 2, exact, energy, value=-1).mul_(exact)
        better = gain > best
        best = torch.where(better, gain, best)
        scales = torch.where(better, trial.squeeze(1), scales)
        d = torch.where(better, fitted, d)
    return scales, d


def find_positions(
    problem: SymmetricProblem, scales: torch.Tensor, d: torch.Tensor
) -> torch.Tensor:
    """Values [groups, k, n] in units of the scales a reader will use, in a shared buffer."""
    return problem.place(invert(scales * d.to(torch.float32)).unsqueeze(1))


def find_levels(
    problem: SymmetricProblem, scales: torch.Tensor, d: torch.Tensor, half: int,
    noise: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Integer levels [groups, k, n] from -half to half - 1, in a shared buffer."""
    return round_levels(find_positions(problem, scales, d), noise).clamp_(-half, half - 1)
