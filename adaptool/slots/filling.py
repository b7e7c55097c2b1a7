"""Factors for the slots of a graph: made of an adapter, and made into one again.

A of a slot is [width, rank] and B [rank, height], the transposes of PEFT's, and B holds the
strength. Modules that share a slot have their own ranks in it, one after the other, and B is zero
outside of each one's own block of ranks and outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import frexp
from typing import TYPE_CHECKING

from adaptool.architectures.gguf.factors import Piece, padded, with_all_rows
from adaptool.canonical import (
    Adapter,
    DType,
    LazyTensor,
    LowRank,
    Provenance,
    Site,
    Update,
)
from adaptool.canonical.tensors import from_recipe, transposed
from adaptool.errors import JSON, IncompatibleError
from adaptool.slots.insertion import one, zeros
from adaptool.slots.manifest import EXTERNAL, OPTIONAL, Manifest, Part, Range, Slot
from adaptool.slots.matching import Match, match

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Block:
    """Where the update of a module, or of some of its rows, lies in a slot's factors.

    Attributes:
        slot: the slot's name.
        ranks: columns of A, [start, stop).
        rows: outputs of the slot.
        taken: which of the module's outputs these are; None for all.
        scaling: what B was multiplied by.
    """

    slot: str
    ranks: Range
    rows: Range
    taken: Range | None
    scaling: float


@dataclass(frozen=True)
class Filling:
    """Factors under the names of a graph's inputs, and what they were made of.

    Attributes:
        tensors: by name, two for each slot.
        manifest: the slots that they fill.
        blocks: module -> where its update lies; empty where nothing is known of it.
        base: name of the adapter's base, where it is known.
        config: the adapter's configuration.
        provenance: where the adapter came from; None for a file that was read.
    """

    tensors: Mapping[str, LazyTensor]
    manifest: Manifest
    blocks: Mapping[str, tuple[Block, ...]] = field(default_factory=dict)
    base: str | None = None
    config: Mapping[str, JSON] = field(default_factory=dict)
    provenance: Provenance | None = None


def fill(adapter: Adapter, manifest: Manifest, dtype: DType | None = None) -> Filling:
    """Every update of an adapter in its slot.

    Slots that it does not touch are left out where the graph has a default for them, else they
    get zeros (of rank 1 where it is free: WebGPU does not take tensors without elements).

    Args:
        adapter: under Hugging Face's names.
        manifest: the slots.
        dtype: of the factors where no graph states it; None keeps each one's own.

    Raises IncompatibleError for an update that is not low-rank, has no slot, does not fit it, or
    has more ranks than it; and, when values are read, for those beyond the range of their type.
    """
    _refuse_others(adapter)
    placed = _placed(adapter, manifest)
    tensors: dict[str, LazyTensor] = {}
    blocks: dict[str, list[Block]] = {}
    for slot in manifest.slots:
        matches = placed.get(slot.name, [])
        if not matches and manifest.mode == OPTIONAL:
            continue
        joined = _joined(slot, matches, blocks) if matches else _nothing(slot)
        if slot.rank is not None:
            _check_rank(slot, joined.rank, slot.rank)
            joined = padded(joined, slot.rank)
        kind = _kind(manifest, slot, dtype)
        for name, factor, scale in ((slot.a, joined.a, 1.0), (slot.b, joined.b, joined.scaling)):
            shape = (factor.shape[1], factor.shape[0])
            tensors[name] = from_recipe(shape, kind, partial(_turned, factor, scale, kind, name))
    if manifest.mode == EXTERNAL:
        tensors[manifest.scale] = from_recipe((), DType.FLOAT32, one)
    listed = {module: tuple(found) for module, found in blocks.items()}
    return Filling(tensors, manifest, listed, adapter.base, dict(adapter.config),
                   adapter.provenance)  # fmt: skip


def _refuse_others(adapter: Adapter) -> None:
    reason = adapter.unmergeable or (None if adapter.updates else "it has no weight updates")
    if reason or adapter.extras:
        raise IncompatibleError(
            f"{adapter.provenance.name}: slots cannot hold it, since "
            f"{reason or 'it has tensors that are no weight updates'}",
            code="NOT_EXPRESSIBLE",
        )


def _placed(adapter: Adapter, manifest: Manifest) -> dict[str, list[tuple[Match, LowRank]]]:
    """Slot -> what goes there."""
    placed: dict[str, list[tuple[Match, LowRank]]] = {}
    for site, update in adapter.updates.items():
        low = _low_rank(site, update)
        for found in match(manifest, site, low.shape):
            there = placed.setdefault(found.slot.name, [])
            for other, _ in there:
                if max(found.rows[0], other.rows[0]) < min(found.rows[1], other.rows[1]):
                    raise IncompatibleError(
                        f"{other.module} and {site.module} both mean {found.slot.name} in the "
                        "graph",
                        code="PLACED_TWICE",
                    )
            there.append((found, low))
    return placed


def _kind(manifest: Manifest, slot: Slot, wanted: DType | None) -> DType:
    if wanted is None or (manifest.of_graph and wanted is slot.dtype):
        return slot.dtype
    if manifest.of_graph:
        raise IncompatibleError(
            f"{slot.name}: the graph takes {slot.dtype}, not {wanted}", code="DTYPE_MISMATCH"
        )
    return wanted


def _low_rank(site: Site, update: Update) -> LowRank:
    plain = isinstance(update, LowRank) and len(update.a.shape) == 2 and not update.embedding
    if isinstance(update, LowRank) and plain and site.parameter == "weight":
        return update
    raise IncompatibleError(
        f"{site}: a slot takes the two factors of a linear layer, this update is "
        f"{'of an embedding or a convolution' if isinstance(update, LowRank) else update.kind}",
        hint="merge it into the model: adaptool merge",
        code="NOT_EXPRESSIBLE",
    )


def _joined(
    slot: Slot, matches: list[tuple[Match, LowRank]], blocks: dict[str, list[Block]]
) -> LowRank:
    """One update of all outputs of a slot; notes in `blocks` what lies where in it."""
    pieces = [Piece(None, found.rows, _rows_of(low, found.taken)) for found, low in matches]
    joined = with_all_rows(pieces, slot.height)
    shared = joined.rank < sum(piece.update.rank for piece in pieces)  # one A for all of them
    start = 0
    for found, low in matches:
        ranks = (0, joined.rank) if shared else (start, start + low.rank)
        block = Block(slot.name, ranks, found.rows, found.taken, low.scaling)
        blocks.setdefault(found.module, []).append(block)
        start += low.rank
    return joined


def _rows_of(low: LowRank, taken: Range | None) -> LowRank:
    if taken is None:
        return low
    first, last = taken
    return replace(low, b=_cut(low.b, slice(first, last), slice(None), (last - first, low.rank)))


def _cut(tensor: LazyTensor, rows: slice, cols: slice, shape: tuple[int, int]) -> LazyTensor:
    return from_recipe(shape, tensor.dtype, partial(_sliced, tensor, rows, cols))


def _sliced(tensor: LazyTensor, rows: slice, cols: slice) -> torch.Tensor:
    return tensor.values()[rows, cols].contiguous()


def _nothing(slot: Slot) -> LowRank:
    a, b = (
        from_recipe(shape, slot.dtype, partial(zeros, shape, slot.dtype))
        for shape in ((1, slot.width), (slot.height, 1))
    )
    return LowRank(a, b, 1.0)


def _check_rank(slot: Slot, found: int, most: int) -> None:
    if found > most:
        raise IncompatibleError(
            f"{slot.name}: the adapter has rank {found} here, the graph's slot takes {most}",
            hint=f"adaptool reduce ADAPTER --rank {most // len(slot.parts)}, or make slots of a "
            "larger --rank",
            code="RANK_MISMATCH",
        )


def _turned(factor: LazyTensor, scale: float, dtype: DType, name: str) -> torch.Tensor:
    """A factor's transpose with a strength in it: computed in float64, rounded once."""
    values = factor.values().double().mul(scale)
    rounded = values.mT.to(dtype.torch).contiguous()
    if bool(values.isfinite().all()) and not bool(rounded.isfinite().all()):
        raise IncompatibleError(
            f"{name}: values of up to {float(values.abs().max()):.3g} are beyond {dtype}",
            hint="make slots in a model of a wider type",
            code="OVERFLOW",
        )
    return rounded


def recover(filling: Filling, manifest: Manifest | None = None) -> dict[Site, Update]:
    """The updates that factors were made of; the same products, ranks and strengths.

    Strengths that are no power of two stay in B: taking them out again would round.

    Args:
        filling: as it was read.
        manifest: the slots of the graph that it fills; None for those that it states itself.

    Raises IncompatibleError for tensors that are no factors of these slots.
    """
    manifest = manifest or filling.manifest
    slots = {slot.name: slot for slot in manifest.slots}
    pairs = {name: _pair(filling, slot) for name, slot in slots.items()}
    known = {manifest.scale, *(name for slot in manifest.slots for name in (slot.a, slot.b))}
    strange = [name for name in filling.tensors if name not in known]
    if strange:
        raise IncompatibleError(
            f"{len(strange)} tensors are no inputs of the graph's slots, first {strange[0]}",
            hint="name the graph that they were made for: --for MODEL.onnx",
            code="UNKNOWN_TENSOR",
        )
    updates: dict[Site, Update] = {}
    for module, blocks in _blocks(filling, manifest, pairs).items():
        pieces = []
        for block in blocks:
            pair = pairs.get(block.slot)
            if pair is None:
                raise _misfit(block.slot, "no factors of it are here")
            pieces.append(Piece(None, block.taken, _taken_out(slots[block.slot], pair, block)))
        height = max((p.rows[1] for p in pieces if p.rows), default=pieces[0].update.b.shape[0])
        updates[Site(module)] = with_all_rows(pieces, height)
    return updates


Pair = tuple[LazyTensor, LazyTensor]


def _pair(filling: Filling, slot: Slot) -> Pair | None:
    """A and B of a slot, checked against it; None if the file leaves it out."""
    a, b = filling.tensors.get(slot.a), filling.tensors.get(slot.b)
    if a is None and b is None:
        return None
    if a is None or b is None:
        raise _misfit(slot.name, f"{slot.a if a is None else slot.b} is missing")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
        raise _misfit(slot.name, f"factors of {list(a.shape)} and {list(b.shape)}")
    if (a.shape[0], b.shape[1]) != (slot.width, slot.height):
        raise _misfit(
            slot.name,
            f"factors of {list(a.shape)} and {list(b.shape)} in a graph of {slot.width} inputs "
            f"and {slot.height} outputs",
        )
    return a, b


def _misfit(slot: str, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"{slot}: {what}", hint="is this the graph that they were made for?", code="SHAPE_MISMATCH"
    )


def _blocks(
    filling: Filling, manifest: Manifest, pairs: Mapping[str, Pair | None]
) -> Mapping[str, tuple[Block, ...]]:
    """Where each module's update lies: as noted when it was put there, else as zeros tell."""
    if filling.blocks:
        return filling.blocks
    found: dict[str, list[Block]] = {}
    for slot in manifest.slots:
        pair = pairs[slot.name]
        if pair is None:
            continue
        for part, ranks in _ranks(slot, pair[1]):
            block = Block(slot.name, ranks, part.rows, None, 1.0)
            found.setdefault(part.module, []).append(block)
    return {module: tuple(blocks) for module, blocks in found.items()}


def _ranks(slot: Slot, b: LazyTensor) -> Iterator[tuple[Part, Range]]:
    """The ranks from the first to the last in which a part's block of B [rank, out] has values."""
    values = b.values()
    for part in slot.parts:
        used = values[:, slice(*part.rows)].ne(0).any(dim=1).nonzero().reshape(-1)
        if used.numel():
            yield part, (int(used[0]), int(used[-1]) + 1)


def _taken_out(slot: Slot, pair: Pair, block: Block) -> LowRank:
    (a, b), (first, last) = pair, block.ranks
    start, stop = block.rows
    if last > a.shape[1] or stop > slot.height:
        raise _misfit(slot.name, f"ranks {first} to {last} of {a.shape[1]}")
    rank = last - first
    up = _cut(a, slice(None), slice(first, last), (slot.width, rank))
    down = _cut(b, slice(first, last), slice(start, stop), (rank, stop - start))
    low = LowRank(transposed(up), transposed(down), 1.0)
    mantissa, _ = frexp(block.scaling)
    if abs(mantissa) != 0.5:
        return low
    divide = partial(_divided, low.b, block.scaling)
    return replace(low, b=from_recipe(low.b.shape, b.dtype, divide), scaling=block.scaling)


def _divided(b: LazyTensor, scaling: float) -> torch.Tensor:
    values = b.values()
    return values.double().div(scaling).to(values.dtype)
