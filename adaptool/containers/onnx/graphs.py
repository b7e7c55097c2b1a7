"""An ONNX graph as nodes, inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from adaptool.canonical.graph import Graph, Node
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.holders import graphs_of

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, ValueInfoProto

Facts = tuple[str, tuple[int | str, ...]]

_SCOPES = "pkg.torch.onnx.name_scopes"
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")
_FLOAT, _INT, _STRING, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 6, 7, 8  # AttributeProto.AttributeType


def read_graph(model: ModelProto) -> Graph:
    """All nodes of a model, and the main graph's inputs and outputs."""
    nodes = {
        path: [_node(node, within, (*path, 1, index)) for index, node in enumerate(graph.node)]
        for path, within, graph in graphs_of(model)
    }
    main = next(iter(nodes))
    return Graph(
        tuple(_ordered(nodes, main)),
        {value.name: facts_of(value) for value in model.graph.input},
        {value.name: facts_of(value) for value in model.graph.output},
    )


def _ordered(nodes: dict[tuple[int, ...], list[Node]], path: tuple[int, ...]) -> Iterable[Node]:
    """The nodes of a graph, each followed by those of the graphs that it holds."""
    below: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for other in nodes:
        if len(other) == len(path) + 6 and other[: len(path)] == path:
            below.setdefault(other[: len(path) + 2], []).append(other)
    for node in nodes[path]:
        yield node
        for other in below.get(tuple(node.origin), ()):  # type: ignore[arg-type]
            yield from _ordered(nodes, other)


def _node(node: NodeProto, within: str, origin: tuple[int, ...]) -> Node:
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}:"
    return Node(
        op=f"{domain}{node.op_type}",
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes_of(node.attribute),
        scopes=_scopes(node),
        within=within,
        origin=origin,
    )


def attributes_of(attributes: Iterable[AttributeProto]) -> dict[str, object]:
    """Numbers, strings and lists of them by name."""
    return dict(_plain_ones(attributes))


def _plain_ones(attributes: Iterable[AttributeProto]) -> Iterable[tuple[str, object]]:
    for one in attributes:
        kind = one.type
        if kind == _FLOAT:
            yield one.name, one.f
        elif kind == _INT:
            yield one.name, one.i
        elif kind == _STRING:
            yield one.name, one.s.decode("utf-8", "replace")
        elif kind == _FLOATS:
            yield one.name, tuple(one.floats)
        elif kind == _INTS:
            yield one.name, tuple(one.ints)
        elif kind == _STRINGS:
            yield one.name, tuple(s.decode("utf-8", "replace") for s in one.strings)


def _scopes(node: NodeProto) -> tuple[str, ...]:
    """What torch's dynamo exporter wrote: "['', 'model', 'model.layers.0', ...]"."""
    text = next((one.value for one in node.metadata_props if one.key == _SCOPES), "")
    return tuple(one or other for one, other in _QUOTED.findall(text))


def facts_of(value: ValueInfoProto) -> Facts:
    """Element type and sizes of a tensor that goes in or out; ("", ()) for what is no tensor."""
    if not value.type.HasField("tensor_type"):
        return "", ()
    tensor = value.type.tensor_type
    sizes = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim
    )
    return elements.type_name(tensor.elem_type), sizes
