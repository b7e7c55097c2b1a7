"""Adapters from Hugging Face names to GGUF's and back: factors moved, stacked, split and joined.

llama.cpp applies `scale * B A` to the tensors of a GGUF model. There rows may lie in another order
than in the checkpoint that the adapter was trained on, several modules in one tensor, or one
module in several. All of it is Placement data; here it is applied to factors.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptool.architectures.gguf import Layout, Source
from adaptool.architectures.gguf.factors import (
    Piece,
    padded,
    scattered,
    stack,
    transposed,
    with_all_rows,
    with_scaling,
)
from adaptool.canonical import Adapter, ExpertLowRank, LowRank, Placement, Site, Update
from adaptool.canonical.arrangement import Chain, Fixed, Order, Run, inverse, rearranged
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

GGUF = "gguf"
HUGGINGFACE = "huggingface"
ARCHITECTURE = "general.architecture"

_WAYS_OUT = {
    "dora": "merge it into the model: adaptool merge",
    "replacement": "merge it into the model: adaptool merge",
    "token-rows": "merge it into the model: adaptool merge",
}

UNADAPTED = frozenset({
    "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b",
})  # fmt: skip
"""Weights of latent attention: llama.cpp loads factors of them, and its graph skips them."""

Shapes = Mapping[str, tuple[int, ...]]


def to_gguf(adapter: Adapter, layout: Layout, shapes: Shapes | None = None) -> Adapter:
    """The same adapter under GGUF's tensor names, its factors in GGUF's row order.

    Args:
        adapter: with Hugging Face names.
        layout: of the base model.
        shapes: tensors of the GGUF model that it is for, numpy order; None if there is none.

    Raises IncompatibleError for what a GGUF adapter cannot say, or what the layout does not know.
    """
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for site, update in adapter.updates.items():
        low_rank = _expressible(site, update)
        places = layout.place(str(site), shapes)
        if not places:
            raise IncompatibleError(
                f"{site}: {layout.architecture} has no such parameter in GGUF",
                hint="is this the base that the adapter was trained on?",
                code="UNPLACED",
            )
        for place in places:
            if place.tensor.rpartition(".")[0].rpartition(".")[2] in UNADAPTED:
                raise _ignored(site, place.tensor)
            pieces[place.tensor].append(_laid(site, low_rank, place))
    updates: dict[Site, Update] = {}
    for tensor, found in pieces.items():
        updates[_site(tensor)] = _assembled(tensor, found, layout, shapes)
    config = {ARCHITECTURE: layout.architecture} | {
        key: adapter.config[key] for key in _CARRIED if adapter.config.get(key) is not None
    }
    return replace(adapter, updates=updates, naming=GGUF, config=config, ties_embeddings=False)


_CARRIED = ("alora_invocation_tokens", "task_type", "peft_version")


def to_huggingface(adapter: Adapter, layout: Layout) -> Adapter:
    """The same adapter under Hugging Face names, its factors in Hugging Face's row order.

    Raises IncompatibleError for a tensor that the layout does not know.
    """
    parts: dict[str, list[tuple[Source, LowRank]]] = defaultdict(list)
    for site, update in adapter.updates.items():
        sources = layout.sources(str(site))
        if not sources:
            raise IncompatibleError(
                f"{site}: {layout.architecture} has no such tensor",
                hint="is this the base that the adapter was made for?",
                code="UNPLACED",
            )
        for source in sources:
            part = _taken(site, update, source.placement)
            if part is not None:
                parts[source.parameter].append((source, part))
    updates: dict[Site, Update] = {}
    for parameter, found in parts.items():
        updates[_site(parameter)] = _gathered(found)
    updates |= _alike({s: u for s, u in updates.items() if _EXPERT.search(s.module)})
    kept = {key: adapter.config[key] for key in _CARRIED if key in adapter.config}
    return replace(adapter, updates=updates, naming=HUGGINGFACE, config=kept)


_EXPERT = re.compile(r"\.experts\.\d+\.")


def _alike(experts: Mapping[Site, Update]) -> Mapping[Site, Update]:
    """Experts' modules with one rank and one strength, exactly.

    PEFT reads such modules into stacks and takes neither rank_pattern nor alpha_pattern for them.
    """
    found = {site: u for site, u in experts.items() if isinstance(u, LowRank)}
    rank = max((update.rank for update in found.values()), default=0)
    strengths = Counter(update.scaling * update.rank for update in found.values())
    if len(strengths) < 2 and all(update.rank == rank for update in found.values()):
        return found
    scaling = strengths.most_common(1)[0][0] / rank
    return {site: padded(with_scaling(u, scaling), rank) for site, u in found.items()}


def _expressible(site: Site, update: Update) -> LowRank | ExpertLowRank:
    if isinstance(update, LowRank) and len(update.a.shape) == 2:
        return update
    if isinstance(update, ExpertLowRank):
        return update
    raise IncompatibleError(
        f"{site}: a GGUF adapter holds low-rank updates of matrices, this one is {update.kind}",
        hint=_WAYS_OUT.get(update.kind, "merge it into the model: adaptool merge"),
        code="NOT_EXPRESSIBLE",
    )


def _ignored(site: Site, tensor: str) -> IncompatibleError:
    return IncompatibleError(
        f"{site}: llama.cpp does not apply factors of {tensor}, without a word",
        hint="merge it into the model: adaptool merge",
        code="NOT_EXPRESSIBLE",
    )


def _laid(site: Site, update: LowRank | ExpertLowRank, place: Placement) -> Piece:
    """One update as it lies at one place."""
    if isinstance(update, ExpertLowRank):
        if place.expert is None or place.expert >= update.experts:
            raise _misfit(site, update, place)
        update = update.expert(place.expert)
    try:
        moved = rearranged(update, place.taken, place.col_order)
        if not isinstance(moved, LowRank):
            raise _misfit(site, update, place)
        if place.transposed:
            moved = transposed(moved)
    except ValueError:
        raise _misfit(site, update, place) from None
    if place.rows is not None and place.rows[1] - place.rows[0] != moved.b.shape[0]:
        raise _misfit(site, moved, place)
    return Piece(place.slot, place.rows, moved)


def _misfit(site: Site, update: Update, place: Placement) -> IncompatibleError:
    return IncompatibleError(
        f"{site}: an update of {list(update.shape)} does not fit {place.tensor} of this base",
        hint="is this the base that the adapter was trained on?",
        code="SHAPE_MISMATCH",
    )


def _assembled(tensor: str, pieces: list[Piece], layout: Layout,
               shapes: Shapes | None) -> LowRank | ExpertLowRank:  # fmt: skip
    """All pieces of one tensor as one update."""
    known = (shapes or {}).get(tensor)
    sources = layout.sources(tensor)
    height = _height(pieces, sources, known)
    slots: dict[int | None, list[Piece]] = defaultdict(list)
    for piece in pieces:
        slots[piece.slot].append(piece)
    joined = {slot: with_all_rows(found, height) for slot, found in slots.items()}
    for update in joined.values():
        shape = tuple(reversed(update.shape)) if update.embedding else update.shape
        if known is not None and shape != known[-2:]:
            raise IncompatibleError(
                f"{tensor}: the adapter brings {list(update.shape)}, the base has {list(known)}",
                hint="is this the base that the adapter was trained on?",
                code="SHAPE_MISMATCH",
            )
    if None in joined:
        return joined[None]
    stated = [s.placement.slot for s in sources if s.placement.slot is not None]
    count = known[0] if known is not None else 1 + max((*stated, *(s for s in joined if s)))
    return stack([joined.get(slot) for slot in range(count)])


def _height(pieces: list[Piece], sources: tuple[Source, ...],
            known: tuple[int, ...] | None) -> int:  # fmt: skip
    if all(piece.rows is None for piece in pieces):
        return pieces[0].update.b.shape[0]
    if known is not None:
        return known[-2]
    ends = [s.placement.rows[1] for s in sources if s.placement.rows is not None]
    return max((*ends, *(piece.rows[1] for piece in pieces if piece.rows is not None)))


def _taken(site: Site, update: Update, place: Placement) -> LowRank | None:
    """What one Hugging Face parameter gets of a tensor's update, rows still in GGUF's order."""
    if isinstance(update, ExpertLowRank):
        if place.slot is None or place.slot >= update.experts:
            raise _misfit(site, update, place)
        update = update.expert(place.slot)
    if not isinstance(update, LowRank):
        raise _misfit(site, update, place)
    if place.rows is not None:
        first, last = place.rows
        if last > update.b.shape[0]:
            raise _misfit(site, update, place)
        moved = rearranged(update, Run(first, last))
        update = moved if isinstance(moved, LowRank) else update
    if place.transposed:
        update = transposed(update)
    if place.col_order is not None:
        undone = Fixed(tuple(inverse(place.col_order.indices(update.a.shape[1])).tolist()))
        moved = rearranged(update, None, undone)
        update = moved if isinstance(moved, LowRank) else update
    return update


def _gathered(found: list[tuple[Source, LowRank]]) -> LowRank | ExpertLowRank:
    """One Hugging Face parameter's update from what lies here and there."""
    by_expert: dict[int | None, list[tuple[Source, LowRank]]] = defaultdict(list)
    for source, update in found:
        by_expert[source.placement.expert].append((source, update))
    whole = {expert: _one(parts) for expert, parts in by_expert.items()}
    if None in whole:
        return whole[None]
    experts = [expert for expert in whole if expert is not None]
    return stack([whole.get(expert) for expert in range(1 + max(experts))])


def _one(parts: list[tuple[Source, LowRank]]) -> LowRank:
    placements = [source.placement for source, _ in parts]
    height = max(_source_rows(p, u.b.shape[0]) for p, (_, u) in zip(placements, parts, strict=True))
    pieces: list[tuple[LowRank, torch.Tensor | None]] = []
    for place, (_, update) in zip(placements, parts, strict=True):
        pieces.append((update, None if place.taken is None else place.taken.indices(height)))
    return scattered(pieces, height)


def _source_rows(place: Placement, here: int) -> int:
    """Rows of the Hugging Face parameter, as far as this placement tells."""
    if place.part is not None:
        return place.part[1]
    order: Order | None = place.row_order
    while isinstance(order, Chain):
        order = order.first
    size = getattr(order, "source", None)
    return size if isinstance(size, int) else here


def _site(parameter: str) -> Site:
    """`blk.0.attn_q.weight` and its kin as a site; a stacked parameter keeps its last name."""
    module, _, last = parameter.rpartition(".")
    return Site(module, last)
