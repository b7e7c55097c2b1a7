"""One update on its way to plain factors."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Protocol

from adaptool.budgets import Module
from adaptool.canonical import Site
from adaptool.canonical.algebra import Spectrum, from_spectrum, inner
from adaptool.canonical.parts import Low, matrix, members
from adaptool.canonical.sketching import Approximation, approximate
from adaptool.errors import CorruptInputError
from adaptool.lowering.differences import Difference
from adaptool.reduction.cutting import cost_of, cut, energies_of

FIRST_VALUES = 32
"""Singular values that are looked at first where a share of the energy is asked for."""


class Candidate(Protocol):
    """What U(W) - W offers to whoever chooses its rank."""

    @property
    def exact(self) -> int | None:
        """The rank at which nothing is lost; None for one of full rank in general."""
        ...

    @property
    def largest(self) -> int:
        """The largest rank that means anything."""
        ...

    def module(self, most: int) -> Module:
        """What ranks bring, of the `most` first ones at least, and what one costs in values.

        Raises CorruptInputError for values that are not finite.
        """
        ...

    def factored(self, rank: int) -> tuple[Low, float, float]:
        """Factors of this rank, |U(W) - W|_F, and |U(W) - W - factors|_F."""
        ...


@dataclass(frozen=True)
class Known:
    """An update whose factors are there.

    Attributes:
        site: for messages.
        low: the update.
    """

    site: Site
    low: Low

    @property
    def exact(self) -> int:
        """Its own rank, or that of any matrix of the size."""
        return self.largest

    @property
    def largest(self) -> int:
        """See Candidate."""
        return min(self.low.rank, *matrix(self.low))

    def module(self, most: int) -> Module:  # noqa: ARG002 - all values are found at once
        """See Candidate."""
        return Module(energies_of(self.site, self.low), cost_of(self.low, None, in_bytes=False))

    def factored(self, rank: int) -> tuple[Low, float, float]:
        """See Candidate; factors that keep their rank stay as they are."""
        if rank >= self.low.rank:
            energy = sum(inner(member, member) for member in members(self.low))
            if not isfinite(energy):
                raise _nonfinite(self.site)
            return self.low, sqrt(energy), 0.0
        found = self.module(rank)
        lost = 0.0 if rank >= self.largest else sqrt(found.dropped(rank))
        return cut(self.low, rank, None), sqrt(found.total), lost


@dataclass(frozen=True)
class Sought:
    """An update whose factors are found in its streamed difference.

    Attributes:
        site: for messages.
        difference: U(W) - W.
        exact: see Candidate.
        embedding: the module looks rows up.
        of_rows: and the update is of a weight [vocabulary, dimension], as it is stored.
    """

    site: Site
    difference: Difference
    exact: int | None
    embedding: bool = False
    of_rows: bool = False

    @property
    def largest(self) -> int:
        """See Candidate."""
        full = min(self.difference.matrix)
        return full if self.exact is None else min(full, self.exact)

    def module(self, most: int) -> Module:
        """See Candidate."""
        found = self._approximated(min(most, self.largest))
        energies = [float(value) ** 2 for value in found.spectrum.s]
        return Module(energies, sum(self.difference.matrix), found.rest**2)

    def factored(self, rank: int) -> tuple[Low, float, float]:
        """See Candidate; float32, with the strength in them."""
        found = self._approximated(rank)
        spectrum = found.spectrum
        if self.difference.transposed or self.of_rows:
            spectrum = Spectrum(spectrum.vt.T, spectrum.s, spectrum.u.T)
        kernel = self.difference.update.shape[2:]
        return from_spectrum(spectrum, rank, kernel, self.embedding), found.norm, found.rest

    def _approximated(self, rank: int) -> Approximation:
        try:
            return approximate(self.difference.blocks(), self.difference.stored, rank)
        except FloatingPointError:
            raise _nonfinite(self.site) from None


def _nonfinite(site: Site) -> CorruptInputError:
    return CorruptInputError(
        f"{site}: what the adapter makes of the weight is not finite",
        hint="find the values with `adaptool inspect --stats`",
        code="NOT_FINITE",
    )


def searched(candidate: Candidate, energy: float, limit: int) -> Module:
    """What ranks bring, of as many values as hold this share of the energy, or of `limit`."""
    most = min(FIRST_VALUES, limit)
    while True:
        module = candidate.module(most)
        if most >= limit or module.kept(len(module.energies)) >= energy:
            return module
        most = min(4 * most, limit)
