"""A graph with slots: y + lora_scale * (x A) B beside its linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from adaptool.architectures.naming import NEW_HEADS, OUTPUT_HEADS
from adaptool.architectures.onnx.naming import spellings
from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.canonical.graph import Graph, Node
from adaptool.canonical.tensors import from_recipe
from adaptool.containers.onnx.elements import NUMBERS
from adaptool.errors import IncompatibleError, UsageError
from adaptool.slots.manifest import (
    EXTERNAL,
    LORA_A,
    LORA_B,
    MODES,
    OPTIONAL,
    PROPERTY,
    SCALE,
    Manifest,
    Slot,
    manifest_text,
)
from adaptool.slots.sites import Linear, linears_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SlotRequest:
    """Which slots are wanted.

    Attributes:
        mode: how their factors come in; see `adaptool.slots`.
        rank: ranks of every module; None for whatever an adapter brings.
        modules: ends of module paths, as PEFT's target_modules; empty for all but output heads.
        file: name of the file with the factors, in mode "external".
    """

    mode: str = OPTIONAL
    rank: int | None = None
    modules: Sequence[str] = ()
    file: str = ""


def with_slots(checkpoint: Checkpoint, request: SlotRequest) -> tuple[Checkpoint, Manifest]:
    """The same model with slots; without factors it computes what it did before.

    Raises:
        UsageError: a mode that there is not, "external" without a rank or a file name, or module
            names that fit nothing.
        IncompatibleError: a model that has slots, or none of whose linear layers has a name.
    """
    _check(checkpoint, request)
    graph = checkpoint.graph or Graph(())
    groups = _chosen(_by_module(linears_of(checkpoint)), request.modules, checkpoint)
    slots = tuple(_slot(module, found[0], request.rank) for module, found in groups.items())
    manifest = Manifest(request.mode, slots, file=request.file)
    _check_names(checkpoint, graph, manifest)
    sites = {
        linear.node: (linear, slot)
        for slot, linears in zip(slots, groups.values(), strict=True)
        for linear in linears
    }
    scales = {slot.dtype: _scale_name(slot.dtype) for slot in slots}
    nodes = [*_casts(scales), *_spliced(graph, sites, scales)]
    tensors = dict(checkpoint.tensors)
    shards = dict(checkpoint.shards)
    inputs = dict(graph.inputs)
    if request.mode != EXTERNAL:
        inputs |= _inputs(manifest)
    defaults = _defaults(manifest)
    tensors |= defaults
    if request.mode == EXTERNAL:
        shards |= dict.fromkeys(defaults, request.file)
    made = replace(
        checkpoint,
        tensors=tensors,
        shards=shards,
        metadata={**checkpoint.metadata, PROPERTY: manifest_text(manifest)},
        graph=replace(graph, nodes=tuple(nodes), inputs=inputs),
    )
    return made, manifest


def _check(checkpoint: Checkpoint, request: SlotRequest) -> None:
    if checkpoint.graph is None:
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: a {checkpoint.container} model has no graph to put "
            "slots into",
            hint="export it to ONNX first",
            code="NOT_EXPRESSIBLE",
        )
    if PROPERTY in checkpoint.metadata:
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: has slots already",
            hint="start from the model that they were made in",
            code="HAS_SLOTS",
        )
    if request.mode not in MODES:
        raise UsageError(f"unknown mode {request.mode!r}", hint=f"one of: {', '.join(MODES)}")
    if request.mode == EXTERNAL and (request.rank is None or not request.file):
        raise UsageError("external factors have a fixed size", hint="--rank 16")
    if request.rank is not None and request.rank < 1:
        raise UsageError(f"rank {request.rank}: a rank is at least 1")


def _by_module(linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Module -> where its weight is applied: more than once in the branches of a merged decoder.

    Operations that go by one name and hold different weights in one graph are left out: nobody
    could tell which of them a module is.
    """
    found: dict[str, list[Linear]] = {}
    for linear in linears:
        found.setdefault(linear.module, []).append(linear)
    return {module: group for module, group in found.items() if _is_one(group)}


def _is_one(group: Sequence[Linear]) -> bool:
    kinds = {(one.width, one.height, one.dtype, one.parts) for one in group}
    places = {(one.within, one.tensor) for one in group}
    return len(kinds) == 1 and len(places) == len({within for within, _ in places})


def _chosen(
    groups: Mapping[str, list[Linear]], modules: Sequence[str], checkpoint: Checkpoint
) -> dict[str, list[Linear]]:
    if not groups:
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: no linear layer of the graph has a name",
            hint="export the model with names: transformers' or torch's dynamo exporter, "
            "onnxruntime-genai, optimum",
            code="NO_NAMES",
        )
    missing = [name for name in modules if not any(_named(g[0], name) for g in groups.values())]
    if missing:
        leaves = dict.fromkeys(module.rpartition(".")[2] for module in groups)
        raise UsageError(
            f"no linear layer of the graph is called {missing[0]}",
            hint=f"there are: {', '.join(leaves)}",
        )
    return {
        module: group
        for module, group in groups.items()
        if (any(_named(group[0], name) for name in modules) if modules else not _is_head(module))
    }


def _named(linear: Linear, name: str) -> bool:
    """Whether a module of this layer has that name, or a path that ends with it."""
    paths = (linear.module, *(part.module for part in linear.parts))
    return any(f".{path}".endswith(f".{name}") for path in paths)


def _is_head(module: str) -> bool:
    forms = {form for _, form in spellings(f"{module}.weight")}
    return not forms.isdisjoint(OUTPUT_HEADS) or module.rpartition(".")[2] in NEW_HEADS


def _slot(module: str, linear: Linear, rank: int | None) -> Slot:
    return Slot(module, module + LORA_A, module + LORA_B, linear.width, linear.height,
                linear.dtype, rank and rank * len(linear.parts), linear.parts)  # fmt: skip


def _check_names(checkpoint: Checkpoint, graph: Graph, manifest: Manifest) -> None:
    taken = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)}
    taken |= set(graph.inputs) | set(checkpoint.tensors)
    ours = (manifest.scale, *(name for slot in manifest.slots for name in (slot.a, slot.b)))
    for name in ours:
        if name in taken:
            raise IncompatibleError(
                f"{checkpoint.provenance.name}: the graph has a value {name} already",
                hint="it seems to have inputs for an adapter: adaptool convert ADAPTER --for MODEL",
                code="HAS_SLOTS",
            )


def _scale_name(dtype: DType) -> str:
    """The strength is fed as float32, whatever the graph computes in."""
    return SCALE if dtype is DType.FLOAT32 else f"{SCALE}/{dtype}"


def _casts(scales: Mapping[DType, str]) -> Iterator[Node]:
    for dtype, name in scales.items():
        if name != SCALE:
            yield Node("Cast", name, (SCALE,), (name,), {"to": NUMBERS[dtype]})


def _spliced(graph: Graph, sites: Mapping[int, tuple[Linear, Slot]],
             scales: Mapping[DType, str]) -> Iterator[Node]:  # fmt: skip
    """The nodes with those of the slots behind the layers that they belong to."""
    numbers = {slot.name: count() for _, slot in sites.values()}
    for position, node in enumerate(graph.nodes):
        if position not in sites:
            yield node
            continue
        linear, slot = sites[position]
        number = next(numbers[slot.name])
        stem = f"{slot.name}/lora" + (f"_{number}" if number else "")
        plain = f"{stem}/base"
        outputs = tuple(plain if name == linear.y else name for name in node.outputs)
        yield replace(node, outputs=outputs)
        yield from _branch(linear, slot, stem, plain, scales[slot.dtype])


def _branch(linear: Linear, slot: Slot, stem: str, plain: str, scale: str) -> Iterator[Node]:
    """The nodes of y = plain + ((x A) * scale) B; the strength goes where least is multiplied."""
    down, scaled, up = (f"{stem}/{step}" for step in ("down", "scaled", "up"))
    steps = (
        ("MatMul", down, (linear.x, slot.a), down),
        ("Mul", scaled, (down, scale), scaled),
        ("MatMul", up, (scaled, slot.b), up),
        ("Add", f"{stem}/add", (plain, up), linear.y),
    )
    for op, name, inputs, output in steps:
        yield Node(op, name, inputs, (output,), within=linear.within)


def _inputs(manifest: Manifest) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """The new inputs; a free rank has a symbol of its own in each slot."""
    found: dict[str, tuple[str, tuple[int | str, ...]]] = {SCALE: (DType.FLOAT32.value, ())}
    for slot in manifest.slots:
        rank = slot.rank or f"{slot.name}.rank"
        found[slot.a] = slot.dtype.value, (slot.width, rank)
        found[slot.b] = slot.dtype.value, (rank, slot.height)
    return found


def _defaults(manifest: Manifest) -> dict[str, LazyTensor]:
    """What the slots hold where nothing is fed: no ranks, or zeros of the fixed one."""
    if manifest.mode not in (OPTIONAL, EXTERNAL):
        return {}
    found = {SCALE: from_recipe((), DType.FLOAT32, one)}
    for slot in manifest.slots:
        rank = slot.rank or 0
        for name, shape in ((slot.a, (slot.width, rank)), (slot.b, (rank, slot.height))):
            found[name] = from_recipe(shape, slot.dtype, partial(zeros, shape, slot.dtype))
    return found


def zeros(shape: tuple[int, ...], dtype: DType) -> torch.Tensor:
    """Zeros of an element type by name."""
    import torch

    return torch.zeros(shape, dtype=dtype.torch)


def one() -> torch.Tensor:
    """A strength of 1, float32."""
    import torch

    return torch.ones(())
