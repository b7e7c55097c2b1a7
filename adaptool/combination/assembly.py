"""All sites of all adapters, combined one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import hypot, isfinite

from adaptool.architectures.naming import normal
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    Dora,
    ExpertLowRank,
    Rebased,
    Site,
    Update,
)
from adaptool.combination.bases import plain_updates
from adaptool.combination.heads import Owners
from adaptool.combination.identity import combined_adapter
from adaptool.combination.recipe import Recipe
from adaptool.combination.sites import Row, combine_site
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.lowering import is_plain
from adaptool.workers import run_each


@dataclass(frozen=True)
class Combination:
    """A combined adapter.

    Attributes:
        adapter: the result.
        rows: one for each site.
        error: |D - result|_F / |D|_F over all sites that were cut to a rank; None if none was.
        notes: what a reader of the result should know.
    """

    adapter: Adapter
    rows: tuple[Row, ...]
    error: float | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "error": self.error,
            "parameters": self.adapter.parameters,
            "modules": {
                str(row.site): {
                    "ranks": list(row.ranks), "rank": row.rank, "norm": row.norm,
                    "error": row.error,
                }
                for row in self.rows
            },
            "notes": list(self.notes),
        }  # fmt: skip


def combine(
    adapters: Sequence[tuple[Adapter, float]],
    recipe: Recipe | None = None,
    *,
    base: Checkpoint | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Combination:
    """Combine adapters, each with its weight, into one.

    Args:
        adapters: (adapter, weight) pairs. They may differ in ranks, scalings and targets; a module
            that one of them lacks counts as zero there.
        recipe: method, space, rank and so on; None is the exact weighted sum.
        base: the model they were trained on; needed for updates that look at the weight, such as
            DoRA, (IA)^3 and OFT.
        threads: workers, one module each; None takes one per processor, at most 8.
        progress: called from workers with (bytes combined since the last call, bytes in all).

    Returns:
        The result in float32. With `Recipe(factored=False)` its blends are `Blended` updates.

    Raises:
        UsageError: no adapter, a weight that is not finite, an unknown method or setting.
        IncompatibleError: updates that have no common meaning; the message says which and why.
        CorruptInputError: values that are not finite.
    """
    recipe = recipe or Recipe()
    _ = recipe.chosen  # refuses a wrong recipe before anything is read
    _check_all(adapters)
    notes: list[str] = []
    pairs = []
    for adapter, weight in adapters:
        plain, remarks = plain_updates(adapter, base, recipe.rank, threads)
        _check(plain)
        notes += remarks
        pairs.append((plain, weight))
    _check_meanings([adapter for adapter, _ in pairs])
    held = _by_site([adapter for adapter, _ in pairs], notes)
    names = tuple(adapter.provenance.name for adapter, _ in pairs)
    owners = Owners(names, tuple(weight for _, weight in pairs), recipe.keep_heads)
    total = sum(adapter.nbytes for adapter, _ in pairs)

    def work(item: tuple[Site, dict[int, Update]]) -> tuple[Update, Row, str]:
        done = combine_site(*item, owners, recipe)
        if progress is not None:
            progress(sum(t.nbytes for u in item[1].values() for t in u.tensors.values()), total)
        return done

    done = run_each(work, sorted(held.items()), threads)
    notes += _gathered((row.site, note) for _, row, note in done)
    updates = {row.site: update for update, row, _ in done}
    rows = tuple(row for _, row, _ in done)
    adapter = combined_adapter(pairs, updates, recipe, notes)
    return Combination(adapter, rows, _relative(rows), tuple(notes))


def _check_all(adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Refuse what cannot be combined at all."""
    if not adapters:
        raise UsageError("no adapter to combine")
    for adapter, weight in adapters:
        if not isfinite(weight):
            raise UsageError(f"{adapter.provenance.name}: weight {weight} is not a finite number")
        if adapter.unmergeable:
            raise IncompatibleError(
                f"{adapter.provenance.name}: cannot be combined, since {adapter.unmergeable}",
                hint="load it beside the model at run time",
                code="NOT_COMBINABLE",
            )


def _check(adapter: Adapter) -> None:
    """Refuse an adapter that is still of another type."""
    for site, update in adapter.updates.items():
        if not is_plain(update):
            own = update.update if isinstance(update, Rebased) else update
            kind = "DoRA" if isinstance(own, Dora) else f"of kind {own.kind}"
            raise IncompatibleError(
                f"{site}: {adapter.provenance.name} is {kind}, which is no sum of updates",
                hint="name the model, so that its exact update is computed: --base MODEL",
                code="NEEDS_BASE",
            )
    if adapter.extras:
        raise IncompatibleError(
            f"{adapter.provenance.name}: {len(adapter.extras)} tensors are no update of a "
            f"weight, first {next(iter(adapter.extras))}",
            code="NOT_COMBINABLE",
        )


def _check_meanings(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters in which one name means different weights."""
    meanings: dict[str, list[JSON]] = {
        "whose names they bear": [a.naming for a in adapters],
        "layer_replication": [a.config.get("layer_replication") for a in adapters],
        "ensure_weight_tying": [a.ties_embeddings for a in adapters if _has_ends(a)],
        "the PEFT version (experts changed sides in 0.19)": [
            _old_experts(a) for a in adapters if _has_experts(a)
        ],
    }
    for key, facts in meanings.items():
        if any(fact != facts[0] for fact in facts[1:]):
            raise IncompatibleError(
                f"the adapters differ in {key}, so that one name means different weights",
                hint="merge them into the model one after the other: adaptool merge",
                code="MEANINGS_DIFFER",
            )


def _by_site(adapters: Sequence[Adapter], notes: list[str]) -> dict[Site, dict[int, Update]]:
    """Site -> position of an adapter -> its update.

    A parameter that adapters name as different library versions do bears the first one's name.
    """
    held: dict[Site, dict[int, Update]] = {}
    names: dict[str, Site] = {}
    renamed = 0
    for position, adapter in enumerate(adapters):
        forms = Counter(normal(str(site)) for site in adapter.updates)
        for site, update in adapter.updates.items():
            form = normal(str(site))
            known = names.setdefault(form, site) if forms[form] == 1 else site
            renamed += known != site
            held.setdefault(known, {})[position] = update
    if renamed:
        notes.append(f"{renamed} updates bear other names for the same parameters: the first "
                     "adapter's names are written")  # fmt: skip
    return held


def _has_ends(adapter: Adapter) -> bool:
    return any(getattr(update, "embedding", False) for update in adapter.updates.values())


def _has_experts(adapter: Adapter) -> bool:
    return any(isinstance(update, ExpertLowRank) for update in adapter.updates.values())


def _old_experts(adapter: Adapter) -> bool | None:
    """Whether PEFT before 0.19 wrote the adapter; None where it does not say."""
    version = re.match(r"(\d+)\.(\d+)", str(adapter.config.get("peft_version") or ""))
    return None if version is None else (int(version[1]), int(version[2])) < (0, 19)


def _relative(rows: Sequence[Row]) -> float | None:
    """The error of all cuts together, relative to what was cut."""
    cut = [row for row in rows if row.norm is not None]
    if not cut:
        return None
    norm = hypot(*(row.norm or 0.0 for row in cut))
    return hypot(*(row.error for row in cut)) / norm if norm else 0.0


def _gathered(remarks: Iterable[tuple[Site, str]]) -> list[str]:
    """One note for all sites of which the same is to be said."""
    sites: dict[str, list[Site]] = {}
    for site, note in remarks:
        if note:
            sites.setdefault(note, []).append(site)
    return [
        f"{', '.join(map(str, found[:3]))}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        f": {note}"
        for note, found in sites.items()
    ]
