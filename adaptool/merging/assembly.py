"""Adapters laid onto a checkpoint: which update goes where, and what becomes of tied weights."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

from adaptool.architectures.naming import NEW_HEADS
from adaptool.architectures.placing import Plan
from adaptool.architectures.replication import replicate_layers
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    DType,
    LazyTensor,
    Placement,
    Rebased,
    Replacement,
    Site,
    Update,
)
from adaptool.canonical.tensors import same_bytes
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.merging.configuration import untied, with_task, with_vocabulary
from adaptool.merging.patching import Arithmetic, Patch, patch_tensor
from adaptool.merging.survival import Tally
from adaptool.merging.tying import Embeddings, embeddings_of, is_embedding, is_head, stays_tied


@dataclass(frozen=True)
class Merge:
    """A merge that will happen when its checkpoint is written.

    Attributes:
        checkpoint: the merged model, lazy.
        touched: names of tensors that are computed, replaced or new.
        tally: filled while the checkpoint is written.
        moves: the scale of some adapter is not zero.
        notes: what was decided that a reader should know.
    """

    checkpoint: Checkpoint
    touched: tuple[str, ...]
    tally: Tally
    moves: bool
    notes: tuple[str, ...]

    def verify(self) -> None:
        """Check, once all is written, that the merge did something.

        Raises IncompatibleError if the result equals the base although a scale is not zero.
        """
        measured = self.tally.tensors()  # what is new or resized is not measured, but moved
        if self.moves and not any(n not in measured or measured[n].stored for n in self.touched):
            raise IncompatibleError(
                f"the result would equal the base: none of the {len(self.touched)} touched "
                "tensors changed",
                hint="the adapter is untrained (B is zero), or its update is smaller than the "
                "output type resolves: try --dtype float32",
                code="NOTHING_MERGED",
            )


@dataclass
class _Ledger:
    """What is known of the result so far."""

    base: Checkpoint
    patches: dict[str, list[Patch]] = field(default_factory=lambda: defaultdict(list))
    sources: dict[str, LazyTensor] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    config: dict[str, JSON] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def source(self, name: str) -> LazyTensor:
        """The tensor that updates of `name` are applied to."""
        return self.sources.get(name) or self.base.tensors[name]


def merge(
    base: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    *,
    dtype: DType | None = None,
    device: str = "cpu",
    allow_nonfinite: bool = False,
) -> Merge:
    """Merge adapters into a checkpoint, each with its scale.

    Args:
        base: any checkpoint; its tensors are not read now.
        adapters: (adapter, scale) pairs; their updates are summed before the one rounding.
        dtype: type of floating-point tensors in the result; None keeps each one's own.
        device: where touched tensors are computed: "cpu", "cuda" or "cuda:n".
        allow_nonfinite: do not refuse infinities and NaNs.

    Raises:
        UsageError: no adapter, or a scale that is not finite.
        IncompatibleError: an update that fits nowhere in the base, or twice in one place.
    """
    if not adapters:
        raise UsageError("no adapter to merge")
    for adapter, scale in adapters:
        if not isfinite(scale):
            raise UsageError(f"scale {scale} is not a finite number")
        if adapter.unmergeable:
            raise IncompatibleError(
                f"{adapter.provenance.name}: cannot be merged, since {adapter.unmergeable}",
                hint="load it beside the model at run time",
                code="NOT_MERGEABLE",
            )
        base = replicate_layers(base, adapter)
    ledger = _Ledger(base, config=dict(base.config))
    ends = embeddings_of(base)
    for adapter, scale in adapters:
        _lay(ledger, ends, adapter, scale)
    _follow(ledger, ends, [adapter for adapter, _ in adapters])
    how = Arithmetic(device, allow_nonfinite, Tally())
    tensors = _compute(ledger, dtype, how)
    if dtype is not None and ledger.config:
        ledger.config["dtype" if "dtype" in ledger.config else "torch_dtype"] = dtype.value
    touched = tuple(n for n in tensors if n in ledger.patches or n in ledger.sources)
    side = dict(base.side_files)
    if ledger.config != dict(base.config):
        side["config.json"] = (json.dumps(ledger.config, indent=2) + "\n").encode()
    checkpoint = replace(base, tensors=tensors, config=ledger.config, side_files=side)
    moves = any(scale != 0 for _, scale in adapters)
    return Merge(checkpoint, touched, how.tally, moves, tuple(ledger.notes))


def _compute(ledger: _Ledger, dtype: DType | None, how: Arithmetic) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    names = [*ledger.base.tensors, *(n for n in ledger.sources if n not in ledger.base.tensors)]
    for name in names:
        source = ledger.source(name)
        like = ledger.base.tensors.get(name, source)
        out = dtype if dtype is not None and like.dtype.is_floating else like.dtype
        patches = ledger.patches.get(name)
        if patches:
            _refuse_quantised(ledger.base, name, source)
            tensors[name] = patch_tensor(name, source, patches, out, how)
        elif name in ledger.fresh and source.dtype.is_floating:  # not the base's: looked through
            tensors[name] = patch_tensor(name, source, (), out, how)
        else:
            tensors[name] = source.cast(out)
    return tensors


def _refuse_quantised(base: Checkpoint, name: str, source: LazyTensor) -> None:
    """Refuse a weight that means nothing without the scales stored beside it."""
    scales = (f"{name}_scale", f"{name}_scale_inv", f"{name}.absmax", f"{name}_scales")
    if source.dtype.is_floating and not any(scale in base.tensors for scale in scales):
        return
    raise IncompatibleError(
        f"{name} is stored as {source.dtype}, a quantised weight",
        hint="merge into the full-precision model that it was made from",
        code="QUANTISED_BASE",
    )


def _lay(ledger: _Ledger, ends: Embeddings, adapter: Adapter, scale: float) -> None:
    """Find the place of every update of one adapter."""
    plan = Plan(ledger.base, adapter.config)
    embedding = next((u for s, u in adapter.updates.items() if is_embedding(s)), None)
    head = next((u for s, u in adapter.updates.items() if is_head(s)), None)
    tied = ends.tied and stays_tied(adapter, embedding, head)
    if ends.tied and not tied:
        _untie(ledger, ends, embedding)
    unplaced: list[Site] = []
    for site, stored in adapter.updates.items():
        update = plan.oriented(site, stored)
        if ends.tied and is_head(site):
            if tied:  # the same update as the embedding's; a head stored as well follows it
                if ends.head is not None:
                    _lay_one(ledger, site, update, scale, Placement(ends.head))
                continue
            places: tuple[Placement, ...] = (Placement(ends.head_name),)
        else:
            places = plan.place(site, update)
        if not places and _is_new(site, update, adapter):
            _add_new(ledger, site, update, scale)
        elif not places:
            unplaced.append(site)
        for place in places:
            _lay_one(ledger, site, update, scale, place)
    if unplaced:
        _refuse_unplaced(plan, adapter, unplaced)


def _lay_one(ledger: _Ledger, site: Site, update: Update, scale: float, place: Placement) -> None:
    name = place.tensor
    source = ledger.source(name)
    if isinstance(update, Replacement | Rebased) and update.shape != source.shape:
        _check_resize(site, update.shape, name, source.shape)
    if isinstance(update, Rebased):
        shape = update.update.shape
        value = update.value.cast(source.dtype)
        if name in ledger.fresh and not same_bytes(ledger.sources[name], value):
            raise _twice(name)
        ledger.sources[name] = value
        ledger.fresh.add(name)
        turned = place.transposed or (value.shape == shape[::-1] and value.shape != shape)
        ledger.patches[name].append(Patch(update.update, scale, replace(place, transposed=turned)))
        return
    if isinstance(update, Replacement) and update.shape != source.shape:
        _require_whole(name, f"a replacement of another size ({list(update.shape)})", scale)
        if name in ledger.fresh or ledger.patches.get(name):
            raise _twice(name)
        ledger.sources[name] = update.value.cast(source.dtype)
        ledger.fresh.add(name)
        return
    ledger.patches[name].append(Patch(update, scale, place))


def _require_whole(name: str, what: str, scale: float) -> None:
    """Between nothing and something there is no half."""
    if scale != 1:
        raise IncompatibleError(
            f"{name}: {what} cannot be taken at scale {scale:g}",
            hint="merge at scale 1",
            code="RESIZED_AT_SCALE",
        )


def _check_resize(site: Site, shape: tuple[int, ...], name: str, stored: tuple[int, ...]) -> None:
    """Only the vocabulary of an embedding or the classes of a head may change in number."""
    resizable = is_embedding(site) or is_head(site) or _is_task_head(site)
    if not resizable or shape[1:] != stored[1:]:
        raise IncompatibleError(
            f"{site}: the adapter brings {list(shape)}, the base has {list(stored)} in {name}",
            hint="is this the base that the adapter was trained on?",
            code="SHAPE_MISMATCH",
        )


def _is_task_head(site: Site) -> bool:
    return not NEW_HEADS.isdisjoint(site.module.split("."))


def _twice(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"{name}: two adapters each bring their own copy of this weight", code="PLACED_TWICE"
    )


def _untie(ledger: _Ledger, ends: Embeddings, embedding: Update | None) -> None:
    """Give the head a tensor of its own: what both ends shared before this adapter's update."""
    if ends.embedding is None:
        return
    name = ends.head_name
    shared = ledger.source(ends.embedding)
    if isinstance(embedding, Rebased):
        shared = embedding.value.cast(shared.dtype)
    ledger.sources.setdefault(name, shared)
    if ledger.config.get("tie_word_embeddings") is not False:
        ledger.config = untied(ledger.config)
        ledger.notes.append(
            f"input embedding and output head were tied and differ now: {name} is written"
        )


def _is_new(site: Site, update: Update, adapter: Adapter) -> bool:
    """Whether an update may bring a parameter that the base does not have: a task's head."""
    if not isinstance(update, Replacement):
        return False
    saved = adapter.config.get("modules_to_save")
    names = {*NEW_HEADS, *(str(n) for n in (saved if isinstance(saved, list) else ()))}
    return not names.isdisjoint(site.module.split("."))


def _add_new(ledger: _Ledger, site: Site, update: Update, scale: float) -> None:
    name = str(site)
    if not isinstance(update, Replacement) or name in ledger.sources:
        raise _twice(name)
    _require_whole(name, "a trained head that the base lacks", scale)
    floating = [t.dtype for t in ledger.base.tensors.values() if t.dtype.is_floating]
    ledger.sources[name] = update.value.cast(floating[0] if floating else update.value.dtype)
    ledger.fresh.add(name)
    ledger.notes.append(f"{name} is new: the base has no such tensor")


def _refuse_unplaced(plan: Plan, adapter: Adapter, sites: list[Site]) -> None:
    first = sites[0]
    close = plan.closest(first)
    raise IncompatibleError(
        f"{adapter.provenance.name}: {len(sites)} of {len(adapter.updates)} updates fit nowhere in "
        f"{plan.checkpoint.provenance.name}, first {first}",
        hint=f"closest in the base: {', '.join(close)}" if close else "is this the right base?",
        code="UNPLACED",
        details={"unplaced": [str(s) for s in sites[:10]], "count": len(sites)},
    )


def _follow(ledger: _Ledger, ends: Embeddings, adapters: Sequence[Adapter]) -> None:
    """Make config.json say what the tensors are now: vocabulary, task head."""
    if not ledger.config:
        return
    embedding = ledger.sources.get(ends.embedding or "")
    if embedding is not None:
        rows = embedding.shape[0]
        if rows != ledger.base.tensors[ends.embedding or ""].shape[0]:
            ledger.config = with_vocabulary(ledger.config, rows)
            ledger.notes.append(f"the vocabulary has {rows} entries now")
    new = {n: t for n, t in ledger.sources.items() if n not in ledger.base.tensors}
    for task in (adapter.task for adapter in adapters):
        if task is not None and new:
            weights = [t for n, t in new.items() if n.endswith("weight") and t.shape]
            labels = weights[0].shape[0] if weights else 0
            ledger.config = with_task(ledger.config, task, labels)
