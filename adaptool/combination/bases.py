"""Adapters of other types as plain low-rank updates, so that they add up.

What looks at the weight (DoRA, OFT, (IA)^3) is taken against a base, as U(W) - W. That is of full
rank in general; what factors cannot hold is measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import hypot

from adaptool.architectures.replication import replicate_layers
from adaptool.architectures.speaking import spoken_by
from adaptool.canonical import Adapter, Checkpoint, Dora, Rebased, Site, Update
from adaptool.encodings.checkpoints import dequantised
from adaptool.lowering import Row, is_plain, lower, needs_base
from adaptool.ranks import RankRequest


def plain_updates(
    adapter: Adapter,
    base: Checkpoint | None = None,
    rank: int | None = None,
    threads: int | None = None,
) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter with every update as one that adds up, and notes of what that lost.

    Args:
        adapter: any; updates that add up as they are stay so, and without a base also what needs
            one.
        base: the model that it was trained on; its weights are streamed.
        rank: of factors that are not exact; None takes the direction's own for DoRA.
        threads: workers.

    Raises:
        IncompatibleError: a weight is not in the base, or not stored as plain numbers.
        UsageError: an update of full rank, and no rank.
    """
    if all(map(is_plain, adapter.updates.values())):
        return adapter, ()
    if base is not None:
        base = replicate_layers(dequantised(base), adapter)
        adapter = spoken_by(base, adapter)
    updates = dict(adapter.updates)
    rows: list[Row] = []
    for asked, some in _by_rank(adapter.updates, base, rank).items():
        request = None if asked is None else RankRequest(rank=asked)
        done = lower(replace(adapter, updates=some), request, base=base, threads=threads)
        for site in some:  # a bias that the base lacks goes
            updates.pop(site)
        updates |= done.adapter.updates
        rows += done.rows
    if not rows:
        return adapter, ()
    where = "" if base is None else f" against {base.provenance.name}"
    notes = [f"{adapter.provenance.name}: {note}" for note in _notes(rows, where)]
    plain = replace(adapter, updates=updates, method="lora", extras={})
    return plain, tuple(notes)


def _by_rank(
    updates: Mapping[Site, Update], base: Checkpoint | None, rank: int | None
) -> dict[int | None, dict[Site, Update]]:
    """What is to be made plain, by the rank of its factors; None for exact ones."""
    found: dict[int | None, dict[Site, Update]] = defaultdict(dict)
    for site, update in updates.items():
        if not is_plain(update) and (base is not None or not needs_base(update)):
            own = update.update if isinstance(update, Rebased) else update
            like = own.direction.rank if isinstance(own, Dora) else None
            found[rank or like][site] = update
    return found


def _notes(rows: list[Row], where: str) -> list[str]:
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.rank is not None:
            kinds["DoRA" if row.kind == Dora.kind else row.kind].append(row)
    return [
        f"{len(some)} {kind} updates taken as factors{where}, relative error "
        f"{hypot(*(r.lost for r in some)) / (hypot(*(r.norm or 0.0 for r in some)) or 1.0):.3g}"
        for kind, some in kinds.items()
    ]
