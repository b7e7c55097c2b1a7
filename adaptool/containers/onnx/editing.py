"""Edits of a checkpoint's graph that need more than a replaced node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from adaptool.canonical import Checkpoint
from adaptool.canonical.graph import Graph, Node
from adaptool.containers.onnx.model import model_of
from adaptool.containers.onnx.weights import part_names
from adaptool.containers.onnx.wiring import Wiring
from adaptool.errors import IncompatibleError


def consumers(graph: Graph, name: str) -> tuple[Node, ...]:
    """The nodes that take this value, in their order."""
    return tuple(node for node in graph.nodes if name in node.inputs)


def untie(checkpoint: Checkpoint, name: str, nodes: Collection[Node], fresh: str) -> Checkpoint:
    """The same model, in which these consumers of a tensor have one of their own.

    Args:
        checkpoint: opened from an ONNX file, changed or not.
        name: the tensor that several nodes share; of a quantised weight, all its parts follow.
        nodes: those of `checkpoint.graph` that get the new one.
        fresh: its name.

    Raises IncompatibleError if a value of the new name exists, none of `nodes` takes the old, or
    the scales of a quantised weight are taken where nobody would look for them.
    """
    graph = checkpoint.graph
    if graph is None or name not in checkpoint.tensors:
        raise IncompatibleError(f"{checkpoint.provenance.name}: no tensor {name} in a graph")
    weight = model_of(checkpoint).quantised.get(name)
    parts = weight.parts if weight is not None else (name, "", "")
    renamed = {old: new for old, new in zip(parts, part_names(fresh), strict=True) if old}
    taken = {value for node in graph.nodes for value in (*node.inputs, *node.outputs)}
    taken |= set(graph.inputs) | set(checkpoint.tensors)
    if not taken.isdisjoint(renamed.values()):
        raise IncompatibleError(f"{fresh}: there is such a value in the graph already")
    chosen = [node for node in graph.nodes if name in node.inputs and _among(node, nodes)]
    if not chosen:
        raise IncompatibleError(f"{name}: none of the nodes given takes it")
    edited = rewired(graph, chosen, name, renamed)
    tensors = {**checkpoint.tensors, fresh: checkpoint.tensors[name]}
    return replace(checkpoint, tensors=tensors, graph=edited)


def _among(node: Node, nodes: Collection[Node]) -> bool:
    return any(node is one for one in nodes)


def rewired(graph: Graph, nodes: Collection[Node], name: str, renamed: Mapping[str, str]) -> Graph:
    """The graph, in which these consumers of a weight take its parts by new names.

    Args:
        graph: to be changed.
        nodes: consumers of the weight's packed tensor.
        name: of that.
        renamed: part -> new name.

    Raises IncompatibleError if one of `nodes` has nothing to do with one of the parts.
    """
    wiring = Wiring(graph)
    changed: dict[int, Node] = {}
    for node in nodes:
        near = (node, *wiring.scaling(node))
        for part in renamed:
            if not any(part in one.inputs for one in near):
                raise IncompatibleError(
                    f"{name}: {node.op} ({node.name}) takes it without {part}",
                    hint="keep the weight as it is shared, or merge into the model before it was "
                    "quantised",
                    code="NOT_EXPRESSIBLE",
                )
        for one in near:
            inputs = tuple(renamed.get(value, value) for value in one.inputs)
            changed[id(one)] = replace(one, inputs=inputs)
    return replace(graph, nodes=tuple(changed.get(id(node), node) for node in graph.nodes))
