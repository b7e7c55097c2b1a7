"""Opening MLC's weight folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from adaptool.canonical import Checkpoint, DType, LazyTensor, Provenance, Stored
from adaptool.canonical.provenance import origin
from adaptool.canonical.tensors import from_storage
from adaptool.containers.mlc import cache
from adaptool.errors import JSON, CorruptInputError, IncompatibleError
from adaptool.storage import SourceFile, inside, read_object, shown

SETTINGS = "mlc-chat-config.json"
HUB = ("resolve", "main")
"""Where a browser's runtime looks for a model's files, below the model's address."""

PARAMETERS = "parameters"
"""Key of `Checkpoint.metadata`: how many numbers the model had before it was quantised."""
NATIVE = "bfloat16"
"""The same: names of the tensors that a runtime shall keep as bfloat16, a tuple; it makes
float32 of all others that are stored so."""

_OWN_RECORDS = frozenset({"README.md", "adaptool.json"})


def recognises(path: Path) -> bool:
    """A folder with a list of MLC's shards, there or in resolve/main, and no safetensors."""
    return path.is_dir() and _list_in(path) is not None and not any(path.glob("*.safetensors"))


def open(path: Path) -> Checkpoint:  # noqa: A001 - the container protocol's verb
    """A checkpoint of lazy tensors by MLC's names; only small JSON files are read.

    `config` is mlc-chat-config.json. Float32 that is stored as bfloat16 is BFLOAT16 here.
    `provenance.files` has the digest that the list states for each shard ("md5sum").

    Raises:
        CorruptInputError: the list contradicts itself or the shards, or leads out of the folder.
        IncompatibleError: a type or a way of storing that this program does not read.
        StorageError: not found, not readable, a shard is missing.
    """
    listed = _list_in(path)
    if listed is None:
        raise IncompatibleError(f"{shown(path)}: no {cache.FILE} here", code="UNKNOWN_FORMAT")
    folder = listed.parent
    metadata, shards = cache.read_cache(listed)
    tensors: dict[str, LazyTensor] = {}
    places: dict[str, str] = {}
    facts: dict[str, JSON] = {}
    for shard in shards:
        source = _open_shard(folder, shard)
        facts[shard.name] = {"bytes": source.size, "md5sum": shard.md5sum}
        for record in shard.records:
            where = Stored(source, record.offset, record.nbytes)
            tensors[record.name] = from_storage(where, record.shape, record.stored)
            places[record.name] = shard.name
    records = [record for shard in shards for record in shard.records]
    kept = {NATIVE: tuple(r.name for r in records if r.dtype is DType.BFLOAT16)}
    config = folder / SETTINGS
    return Checkpoint(
        tensors=tensors,
        container="mlc",
        provenance=Provenance(origin(path), "mlc", facts),
        config=read_object(config) if os.path.lexists(config) else {},
        metadata={**_counted(metadata), **(kept if kept[NATIVE] else {})},
        shards=places,
        side_files=_side_files(folder, {shard.name for shard in shards}),
    )


def _list_in(path: Path) -> Path | None:
    places = (folder / name for folder in (path, path.joinpath(*HUB))
              for name in (cache.FILE, cache.OLD_FILE))  # fmt: skip
    return next((place for place in places if os.path.lexists(place)), None)


def _open_shard(folder: Path, shard: cache.Shard) -> SourceFile:
    source = SourceFile.open(inside(folder, shard.name))
    if source.size != shard.nbytes:
        raise CorruptInputError(
            f"{shown(source.path)}: {source.size} bytes, the list states {shard.nbytes}",
            hint="truncated, or of another model: download it again",
        )
    return source


def _counted(metadata: Mapping[str, object]) -> dict[str, object]:
    """The number of parameters, of which the list states the quotient with the bytes."""
    nbytes, bits = metadata.get("ParamBytes"), metadata.get("BitsPerParam")
    if not isinstance(nbytes, int | float) or not isinstance(bits, int | float):
        return {}
    if not (0 < nbytes < 2**63 and 0 < bits <= 64):
        return {}
    quotient = nbytes * 8 / bits
    return {PARAMETERS: round(quotient)} if 1 <= quotient < 2**63 else {}


def _side_files(folder: Path, shards: set[str]) -> dict[str, Path | bytes]:
    """Everything else in the folder's top level: configuration, tokenizer."""
    lists = {cache.FILE, cache.OLD_FILE, cache.NATIVE_FILE}
    return {
        file.name: inside(folder, file.name)
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".")
        and file.name not in shards | lists | _OWN_RECORDS
        and file.is_file()
    }
