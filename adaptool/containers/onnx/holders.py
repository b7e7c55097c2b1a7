"""Every tensor that a model holds: initializers and Constant nodes, of nested graphs too."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor, Stored
from adaptool.canonical.tensors import from_storage
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.external import Files
from adaptool.containers.onnx.stripping import (
    ATTRIBUTE,
    DOUBLES,
    FLOATS,
    GRAPH,
    INITIALIZER,
    NODE,
    RAW,
    SUBGRAPH,
    SUBGRAPHS,
    TENSOR,
    Path,
    Payload,
)
from adaptool.errors import CorruptInputError
from adaptool.storage import SourceFile, shown

if TYPE_CHECKING:
    import torch
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

EXTERNAL = 1
"""TensorProto.DataLocation."""

_DIMENSIONS = 64
_ELEMENTS = 2**62

_NARROW_INTS = ("int32_data", {2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26})
_FIELDS = (("float_data", {1, 14}), _NARROW_INTS, ("int64_data", {7}), ("double_data", {11, 15}),
           ("uint64_data", {12, 13}))  # fmt: skip
"""Fields that hold values one by one, and the types that use each (onnx.proto, TensorProto)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A tensor of the model and where its bytes lie.

    Attributes:
        path: where it stands in the model.
        name: of the value: an initializer's own name, the output's of a Constant node.
        within: the nested graph that it stands in, "" for the main one.
        constant: held by a Constant node.
        shape, type: dims and TensorProto.DataType.
        stored: where the bytes lie; None if they are in the parsed model.
        small: the bytes otherwise; None for strings.
    """

    path: Path
    name: str
    within: str
    constant: bool
    shape: tuple[int, ...]
    type: int
    stored: Stored | None = None
    small: bytes | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def tensor(self) -> LazyTensor | None:
        """Its values; None for a type that has no counterpart here (strings, int4)."""
        dtype = elements.DTYPES.get(self.type)
        if dtype is None:
            return None
        if self.stored is not None:
            return from_storage(self.stored, self.shape, dtype)
        return None if self.small is None else from_bytes(self.small, self.shape, dtype)

    def packed(self) -> LazyTensor | None:
        """Its bytes as uint8 in one dimension; None for strings."""
        if self.stored is not None:
            return from_storage(self.stored, (self.stored.size,), DType.UINT8)
        return None if self.small is None else from_bytes(
            self.small, (len(self.small),), DType.UINT8
        )  # fmt: skip


def from_bytes(data: bytes, shape: tuple[int, ...], dtype: DType) -> LazyTensor:
    """A tensor whose little-endian bytes are in memory."""
    return LazyTensor(shape, dtype, partial(_slice_bytes, data, dtype))


def _slice_bytes(data: bytes, dtype: DType, start: int, stop: int,
                 block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    import torch

    if stop > start:
        values = torch.frombuffer(bytearray(data), dtype=dtype.torch)
        for first in range(start, stop, block):
            yield values[first : min(first + block, stop)]


def graphs_of(model: ModelProto) -> Iterator[tuple[Path, str, GraphProto]]:
    """The main graph and all nested ones: path, name ("" for the main one), graph."""
    yield from _nested((GRAPH, 0), "", model.graph)


def _nested(path: Path, within: str, graph: GraphProto) -> Iterator[tuple[Path, str, GraphProto]]:
    yield path, within, graph
    for i, node in enumerate(graph.node):
        for j, attribute in enumerate(node.attribute):
            at = (*path, NODE, i, ATTRIBUTE, j)
            name = f"{within}{'/' if within else ''}{node_label(node, i)}.{attribute.name}"
            if attribute.HasField("g"):
                yield from _nested((*at, SUBGRAPH, 0), name, attribute.g)
            for k, inner in enumerate(attribute.graphs):
                yield from _nested((*at, SUBGRAPHS, k), f"{name}.{k}", inner)


def node_label(node: NodeProto, index: int) -> str:
    """What tells a node from the others of its graph."""
    return node.name or (node.output[0] if node.output else f"{node.op_type}#{index}")


def holders_of(
    model: ModelProto, payloads: Mapping[Path, Payload], source: SourceFile
) -> Iterator[Holder]:
    """Every initializer and Constant of a model, checked: its bytes are what its dims make.

    Raises:
        CorruptInputError: a tensor's bytes, type and dims contradict each other.
        StorageError: a file with external data is missing.
    """
    read = _Hands(Files(source.path), payloads, source).hold
    for path, within, graph in graphs_of(model):
        for index, tensor in enumerate(graph.initializer):
            yield read(tensor, (*path, INITIALIZER, index), tensor.name, within, False)
        for index, node in enumerate(graph.node):
            if node.op_type == "Constant" and len(node.output) == 1:
                for j, attribute in enumerate(node.attribute):
                    if attribute.name == "value" and attribute.HasField("t"):
                        at = (*path, NODE, index, ATTRIBUTE, j, TENSOR, 0)
                        yield read(attribute.t, at, node.output[0], within, True)


@dataclass(frozen=True)
class _Hands:
    """What a TensorProto is read with."""

    files: Files
    payloads: Mapping[Path, Payload]
    source: SourceFile

    def hold(self, tensor: TensorProto, path: Path, name: str, within: str,
             constant: bool) -> Holder:  # fmt: skip
        """The tensor and where its bytes lie."""
        label = f"{shown(self.source.path)}: tensor {shown(name)[:200]}"
        shape, kind = _described(label, tensor)
        held = partial(Holder, path, name, within, constant, shape, kind)
        if kind == elements.STRING:
            return held()
        size = elements.nbytes(kind, prod(shape))
        if size is None:
            raise CorruptInputError(f"{label} has elements of the unknown type {kind}")
        payload = self.payloads.get(path)
        if tensor.data_location == EXTERNAL:
            if payload is not None or _fields(tensor) or tensor.raw_data:
                raise CorruptInputError(f"{label} lies both in the model and beside it")
            return held(self.files.locate(name, _entries(label, tensor), size))
        data = _stated(label, tensor, payload)
        length = len(data) if isinstance(data, bytes) else data.size
        if length != size:
            raise CorruptInputError(
                f"{label} has {length} bytes of values, not the {size} that {list(shape)[:20]} "
                f"elements of {elements.type_name(kind)} take"
            )
        if isinstance(data, bytes):
            return held(None, data)
        return held(Stored(self.source, data.offset, data.size))


def _described(label: str, tensor: TensorProto) -> tuple[tuple[int, ...], int]:
    """A tensor's dims and type, where they can be true."""
    shape, kind = tuple(tensor.dims), tensor.data_type
    if any(size < 0 for size in shape):
        raise CorruptInputError(f"{label} has a negative size: {list(shape)[:20]}")
    if len(shape) > _DIMENSIONS or prod(shape) > _ELEMENTS:
        raise CorruptInputError(f"{label} has impossible dims: {list(shape)[:20]}")
    if tensor.HasField("segment"):
        raise CorruptInputError(f"{label} is a segment of another one, which nobody writes")
    wrong = tensor.data_location == EXTERNAL or len(tensor.string_data) != prod(shape)
    if kind == elements.STRING and wrong:
        raise CorruptInputError(f"{label} has no string for each of its elements")
    return shape, kind


def _fields(tensor: TensorProto) -> list[str]:
    return [key for key, _ in _FIELDS if getattr(tensor, key)]


def _stated(label: str, tensor: TensorProto, payload: Payload | None) -> Payload | bytes:
    """The values that stand in the model: there, or in memory."""
    fields = _fields(tensor)
    if (payload is not None) + len(fields) + bool(tensor.raw_data) > 1:
        raise CorruptInputError(f"{label} states its values twice")
    if payload is None:
        return _typed(label, tensor, fields[0]) if fields else bytes(tensor.raw_data)
    if {RAW: tensor.data_type, FLOATS: 1, DOUBLES: 11}[payload.number] != tensor.data_type:
        raise CorruptInputError(f"{label} has its values in a field of another type")
    return payload


def _entries(label: str, tensor: TensorProto) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) < len(tensor.external_data):
        raise CorruptInputError(f"{label} states a fact of its external data twice")
    return entries


def _typed(label: str, tensor: TensorProto, key: str) -> bytes:
    """The little-endian bytes of values that are stated one by one."""
    import numpy as np

    kind = tensor.data_type
    if kind not in dict(_FIELDS)[key]:
        raise CorruptInputError(f"{label} of {elements.type_name(kind)} has its values in {key}")
    values = np.asarray(getattr(tensor, key))
    if key != "int32_data":
        stored = {"float_data": "<f4", "double_data": "<f8", "int64_data": "<i8",
                  "uint64_data": "<u4" if kind == 12 else "<u8"}[key]  # fmt: skip
        return values.astype(stored).tobytes()
    if kind in elements.NARROW:
        return values.astype(np.uint8).tobytes()
    width = elements.DTYPES[kind].bits // 8
    return values.astype(f"<i{width}").tobytes()


if sys.byteorder != "little":  # pragma: no cover - stored bytes are taken as they lie
    raise ImportError("ONNX models are read on little-endian machines only")
