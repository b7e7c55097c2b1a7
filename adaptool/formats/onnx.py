"""Plain ONNX adapter files: nothing but initializers, named and shaped as PEFT's tensors.

The adapter's configuration stands in the model's metadata as `adapter_config.json`, so every
adapter that PEFT stores can be stored so, and comes back as it was. No runtime feeds such a file to
a graph: that is what .onnx_adapter files are for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from adaptool.canonical import Adapter, LazyTensor
from adaptool.containers import onnx as container
from adaptool.containers._content import content_of
from adaptool.containers.onnx.elements import NUMBERS
from adaptool.containers.onnx.stripping import FILE_LIMIT, GRAPH, INITIALIZER, NODE, RAW
from adaptool.containers.onnx.wire import BYTES, Reader, head
from adaptool.errors import JSON, AdaptoolError, CorruptInputError, IncompatibleError
from adaptool.formats import ReadOptions, WriteOptions, Written
from adaptool.formats._written import refuse_encoding, write_extents
from adaptool.formats.peft.files import CONFIG, Files
from adaptool.formats.peft.reading import read_files
from adaptool.formats.peft.writing import compose
from adaptool.records import RECORD
from adaptool.storage import Bytes, Content, Extent, SourceFile, shown
from adaptool.version import VERSION

suffixes = (".onnx",)
naming = "huggingface"

_IR_VERSION, _OPSET = 8, 17
_PROPERTY = 14
"""The field of a ModelProto that holds its metadata."""
_LOOK = 1024
"""First bytes of a tensor or a property, in which its name stands."""
_MARK = b"lora_"


def recognises(path: Path) -> bool:
    """An .onnx file whose graph has no operation, with factors or a PEFT configuration in it."""
    if path.suffix != ".onnx" or not path.is_file():
        return False
    try:
        with SourceFile.open(path) as source:
            return _holds_adapter(source)
    except AdaptoolError:
        return False


def _holds_adapter(source: SourceFile) -> bool:
    reader, marks = Reader(source), [CONFIG.encode(), _MARK]
    starts = []
    for field in reader.fields(0, source.size):
        if field.number == _PROPERTY:
            starts.append(source.read(field.content, min(field.size, _LOOK)))
        elif field.number == GRAPH and field.type == BYTES:
            for inner in reader.fields(field.content, field.stop):
                if inner.number == NODE:
                    return False
                if inner.number == INITIALIZER:
                    starts.append(source.read(inner.content, min(inner.size, _LOOK)))
    return any(mark in start for mark in marks for start in starts)


def read(path: Path, options: ReadOptions) -> Adapter:  # noqa: ARG001 - the format protocol
    """An adapter by PEFT's names; of the values nothing is read.

    Raises:
        CorruptInputError: a broken file or configuration, or what is broken in a PEFT adapter.
        IncompatibleError: a method that this program does not know.
    """
    model = container.open(path)
    stated = model.metadata.get(CONFIG)
    notes = () if stated else (f"no {CONFIG} in it: strength is taken from PEFT's default alpha",)
    files = Files(
        folder=path.parent,
        config=_config(path, stated),
        tensors=model.tensors,
        facts=dict(model.provenance.files),
        notes=notes,
        weights=path,
        metadata={},
    )
    adapter = read_files(files)
    name = path.stem if adapter.provenance.name == path.parent.name else adapter.provenance.name
    return replace(adapter, provenance=replace(adapter.provenance, name=name, format="onnx"))


def _config(path: Path, stated: object) -> dict[str, JSON]:
    if stated is None:
        return {}
    try:
        config = json.loads(str(stated))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CorruptInputError(f"{shown(path)}: its {CONFIG} is not a JSON object")
    return config


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """What `write` would write."""
    size, _, _ = _lay_out(adapter, options)
    return Written(path, size, (path.name,))


def write(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Write the tensors that a PEFT folder would hold as one ONNX file.

    Raises:
        IncompatibleError: more than 2 GiB, or a type that ONNX does not have.
        StorageError: see `adaptool.storage.Staging`.
    """
    size, extents, tensors = _lay_out(adapter, options)
    return write_extents(path, size, extents, tensors, options)


def _lay_out(
    adapter: Adapter, options: WriteOptions
) -> tuple[int, list[Extent], Mapping[str, LazyTensor]]:
    refuse_encoding(options)
    tensors, small = compose(adapter, options)
    properties = {CONFIG: small[CONFIG].decode(), RECORD.removesuffix(".json"):
                  small[RECORD].decode()}  # fmt: skip
    pieces = _pieces(tensors, properties)
    ends = list(accumulate(piece.size for piece in pieces))
    if ends[-1] > FILE_LIMIT:
        raise IncompatibleError(
            f"{adapter.provenance.name}: {ends[-1]} bytes, an ONNX file ends at 2 GiB",
            hint="write it with --dtype f16, or reduce its ranks",
            code="NOT_EXPRESSIBLE",
        )
    extents = [Extent(end - p.size, p) for end, p in zip(ends, pieces, strict=True) if p.size]
    return ends[-1], extents, tensors


def _pieces(tensors: Mapping[str, LazyTensor], properties: Mapping[str, str]) -> list[Content]:
    from onnx import GraphProto, ModelProto, TensorProto, helper

    shell = ModelProto(ir_version=_IR_VERSION, producer_name="adaptool", producer_version=VERSION,
                       opset_import=[helper.make_opsetid("", _OPSET)])  # fmt: skip
    for key, text in properties.items():
        shell.metadata_props.add(key=key, value=text)
    frames: list[tuple[bytes, LazyTensor]] = []
    for name, tensor in tensors.items():
        number = NUMBERS.get(tensor.dtype)
        if number is None:
            raise IncompatibleError(
                f"{name}: an ONNX file holds no values of the type {tensor.kind}",
                code="NOT_EXPRESSIBLE",
            )
        proto = TensorProto(name=name, data_type=number, dims=tensor.shape)
        start = proto.SerializeToString() + head(RAW, tensor.nbytes)
        frames.append((head(INITIALIZER, len(start) + tensor.nbytes) + start, tensor))
    graph = GraphProto(name="adapter").SerializeToString()
    size = len(graph) + sum(len(frame) + tensor.nbytes for frame, tensor in frames)
    pieces: list[Content] = [Bytes(shell.SerializeToString() + head(GRAPH, size) + graph)]
    for frame, tensor in frames:
        pieces += [Bytes(frame), content_of(tensor)]
    return pieces
