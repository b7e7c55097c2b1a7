"""Opening ONNX models: a file, or a folder with one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from adaptool.canonical import Checkpoint, LazyTensor, Provenance
from adaptool.canonical.provenance import origin
from adaptool.containers.onnx.graphs import read_graph
from adaptool.containers.onnx.holders import Holder, holders_of
from adaptool.containers.onnx.model import MODEL, Model
from adaptool.containers.onnx.quantisation import quantised_weights
from adaptool.containers.onnx.stripping import read_model
from adaptool.errors import JSON, CorruptInputError, IncompatibleError
from adaptool.storage import SourceFile, inside, read_object, shown

SUFFIX = ".onnx"
DEFAULT = "model.onnx"
_CONFIGURATION = "config.json"
_SUBFOLDER = "onnx"
"""Where transformers.js keeps the models of a repository whose config.json is one level up."""
_LEFT_BEHIND = (".onnx", ".onnx_data", ".data", ".safetensors", ".bin", ".pt", ".gguf", ".ort",
                ".onnx_adapter", ".tmp", ".lock")  # fmt: skip
_OWN_RECORDS = frozenset({"README.md", "adaptool.json"})


def recognises(path: Path) -> bool:
    """An .onnx file, or a folder with one and no safetensors; cheap."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(path.glob(f"*{SUFFIX}"))
    return path.suffix == SUFFIX


def open(path: Path) -> Checkpoint:  # noqa: A001 - the container protocol's verb
    """A checkpoint of lazy tensors by initializer name; of the tensors nothing is read.

    A tensor of a Constant node goes by the name of the node's output, one in a nested graph, if
    its name is not the only one, by "GRAPH:name". A quantised weight is one decoded tensor by the
    name of its packed initializer. Strings and what is stored in less than a byte and belongs
    to no weight are carried along and not shown.

    `metadata` has the model's metadata_props, and one value that only this container knows.

    Raises:
        CorruptInputError: not an ONNX model, or tensors that contradict what they are said to be.
        IncompatibleError: a folder with several models.
        ResourceLimitError: see `read_model`.
        StorageError: not found, not readable, external data is missing.
    """
    file = _only_model(path) if path.is_dir() else path
    source = SourceFile.open(file)
    proto, payloads = read_model(source)
    holders = _keyed(source, holders_of(proto, payloads, source))
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    model = Model(proto, source, holders, graph=read_graph(proto), properties=properties)
    return _checkpoint(path, model)


def _checkpoint(path: Path, model: Model) -> Checkpoint:
    file = model.source.path
    quantised = dict(quantised_weights(model.graph, model.holders))
    hidden = {part for weight in quantised.values() for part in weight.parts}
    tensors: dict[str, LazyTensor] = {}
    shards: dict[str, str] = {}
    for key, holder in model.holders.items():
        tensor = quantised[key].tensor if key in quantised else holder.tensor()
        if tensor is None or (key in hidden and key not in quantised):
            continue
        tensors[key] = tensor
        stored = holder.stored
        shards[key] = file.name if stored is None else stored.source.path.name
    model = replace(model, quantised=quantised, tensors=tensors)
    return Checkpoint(
        tensors=tensors,
        container="onnx",
        provenance=Provenance(_name(path), "onnx", _facts(model)),
        config=_config(file.parent),
        metadata={**model.properties, MODEL: model},
        shards=shards,
        graph=model.graph,
        side_files=_side_files(file.parent, model) if path.is_dir() else {},
    )


def _keyed(source: SourceFile, holders: Iterable[Holder]) -> dict[str, Holder]:
    """Holders by name, or by their graph's and their own where a name stands twice."""
    keyed: dict[str, Holder] = {}
    for holder in holders:
        if not holder.name:
            raise CorruptInputError(f"{shown(source.path)}: an initializer has no name")
        key, other = holder.name, keyed.get(holder.name)
        if other is not None and other.within != holder.within:
            key = f"{holder.within}:{holder.name}"
        if key in keyed:
            raise CorruptInputError(
                f"{shown(source.path)}: two tensors have the name {shown(holder.name)[:200]}"
            )
        keyed[key] = holder
    return keyed


def _only_model(folder: Path) -> Path:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) == 1:
        return files[0]
    raise IncompatibleError(
        f"{shown(folder)}: {len(files)} ONNX models here", hint="name one of them",
        code="AMBIGUOUS" if files else "UNKNOWN_FORMAT",
    )  # fmt: skip


def _name(path: Path) -> str:
    folder = origin(path if path.is_dir() else path.parent)
    return folder if path.is_dir() or "/" in folder else path.stem


def _facts(model: Model) -> dict[str, JSON]:
    """What tells this model from another one, by file."""
    source = model.source
    stripped = hashlib.sha256(model.proto.SerializeToString(deterministic=True)).hexdigest()
    stored = [holder.stored.source for holder in model.holders.values() if holder.stored]
    files = {one.path.name: one.size for one in stored if isinstance(one, SourceFile)}
    facts: dict[str, JSON] = {name: {"bytes": size} for name, size in files.items()}
    return {**facts, source.path.name: {"bytes": source.size, "header_sha256": stripped}}


def _config(folder: Path) -> dict[str, JSON]:
    places = [folder, folder.parent] if folder.name == _SUBFOLDER else [folder]
    for place in places:
        file = place / _CONFIGURATION
        if file.is_file():
            return read_object(file)
    return {}


def _side_files(folder: Path, model: Model) -> dict[str, Path | bytes]:
    """Everything else in the folder's top level: configuration, tokenizer, templates, licence."""
    data = {holder.stored.source.path.name for holder in model.holders.values() if holder.stored}
    kept: dict[str, Path | bytes] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in _OWN_RECORDS or file.name in data:
            continue
        if file.is_file() and not file.name.endswith(_LEFT_BEHIND):
            kept[file.name] = inside(folder, file.name)
    return kept
