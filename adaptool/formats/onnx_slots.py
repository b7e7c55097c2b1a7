"""The data file of a graph whose slots take factors from outside (mode "external").

Bytes at the places where the graph looks for them, and nothing that a runtime reads beside them; a
session is given one such file or another. adaptool notes behind their end what they were made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adaptool.canonical import Adapter, DType, LazyTensor, Stored
from adaptool.canonical.tensors import from_storage
from adaptool.containers._content import content_of
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, WriteOptions, Written
from adaptool.formats._filled import adapter_of, filling_from, notes_of
from adaptool.formats._trailer import read_trailer, trailer
from adaptool.formats._written import refuse_encoding, write_extents
from adaptool.slots import EXTERNAL, Filling, Manifest
from adaptool.slots.manifest import manifest_from
from adaptool.storage import Bytes, Extent, SourceFile, shown

suffixes = (".onnx_slots",)
naming = "huggingface"

_FORMAT = "onnx_slots"


def recognises(path: Path) -> bool:
    """A file of that suffix with adaptool's notes at its end."""
    if path.suffix not in suffixes or not path.is_file():
        return False
    try:
        with SourceFile.open(path) as source:
            return read_trailer(source) is not None
    except AdaptoolError:
        return False


def read(path: Path, options: ReadOptions) -> Adapter:  # noqa: ARG001 - the format protocol
    """An adapter under Hugging Face's names; of the values nothing is read.

    Raises CorruptInputError for notes that are missing, or name places outside of the file.
    """
    return read_for(path, None)


def read_for(path: Path, manifest: Manifest | None) -> Adapter:
    """The same, for the graph that has these slots. Raises as `read`."""
    return adapter_of(read_filling(path), path, _FORMAT, path.stat().st_size, manifest)


def read_filling(path: Path) -> Filling:
    """The factors by the graph's names. Raises as `read`."""
    source = SourceFile.open(path)
    notes = read_trailer(source)
    if notes is None:
        raise CorruptInputError(
            f"{shown(path)}: does not say what is in it",
            hint="is it the empty file that `adaptool slots` made?",
        )
    manifest = manifest_from(notes.get("slots"), shown(path))
    return filling_from(dict(_tensors(source, manifest)), notes, shown(path))


def _tensors(source: SourceFile, manifest: Manifest) -> Iterator[tuple[str, LazyTensor]]:
    places = dict(manifest.places)
    for name, dtype, shape in _shapes(manifest):
        stored = Stored(source, places.get(name, source.size), dtype.nbytes(_count(shape)))
        if stored.offset + stored.size > source.size:
            raise CorruptInputError(f"{shown(source.path)}: {shown(name)} does not lie in the file")
        yield name, from_storage(stored, shape, dtype)


def _count(shape: tuple[int, ...]) -> int:
    return 1 if not shape else shape[0] * shape[1]


def _shapes(manifest: Manifest) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    """Every tensor of the file; a slot without a fixed rank has none."""
    yield manifest.scale, DType.FLOAT32, ()
    for slot in manifest.slots:
        if slot.rank is not None:
            yield slot.a, slot.dtype, (slot.width, slot.rank)
            yield slot.b, slot.dtype, (slot.rank, slot.height)


def plan(adapter: Adapter, path: Path, options: WriteOptions) -> Written:
    """Such a file fits one graph. Raises UsageError without it."""
    del adapter, options
    raise UsageError(
        f"{shown(path)}: the places of the factors are the graph's",
        hint="--for MODEL.onnx, made by `adaptool slots --mode external`",
    )


write = plan


def plan_filling(filling: Filling, path: Path, options: WriteOptions) -> Written:
    """What `write_filling` would write."""
    size, _ = _lay_out(filling, options)
    return Written(path, size, (path.name,))


def write_filling(filling: Filling, path: Path, options: WriteOptions) -> Written:
    """Write the data file of a graph's slots.

    Raises:
        IncompatibleError: the graph takes its factors in another way.
        StorageError: see `adaptool.storage.Staging`.
    """
    size, extents = _lay_out(filling, options)
    return write_extents(path, size, extents, filling.tensors, options)


def _lay_out(filling: Filling, options: WriteOptions) -> tuple[int, list[Extent]]:
    refuse_encoding(options)
    manifest = filling.manifest
    if manifest.mode != EXTERNAL:
        raise IncompatibleError(
            f"the graph's slots are {manifest.mode} inputs, not tensors of a data file",
            hint="name a file ending in .onnx_adapter",
            code="NOT_EXPRESSIBLE",
        )
    places = sorted((place, name) for name, place in manifest.places)
    extents = [Extent(place, content_of(filling.tensors[name])) for place, name in places]
    end = max(extent.end for extent in extents)
    notes = trailer(notes_of(filling, options.operation))
    return end + len(notes), [*extents, Extent(end, Bytes(notes))]
