"""All pairs of two models looked at in a few threads, and their ranks chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, isfinite
from threading import Lock

from adaptool.budgets import Module, least_cost
from adaptool.canonical import Replacement, Site, Update
from adaptool.canonical.sketching import Approximation
from adaptool.canonical.tensors import same_bytes
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.extraction.differences import Difference
from adaptool.extraction.factoring import Factoring
from adaptool.extraction.pairing import Form, Pair
from adaptool.ranks import RankRequest, choose_ranks
from adaptool.workers import run_each

MOST_VALUES = 256
"""Singular values of a matrix that are looked at, unless the request names a rank."""

FEWER_VALUES = (32, 96)
"""How many are looked at first where a share of the energy is asked for, which few may hold."""

Progress = Callable[[int, int], None]
Weigh = Callable[[Mapping[Site, Update]], int]
"""What these updates take when they are written: bytes, or values if these are what is limited."""


@dataclass(frozen=True)
class Found:
    """One pair that differs.

    Attributes:
        pair: both tensors.
        norm: |dW|_F; None where the sizes differ.
        module: what ranks bring, of a matrix.
        update: what the difference becomes; None as long as its rank is open.
        lost: |dW - update|_F.
    """

    pair: Pair
    norm: float | None
    module: Module | None = None
    update: Update | None = None
    lost: float = 0.0


@dataclass(frozen=True)
class Survey:
    """Looks at pairs; each rank follows from its own spectrum, or from all of them together.

    Attributes:
        request: how ranks are chosen.
        factoring: how a pair is factored.
        weigh: what updates take, for a size or a count.
        threads: workers.
        advance: called from workers with the bytes of each pair that is done.
    """

    request: RankRequest
    factoring: Factoring
    weigh: Weigh
    threads: int | None
    advance: Callable[[int], None]

    def run(self, pairs: Sequence[Pair]) -> list[Found]:
        """Every pair that differs, with its update.

        Raises:
            UsageError: a goal out of reach.
            CorruptInputError: weights that are not finite.
            IncompatibleError: quantised weights that differ.
        """
        largest_first = sorted(pairs, key=lambda pair: -pair.tuned.nbytes)
        results = run_each(self._look, largest_first, self.threads)
        found = [result for result in results if result is not None]
        open_ = [f for f in found if f.update is None]
        ranks = self._choose(open_, {f.pair.site: f.update for f in found if f.update})

        def settle(item: Found) -> Found:
            parts = self._approximations(item.pair, ranks[item.pair.site])
            self.advance(item.pair.tuned.nbytes)
            return self._settled(item, parts, ranks[item.pair.site])

        settled = iter(run_each(settle, open_, self.threads))
        found = [f if f.update is not None else next(settled) for f in found]
        return sorted(found, key=lambda f: f.pair.site)

    def measure(self, pairs: Sequence[Pair]) -> list[tuple[Site, float | None]]:
        """|dW|_F of the pairs that differ; None where it cannot be said."""

        def norm_of(pair: Pair) -> float | None:
            try:
                return self._measured(pair)
            except (IncompatibleError, CorruptInputError):  # nobody asked for this one
                return None

        norms = run_each(norm_of, pairs, self.threads)
        return [(p.site, norm) for p, norm in zip(pairs, norms, strict=True) if norm != 0]

    def _look(self, pair: Pair) -> Found | None:
        if pair.form is Form.WHOLE:
            norm = self._measured(pair)
            return None if norm == 0 else Found(pair, norm, update=Replacement(pair.tuned))
        self.advance(pair.tuned.nbytes)
        if same_bytes(pair.old, pair.tuned):
            return None
        parts, module = self._spectrum(pair)
        norm = hypot(*(part.norm for part in parts))
        if norm == 0:
            return None
        found = Found(pair, norm, module)
        if in_total(self.request):
            return found
        rank = choose_ranks({pair.site: module}, self.request)[pair.site]
        return self._settled(found, parts, rank)

    def _spectrum(self, pair: Pair) -> tuple[list[Approximation], Module]:
        """As many values as the request needs; for a share of the energy few are tried first."""
        limits = (self.request.rank, self.request.max_rank)
        most = min((limit for limit in limits if limit is not None), default=MOST_VALUES)
        share = self.request.energy
        tries = [] if share is None else [count for count in FEWER_VALUES if count < most]
        for count in (*tries, most):
            parts = self._approximations(pair, count)
            in_values = self.request.params is not None
            module = self.factoring.module(pair, parts, in_values=in_values)
            if share is not None and module.kept(len(module.energies)) >= share:
                break
        return parts, module

    def _settled(self, found: Found, parts: list[Approximation], rank: int) -> Found:
        update, lost = self.factoring.factored(found.pair, parts, rank)
        return replace(found, update=update, lost=lost)

    def _approximations(self, pair: Pair, rank: int) -> list[Approximation]:
        try:
            return self.factoring.approximations(pair, rank)
        except FloatingPointError:
            raise _nonfinite(pair) from None

    def _measured(self, pair: Pair) -> float | None:
        self.advance(pair.tuned.nbytes)
        if pair.base is None or pair.base.shape != pair.tuned.shape:
            return None
        if same_bytes(pair.base, pair.tuned):
            return 0.0
        norm = Difference(pair.site, pair.base, pair.tuned).norm()
        if not isfinite(norm):
            raise _nonfinite(pair)
        return norm

    def _choose(self, found: list[Found], whole: Mapping[Site, Update]) -> dict[Site, int]:
        """Ranks over all modules, beside what is replaced."""
        modules = {f.pair.site: f.module for f in found if f.module is not None}
        limit = self.request.size or self.request.params
        if limit is None or not modules:
            return choose_ranks(modules, self.request) if modules else {}
        pairs = {f.pair.site: f.pair for f in found}

        def beside(ranks: Mapping[Site, int]) -> int:
            """What is spent on all but these ranks."""
            lows = {site: self.factoring.outline(pairs[site], rank) for site, rank in ranks.items()}
            cost = sum(modules[site].cost * rank for site, rank in ranks.items())
            return self.weigh({**whole, **lows}) - cost

        bounds = self.request.bounds(modules)
        taken = beside({site: least for site, (least, _) in bounds.items()})
        while True:  # headers and rank patterns grow a little with the ranks
            least = least_cost(modules, bounds) + taken
            if least > limit:
                raise UsageError(
                    f"{limit:,} are asked for, the least ranks and what is replaced take {least:,}",
                    hint="ask for more, for a smaller --dtype, or leave modules out with --skip",
                )
            ranks = choose_ranks(modules, self.request, limit - taken)
            needed = beside(ranks)
            if needed <= taken:
                return ranks
            taken = needed


def in_total(request: RankRequest) -> bool:
    """Whether the ranks of all modules depend on one another."""
    return any(goal is not None for goal in (request.error, request.size, request.params))


def meter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """What workers call with the bytes that they are through with."""
    lock = Lock()

    def advance(nbytes: int) -> None:
        if progress is not None:
            with lock:
                progress(nbytes, total)

    return advance


def _nonfinite(pair: Pair) -> CorruptInputError:
    tensors = (pair.base, pair.tuned)
    files = [t.stored.source.path for t in tensors if t is not None and t.stored is not None]
    return CorruptInputError(
        f"{pair.site}: {' or '.join(map(str, files)) or 'a model'} holds values that are not "
        "finite",
        hint="look for them with `adaptool inspect --stats`",
        code="NOT_FINITE",
    )
