"""The slots that a graph has: stated by its manifest, or read off its inputs' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from adaptool.canonical import Adapter, Checkpoint, DType, LazyTensor, LowRank
from adaptool.canonical.graph import Graph
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.slots.manifest import (
    EXTERNAL,
    INPUTS,
    LORA_A,
    LORA_B,
    OPTIONAL,
    PROPERTY,
    Manifest,
    Part,
    Slot,
    parse_manifest,
)
from adaptool.slots.sites import spelt

SLOTS, OLIVE = STYLES = ("slots", "olive")
"""Whose names factors get where no graph is at hand."""

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_A(?P<rest>(?:\.\w+)*)$")
_FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64)
_WRAPPED = "base_model.model."


def slots_of(checkpoint: Checkpoint) -> Manifest:
    """The slots of a graph, each with its names, sizes and types as the graph has them.

    A graph without a manifest (Olive's `generate-adapter`, an export of a PEFT model) is asked for
    pairs of inputs X.lora_A and X.lora_B, [in, rank] and [rank, out].

    Raises:
        IncompatibleError: no graph, or one without such inputs.
        CorruptInputError: a manifest that contradicts its graph.
    """
    graph = checkpoint.graph or Graph(())
    stated = checkpoint.metadata.get(PROPERTY)
    if isinstance(stated, str):
        manifest = parse_manifest(stated, checkpoint.provenance.name)
        for one in manifest.slots:
            _verify(checkpoint, graph, manifest, one)
        return _placed(checkpoint, manifest) if manifest.mode == EXTERNAL else manifest
    slots = tuple(slot for name in graph.inputs if (slot := _paired(graph, name)))
    if not slots:
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: has no inputs for an adapter's factors",
            hint="make them: adaptool slots MODEL.onnx -o swappable.onnx",
            code="NO_SLOTS",
        )
    has_defaults = all({slot.a, slot.b} <= checkpoint.tensors.keys() for slot in slots)
    return Manifest(OPTIONAL if has_defaults else INPUTS, slots, scale="")


def _placed(checkpoint: Checkpoint, manifest: Manifest) -> Manifest:
    """The manifest with the file in which the graph looks for each factor, and where in it."""
    names = (manifest.scale, *(name for slot in manifest.slots for name in (slot.a, slot.b)))
    stored = {name: checkpoint.tensors[name].stored for name in names}
    files = {None if place is None else place.source.path.name for place in stored.values()}
    if len(files) != 1 or None in files:
        raise CorruptInputError(
            f"{checkpoint.provenance.name}: its slots' factors are not in one file of their own",
            hint="was the model written again after its slots were made?",
            code="BROKEN_MANIFEST",
        )
    places = tuple((name, place.offset) for name, place in stored.items() if place is not None)
    return replace(manifest, file=str(files.pop()), places=places)


def _verify(checkpoint: Checkpoint, graph: Graph, manifest: Manifest, slot: Slot) -> None:
    wanted = ((slot.a, (slot.width, slot.rank)), (slot.b, (slot.rank, slot.height)))
    for name, (first, last) in wanted:
        if manifest.mode == EXTERNAL and name in checkpoint.tensors:
            tensor = checkpoint.tensors[name]
            found: tuple[object, ...] = (tensor.dtype.value, *tensor.shape)
        else:
            kind, sizes = graph.inputs.get(name, ("", ()))
            free = [None if isinstance(size, str) else size for size in sizes]
            found = (kind, *free)
        if found != (slot.dtype.value, first, last):
            raise CorruptInputError(
                f"{checkpoint.provenance.name}: the manifest of slots and the graph contradict "
                f"each other in {name}",
                hint="was the model changed after its slots were made?",
                code="BROKEN_MANIFEST",
            )


def _paired(graph: Graph, name: str) -> Slot | None:
    """The slot whose A an input is; None if it is none."""
    found = _FACTOR.match(name)
    if found is None:
        return None
    other = f"{found['module']}.lora_B{found['rest']}"
    kind, a = graph.inputs[name]
    kind_of_b, b = graph.inputs.get(other, ("", ()))
    if kind != kind_of_b or len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        return None
    width, rank, height = a[0], a[1], b[1]
    if not isinstance(width, int) or not isinstance(height, int) or kind not in _FLOATS:
        return None
    module = spelt(found["module"].removeprefix(_WRAPPED))
    return Slot(module, name, other, width, height, DType(kind),
                rank if isinstance(rank, int) else None, (Part(module, (0, height)),))  # fmt: skip


def slots_for(adapter: Adapter, names: str = SLOTS) -> Manifest:
    """Slots of an adapter's own, one for each module, where no graph is at hand.

    Args:
        adapter: under Hugging Face's names.
        names: "slots" for what `with_slots` calls them, "olive" for Olive's `convert-adapters`:
            the same, but for modules outside of a `model`.

    Raises UsageError for other names.
    """
    if names not in STYLES:
        raise UsageError(f"unknown names {names!r}", hint=f"one of: {', '.join(STYLES)}")
    slots = []
    for site, update in adapter.updates.items():
        if isinstance(update, LowRank) and len(update.shape) == 2:
            stem = _olive(site.module) if names == OLIVE else site.module
            height, width = update.shape
            kinds = {update.a.dtype, update.b.dtype}
            dtype = kinds.pop() if len(kinds) == 1 else DType.FLOAT32
            part = Part(site.module, (0, height))
            slots.append(Slot(site.module, stem + LORA_A, stem + LORA_B, width, height, dtype,
                              None, (part,)))  # fmt: skip
    return Manifest(OPTIONAL, tuple(slots), scale="", of_graph=False)


def _olive(module: str) -> str:
    """olive/cli/convert_adapters.py: `base_model.model.model` becomes `model`."""
    return f"{_WRAPPED}{module}".replace(f"{_WRAPPED}model", "model")


def slots_named(tensors: Mapping[str, LazyTensor]) -> Manifest:
    """The slots that factors without notes seem to be for, by their names and shapes."""
    shapes = {name: (tensor.dtype.value, tensor.shape) for name, tensor in tensors.items()}
    graph = Graph((), inputs=shapes)
    slots = tuple(slot for name in shapes if (slot := _paired(graph, name)))
    return Manifest(OPTIONAL, slots, scale="", of_graph=False)
