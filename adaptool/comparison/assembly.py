"""Modules of two adapters are matched, compared, and summed up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, sqrt

from adaptool.architectures.naming import normal
from adaptool.canonical import (
    Adapter,
    Addition,
    Dora,
    LazyTensor,
    LowRank,
    Replacement,
    Site,
    TokenRows,
    Update,
)
from adaptool.canonical.algebra import inner
from adaptool.canonical.parts import Low, low_rank, members
from adaptool.canonical.updates import LowRankable
from adaptool.canonical.verbs import Companion
from adaptool.comparison.measures import Meeting, meet, meet_values
from adaptool.errors import JSON, CorruptInputError, IncompatibleError
from adaptool.formats import ReadOptions, read_adapter
from adaptool.hub import fetch_adapter
from adaptool.workers import run_each


@dataclass(frozen=True)
class Comparison:
    """Two adapters side by side.

    Attributes:
        names: of the adapters.
        modules: what both update, by the first one's site.
        copies: trained copies that both have: cosine and norms of the values.
        only: sites of each that the other lacks.
        unlike: sites that cannot be compared, and why.
        total: all updates together; a missing one is zero.
        notes: how to read it.
    """

    names: tuple[str, str]
    modules: dict[Site, Meeting]
    copies: dict[Site, Meeting]
    only: tuple[tuple[Site, ...], tuple[Site, ...]]
    unlike: dict[Site, str]
    total: Meeting
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "names": list(self.names),
            "total": self.total.as_json(),
            "modules": {str(site): found.as_json() for site, found in self.modules.items()},
            "copies": {
                str(site): {"cosine": found.cosine, "ratio": found.ratio,
                            "norms": [sqrt(found.first), sqrt(found.second)]}
                for site, found in self.copies.items()
            },
            "only_in_first": [str(site) for site in self.only[0]],
            "only_in_second": [str(site) for site in self.only[1]],
            "unlike": {str(site): why for site, why in self.unlike.items()},
            "notes": list(self.notes),
        }  # fmt: skip


def compare_files(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *,
    allow_pickle: bool = False, threads: int | None = None,
) -> Comparison:  # fmt: skip
    """Compare two adapters on disk (or on a hub): `compare` in one call."""
    options = ReadOptions(allow_pickle)
    one, two = (read_adapter(fetch_adapter(os.fspath(path)), options) for path in (first, second))
    return compare(one, two, threads=threads)


def compare(first: Adapter, second: Adapter, *, threads: int | None = None) -> Comparison:
    """Compare two adapters of one base model; their values are read.

    Modules are matched by name, also where library versions name them differently.

    Raises:
        IncompatibleError: an adapter without weight updates, or names of two worlds.
        CorruptInputError: factors that are not finite.
    """
    for adapter in (first, second):
        if not adapter.updates:
            raise IncompatibleError(
                f"{adapter.provenance.name}: no weight updates to compare: "
                f"{adapter.unmergeable or 'the adapter is empty'}",
                code="NOTHING_TO_COMPARE",
            )
    if first.naming != second.naming:
        raise IncompatibleError(
            f"{first.provenance.name} bears {first.naming}'s names, {second.provenance.name} "
            f"{second.naming}'s",
            hint="`adaptool convert` one of them, with --base",
            code="NAMING",
        )
    first, second = _plain(first), _plain(second)
    partner = _matched(first, second)
    pairs = [(s, u, second.updates[partner[s]]) for s, u in first.updates.items() if s in partner]
    unlike = {site: why for site, one, two in pairs if (why := _difference(one, two))}
    pairs = [pair for pair in pairs if pair[0] not in unlike]
    met = run_each(lambda pair: _meet(*pair), pairs, threads)
    modules = {s: m for (s, one, _), m in zip(pairs, met, strict=True) if _is_delta(one)}
    copies = {s: m for (s, one, _), m in zip(pairs, met, strict=True) if not _is_delta(one)}
    partners = set(partner.values())
    only = (
        tuple(site for site in first.updates if site not in partner),
        tuple(site for site in second.updates if site not in partners),
    )
    alone = [(site, first.updates[site], True) for site in only[0]]
    alone += [(site, second.updates[site], False) for site in only[1]]
    unlike |= {site: why for site, update, _ in alone if (why := _unknown(update))}
    alone = [item for item in alone if _is_delta(item[1])]
    total = sum([*modules.values(), *run_each(lambda item: _alone(*item), alone, threads)],
                Meeting())  # fmt: skip
    notes = []
    if any(isinstance(u, Dora) for _, one, two in pairs for u in (one, two)):
        notes.append("of DoRA updates the directions are compared, not the magnitudes")
    if copies:
        notes.append("trained copies are compared as they are and stay out of the total: their "
                     "difference from the base is not known here")  # fmt: skip
    if any(map(_unknown, (*first.updates.values(), *second.updates.values()))):
        notes.append("some updates follow from the base's weights and stay out of the total: "
                     "compare what `adaptool convert --to lora --base MODEL` makes of them",
                     )  # fmt: skip
    names = (first.provenance.name, second.provenance.name)
    return Comparison(names, modules, copies, only, unlike, total, tuple(notes))


def _plain(adapter: Adapter) -> Adapter:
    """With every update as factors that has such a form without a base.

    What goes along with a module's weight, where a base has its place, is left out.
    """
    updates: dict[Site, Update] = {}
    for site, update in adapter.updates.items():
        low = update.low_rank() if isinstance(update, LowRankable) else None
        if not isinstance(update, Companion):
            updates[site] = low or update
    return replace(adapter, updates=updates)


def _unknown(update: Update) -> str | None:
    """Why nobody knows without the base what an update does; None if it is known."""
    known = low_rank(update) is not None or isinstance(update, Addition | Replacement | TokenRows)
    return None if known else f"what {update.kind} updates do follows from the base"


def _matched(first: Adapter, second: Adapter) -> dict[Site, Site]:
    """Sites of the first that the second has: under the same name, else under the same form."""
    forms: dict[str, list[Site]] = {}
    for site in second.updates:
        forms.setdefault(normal(str(site)), []).append(site)
    found = {site: site for site in first.updates if site in second.updates}
    for site in first.updates:
        alike = [other for other in forms.pop(normal(str(site)), []) if other not in found]
        if site not in found and len(alike) == 1:
            found[site] = alike[0]
    return found


def _difference(one: Update, two: Update) -> str | None:
    """Why two updates cannot be compared, or None."""
    if why := _unknown(one) or _unknown(two):
        return why
    lows = low_rank(one), low_rank(two)
    if (lows[0] is None) != (lows[1] is None) or (lows[0] is None and one.kind != two.kind):
        return f"{one.kind} and {two.kind}"
    if lows[0] is not None and lows[1] is not None:
        same = _orientation(lows[0]) == _orientation(lows[1])
        return None if same else f"shapes {list(one.shape)} and {list(two.shape)}"
    if [t.shape for t in one.tensors.values()] != [t.shape for t in two.tensors.values()]:
        return f"shapes {list(one.shape)} and {list(two.shape)}"
    if getattr(one, "indices", None) != getattr(two, "indices", None):
        return "rows of different tokens"
    return None


def _is_delta(update: Update) -> bool:
    """Whether an update is a known difference."""
    return isinstance(update, Addition) or low_rank(update) is not None


def _orientation(low: Low) -> tuple[object, ...]:
    """What two low-rank parts have to agree in."""
    return type(low), low.shape, isinstance(low, LowRank) and low.embedding


def _meet(site: Site, one: Update, two: Update) -> Meeting:
    first, second = low_rank(one), low_rank(two)
    with _finite(site):
        if first is not None and second is not None:
            pairs = zip(members(first), members(second), strict=True)
            return _checked(sum((meet(a, b) for a, b in pairs), Meeting()))
        return _checked(meet_values(_value(one), _value(two), (_strength(one), _strength(two))))


def _alone(site: Site, update: Update, is_first: bool) -> Meeting:
    """An update beside one that is zero."""
    low = low_rank(update)
    with _finite(site):
        if low is not None:
            energy = sum(inner(member, member) for member in members(low))
        else:
            energy = meet_values(_value(update), _value(update), (_strength(update),) * 2).first
        return _checked(Meeting(first=energy) if is_first else Meeting(second=energy))


def _value(update: Update) -> LazyTensor:
    """The one tensor of an update that is not low-rank."""
    return next(iter(update.tensors.values()))


def _strength(update: Update) -> float:
    return update.scaling if isinstance(update, Addition) else 1.0


def _checked(found: Meeting) -> Meeting:
    if not all(map(isfinite, vars(found).values())):
        raise ValueError(found)
    return found


@contextmanager
def _finite(site: Site) -> Iterator[None]:
    """Say which module's values are not finite; torch's decompositions refuse them."""
    import torch

    try:
        yield
    except (ValueError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        raise CorruptInputError(f"{site}: its values are not finite", code="NONFINITE") from None
