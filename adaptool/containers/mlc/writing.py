"""Writing MLC's weight folders: which tensor goes into which shard, and the list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.containers import Saved, SaveOptions
from adaptool.containers._content import content_of, verify_sources
from adaptool.containers._output import Output, side_files
from adaptool.containers.mlc import cache
from adaptool.containers.mlc.cache import Record, Shard
from adaptool.containers.mlc.reading import NATIVE, PARAMETERS
from adaptool.errors import JSON, IncompatibleError
from adaptool.storage import Extent, FilePlan, SourceFile, shown

CAP = 32 << 20
"""Bytes of a shard that MLC does not reach, but for a single tensor that is larger."""

_READ = 1 << 20


def plan(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """What `save` would write, without writing; the lists are missing in it."""
    return lay_out(checkpoint, path, options).planned(path)


def save(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """Stream a model to a folder.

    Raises as `lay_out`, and:
        StorageError: see `adaptool.storage.Staging`; nothing is visible then.
        Whatever a tensor's values raise while they are computed.
    """
    return lay_out(checkpoint, path, options).write(path, options)


def lay_out(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
    """The files of a model: shards, what travels along, and at the end the lists of the shards.

    Shards are those that the tensors came in, or those that MLC's converter makes of tensors in
    this order; `max_shard_size` takes the place of its 32 MiB. BFLOAT16 is listed as float32 that
    is stored so, but for the names in `metadata["bfloat16"]`; `metadata["parameters"]`, how many
    numbers the model had before it was quantised, gives the list its bits per parameter.

    Raises IncompatibleError for a tensor that such a folder cannot hold.
    """
    del path  # every file has a name of its own
    names = _grouped(checkpoint, options.max_shard_size)
    native = checkpoint.metadata.get(NATIVE, ())
    kept = frozenset(native if isinstance(native, Iterable) else ())
    shards = [_shard(name, checkpoint.tensors, members, kept) for name, members in names.items()]
    plans, small = side_files(checkpoint.side_files)
    return Output(
        (*(_plan_file(shard, checkpoint.tensors) for shard in shards), *plans),
        small,
        is_folder=True,
        verify=partial(verify_sources, checkpoint.tensors.values()),
        finish=partial(_lists, shards, _metadata(checkpoint, shards), options.workers),
    )


def _grouped(checkpoint: Checkpoint, limit: int | None) -> dict[str, list[str]]:
    """File name -> its tensors."""
    if limit is None and checkpoint.shards.keys() >= checkpoint.tensors.keys():
        found: dict[str, list[str]] = {}
        for name in checkpoint.tensors:
            found.setdefault(checkpoint.shards[name], []).append(name)
        return found
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    groups = divide(sizes, CAP if limit is None else limit)
    return {f"params_shard_{number}.bin": group for number, group in enumerate(groups)}


def divide(sizes: Mapping[str, int], cap: int) -> list[list[str]]:
    """Tensors in their order, by bytes, as groups for one shard each: MLC's rule.

    What would fill the pending shard begins the next one; but if it is half as large as a shard it
    is one by itself, before the pending one, which stays open for what follows.
    """
    groups: list[list[str]] = []
    pending: list[str] = []
    filled = 0
    for name, size in sizes.items():
        if filled + size >= cap:
            if 2 * size >= cap:
                groups.append([name])
                continue
            groups.append(pending)
            pending, filled = [], 0
        pending.append(name)
        filled += size
    return [*groups, pending] if pending else groups


def _shard(
    file: str, tensors: Mapping[str, LazyTensor], members: Iterable[str], native: frozenset[str]
) -> Shard:
    records: list[Record] = []
    end = 0
    for name in members:
        records.append(_record(name, tensors[name], end, native))
        end = records[-1].end
    return Shard(file, end, tuple(records))


def _record(name: str, tensor: LazyTensor, offset: int, native: frozenset[str]) -> Record:
    dtype = tensor.dtype
    if tensor.encoding is not None or dtype.value not in cache.DTYPES:
        raise _refusal(name, f"values of the type {tensor.kind}")
    if not 0 < len(name) <= cache.MAX_NAME:
        raise _refusal(name, f"a name of {len(name)} characters")
    if dtype is DType.BFLOAT16 and name not in native:
        dtype = DType.FLOAT32
    form = cache.RAW if tensor.dtype is DType.FLOAT32 else cache.PACKED
    return Record(name, tensor.shape, dtype, form, offset)


def _refusal(name: str, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"tensor {shown(name)}: {what}: MLC's shards cannot hold it", code="NOT_EXPRESSIBLE"
    )


def _plan_file(shard: Shard, tensors: Mapping[str, LazyTensor]) -> FilePlan:
    extents = (Extent(r.offset, content_of(tensors[r.name])) for r in shard.records if r.nbytes)
    return FilePlan(shard.name, shard.nbytes, tuple(extents))


def _metadata(checkpoint: Checkpoint, shards: Iterable[Shard]) -> dict[str, JSON]:
    """Bytes are counted in the types that the runtime computes with."""
    records = [record for shard in shards for record in shard.records]
    nbytes = float(sum(r.dtype.nbytes(checkpoint.tensors[r.name].count) for r in records))
    found: dict[str, JSON] = {"ParamSize": len(records), "ParamBytes": nbytes}
    parameters = checkpoint.metadata.get(PARAMETERS)
    if isinstance(parameters, int | str):
        found["BitsPerParam"] = nbytes * 8 / int(parameters)
    return found


def _lists(
    shards: Iterable[Shard], metadata: Mapping[str, JSON], workers: int, folder: Path
) -> dict[str, bytes]:
    """The lists, when the shards lie in `folder` and can be digested: page by page, in threads."""
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        digested = list(pool.map(partial(_digested, folder), shards))
    content = cache.encode(metadata, digested)
    lists = {cache.FILE: content, cache.OLD_FILE: content}
    if any(r.stored is not r.dtype for shard in digested for r in shard.records):
        lists[cache.NATIVE_FILE] = cache.encode(metadata, digested, native=True)
    return lists


def _digested(folder: Path, shard: Shard) -> Shard:
    digest = hashlib.md5(usedforsecurity=False)
    buffer = bytearray(min(_READ, shard.nbytes))
    with SourceFile.open(folder / shard.name) as source:
        for start in range(0, source.size, _READ):
            part = memoryview(buffer)[: source.size - start]
            source.read_into(start, part)
            digest.update(part)
    return replace(shard, md5sum=digest.hexdigest())
