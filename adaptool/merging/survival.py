"""How much of an update survives the rounding to the output's type.

A bf16 weight moves in steps of 1/256 of itself; an update smaller than half a step vanishes, and
the steps of a 4-bit block are coarser by far. So a merge measures, per tensor, what was stored of
the change that was meant: its part along the meant change, since rounding adds noise in all other
directions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import sqrt
from threading import Lock


@dataclass(frozen=True)
class Survival:
    """One tensor's change as meant, dW, and as stored, D.

    Attributes:
        meant: |dW|, Frobenius norm.
        stored: |D|, rounding noise included.
        along: <D, dW>.
    """

    meant: float
    stored: float
    along: float

    @property
    def ratio(self) -> float | None:
        """<D, dW> / |dW|^2: 1 if the update survived, 0 if it is lost; None for no update."""
        return self.along / self.meant**2 if self.meant else None


@dataclass
class Tally:
    """Collects from many threads |dW|^2, |D|^2 and <D, dW>, by tensor and by first element."""

    _found: dict[str, dict[int, tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _lock: Lock = field(default_factory=Lock)

    def record(self, name: str, start: int, *, meant: float, stored: float, along: float) -> None:
        """Add what was measured from element `start` on; each start counts once."""
        with self._lock:
            self._found[name][start] = (meant, stored, along)

    def tensors(self) -> dict[str, Survival]:
        """What was measured, by tensor; sums run in the order of the elements."""
        return {name: self.total([name]) for name in sorted(self._found)}

    def total(self, names: Iterable[str] | None = None) -> Survival:
        """What was measured over these tensors; None for all."""
        wanted = sorted(self._found) if names is None else [n for n in names if n in self._found]
        parts = [values for name in wanted for _, values in sorted(self._found[name].items())]
        meant, stored, along = (sum(part[i] for part in parts) for i in range(3))
        return Survival(sqrt(meant), sqrt(stored), along)
