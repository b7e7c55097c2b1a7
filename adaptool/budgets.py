"""Ranks for many modules at once: the least error within a budget, the least cost within an error.

What a rank brings is its squared singular value, what it costs is constant within a module. The
least total |dW - dW_kept|_F within a budget, and the least cost within an error, therefore take the
values of all modules in the order of energy per cost, sigma^2 / (in + out): the greedy solution of
this knapsack is the optimum at every budget that it fills exactly, and elsewhere within one value
of it. What is left of a budget is then spent by exchanging single ranks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, sqrt
from typing import Generic, TypeVar

from adaptool.errors import UsageError

Key = TypeVar("Key", bound=Hashable)
Bounds = Mapping[Key, tuple[int, int]]
"""The least and the largest rank that each module may get."""

CURVE_POINTS = 64


@dataclass(frozen=True)
class Module:
    """What the ranks of one module bring and cost.

    Attributes:
        energies: squared singular values, descending; at least one. For stacked experts, which
            share one rank, the sum over the experts at each position.
        cost: of one rank, in whatever unit a budget is given: parameters or bytes.
        rest: energy of what no value stands for (the tail that a sketch did not resolve).
        importance: weight of this module's energy beside that of the others.
    """

    energies: Sequence[float]
    cost: int
    rest: float = 0.0
    importance: float = 1.0

    @property
    def total(self) -> float:
        """|dW|_F^2."""
        return sum(self.energies) + self.rest

    def dropped(self, rank: int) -> float:
        """Energy that is lost after `rank` values; summed from the smallest up."""
        return sum(reversed(self.energies[rank:])) + self.rest

    def kept(self, rank: int) -> float:
        """Share of the energy in the first `rank` values; of nothing, all is kept."""
        total = self.total
        return 1.0 - self.dropped(rank) / total if total else 1.0


def spend(modules: Mapping[Key, Module], bounds: Bounds[Key], budget: int) -> dict[Key, int]:
    """The least error within a budget; no exchange of one rank for another lowers it."""
    left = budget - least_cost(modules, bounds)
    if left < 0:
        raise UsageError(f"the least ranks cost {budget - left:,}, the budget is {budget:,}")
    ledger = _Ledger(modules, bounds)
    for key, _ in _by_density(modules, bounds):
        if modules[key].cost <= left:  # a module that is too dear now stays so: its order holds
            ledger.ranks[key] += 1
            left -= modules[key].cost
    while (after := ledger.exchange(left)) is not None:
        left = after
    return ledger.ranks


def reach(modules: Mapping[Key, Module], bounds: Bounds[Key], error: float) -> dict[Key, int]:
    """The least cost within an error; no single rank can be spared."""
    items = _by_density(modules, bounds)
    losses = _losses(modules, bounds, items)
    total = sum(m.importance * m.total for m in modules.values())
    allowed = error**2 * total
    count = next((i for i, lost in enumerate(losses) if lost <= allowed), None)
    if count is None:
        raise UsageError(
            f"an error of {error:g} cannot be reached: the largest ranks allowed leave "
            f"{sqrt(losses[-1] / total):.3g}",
            hint="allow larger ranks with --max-rank, or a larger error",
        )
    ledger = _Ledger(modules, bounds)
    for key, _ in items[:count]:
        ledger.ranks[key] += 1
    ledger.trim(allowed - losses[count])
    return ledger.ranks


def least_cost(modules: Mapping[Key, Module], bounds: Bounds[Key]) -> int:
    """What the least ranks cost together."""
    return sum(bounds[key][0] * module.cost for key, module in modules.items())


def relative_error(modules: Mapping[Key, Module], ranks: Mapping[Key, int]) -> float:
    """|dW - dW_kept|_F / |dW|_F over all modules, each weighted by its importance."""
    total = sum(m.importance * m.total for m in modules.values())
    lost = sum(m.importance * m.dropped(ranks[key]) for key, m in modules.items())
    return sqrt(max(lost, 0.0) / total) if total else 0.0


def error_curve(modules: Mapping[Key, Module], bounds: Bounds[Key]) -> list[tuple[int, float]]:
    """(cost, relative error) along the greedy path, from the least ranks to the largest.

    At most `CURVE_POINTS`, evenly spaced in cost; each is the optimum at its cost.
    """
    total = sum(m.importance * m.total for m in modules.values())
    if not total:
        return []
    items = _by_density(modules, bounds)
    losses = _losses(modules, bounds, items)
    first = least_cost(modules, bounds)
    costs = list(accumulate((modules[key].cost for key, _ in items), initial=first))
    step = (costs[-1] - first) / (CURVE_POINTS - 1)
    wanted = [bisect_left(costs, first + step * i) for i in range(CURVE_POINTS - 1)]
    places = dict.fromkeys([*wanted, len(costs) - 1])
    return [(costs[i], sqrt(losses[i] / total)) for i in places]


def _by_density(modules: Mapping[Key, Module], bounds: Bounds[Key]) -> list[tuple[Key, float]]:
    """(module, weighted energy) of every rank between the bounds that brings any, best first."""
    items = []
    for place, (key, module) in enumerate(modules.items()):
        least, most = bounds[key]
        for index in range(least, most):
            energy = module.importance * module.energies[index]
            if energy > 0:
                items.append((-energy / module.cost, place, index, key, energy))
    items.sort(key=lambda item: item[:3])  # energies descend: a module's own order is kept
    return [(key, energy) for _, _, _, key, energy in items]


def _losses(modules: Mapping[Key, Module], bounds: Bounds[Key],
            items: Sequence[tuple[Key, float]]) -> list[float]:  # fmt: skip
    """Weighted energy lost after each number of items; summed from the smallest up."""
    final = sum(m.importance * m.dropped(bounds[key][1]) for key, m in modules.items())
    return list(accumulate((energy for _, energy in reversed(items)), initial=final))[::-1]


class _Ledger(Generic[Key]):
    """Ranks under change, within their bounds."""

    def __init__(self, modules: Mapping[Key, Module], bounds: Bounds[Key]) -> None:
        self._modules = modules
        self._bounds = bounds
        self.ranks = {key: least for key, (least, _) in bounds.items()}

    def gain(self, key: Key) -> float:
        """Weighted energy of the next rank; 0 where there is none."""
        module, rank = self._modules[key], self.ranks[key]
        return module.importance * module.energies[rank] if rank < self._bounds[key][1] else 0.0

    def loss(self, key: Key) -> float:
        """Weighted energy of the last rank; infinite where it has to stay."""
        module, rank = self._modules[key], self.ranks[key]
        return module.importance * module.energies[rank - 1] if rank > self._bounds[key][0] else inf

    def exchange(self, left: int) -> int | None:
        """Give the last rank of one module for the next of another where that lowers the error
        most; returns what is left then, or None if no exchange does.

        Among modules of one cost only the smallest last and the largest next value matter. After
        the greedy start a better value is always a dearer one, and the best exchange keeps it so:
        what is left shrinks, and nothing more fits.
        """
        last: dict[int, Key] = {}
        following: dict[int, Key] = {}
        for key, module in self._modules.items():
            cost = module.cost
            if cost not in last or self.loss(key) < self.loss(last[cost]):
                last[cost] = key
            if cost not in following or self.gain(key) > self.gain(following[cost]):
                following[cost] = key
        best = max(
            (
                (self.gain(taker) - self.loss(giver), left + given - taken, giver, taker)
                for given, giver in last.items()
                for taken, taker in following.items()
                if taken <= left + given
            ),
            key=lambda move: move[:2],
            default=None,
        )
        if best is None or best[0] <= 0:
            return None
        self.ranks[best[2]] -= 1
        self.ranks[best[3]] += 1
        return best[1]

    def trim(self, spare: float) -> None:
        """Give back ranks whose energy is within `spare`, the most expensive first."""
        while True:
            free = [key for key in self.ranks if self.loss(key) <= spare]
            if not free:
                return
            worst = max(free, key=lambda key: (self._modules[key].cost, -self.loss(key)))
            spare -= self.loss(worst)
            self.ranks[worst] -= 1
