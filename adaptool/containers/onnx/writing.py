"""Writing ONNX models: one file, or a folder with the model and its data files.

Several files can appear at once in a folder that appears, and nowhere else. So a path that ends
in .onnx is one file with all tensors in it, which must stay below 2 GiB; a model with data files
goes into a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.containers import Saved, SaveOptions
from adaptool.containers._content import verify_sources
from adaptool.containers._output import Output, side_files
from adaptool.containers.onnx import elements
from adaptool.containers.onnx.emission import Emission
from adaptool.containers.onnx.graphs import Facts
from adaptool.containers.onnx.layout import DataFiles, lay_apart, lay_data, replaced
from adaptool.containers.onnx.model import MODEL, Model, model_of
from adaptool.containers.onnx.nodes import (
    check_wired,
    require_domains,
    write_properties,
    write_values,
)
from adaptool.containers.onnx.reading import SUFFIX
from adaptool.containers.onnx.separation import separated
from adaptool.containers.onnx.stripping import FILE_LIMIT
from adaptool.containers.onnx.units import Unit, units_of
from adaptool.containers.onnx.widening import widened
from adaptool.errors import UsageError
from adaptool.storage import (
    Bytes,
    Content,
    Extent,
    FilePlan,
    SourceFile,
    shown,
)

_FREE_INITIALIZERS = 4
"""The IR version since which an initializer need not be an input."""

_ROOM = 64 << 20
"""Bytes that the graph beside the tensors may take before data files are used."""


def plan(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """What `save` would write, without writing."""
    return lay_out(checkpoint, path, options).planned(path)


def save(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """Stream a model to one file if `path` ends in .onnx, else to a folder.

    A folder holds the model under the name that it had, its data files as transformers.js names
    them (model.onnx_data, model.onnx_data_1 ...), and what lay beside it. Data files are written
    where the model had some, where `max_shard_size` bounds them, and where the model would not
    fit one file. New tensors whose shard is another file lie in a data file of that name.

    Raises:
        UsageError: `path` is a file, and the model needs several.
        IncompatibleError: a tensor or an attribute that ONNX cannot hold, or a model that did
            not come out of an ONNX file.
        StorageError: see `adaptool.storage.Staging`; nothing is visible then.
        Whatever a tensor's values raise while they are computed.
    """
    return lay_out(checkpoint, path, options).write(path, options)


def _verify(checkpoint: Checkpoint) -> None:
    verify_sources(checkpoint.tensors.values())
    _verify_unchanged(model_of(checkpoint))


def _verify_unchanged(model: Model) -> None:
    """The same for the model's own files, of which packed weights are read in parts."""
    held = {holder.stored.source for holder in model.holders.values() if holder.stored}
    for source in held | {model.source}:
        if isinstance(source, SourceFile):
            source.verify_unchanged()


def lay_out(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
    """The files of a model at `path`, see `save`."""
    model = model_of(checkpoint)
    checkpoint, model = separated(widened(checkpoint, model), model)
    units = tuple(units_of(checkpoint, model))
    is_folder = path.suffix != SUFFIX
    name = model.source.path.name if is_folder else path.name
    apart = _apart(checkpoint, model, units)
    leaving = {id(unit) for group in apart.values() for unit in group}
    others = [unit for unit in units if id(unit) not in leaving]
    total, limit = sum(unit.nbytes for unit in units), options.max_shard_size
    if not is_folder:
        if apart or (limit is not None and total > limit):
            raise _several(path, "a model in several files")
        data = DataFiles((), {})
    elif limit is None and total + _ROOM <= FILE_LIMIT and not _has_data_files(model):
        data = lay_apart(apart)
    else:
        data = lay_data(model, others, name, limit) + lay_apart(apart)
    main = _plan_model(checkpoint, model, units, name, data)
    if main.size > FILE_LIMIT:
        raise _several(path, f"a model of {main.size} bytes")
    copied, small = side_files(checkpoint.side_files) if is_folder else ([], {})
    return Output(
        (main, *data.plans, *copied), small, is_folder, verify=partial(_verify, checkpoint)
    )


def _apart(checkpoint: Checkpoint, model: Model, units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """New tensors whose shard is a file of its own, by its name."""
    known = {h.stored.source.path.name for h in model.holders.values() if h.stored}
    known |= {model.source.path.name, ""}
    files: dict[str, list[Unit]] = {}
    for unit in units:
        file = checkpoint.shards.get(unit.entries[0].name, "")
        if unit.entries[0].holder is None and unit.nbytes and file not in known:
            files.setdefault(file, []).append(unit)
    return files


def _several(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{shown(path)}: {what} is no single .onnx file, which ends at 2 GiB",
        hint=f"name a folder for them: -o {shown(path.with_suffix(''))}",
    )


def _has_data_files(model: Model) -> bool:
    return any(h.stored and h.stored.source is not model.source for h in model.holders.values())


def _plan_model(checkpoint: Checkpoint, model: Model, units: Sequence[Unit], name: str,
                data: DataFiles) -> FilePlan:  # fmt: skip
    properties = {key: value for key, value in checkpoint.metadata.items()
                  if key != MODEL and isinstance(value, str)}  # fmt: skip
    graph = checkpoint.graph or model.graph
    same_graph = graph is model.graph or graph == model.graph
    if same_graph and properties == dict(model.properties):
        extents = _in_place(model, units, data)
        if extents is not None:
            return FilePlan(name, model.source.size, tuple(extents))
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    entries = [entry for unit in units for entry in unit.entries]
    write_properties(proto, properties)
    write_values(proto.graph, "input", _declared(graph.inputs, model, units))
    write_values(proto.graph, "output", graph.outputs)
    require_domains(proto, graph.nodes)
    if any(entry.holder is None for entry in entries):
        proto.ir_version = max(proto.ir_version, _FREE_INITIALIZERS)
    if not same_graph or len(entries) < len(model.holders):
        check_wired(proto, graph.nodes, [entry.name for entry in entries])
    return _planned(name, Emission(model, proto, graph.nodes, tuple(units), data.located).pieces())


def _declared(inputs: Mapping[str, Facts], model: Model, units: Sequence[Unit]) -> dict[str, Facts]:
    """The graph's inputs: one that has a tensor as its default is of that tensor's type and size.

    An input whose default was a part of a weight that is packed no longer is none any more.
    """
    written = {entry.name: entry for unit in units for entry in unit.entries if not unit.within}
    parts = {model.holders[part].name for weight in model.quantised.values()
             for part in weight.parts if part in model.holders}  # fmt: skip
    declared: dict[str, Facts] = {}
    for name, facts in inputs.items():
        entry = written.get(name)
        if entry is not None and entry.holder is not None and entry.resized:
            declared[name] = elements.type_name(entry.type), entry.shape
        elif entry is not None or name not in parts:
            declared[name] = facts
    return declared


def _in_place(model: Model, units: Sequence[Unit], data: DataFiles) -> Iterable[Extent] | None:
    """The source's own bytes with the changed tensors in their places; None if that cannot be."""
    changed: list[tuple[int, Unit]] = []
    if sum(len(unit.entries) for unit in units) != len(model.holders):
        return None
    for unit in units:
        entry, holder = unit.entries[0], unit.entries[0].holder
        if holder is None or len(unit.entries) > 1:
            return None
        stored, place = holder.stored, data.located.get((unit.within, entry.name))
        if stored is not None and stored.source is not model.source:
            if place != (_location(model, stored.source.path), stored.offset):
                return None
        elif place is not None or (stored is None and entry.changed):
            return None
        elif entry.changed and stored is not None:
            changed.append((stored.offset, unit))
        if entry.resized:
            return None
    return replaced(model.source, changed)


def _location(model: Model, data: Path) -> str:
    return str(data.relative_to(model.source.path.parent))


def _planned(name: str, pieces: Iterable[Content]) -> FilePlan:
    extents, position = [], 0
    for piece in _joined(pieces):
        if piece.size:
            extents.append(Extent(position, piece))
        position += piece.size
    return FilePlan(name, position, tuple(extents))


def _joined(pieces: Iterable[Content]) -> Iterable[Content]:
    """The same bytes, those in memory together."""
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, Bytes):
            run.append(piece.data)
            continue
        yield Bytes(b"".join(run))
        run = []
        yield piece
    yield Bytes(b"".join(run))
