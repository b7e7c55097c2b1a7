"""How much of an update survives the rounding to the output's type.

A bf16 weight moves in steps of 1/256 of itself; an update smaller than half a step vanishes.
So a merge measures, per tensor, the change that was stored against the change that was meant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from threading import Lock


@dataclass(frozen=True)
class Survival:
    """Frobenius norms of one tensor's change: as meant and as stored."""

    meant: float
    stored: float

    @property
    def ratio(self) -> float | None:
        """|stored - W| / |dW|: near 1 when the update survived; None for an update of zero."""
        return self.stored / self.meant if self.meant else None


@dataclass
class Tally:
    """Collects, from many threads, the squared norms of what was meant and what was stored."""

    _meant: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    _stored: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    _lock: Lock = field(default_factory=Lock)

    def record(self, name: str, start: int, *, meant: float, stored: float) -> None:
        """Add the squared norms of the elements from `start` on; each start counts once."""
        with self._lock:
            self._meant[name][start] = meant
            self._stored[name][start] = stored

    def tensors(self) -> dict[str, Survival]:
        """What was measured, by tensor; sums run in the order of the elements."""
        return {
            name: Survival(_norm([self._meant[name]]), _norm([self._stored[name]]))
            for name in sorted(self._meant)
        }

    def total(self) -> Survival:
        """What was measured over all tensors."""
        return Survival(_norm(self._meant.values()), _norm(self._stored.values()))


def _norm(tables: Iterable[dict[int, float]]) -> float:
    squares = (value for table in tables for _, value in sorted(table.items()))
    return sqrt(sum(squares))
