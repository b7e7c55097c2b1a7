"""The search for scales and offsets: values ~ scale * level - offset, levels 0..top, offset >= 0.

Groups stand on end, [groups, k, n]: k values each of the `groups` groups of n blocks. For a number
of trial steps every value goes to its nearest level; weighted least squares give the best scale and
offset for these levels, and the error of that pair follows from the same sums. The least error
wins. ggml's make_qkx2 and make_qkx3 (ggml-quants.c) do the same with other, and more, trials.

`store_affine` then deals with what ggml leaves to chance: the scales of a block's groups are stored
as integers times one half-precision number. Given the levels, the error is a known quadratic form
of scale and offset, so the pair of integers is chosen by the error that it makes, and the block's
two numbers by least squares over all its groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from adaptool.encodings.ggml.blocks import TINY, invert, round_levels
from adaptool.encodings.ggml.scratch import borrow_like


class Affine(NamedTuple):
    """One scale and offset for each group, [groups, 1, n]."""

    scale: torch.Tensor
    offset: torch.Tensor


class Moments(NamedTuple):
    """Weighted sums over each group, [groups, 1, n]: of 1, x, l, l * l and x * l."""

    w: torch.Tensor
    x: torch.Tensor
    l: torch.Tensor  # noqa: E741
    ll: torch.Tensor
    xl: torch.Tensor


class AffineProblem:
    """Groups of values and their weights, and the buffers that every trial uses again."""

    def __init__(self, values: torch.Tensor, weights: torch.Tensor, top: int) -> None:
        """Values and weights [groups, k, n]; levels go from 0 to `top`."""
        self.values, self.weights, self.top = values, weights, top
        self._levels = borrow_like("levels", values)
        self._product = borrow_like("product", values)
        self._weighted = torch.mul(weights, values, out=borrow_like("weighted", values))
        self._w = weights.sum(1, keepdim=True)
        self._x = self._weighted.sum(1, keepdim=True)
        self._tiny = values.new_tensor(TINY)

    def place(self, inverse: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Where values lie among the levels, (values + offset) / scale; in a shared buffer."""
        return torch.addcmul(shift, self.values, inverse, out=self._levels)

    def measure(self, inverse: torch.Tensor, shift: torch.Tensor) -> Moments:
        """The sums when every value goes to its nearest level."""
        levels, product = self.place(inverse, shift), self._product
        levels.round_().clamp_(0, self.top)
        torch.mul(self.weights, levels, out=product)
        l_sum = product.sum(1, keepdim=True)
        ll_sum = product.mul_(levels).sum(1, keepdim=True)
        xl_sum = torch.mul(self._weighted, levels, out=product).sum(1, keepdim=True)
        return Moments(self._w, self._x, l_sum, ll_sum, xl_sum)

    def fit(self, nudges: Sequence[float], polish: int) -> Affine:
        """The best of the trials, in each of which the values' range spans `top + nudge` steps.

        A trial is polished: measured again, `polish` times, at the pair that it led to, to which
        some values have another nearest level.
        """
        lowest = self.values.amin(1, keepdim=True).clamp_(max=0)
        span = self.values.amax(1, keepdim=True).sub_(lowest)
        per_span = invert(span)
        ceiling, minus_2x = span / 2 - lowest, self._x * -2
        # what a group of equal values gets: no trial is better
        scale, offset, best = span / self.top, -lowest, torch.zeros_like(span)
        for nudge in nudges:
            inverse = per_span * (self.top + nudge)
            shift = lowest * -inverse
            for _ in range(1 + polish):
                trial, gain = self._solve(self.measure(inverse, shift), ceiling, minus_2x)
                better = gain > best
                torch.maximum(best, gain, out=best)
                scale = torch.where(better, trial.scale, scale)
                offset = torch.where(better, trial.offset, offset)
                inverse = trial.scale.reciprocal()
                shift = trial.offset * inverse
        return Affine(scale, offset)

    def _solve(
        self, sums: Moments, ceiling: torch.Tensor, minus_2x: torch.Tensor
    ) -> tuple[Affine, torch.Tensor]:
        """The least-squares pair for given levels, and by how much it is better than zeros.

        An offset below 0 cannot be stored; one above `ceiling` comes from rounding in a group
        whose values are all but equal. The scale is the best one for the offset that is left.
        """
        determinant = torch.addcmul(sums.w * sums.ll, sums.l, sums.l, value=-1).add_(self._tiny)
        offset = torch.addcmul(sums.l * sums.xl, sums.ll, sums.x, value=-1).div_(determinant)
        torch.minimum(offset, ceiling, out=offset).clamp_(min=0)
        remainder = torch.addcmul(sums.xl, offset, sums.l)
        scale = remainder / (sums.ll + self._tiny)
        loss = torch.addcmul(minus_2x, offset, sums.w, value=-1)  # of the offset, per -offset
        return Affine(scale, offset), (scale * remainder).addcmul_(offset, loss)


class AffineScales(NamedTuple):
    """What is stored: integers [groups, n] (in float32) and for each block two numbers [n]."""

    scales: torch.Tensor
    offsets: torch.Tensor
    d: torch.Tensor
    dmin: torch.Tensor


def store_affine(
    problem: AffineProblem, fit: Affine, top: int, shares: Sequence[float] = (1.0,)
) -> AffineScales:
    """Store scales and offsets as integers up to `top` times halves, with the least error.

    Args:
        problem: the groups.
        fit: a scale and an offset for each of them.
        top: the largest integer.
        shares: trials of how much of the range up to `top` the integers use.
    """
    inverse = invert(fit.scale)
    sums = Moments(*(part.squeeze(1) for part in problem.measure(inverse, fit.offset * inverse)))
    scale, offset = fit.scale.squeeze(1), fit.offset.squeeze(1)
    most, furthest = scale.amax(0), offset.amax(0)
    found, best = None, most
    for share in shares:
        trial = AffineScales(scale, offset, most / (top * share), furthest / (top * share))
        first, _ = _choose_pairs(sums, scale, trial, top)
        trial, error = _choose_pairs(sums, scale, _fit_blocks(sums, first), top)
        if found is not None:
            better = error < best
            error = torch.where(better, error, best)
            pairs = zip(trial, found, strict=True)
            trial = AffineScales(*(torch.where(better, new, old) for new, old in pairs))
        found, best = trial, error
    if found is None:
        raise ValueError("no shares to try")
    return found


def _choose_pairs(
    sums: Moments, scale: torch.Tensor, stored: AffineScales, top: int
) -> tuple[AffineScales, torch.Tensor]:
    """For every group the integers near its scale, and the offset that suits each, tried.

    Returns the best with the block's two numbers as halves, and the error of each block, [n],
    without the part that does not depend on them.
    """
    halves = stored.d.to(torch.float16), stored.dmin.to(torch.float16)
    d, dmin = (half.to(torch.float32) for half in halves)
    beside = scale.new_tensor((0.0, -1.0, 1.0)).view(3, 1, 1)
    trials = (scale * invert(d)).round_().add(beside).clamp_(0, top)
    steps = trials * d
    pulls = torch.addcmul(-sums.x, steps, sums.l)  # where the best offset is, times w
    choices = pulls.mul_(invert(dmin * sums.w)).round_().clamp_(0, top)
    offsets = choices * dmin
    # m (m w + 2 x) - s (2 xl + 2 m l - s ll)
    slopes = torch.addcmul(sums.xl * 2, offsets, sums.l, value=2)
    slopes.addcmul_(steps, sums.ll, value=-1)
    errors = torch.addcmul(sums.x * 2, offsets, sums.w).mul_(offsets)
    errors.addcmul_(steps, slopes, value=-1)
    best, index = errors.min(0, keepdim=True)
    scales, minima = (part.gather(0, index).squeeze(0) for part in (trials, choices))
    return AffineScales(scales, minima, *halves), best.sum((0, 1))


def _fit_blocks(sums: Moments, stored: AffineScales) -> AffineScales:
    """The two numbers of a block that suit the integers of all its groups best."""
    scales, offsets, d, dmin = stored
    aa = (scales * scales).mul_(sums.ll).sum(0)
    ab = (scales * offsets).mul_(sums.l).sum(0)
    bb = (offsets * offsets).mul_(sums.w).sum(0)
    ax = (scales * sums.xl).sum(0)
    bx = (offsets * sums.x).sum(0).neg_()
    determinant = torch.addcmul(aa * bb, ab, ab, value=-1)
    better_d = torch.addcmul(bb * ax, ab, bx).div_(determinant)
    better_dmin = torch.addcmul(aa * bx, ab, ax).div_(determinant)
    sound = determinant > aa * bb * 1e-4  # else rounding errors decide
    sound &= (better_d > 0) & (better_dmin > 0)
    return AffineScales(
        scales, offsets, torch.where(sound, better_d, d), torch.where(sound, better_dmin, dmin)
    )


def find_levels(
    problem: AffineProblem, stored: AffineScales, noise: torch.Tensor | None
) -> torch.Tensor:
    """Levels [groups, k, n] at the scales that a reader will use, in a shared buffer."""
    inverse = invert(stored.d.to(torch.float32) * stored.scales).unsqueeze(1)
    offset = (stored.dmin.to(torch.float32) * stored.offsets).unsqueeze(1)
    positions = problem.place(inverse, offset * inverse)
    return round_levels(positions, noise).clamp_(0, problem.top)
