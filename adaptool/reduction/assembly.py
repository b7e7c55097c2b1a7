"""Ranks are chosen for all modules, and the result put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import sqrt

from adaptool.budgets import Module, error_curve, least_cost, relative_error
from adaptool.canonical import Adapter, Dora, DType, Site
from adaptool.canonical.parts import low_rank, with_low_rank
from adaptool.errors import JSON, IncompatibleError
from adaptool.ranks import RankRequest, choose_ranks
from adaptool.reduction.cutting import cost_of, cut, distance, energies_of
from adaptool.workers import run_each

Weigh = Callable[[Adapter], int]

_ATTEMPTS = 16


@dataclass(frozen=True)
class Row:
    """What became of one module.

    Attributes:
        site: which one.
        kind: of its update.
        before, after: ranks.
        kept: share of the update's energy |dW|_F^2 that is kept; 1 for an update that is zero.
        norm: |dW|_F before; of DoRA, of the direction.
    """

    site: Site
    kind: str
    before: int
    after: int
    kept: float
    norm: float


@dataclass(frozen=True)
class Reduction:
    """A reduced adapter and how far it is from the original.

    Attributes:
        adapter: the result; its factors are computed when they are asked for.
        rows: one for each low-rank update.
        error: |dW - dW_kept|_F / |dW|_F over all low-rank updates, of the truncation alone.
        weighted_error: the same with each module's energy divided by |W|_F^2 of the base.
        stored_error: as `error`, measured on the factors as they are stored, rounding included.
        budget: what the ranks could cost, where the goal was a size or a count.
        curve: (cost of the ranks, error or weighted error) along the optimal path.
        unit: of both: "bytes", or "values" where the goal was a count.
        notes: what a reader of the result should know.
    """

    adapter: Adapter
    rows: tuple[Row, ...]
    error: float
    weighted_error: float | None = None
    stored_error: float | None = None
    budget: int | None = None
    curve: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    unit: str = "bytes"
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "error": self.error, "weighted_error": self.weighted_error,
            "stored_error": self.stored_error, "budget": self.budget,
            "parameters": self.adapter.parameters,
            "modules": {
                str(row.site): {
                    "kind": row.kind, "rank_before": row.before, "rank": row.after,
                    "energy_kept": row.kept, "norm": row.norm,
                }
                for row in self.rows
            },
            "curve": [{self.unit: cost, "error": error} for cost, error in self.curve],
            "notes": list(self.notes),
        }  # fmt: skip


def reduce(
    adapter: Adapter,
    request: RankRequest,
    *,
    dtype: DType | None = None,
    importance: Mapping[Site, float] | None = None,
    weigh: Weigh | None = None,
    threads: int | None = None,
) -> Reduction:
    """Choose ranks as `plan_reduction` does and compute the factors. Arguments and errors as there.

    Factors come back balanced, with the scaling that their module had; a module that keeps its
    rank keeps its factors bit for bit.
    """
    planned = plan_reduction(
        adapter, request, dtype=dtype, importance=importance, weigh=weigh, threads=threads
    )
    pairs = [
        (old, new)
        for site, update in adapter.updates.items()
        if (old := low_rank(update)) and (new := low_rank(planned.adapter.updates[site]))
    ]
    energies = run_each(lambda pair: distance(*pair), pairs, threads)
    total = sum(row.norm**2 for row in planned.rows)
    return replace(planned, stored_error=sqrt(sum(energies) / total) if total else 0.0)


def plan_reduction(
    adapter: Adapter,
    request: RankRequest,
    *,
    dtype: DType | None = None,
    importance: Mapping[Site, float] | None = None,
    weigh: Weigh | None = None,
    threads: int | None = None,
) -> Reduction:
    """Choose ranks; the result's factors are not computed before they are asked for.

    Args:
        adapter: any; its low-rank factors are read.
        request: how far to go.
        dtype: type of the low-rank factors; None keeps each one's own.
        importance: weight of each module's energy, 1/|W|_F^2 say; None weighs all alike.
        weigh: bytes of an adapter when it is written, for `request.size`; None counts the bytes
            of the trained values.
        threads: workers; None takes as many as there are processors, at most 8.

    Raises:
        IncompatibleError: nothing is low-rank, or the budget is below what has to stay.
        CorruptInputError: factors that are not finite.
        UsageError: see `choose_ranks`.
    """
    lows = {site: low for site, update in adapter.updates.items() if (low := low_rank(update))}
    if not lows:
        raise IncompatibleError(
            f"{adapter.provenance.name}: no update of this adapter is low-rank",
            hint="ranks are all that is reduced; --dtype makes the rest smaller",
            code="NOTHING_TO_REDUCE",
        )
    energies = run_each(lambda item: energies_of(*item), lows.items(), threads)
    modules = {
        site: Module(
            values,
            cost_of(low, dtype, in_bytes=request.params is None),
            importance=1.0 if importance is None else importance[site],
        )
        for (site, low), values in zip(lows.items(), energies, strict=True)
    }
    shaped = partial(_with_ranks, adapter, dtype)
    bounds = request.bounds(modules)
    budget: int | None = None
    if request.size is not None:
        ranks, budget = _fit(modules, request, request.size, lambda r: _weigh(weigh, shaped(r)))
    elif request.params is not None:
        fixed = adapter.parameters - sum(low.a.count + low.b.count for low in lows.values())
        budget = request.params - fixed
        _refuse_below(least_cost(modules, bounds), fixed, request.params, "parameters")
        ranks = choose_ranks(modules, request, budget)
    else:
        ranks = choose_ranks(modules, request)
    rows = tuple(
        Row(site, adapter.updates[site].kind, low.rank, ranks[site],
            modules[site].kept(ranks[site]), sqrt(modules[site].total))
        for site, low in lows.items()
    )  # fmt: skip
    alike = {site: replace(module, importance=1.0) for site, module in modules.items()}
    return Reduction(
        adapter=shaped(ranks),
        rows=rows,
        error=relative_error(alike, ranks),
        weighted_error=None if importance is None else relative_error(modules, ranks),
        budget=budget,
        curve=tuple(error_curve(modules, bounds)),
        unit="bytes" if request.params is None else "values",
        notes=_notes(adapter, rows),
    )


def _weigh(weigh: Weigh | None, adapter: Adapter) -> int:
    return adapter.nbytes if weigh is None else weigh(adapter)


def _fit(modules: Mapping[Site, Module], request: RankRequest, size: int,
         weigh: Callable[[Mapping[Site, int]], int]) -> tuple[dict[Site, int], int]:  # fmt: skip
    """Ranks whose file has at most `size` bytes, and the budget that they were chosen for.

    What is no factor (headers, configuration) grows a little with the ranks, so the budget is
    corrected until it is what the rest leaves.
    """

    def cost(ranks: Mapping[Site, int]) -> int:
        return sum(modules[site].cost * rank for site, rank in ranks.items())

    best = {site: least for site, (least, _) in request.bounds(modules).items()}
    rest = weigh(best) - cost(best)
    _refuse_below(cost(best), rest, size, "bytes")
    granted, budget = cost(best), size - rest
    tried: set[int] = set()
    while budget not in tried and len(tried) < _ATTEMPTS:
        tried.add(budget)
        ranks = choose_ranks(modules, request, budget)
        room = size - (weigh(ranks) - cost(ranks))
        if cost(ranks) > room:
            budget = min(room, budget - 1)
            continue
        if budget > granted:
            best, granted = ranks, budget
        budget = room
    return best, granted


def _refuse_below(least: int, rest: int, budget: int, unit: str) -> None:
    if least + rest > budget:
        raise IncompatibleError(
            f"{budget:,} {unit} are asked for, but the least ranks take {least:,} and what cannot "
            f"be reduced {rest:,}",
            hint=f"ask for at least {least + rest:,}, or for a smaller --min-rank or --dtype",
            code="BUDGET_TOO_SMALL",
            details={"least_ranks": least, "not_reducible": rest, "unit": unit},
        )


def _with_ranks(adapter: Adapter, dtype: DType | None, ranks: Mapping[Site, int]) -> Adapter:
    updates = dict(adapter.updates)
    for site, rank in ranks.items():
        low = low_rank(updates[site])
        if low is not None:
            updates[site] = with_low_rank(updates[site], cut(low, rank, dtype))
    return replace(adapter, updates=updates)


def _notes(adapter: Adapter, rows: tuple[Row, ...]) -> tuple[str, ...]:
    notes = []
    if all(row.before == row.after for row in rows):
        notes.append("no rank changed")
    dora = sum(1 for row in rows if row.kind == Dora.kind)
    if dora:
        notes.append(f"of {dora} DoRA updates the direction was cut; the magnitudes, which are "
                     "the norms of the result's rows, stay exact")  # fmt: skip
    kept = len(adapter.updates) - len(rows)
    if kept:
        notes.append(f"{kept} updates that are not low-rank pass through unchanged")
    return tuple(notes)
