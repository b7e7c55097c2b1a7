"""A model as pieces of a file: bytes of the graph, and the tensors' contents between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from adaptool.canonical.graph import Node
from adaptool.containers.onnx.holders import graphs_of
from adaptool.containers.onnx.model import Model
from adaptool.containers.onnx.nodes import write_node
from adaptool.containers.onnx.stripping import (
    ATTRIBUTE,
    GRAPH,
    INITIALIZER,
    NODE,
    RAW,
    SUBGRAPH,
    SUBGRAPHS,
    TENSOR,
    Path,
)
from adaptool.containers.onnx.units import Entry, Unit
from adaptool.containers.onnx.wire import head
from adaptool.storage import Bytes, Content

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

Location = tuple[str, int]
"""The name of a data file, and an offset in it."""


@dataclass(frozen=True)
class Emission:
    """The pieces of one model file.

    Attributes:
        model: what was opened.
        proto: its message, changed in all but nodes and initializers.
        nodes: what the graphs consist of now.
        units: the tensors.
        located: value name -> where it lies, for tensors in data files.
    """

    model: Model
    proto: ModelProto
    nodes: tuple[Node, ...]
    units: tuple[Unit, ...]
    located: Mapping[tuple[str, str], Location]

    def pieces(self) -> list[Content]:
        """The file, from start to end."""
        shell = type(self.proto)()
        shell.CopyFrom(self.proto)
        shell.ClearField("graph")
        return [Bytes(shell.SerializeToString()), *self._framed(GRAPH, self._graph((GRAPH, 0), ""))]

    @cached_property
    def _originals(self) -> dict[Path, NodeProto]:
        return {
            (*path, NODE, index): node
            for path, (_, graph) in self._graphs.items()
            for index, node in enumerate(graph.node)
        }

    @cached_property
    def _split(self) -> set[Path]:
        """The nodes that hold a tensor or a graph."""
        found = {path[:-4] for path, within, _ in graphs_of(self.model.proto) if within}
        return found | {path[:-4] for path in self._constants}

    @cached_property
    def _constants(self) -> dict[Path, Unit]:
        return {u.entries[0].holder.path: u for u in self.units
                if u.constant and u.entries[0].holder is not None}  # fmt: skip

    @cached_property
    def _by_graph(self) -> tuple[Mapping[str, list[Node]], Mapping[str, list[Unit]]]:
        nodes: dict[str, list[Node]] = defaultdict(list)
        units: dict[str, list[Unit]] = defaultdict(list)
        for node in self.nodes:
            nodes[node.within].append(node)
        for unit in self.units:
            if not unit.constant:
                units[unit.within].append(unit)
        return nodes, units

    @cached_property
    def _graphs(self) -> dict[Path, tuple[str, GraphProto]]:
        return {path: (within, graph) for path, within, graph in graphs_of(self.model.proto)}

    def _graph(self, path: Path, within: str) -> list[Content]:
        shell = type(self.proto.graph)()
        shell.CopyFrom(self.proto.graph if not within else self._graphs[path][1])
        shell.ClearField("node")
        shell.ClearField("initializer")
        nodes, units = self._by_graph
        gone = {entry.name for unit in units[within] for entry in unit.entries if entry.resized}
        if not gone.isdisjoint(value.name for value in shell.value_info):
            kept = [value for value in shell.value_info if value.name not in gone]
            shell.ClearField("value_info")
            shell.value_info.extend(kept)
        pieces: list[Content] = [Bytes(shell.SerializeToString())]
        for node in nodes[within]:
            pieces += self._framed(NODE, self._node(node))
        for unit in units[within]:
            pieces += self._unit(INITIALIZER, unit)
        return pieces

    def _node(self, node: Node) -> list[Content]:
        origin = node.origin if isinstance(node.origin, tuple) else None
        like = self._originals[origin] if origin is not None else None
        proto = write_node(node, like)
        if origin not in self._split or like is None or origin is None:
            return [Bytes(proto.SerializeToString())]
        places = {one.name: (*origin, ATTRIBUTE, j) for j, one in enumerate(like.attribute)}
        attributes = list(proto.attribute)
        shell = type(proto)()
        shell.CopyFrom(proto)
        shell.ClearField("attribute")
        pieces: list[Content] = [Bytes(shell.SerializeToString())]
        for one in attributes:
            pieces += self._framed(ATTRIBUTE, self._attribute(one, places.get(one.name, ())))
        return pieces

    def _attribute(self, attribute: AttributeProto, path: Path) -> list[Content]:
        constant = self._constants.get((*path, TENSOR, 0))
        single = (*path, SUBGRAPH, 0) in self._graphs
        several = [at for k in range(len(attribute.graphs))
                   if (at := (*path, SUBGRAPHS, k)) in self._graphs]  # fmt: skip
        if constant is None and not single and not several:
            return [Bytes(attribute.SerializeToString())]
        shell = type(attribute)()
        shell.CopyFrom(attribute)
        for name in ("t", "g", "graphs"):
            shell.ClearField(name)
        pieces: list[Content] = [Bytes(shell.SerializeToString())]
        if constant is not None:
            pieces += self._unit(TENSOR, constant)
        if single:
            at = (*path, SUBGRAPH, 0)
            pieces += self._framed(SUBGRAPH, self._graph(at, self._graphs[at][0]))
        for at in several:
            pieces += self._framed(SUBGRAPHS, self._graph(at, self._graphs[at][0]))
        return pieces

    def _unit(self, number: int, unit: Unit) -> list[Content]:
        """The tensors of a unit as fields `number` of the message around them."""
        if unit.content is None:  # as it is
            data = self._proto(unit.entries[0]).SerializeToString()
            return [Bytes(head(number, len(data)) + data)]
        frames = [self._frame(number, unit, entry) for entry in unit.entries]
        if any((unit.within, entry.name) in self.located for entry in unit.entries):
            return [Bytes(frame) for frame in frames]
        first = Bytes(frames[0])
        return [first, unit.content(tuple(frames[1:]))] if unit.nbytes else [first]

    def _frame(self, number: int, unit: Unit, entry: Entry) -> bytes:
        """All of a tensor but its values."""
        from onnx import TensorProto

        tensor = self._proto(entry)
        place = self.located.get((unit.within, entry.name))
        if place is not None:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", place[0]), ("offset", place[1]),
                               ("length", entry.nbytes)):  # fmt: skip
                tensor.external_data.add(key=key, value=str(value))
        data = bytes(tensor.SerializeToString())
        if place is None and entry.nbytes:
            data += head(RAW, entry.nbytes)
            return head(number, len(data) + entry.nbytes) + data
        return head(number, len(data)) + data

    def _proto(self, entry: Entry) -> TensorProto:
        """A tensor without values, or as it is where these are in it."""
        from onnx import TensorProto

        tensor = TensorProto()
        holder = entry.holder
        if holder is not None:
            tensor.CopyFrom(self._tensors[holder.path])
            if holder.stored is None and not entry.changed:
                return tensor
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data",
                     "uint64_data", "external_data", "data_location", "dims"):  # fmt: skip
            tensor.ClearField(name)
        if holder is None or not holder.constant:
            tensor.name = entry.name
        tensor.data_type = entry.type
        tensor.dims.extend(entry.shape)
        return tensor

    @cached_property
    def _tensors(self) -> dict[Path, TensorProto]:
        found = {}
        for path, _, graph in graphs_of(self.model.proto):
            for index, tensor in enumerate(graph.initializer):
                found[*path, INITIALIZER, index] = tensor
            for index, node in enumerate(graph.node):
                for j, attribute in enumerate(node.attribute):
                    if attribute.HasField("t"):
                        found[*path, NODE, index, ATTRIBUTE, j, TENSOR, 0] = attribute.t
        return found

    @staticmethod
    def _framed(number: int, inner: Iterable[Content]) -> list[Content]:
        pieces = list(inner)
        return [Bytes(head(number, sum(piece.size for piece in pieces))), *pieces]
