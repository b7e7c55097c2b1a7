"""What a worker measures of the update that it writes.

Comparing every stored element with the base costs as much as merging it. Where the update is known
by its factors, |dW| of any rows follows from them at no cost, so a part of the blocks is compared
and speaks for the rest; a change is looked for in every block until one is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Protocol

from adaptool.canonical import Applicable, LowRank, Window
from adaptool.merging.survival import Tally

COMPARED = 8
"""One block of so many is compared."""


class Band(Protocol):
    """An update on the columns `cols` of stored rows [first, last), with a strength."""

    update: Applicable
    scale: float
    first: int
    last: int
    cols: tuple[int, int]

    def window(self, start: int, stop: int) -> Window:
        """The part of the update that lies on stored rows [start, stop)."""
        ...


class Meter:
    """Squares and product of a run of stored rows: of the change as meant, and as stored."""

    def __init__(self, bands: Sequence[Band]) -> None:
        self._factored = _factored(bands)
        self._meant = self._stored = self._along = 0.0
        self._blocks = 0

    def compares_next(self) -> bool:
        """Whether the next block is to be compared; call once per block."""
        due = self._factored is None or self._stored == 0 or self._blocks % COMPARED == 0
        self._blocks += 1
        return due

    def add(self, meant: float, stored: float, along: float) -> None:
        """A compared block: |dW|^2, |D|^2 and <D, dW>, with D the change as stored."""
        self._meant += meant
        self._stored += stored
        self._along += along

    def record(self, tally: Tally, name: str, start: int, first: int, last: int) -> None:
        """Hand in what was measured, for all rows [first, last)."""
        whole = self._meant if self._factored is None else self._square(first, last)
        share = whole / self._meant if self._meant else 1.0
        tally.record(
            name, start, meant=whole, stored=self._stored * share, along=self._along * share
        )

    def _square(self, first: int, last: int) -> float:
        return sum(
            band.square(max(first, band.first), min(last, band.last))
            for band in self._factored or ()
            if band.first < last and first < band.last
        )


class _FactoredBand:
    """|strength * B A|^2 of any window, from the factors: the sum of (B'B) * (A A')."""

    def __init__(self, band: Band, update: LowRank) -> None:
        import torch

        self.first, self.last = band.first, band.last
        self._window = band.window
        self._a, self._b = update.factors(torch.float64, torch.device("cpu"))
        self._strength = (band.scale * update.scaling) ** 2
        self._rows = self._cols = slice(0, 0)
        self._gram_a = self._gram_b = self._a[:0, :0]

    def square(self, first: int, last: int) -> float:
        """For stored rows [first, last)."""
        window = self._window(first, last)
        if window.rows != self._rows:
            b = self._b[window.rows]
            self._rows, self._gram_b = window.rows, b.T @ b
        if window.cols != self._cols:
            a = self._a[:, window.cols]
            self._cols, self._gram_a = window.cols, a @ a.T
        return float((self._gram_a * self._gram_b).sum().clamp_(min=0)) * self._strength


def _factored(bands: Sequence[Band]) -> list[_FactoredBand] | None:
    """The bands by their factors; None if one has none, or two overlap."""
    if not disjoint([(band.first, band.last, *band.cols) for band in bands]):
        return None
    found: list[_FactoredBand] = []
    for band in bands:
        if not isinstance(band.update, LowRank):
            return None
        found.append(_FactoredBand(band, band.update))
    return found


def disjoint(boxes: Sequence[tuple[int, int, int, int]]) -> bool:
    """Whether no two (first row, last row, first column, last column) overlap; ends exclusive."""
    return not any(
        one[0] < two[1] and two[0] < one[1] and one[2] < two[3] and two[2] < one[3]
        for one, two in combinations(boxes, 2)
    )
