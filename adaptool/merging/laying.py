"""Adapters laid onto a checkpoint: which update goes where, and what becomes of tied weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from adaptool.architectures.naming import NEW_HEADS
from adaptool.architectures.placing import Plan
from adaptool.architectures.speaking import ONNX, plan_of
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    LazyTensor,
    Placement,
    Rebased,
    Replacement,
    Site,
    Update,
)
from adaptool.canonical.parts import looks_up
from adaptool.canonical.tensors import same_bytes, transposed
from adaptool.canonical.verbs import Companion
from adaptool.errors import JSON, IncompatibleError
from adaptool.merging.configuration import untied
from adaptool.merging.patching import Patch
from adaptool.merging.sharing import follow_tied_head
from adaptool.merging.tying import (
    GGUF_EMBEDDING,
    GGUF_HEAD,
    Embeddings,
    is_embedding,
    is_head,
    stays_tied,
)


@dataclass
class Ledger:
    """What is known of the result so far.

    Attributes:
        base: the model.
        patches: name -> updates to be applied.
        sources: name -> what updates are applied to, where that is not the base's tensor.
        fresh: names among `sources` whose values are an adapter's.
        config: config.json, following the tensors.
        notes: decisions a reader should know of.
    """

    base: Checkpoint
    patches: dict[str, list[Patch]] = field(default_factory=lambda: defaultdict(list))
    sources: dict[str, LazyTensor] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    config: dict[str, JSON] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def speaks_config(self) -> bool:
        """Whether the base has a Hugging Face config.json, which follows the tensors."""
        return bool(self.base.config) and self.base.container not in ("gguf", ONNX)

    def source(self, name: str) -> LazyTensor:
        """The tensor that updates of `name` are applied to."""
        return self.sources.get(name) or self.base.tensors[name]


def lay(ledger: Ledger, ends: Embeddings, adapter: Adapter, scale: float) -> None:
    """Find the place of every update of one adapter."""
    plan = plan_of(ledger.base, adapter.config)
    embedding = next((u for s, u in adapter.updates.items() if is_embedding(s)), None)
    head = next((u for s, u in adapter.updates.items() if is_head(s)), None)
    tied = ends.tied and stays_tied(adapter, embedding, head)
    if ends.tied and not tied:
        _untie(ledger, plan, ends, embedding)
    unplaced: list[Site] = []
    taken: dict[tuple[object, ...], Site] = {}
    for site, stored in adapter.updates.items():
        update = plan.oriented(site, stored)
        if tied and is_head(site):  # the same update as the embedding's
            places: tuple[Placement, ...] = () if ends.head is None else (Placement(ends.head),)
        else:
            places = _places(plan, ends, adapter, site, update)
            if not places and plan.may_add and _is_new(site, update, adapter):
                _add_new(ledger, site, update, scale)
            elif not places and not isinstance(update, Companion):
                unplaced.append(site)
        for place in places:
            where = place.tensor, place.slot, place.rows, place.cols, place.expert
            if taken.setdefault(where, site) != site:
                raise _collision(site, taken[where], place)
            _lay_one(ledger, site, update, scale, place)
    if unplaced:
        _refuse_unplaced(plan, adapter, unplaced)


def _places(
    plan: Plan, ends: Embeddings, adapter: Adapter, site: Site, update: Update
) -> tuple[Placement, ...]:
    """Where an update lies; a head that was tied has a tensor of its own by now."""
    if ends.tied and is_head(site):
        return (Placement(ends.head_name),)
    places = plan.place(site, update)
    if plan.checkpoint.container == ONNX:
        places += follow_tied_head(plan.checkpoint, adapter, site, update)
    return places


def _turned(update: Update, place: Placement) -> tuple[Update, Placement]:
    """The update with what it brings as a whole in the orientation of the stored tensor."""
    if isinstance(update, Replacement) and place.transposed and place.part is None:
        return Replacement(transposed(update.value)), replace(place, transposed=False)
    if isinstance(update, Rebased) and place.transposed != looks_up(update.update):
        return replace(update, value=transposed(update.value)), place
    return update, place


def _lay_one(ledger: Ledger, site: Site, update: Update, scale: float, place: Placement) -> None:
    name = place.tensor
    source = ledger.source(name)
    update, place = _turned(update, place)
    whole = place.rows is None and place.cols is None and place.part is None
    resized = whole and update.shape != source.shape
    if isinstance(update, Replacement | Rebased) and resized:
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
    if isinstance(update, Replacement) and resized:
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
    if name in (GGUF_EMBEDDING, GGUF_HEAD):  # its vocabulary stands in the same file
        resizable = False
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


def _collision(one: Site, other: Site, place: Placement) -> IncompatibleError:
    return IncompatibleError(
        f"{one} and {other} both lie in {place.tensor}: an adapter changes a weight once",
        code="PLACED_TWICE",
    )


def _untie(ledger: Ledger, plan: Plan, ends: Embeddings, embedding: Update | None) -> None:
    """Give the head a tensor of its own: what both ends shared before this adapter's update."""
    if ends.embedding is None:
        return
    if not plan.may_untie:
        raise IncompatibleError(
            f"{ends.embedding}: the adapter changes embedding or head alone, and llama.cpp has one "
            f"weight for both in {ledger.base.config.get('general.architecture')} models",
            hint="train without embed_tokens and lm_head, or with ensure_weight_tying",
            code="UNTIED_HEAD",
        )
    name = ends.head_name
    shared = ledger.source(ends.embedding)
    if isinstance(embedding, Rebased):
        shared = embedding.value.cast(shared.dtype)
    ledger.sources.setdefault(name, shared)
    if ledger.config.get("tie_word_embeddings") is not False:
        if ledger.speaks_config:
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


def _add_new(ledger: Ledger, site: Site, update: Update, scale: float) -> None:
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
