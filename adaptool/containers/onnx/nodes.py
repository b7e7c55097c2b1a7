"""Nodes, inputs and outputs as ONNX writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from adaptool.canonical.graph import Node
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.graphs import Facts, attributes_of, facts_of
from adaptool.containers.onnx.holders import graphs_of
from adaptool.errors import IncompatibleError
from adaptool.storage import shown

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


MICROSOFT = "com.microsoft"
"""ONNX Runtime's own operations."""


def write_node(node: Node, like: NodeProto | None) -> NodeProto:
    """A node as it is written.

    Args:
        node: what it says.
        like: what it was before, whose tensors, graphs and notes it keeps; None for a new one.

    Raises IncompatibleError for an attribute that ONNX has no type for.
    """
    from onnx import NodeProto, helper

    proto = NodeProto()
    if like is not None:
        proto.CopyFrom(like)
    domain, _, op = node.op.rpartition(":")
    if proto.op_type != op or _plain(proto.domain) != domain:
        proto.op_type, proto.domain = op, domain
    if proto.name != node.name:
        proto.name = node.name
    for field, values in (("input", node.inputs), ("output", node.outputs)):
        if tuple(getattr(proto, field)) != values:
            proto.ClearField(field)
            getattr(proto, field).extend(values)
    before = attributes_of(proto.attribute)
    changed = [key for key in {**before, **node.attributes}
               if before.get(key) != node.attributes.get(key)]  # fmt: skip
    kept = [one for one in proto.attribute if one.name not in changed]
    try:
        made = [helper.make_attribute(key, node.attributes[key])
                for key in changed if key in node.attributes]  # fmt: skip
    except (TypeError, ValueError) as error:
        raise IncompatibleError(f"node {node.name}: {error}", code="NOT_EXPRESSIBLE") from error
    if changed:
        proto.ClearField("attribute")
        proto.attribute.extend([*kept, *made])
    return proto


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def write_values(graph: GraphProto, field: str, wanted: Mapping[str, Facts]) -> None:
    """Let the inputs or outputs (`field`) of a graph be these.

    Raises IncompatibleError for an element type that ONNX does not have.
    """
    from onnx import helper

    before = {value.name: value for value in getattr(graph, field)}
    if {name: facts_of(value) for name, value in before.items()} == dict(wanted):
        return
    values = []
    for name, facts in wanted.items():
        if name in before and facts_of(before[name]) == facts:
            values.append(before[name])
            continue
        number = elements.type_number(facts[0])
        if number is None:
            raise IncompatibleError(f"{name}: no ONNX type is called {facts[0]!r}")
        sizes = [None if size == "" else size for size in facts[1]]
        values.append(helper.make_tensor_value_info(name, number, sizes))
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)


def write_properties(model: ModelProto, properties: Mapping[str, str]) -> None:
    """Let the model's metadata_props be these."""
    if {entry.key: entry.value for entry in model.metadata_props} != dict(properties):
        model.ClearField("metadata_props")
        for key, value in properties.items():
            model.metadata_props.add(key=key, value=value)


def check_wired(model: ModelProto, nodes: Iterable[Node], tensors: Iterable[str]) -> None:
    """Refuse a graph in which a node takes what nothing makes.

    Args:
        model: of which the nested graphs' own inputs are read.
        nodes: of all graphs.
        tensors: names of what is stored.

    Raises IncompatibleError.
    """
    nodes = tuple(nodes)
    made = {"", *tensors}.union(*(node.outputs for node in nodes))
    for _, _, graph in graphs_of(model):
        made.update(value.name for value in graph.input)
        made.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in nodes:
        for value in node.inputs:
            if value not in made:
                raise IncompatibleError(
                    f"node {shown(node.name or node.op)} takes {shown(value)}, which nothing makes",
                    code="NOT_EXPRESSIBLE",
                )


def require_domains(model: ModelProto, nodes: Iterable[Node]) -> None:
    """Let the model import every domain that its nodes are of.

    Raises IncompatibleError for one whose version is not known.
    """
    stated = {_plain(entry.domain) for entry in model.opset_import}
    for domain in sorted({node.op.rpartition(":")[0] for node in nodes} - stated):
        if domain != MICROSOFT:
            raise IncompatibleError(
                f"the graph uses operations of {domain or 'ai.onnx'} and imports none of them",
                code="NOT_EXPRESSIBLE",
            )
        model.opset_import.add(domain=domain, version=1)
