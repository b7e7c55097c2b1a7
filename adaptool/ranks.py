"""How many singular values each module keeps: numbers in, ranks out.

Some goals are met module by module (a rank, a share of the energy), others by all modules together
(a budget, a total error); those are spent in `budgets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from math import inf, isfinite, sqrt

from adaptool.budgets import Bounds, Key, Module, reach, spend
from adaptool.errors import UsageError

GOALS = ("rank", "energy", "error", "size", "params", "criterion")

_ROUNDING = 1e-12
"""Sums of shares that should be equal differ by less."""


Criterion = Callable[[Module, float], int]


@dataclass(frozen=True)
class RankRequest:
    """What is asked of the ranks: exactly one goal, and limits for every module.

    Attributes:
        rank: the same rank everywhere (less where a module has less).
        energy: per module, the share of squared singular values to keep, in (0, 1].
        error: |dW - dW_kept|_F / |dW|_F over all modules together, in [0, 1).
        size: bytes of all that is written; what a rank costs is then counted in bytes.
        params: trained values in all; what a rank costs is then counted in values.
        criterion: one of `CRITERIA` and its value, per module.
        min_rank: no module gets less (unless it has less).
        max_rank: no module gets more.

    Raises UsageError for no goal, two goals, or a value out of range.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    size: int | None = None
    params: int | None = None
    criterion: tuple[str, float] | None = None
    min_rank: int = 1
    max_rank: int | None = None

    def __post_init__(self) -> None:
        goals = self._goals()
        if len(goals) != 1:
            found = " and ".join(goals) or "none"
            raise UsageError(f"one of {', '.join(GOALS)} is needed, found {found}")
        for name in ("rank", "size", "params", "min_rank", "max_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, at least 1 is needed")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"energy is {self.energy:g}, expected a share in (0, 1]")
        if self.error is not None and not 0 <= self.error < 1:
            raise UsageError(f"error is {self.error:g}, expected a share in [0, 1)")
        if self.criterion is not None:
            _check(*self.criterion)
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise UsageError(f"min_rank is {self.min_rank}, max_rank only {self.max_rank}")

    def __str__(self) -> str:
        """`energy 0.95, min_rank 2`."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in (None, field.default):
                text = "=".join(map(str, value)) if isinstance(value, tuple) else str(value)
                parts.append(f"{field.name} {text}")
        return ", ".join(parts)

    def _goals(self) -> list[str]:
        return [name for name in GOALS if getattr(self, name) is not None]

    def bounds(self, modules: Mapping[Key, Module]) -> Bounds[Key]:
        """The least and the largest rank that each module may get."""
        return {key: self._limits(module) for key, module in modules.items()}

    def _limits(self, module: Module) -> tuple[int, int]:
        most = max(len(module.energies), 1)
        if self.max_rank is not None:
            most = min(most, self.max_rank)
        return min(self.min_rank, most), most


def choose_ranks(
    modules: Mapping[Key, Module], request: RankRequest, budget: int | None = None
) -> dict[Key, int]:
    """The rank of each module.

    Args:
        modules: what their ranks bring and cost.
        request: what is wanted.
        budget: of the modules' costs together; needed when the goal is a size or a count, where
            the caller takes off what is no module's.

    Raises UsageError if the budget is less than the least ranks cost, or if no ranks within the
    limits reach the error.
    """
    bounds = request.bounds(modules)
    if request.error is not None:
        return reach(modules, bounds, request.error)
    if request.size is not None or request.params is not None:
        if budget is None:
            raise ValueError("a size or a count needs a budget")
        return spend(modules, bounds, budget)
    return {
        key: min(max(_wanted(module, request), bounds[key][0]), bounds[key][1])
        for key, module in modules.items()
    }


def _check(name: str, value: float) -> None:
    if name not in CRITERIA:
        raise UsageError(f"unknown criterion {name!r}", hint=f"one of {', '.join(CRITERIA)}")
    low, high = (1.0, inf) if name == "sv_ratio" else (0.0, 1.0)
    if not isfinite(value) or not low <= value <= high or not value:
        span = "a ratio of at least 1" if name == "sv_ratio" else "a share in (0, 1]"
        raise UsageError(f"{name} is {value:g}, expected {span}")


def _wanted(module: Module, request: RankRequest) -> int:
    if request.rank is not None:
        return request.rank
    if request.energy is not None:
        return _by_energy(module, request.energy)
    name, value = request.criterion or ("", 0.0)
    return CRITERIA[name](module, value)


def _by_energy(module: Module, share: float) -> int:
    return _first_reaching(module.energies, share * module.total)


def _by_ratio(module: Module, ratio: float) -> int:
    """Values of at least sigma_1 / ratio."""
    floor = module.energies[0] / ratio**2 * (1 - _ROUNDING)
    return sum(1 for energy in module.energies if energy and energy >= floor)


def _by_norm(module: Module, share: float) -> int:
    """The fewest values that have `share` of the Frobenius norm (not of its square)."""
    return _by_energy(module, share**2)


def _by_sum(module: Module, share: float) -> int:
    """The fewest values that have `share` of the sum of the values."""
    values = [sqrt(energy) for energy in module.energies]
    return _first_reaching(values, share * sum(values))


CRITERIA: Mapping[str, Criterion] = {
    "sv_ratio": _by_ratio,
    "sv_fro": _by_norm,
    "sv_cumulative": _by_sum,
}
"""The per-module criteria of sd-scripts' `resize_lora.py`, as its help defines them. Its code keeps
one value more than that."""


def _first_reaching(values: Sequence[float], wanted: float) -> int:
    sums = list(accumulate(values))
    reached = wanted * (1 - _ROUNDING)
    return next((count for count, total in enumerate(sums, 1) if total >= reached), len(sums))
