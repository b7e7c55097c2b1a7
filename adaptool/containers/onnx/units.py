"""What is written for each tensor of a model: what must lie together, and what its bytes are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.containers._content import content_of
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.holders import Holder
from adaptool.containers.onnx.model import Model
from adaptool.containers.onnx.weights import QuantisedWeight, part_names, repacked
from adaptool.errors import IncompatibleError
from adaptool.storage import Bytes, Content, Copy, SourceFile, shown


@dataclass(frozen=True)
class Entry:
    """One tensor of the output.

    Attributes:
        name: of its value.
        shape, type: as they are written.
        nbytes: of its values.
        holder: what it was, None for a new one.
        changed: whether anything of it differs from what it was.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    nbytes: int
    holder: Holder | None
    changed: bool

    @property
    def resized(self) -> bool:
        """Whether it has another type or shape than before."""
        before = self.holder
        return before is None or (before.shape, before.type) != (self.shape, self.type)


@dataclass(frozen=True)
class Unit:
    """Tensors whose bytes are made together, so that they follow each other in one file.

    Attributes:
        entries: in the order of their bytes.
        within: the nested graph they stand in.
        content: their bytes, with these gaps between one and the next; None for a tensor that
            stays in the graph as it is.
    """

    entries: tuple[Entry, ...]
    within: str
    content: Callable[[tuple[bytes, ...]], Content] | None

    @property
    def changed(self) -> bool:
        """Whether any of it is."""
        return any(entry.changed for entry in self.entries)

    @property
    def constant(self) -> bool:
        """Whether it is held by a Constant node."""
        holder = self.entries[0].holder
        return holder is not None and holder.constant

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.nbytes for entry in self.entries)


def units_of(checkpoint: Checkpoint, model: Model) -> Iterator[Unit]:
    """What is written for every tensor, in the model's order, new ones last.

    Raises IncompatibleError for a tensor in an encoding that an ONNX file cannot hold, and for a
    Constant node without its tensor.
    """
    tensors = checkpoint.tensors
    repacking = set(_repacking(checkpoint, model))
    alive = {node.origin for node in (checkpoint.graph or model.graph).nodes}
    for key, holder in model.holders.items():
        tensor, before = tensors.get(key), model.tensors.get(key)
        if key in repacking:
            weight = model.quantised.get(key)
            if weight is not None and tensor is not None:
                yield _changed(model, key, tensor, weight)
        elif tensor is before:
            yield _kept(holder)
        elif tensor is not None:
            yield _plain(holder.name, tensor, holder)
        elif holder.constant and holder.path[:-4] in alive:
            raise IncompatibleError(
                f"{shown(key)}: its Constant node is there, and it has no tensor any more",
                code="NOT_EXPRESSIBLE",
            )
    for key, tensor in tensors.items():
        if key not in model.holders:
            yield _plain(key, tensor, None) if tensor.encoding is None else _packed(
                part_names(key), (None, None, None), tensor, ""
            )  # fmt: skip


def _repacking(checkpoint: Checkpoint, model: Model) -> Iterator[str]:
    """The parts of changed weights; what a plain one leaves behind stays where others use it."""
    tensors = checkpoint.tensors
    graph = checkpoint.graph or model.graph
    used = {value for node in graph.nodes for value in node.inputs}
    for key, weight in model.quantised.items():
        tensor = tensors.get(key)
        if tensor is weight.tensor:
            continue
        packed = tensor is not None and tensor.encoding is not None
        for part in weight.parts:
            if part and (part == key or packed or part not in used):
                yield part


def _changed(model: Model, key: str, tensor: LazyTensor, weight: QuantisedWeight) -> Unit:
    holder = model.holders[key]
    if tensor.encoding is None:
        return _plain(holder.name, tensor, holder)
    held = tuple(model.holders.get(part) for part in weight.parts)
    names = tuple(one.name if one else p for one, p in zip(held, weight.parts, strict=True))
    return _packed(names, held, tensor, holder.within)


def _kept(holder: Holder) -> Unit:
    size = elements.nbytes(holder.type, holder.count) or 0
    entry = Entry(holder.name, holder.shape, holder.type, size, holder, changed=False)
    stored = holder.stored
    if stored is None or not isinstance(stored.source, SourceFile):
        return Unit((entry,), holder.within, None)
    copy = Copy(stored.source, stored.offset, stored.size)
    return Unit((entry,), holder.within, lambda _: copy)


def _plain(name: str, tensor: LazyTensor, holder: Holder | None) -> Unit:
    number = elements.NUMBERS.get(tensor.dtype)
    if tensor.encoding is not None or number is None:
        raise IncompatibleError(
            f"tensor {shown(name)}: values of the type {tensor.kind} have no place in an ONNX file",
            hint="write it as float16 or float32",
            code="NOT_EXPRESSIBLE",
        )
    entry = Entry(name, tensor.shape, number, tensor.nbytes, holder, changed=True)
    within = holder.within if holder else ""
    if not tensor.nbytes:
        return Unit((entry,), within, lambda _: Bytes(b""))
    return Unit((entry,), within, lambda _: content_of(tensor))


def _packed(names: tuple[str, ...], held: tuple[Holder | None, ...], tensor: LazyTensor,
            within: str) -> Unit:  # fmt: skip
    parts = repacked(tensor)
    entries = tuple(
        Entry(name, part.shape, part.type, part.nbytes, holder, changed=True)
        for name, holder, part in zip(names, held, parts.parts, strict=True)
        if part is not None
    )
    return Unit(entries, within, parts.content)
