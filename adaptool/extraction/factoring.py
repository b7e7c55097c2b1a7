"""The difference of one pair as a low-rank update."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from typing import TYPE_CHECKING

from adaptool.budgets import Module
from adaptool.canonical import DType, ExpertLowRank, LazyTensor, LowRank, Replacement, Update
from adaptool.canonical.algebra import Spectrum, from_spectrum, inner
from adaptool.canonical.sketching import Approximation, approximate
from adaptool.canonical.tensors import from_recipe, from_values
from adaptool.extraction.differences import Difference
from adaptool.extraction.pairing import Form, Pair

if TYPE_CHECKING:
    import torch

NOISE = 1e-6
"""Singular values below this share of the largest are what float32 does not resolve."""

_STACKED = (Form.EXPERTS, Form.TRANSPOSED_EXPERTS)
_TURNED = (Form.TRANSPOSED, Form.EMBEDDING, Form.TRANSPOSED_EXPERTS)


@dataclass(frozen=True)
class Factoring:
    """How a pair's difference is factored.

    Attributes:
        dtype: of the factors.
        exact: full decompositions.
        seed: of the random start.
    """

    dtype: DType
    exact: bool = False
    seed: int = 0

    def approximations(self, pair: Pair, rank: int) -> list[Approximation]:
        """The leading values of tuned - base, as stored; one for each expert of a stack.

        Raises FloatingPointError for values that are not finite.
        """
        difference = Difference(pair.site, pair.old, pair.tuned, pair.form in _STACKED)
        return [
            approximate(
                difference.blocks(slot), difference.matrix, rank, seed=self.seed, exact=self.exact
            )
            for slot in range(difference.slots)
        ]

    def module(self, pair: Pair, parts: list[Approximation], *, in_values: bool) -> Module:
        """What ranks of this pair bring, and cost in bytes or in values; noise is no rank."""
        found = [sum(values) for values in zip(*(_energies(p) for p in parts), strict=True)]
        energies = [value for value in found if value > NOISE**2 * found[0]] or found[:1]
        factors = self._low_rank_outline(pair, 1).tensors.values()
        cost = sum(t.count if in_values else t.nbytes for t in factors)
        rest = sum(part.rest**2 for part in parts) + sum(found[len(energies) :])
        return Module(energies, cost, rest)

    def outline(self, pair: Pair, rank: int) -> Update:
        """What `factored` gives, without values that could be asked for."""
        low = self._low_rank_outline(pair, rank)
        return low if self._pays(pair, low) else Replacement(pair.tuned)

    def factored(self, pair: Pair, parts: list[Approximation], rank: int) -> tuple[Update, float]:
        """The update of this rank, and |dW - update|_F with the rounding of its factors.

        An embedding is replaced, and nothing lost, where that takes fewer bytes.
        """
        if not self._pays(pair, self._low_rank_outline(pair, rank)):
            return Replacement(pair.tuned), 0.0
        kernel = pair.tuned.shape[2:] if pair.form is Form.MATRIX else ()
        lows = [
            from_spectrum(
                _turned(part.spectrum) if pair.form in _TURNED else part.spectrum,
                rank, kernel, pair.form is Form.EMBEDDING,
            )
            for part in parts
        ]  # fmt: skip
        rounded = [
            LowRank(_rounded(low.a, self.dtype), _rounded(low.b, self.dtype), 1.0, low.embedding)
            for low in lows
        ]
        # What rounding adds is orthogonal to what truncation lost, but for its square.
        squares = [_distance(*two) for two in zip(lows, rounded, strict=True)]
        lost = hypot(*(part.error(rank) for part in parts), sqrt(sum(squares)))
        return (_stack(rounded) if pair.form in _STACKED else rounded[0]), lost

    def _low_rank_outline(self, pair: Pair, rank: int) -> LowRank | ExpertLowRank:
        shape = pair.tuned.shape
        if pair.form in _STACKED:
            experts, out, width = shape
            if pair.form in _TURNED:
                out, width = width, out
            return ExpertLowRank(self._blank(experts, rank, width),
                                 self._blank(experts, out, rank), 1.0)  # fmt: skip
        if pair.form in _TURNED:
            shape = shape[::-1]
        return LowRank(self._blank(rank, *shape[1:]), self._blank(shape[0], rank), 1.0,
                       pair.form is Form.EMBEDDING)  # fmt: skip

    def _blank(self, *shape: int) -> LazyTensor:
        def refuse() -> torch.Tensor:
            raise TypeError("an outline has no values")

        return from_recipe(shape, self.dtype, refuse)

    @staticmethod
    def _pays(pair: Pair, low: LowRank | ExpertLowRank) -> bool:
        """Whether factors are what to write."""
        return pair.form is not Form.EMBEDDING or low.a.nbytes + low.b.nbytes < pair.tuned.nbytes


def _energies(part: Approximation) -> list[float]:
    return [float(value) ** 2 for value in part.spectrum.s]


def _turned(spectrum: Spectrum) -> Spectrum:
    """Of the transpose."""
    return Spectrum(spectrum.vt.T, spectrum.s, spectrum.u.T)


def _rounded(factor: LazyTensor, dtype: DType) -> LazyTensor:
    """In memory in its own type, so that the wider one can go."""
    return factor if factor.dtype == dtype else from_values(factor.values().to(dtype.torch))


def _distance(one: LowRank, two: LowRank) -> float:
    """|dW1 - dW2|_F^2."""
    if one.a is two.a and one.b is two.b:
        return 0.0
    return max(inner(one, one) - 2 * inner(one, two) + inner(two, two), 0.0)


def _stack(lows: list[LowRank]) -> ExpertLowRank:
    import torch

    a, b = ([getattr(low, name).values() for low in lows] for name in ("a", "b"))
    return ExpertLowRank(from_values(torch.stack(a)), from_values(torch.stack(b)), 1.0)
