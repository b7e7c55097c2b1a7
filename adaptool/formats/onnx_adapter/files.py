"""Adapters as .onnx_adapter files, read and written."""

from __future__ import annotations

from pathlib import Path

from adaptool.canonical import Adapter
from adaptool.errors import JSON, AdaptoolError
from adaptool.formats import ReadOptions, WriteOptions, Written
from adaptool.formats._filled import adapter_of, filling_from, notes_of
from adaptool.formats._trailer import read_trailer, trailer
from adaptool.formats._written import refuse_encoding, write_extents
from adaptool.formats.onnx_adapter.flatbuffer import (
    IDENTIFIER,
    Parameters,
    lay_out,
    read_parameters,
)
from adaptool.slots import Filling, Manifest, fill, slots_for
from adaptool.storage import Bytes, Extent, SourceFile, shown

_FORMAT = "onnx_adapter"


def recognises(path: Path) -> bool:
    """A file with the identifier of ONNX Runtime's adapters."""
    if not path.is_file():
        return False
    try:
        with SourceFile.open(path) as source:
            return source.size >= 8 and source.read(4, 4) == IDENTIFIER
    except AdaptoolError:
        return False


def read(path: Path, options: ReadOptions) -> Adapter:  # noqa: ARG001 - the format protocol
    """An adapter under the names that its file knows; of the values nothing is read.

    Raises:
        CorruptInputError: a broken file, or factors that do not fit each other.
        IncompatibleError: tensors whose names do not tell what they are.
    """
    return read_for(path, None)


def read_for(path: Path, manifest: Manifest | None) -> Adapter:
    """The same, for the graph that has these slots. Raises as `read`."""
    return adapter_of(read_filling(path), path, _FORMAT, path.stat().st_size, manifest)


def read_filling(path: Path) -> Filling:
    """The factors by the names of a graph's inputs. Raises as `read`."""
    source = SourceFile.open(path)
    found = read_parameters(source)
    return filling_from(found.tensors, read_trailer(source, found.end), shown(path))


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """What `write` would write."""
    return plan_filling(_without_graph(adapter, options), path, options)


def write(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Write factors under the names that `adaptool slots` gives to a graph's inputs.

    Raises:
        IncompatibleError: an update that is no pair of factors of a linear layer.
        StorageError: see `adaptool.storage.Staging`.
    """
    return write_filling(_without_graph(adapter, options), path, options)


def _without_graph(adapter: Adapter, options: WriteOptions) -> Filling:
    return fill(adapter, slots_for(adapter), options.dtype)


def plan_filling(filling: Filling, path: Path, options: WriteOptions) -> Written:
    """What `write_filling` would write."""
    size, _ = _lay_out(filling, options)
    return Written(path, size, (path.name,))


def write_filling(filling: Filling, path: Path, options: WriteOptions) -> Written:
    """Write the factors of a graph's slots. Raises as `write`."""
    size, extents = _lay_out(filling, options)
    return write_extents(path, size, extents, filling.tensors, options)


def _lay_out(filling: Filling, options: WriteOptions) -> tuple[int, tuple[Extent, ...]]:
    refuse_encoding(options)
    size, extents = lay_out(_parameters(filling))
    notes = trailer(notes_of(filling, options.operation))
    return size + len(notes), (*extents, Extent(size, Bytes(notes)))


def _parameters(filling: Filling) -> Parameters:
    stated = filling.config.get("onnx_adapter")
    versions: dict[str, JSON] = stated if isinstance(stated, dict) else {}
    adapter, model = (versions.get(key) for key in ("adapter_version", "model_version"))
    return Parameters(
        filling.tensors,
        adapter if isinstance(adapter, int) else 1,
        model if isinstance(model, int) else 1,
    )
