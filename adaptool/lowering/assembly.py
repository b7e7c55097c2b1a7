"""All updates of an adapter, made plain one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from math import hypot, prod

from adaptool.architectures.placing import Plan
from adaptool.architectures.replication import replicate_layers
from adaptool.architectures.speaking import plan_of, spoken_by
from adaptool.budgets import Module
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    ExpertLowRank,
    LowRank,
    Rebased,
    Site,
    Update,
)
from adaptool.canonical.verbs import Fittable
from adaptool.encodings.checkpoints import dequantised
from adaptool.errors import IncompatibleError, UsageError
from adaptool.lowering.candidates import Candidate, Known, Sought, searched
from adaptool.lowering.outcome import Lowering, Row
from adaptool.lowering.sites import consider, is_plain, named, own_update
from adaptool.ranks import RankRequest, choose_ranks
from adaptool.workers import run_each

MOST_VALUES = 256
"""Singular values of a difference of full rank that are looked at for an error in total, unless
the request allows another rank."""

_LASTING = (
    "task_type", "auto_mapping", "revision", "modules_to_save", "layer_replication",
    "fan_in_fan_out", "ensure_weight_tying", "peft_version", "trainable_token_indices",
)  # fmt: skip
"""What a configuration says that plain factors do not change."""


def lower(
    adapter: Adapter,
    request: RankRequest | None = None,
    *,
    base: Checkpoint | None = None,
    threads: int | None = None,
) -> Lowering:
    """The adapter as plain low-rank updates, exactly where that is possible.

    Args:
        adapter: any that can be merged. Trained copies and token rows stay as they are; biases
            that are scaled or shifted become trained copies.
        request: the ranks, of updates that are low-rank already too: a rank, a share of the energy,
            or an error in total. None leaves all exact, and refuses what cannot be.
        base: the model that it was trained on, for updates that look at the weight or are told
            its shape by it; its weights are streamed, quantised ones decoded.
        threads: workers; None takes as many as there are processors, at most 8.

    Returns:
        The result; factors that had to be computed are float32.

    Raises:
        UsageError: a rank is needed and none is asked for, or a goal is none of the three.
        IncompatibleError: a base is needed, or does not fit.
        CorruptInputError: values that are not finite.
    """
    _check(adapter, request)
    plan = None
    if base is not None:
        base = replicate_layers(dequantised(base), adapter)
        adapter = spoken_by(base, adapter)
        plan = plan_of(base, adapter.config)
    updates: dict[Site, Update] = {}
    candidates: dict[Site, Candidate] = {}
    for site, update in adapter.updates.items():
        found = consider(site, update, plan, adapter.method)
        if isinstance(found, Known | Sought):
            candidates[site] = found
        elif found is not None:
            updates[site] = found
    rows = [Row(site, adapter.updates[site].kind, None) for site in updates]
    for site, (low, row) in _factored(candidates, adapter, request, threads).items():
        update = adapter.updates[site]
        updates[site] = _put_back(update, low)
        rows.append(row)
    result = _dressed(adapter, {s: updates[s] for s in adapter.updates if s in updates}, request)
    done = Lowering(result, tuple(sorted(rows, key=lambda row: row.site)), ())
    notes = _notes(done, adapter, plan)
    provenance = replace(result.provenance, notes=(*result.provenance.notes, *notes))
    return replace(done, adapter=replace(result, provenance=provenance), notes=notes)


def _check(adapter: Adapter, request: RankRequest | None) -> None:
    if adapter.unmergeable:
        raise IncompatibleError(
            f"{adapter.provenance.name}: no plain LoRA does the same, since {adapter.unmergeable}",
            hint="load it beside the model at run time",
            code="NOT_EXPRESSIBLE",
        )
    if request is not None and (request.size or request.params or request.criterion):
        raise UsageError(
            f"{request}: ranks of a plain LoRA are chosen by a rank, an energy or an error",
            hint="reduce the result to a size: adaptool reduce",
        )


def _put_back(update: Update, low: LowRank | ExpertLowRank) -> Update:
    if low is own_update(update):
        return update
    return replace(update, update=low) if isinstance(update, Rebased) else low


def _factored(
    candidates: Mapping[Site, Candidate], adapter: Adapter, request: RankRequest | None,
    threads: int | None,
) -> dict[Site, tuple[LowRank | ExpertLowRank, Row]]:  # fmt: skip
    ranks = _ranks(candidates, adapter, request, threads)

    def settle(item: tuple[Site, Candidate]) -> tuple[LowRank | ExpertLowRank, Row]:
        site, candidate = item
        low, norm, lost = candidate.factored(ranks[site])
        exact = ranks[site] >= candidate.largest
        return low, Row(site, own_update(adapter.updates[site]).kind, low.rank, norm, lost, exact)

    return dict(zip(candidates, run_each(settle, candidates.items(), threads), strict=True))


def _ranks(
    candidates: Mapping[Site, Candidate], adapter: Adapter, request: RankRequest | None,
    threads: int | None,
) -> dict[Site, int]:  # fmt: skip
    if request is None:
        full = [site for site, candidate in candidates.items() if candidate.exact is None]
        if full:
            raise UsageError(
                f"{len(full)} updates are of full rank, first {full[0]}, "
                f"{named(own_update(adapter.updates[full[0]]), adapter.method)}",
                hint="say how close a LoRA has to come: --rank N, --energy SHARE or --error SHARE",
                code="NEEDS_RANK",
            )
        return {site: candidate.largest for site, candidate in candidates.items()}
    if request.rank is not None:
        asked = max(request.min_rank, min(request.rank, request.max_rank or request.rank))
        return {site: min(asked, candidate.largest) for site, candidate in candidates.items()}
    wanted = request

    def look(candidate: Candidate) -> Module:
        limit = min(candidate.largest, wanted.max_rank or candidate.largest)
        if wanted.energy is not None:
            return searched(candidate, wanted.energy, limit)
        return candidate.module(min(limit, wanted.max_rank or MOST_VALUES))

    modules = run_each(look, candidates.values(), threads)
    return choose_ranks(dict(zip(candidates, modules, strict=True)), request)


def _dressed(
    adapter: Adapter, updates: Mapping[Site, Update], request: RankRequest | None
) -> Adapter:
    """The updates with what still holds of the adapter."""
    if all(updates.get(site) is update for site, update in adapter.updates.items()):
        return adapter
    kept = _LASTING if adapter.naming == "huggingface" else tuple(adapter.config)
    asked = f": {request}" if request is not None else ""
    note = f"made a plain LoRA by adaptool, from {adapter.method}{asked}"
    provenance = replace(adapter.provenance, notes=(*adapter.provenance.notes, note))
    config = {key: adapter.config[key] for key in kept if adapter.config.get(key) is not None}
    return replace(adapter, updates=updates, method="lora", config=config, unread=(), extras={},
                   provenance=provenance)  # fmt: skip


def _notes(done: Lowering, adapter: Adapter, plan: Plan | None) -> tuple[str, ...]:
    notes = []
    lossy = Counter(row.kind for row in done.rows if not row.exact)
    for kind, count in lossy.items():
        rows = [row for row in done.rows if row.kind == kind and not row.exact]
        norm = hypot(*(row.norm or 0.0 for row in rows))
        error = hypot(*(row.lost for row in rows)) / (norm or 1.0)
        notes.append(f"{count} {kind} updates approximated, relative error {error:.3g}")
    stay = sum(1 for row in done.rows if row.rank is None)
    if stay:
        notes.append(f"{stay} trained copies of heads, norms, biases or rows stay beside the "
                     "factors")  # fmt: skip
    large = [row for row in done.rows if row.rank and not is_plain(adapter.updates[row.site])
             and not _pays(done.adapter.updates[row.site])]  # fmt: skip
    if large:
        notes.append(f"{len(large)} updates take more values as factors than their weights have: "
                     "--rank, --energy or --error make them smaller")  # fmt: skip
    untold = [u for u in adapter.updates.values() if isinstance(own_update(u), Fittable)]
    if untold and plan is None:
        notes.append(f"{len(untold)} weights are taken for matrices: name --base if some are of "
                     "convolutions")  # fmt: skip
    return tuple(notes)


def _pays(update: Update) -> bool:
    """Whether factors have fewer values than the weight itself."""
    own = own_update(update)
    return sum(tensor.count for tensor in own.tensors.values()) < prod(own.shape)
