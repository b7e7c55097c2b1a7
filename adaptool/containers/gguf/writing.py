"""Writing GGUF files: one, or the parts of a split model in a folder of their own.

What no one touched is copied. Where the header comes out as the source's own, the file is the
source's with some ranges replaced, so an unmodified model is written byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.containers import Saved, SaveOptions
from adaptool.containers._content import content_of, fill_files, verify_sources
from adaptool.containers._output import Output
from adaptool.containers.gguf import header, splits
from adaptool.containers.gguf.header import padded
from adaptool.containers.gguf.reading import PLAIN, SUFFIX
from adaptool.containers.gguf.values import LENGTH, WORD, Value, encode_string
from adaptool.errors import IncompatibleError, UsageError
from adaptool.storage import (
    Bytes,
    Copy,
    Extent,
    FilePlan,
    SourceFile,
    shown,
)

_IDS = {dtype.value: number for number, dtype in PLAIN.items()}


def plan(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """What `save` would write, without writing."""
    return lay_out(checkpoint, path, options).planned(path)


def save(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Saved:
    """Stream a model to one file if `path` ends in .gguf, else to a folder.

    A folder holds FOLDER.gguf, or with `max_shard_size` FOLDER-00001-of-00003.gguf and so on:
    several files can appear at once in a folder that appears, and nowhere else. A model that
    came in parts is written as one file unless a size is asked for.

    Raises:
        UsageError: `max_shard_size` needs several files and `path` is one.
        IncompatibleError: a tensor that GGUF cannot hold.
        StorageError: see `adaptool.storage.Staging`; nothing is visible then.
        Whatever a tensor's values raise while they are computed.
    """
    return lay_out(checkpoint, path, options).write(path, options)


def save_file(
    path: Path,
    values: Mapping[str, Value],
    tensors: Mapping[str, LazyTensor],
    options: SaveOptions,
) -> Saved:
    """Write one GGUF file with these values and tensors, in their order.

    Raises as `save` does.
    """
    check = partial(verify_sources, tensors.values())
    return Output((_plan_file(path.name, values, tensors),), verify=check).write(path, options)


def size_of_file(values: Mapping[str, Value], tensors: Mapping[str, LazyTensor]) -> int:
    """Bytes of the file that `save_file` would write."""
    return _plan_file("x", values, tensors).size


def lay_out(checkpoint: Checkpoint, path: Path, options: SaveOptions) -> Output:
    """The files of a model at `path`, see `save`."""
    is_folder = path.suffix != SUFFIX
    values = dict(_typed(checkpoint.metadata))
    tensors = checkpoint.tensors
    limit = options.max_shard_size
    groups = [dict(tensors)] if limit is None else fill_files(tensors, limit)
    count = len(groups)
    check = partial(verify_sources, tensors.values())
    if count == 1:
        name = f"{path.name}{SUFFIX}" if is_folder else path.name
        return Output((_plan_file(name, values, tensors),), is_folder=is_folder, verify=check)
    if not is_folder:
        raise UsageError(
            f"{shown(path)}: {count} files are needed for parts of at most {limit} bytes",
            hint=f"name a folder for them: -o {shown(path.with_suffix(''))}",
        )
    plans = [
        _plan_file(
            splits.part_name(path.name, number + 1, count),
            splits.split_values(values, number, count, len(tensors)),
            group,
        )
        for number, group in enumerate(groups)
    ]
    return Output(tuple(plans), is_folder=is_folder, verify=check)


def _typed(metadata: Mapping[str, object]) -> Iterable[tuple[str, Value]]:
    """A checkpoint's metadata as typed values; a plain text is a string."""
    for key, value in metadata.items():
        if isinstance(value, str):
            yield key, Value.string(value)
        elif isinstance(value, Value):
            yield key, value
        else:
            raise TypeError(f"{key}: {type(value).__name__} is not a value of a GGUF file")


def _plan_file(
    name: str, values: Mapping[str, Value], tensors: Mapping[str, LazyTensor]
) -> FilePlan:
    source = _pattern(values, tensors)
    version = header.version_of(source) or header.VERSIONS[-1]
    alignment = header.read_alignment(values)
    head, relative = _header_bytes(version, values, tensors, alignment)
    start = padded(len(head), alignment)
    offsets = {key: start + offset for key, offset in relative.items()}
    if source and source.size >= len(head) and source.read(0, len(head)) == head:
        return FilePlan(name, source.size, tuple(_replace_ranges(source, tensors, offsets)))
    extents = [Extent(0, Bytes(head))]
    end = start
    for key, tensor in tensors.items():
        if tensor.nbytes:
            extents.append(Extent(offsets[key], content_of(tensor)))
        end = padded(offsets[key] + tensor.nbytes, alignment)
    return FilePlan(name, end, tuple(extents))


def _replace_ranges(
    source: SourceFile, tensors: Mapping[str, LazyTensor], offsets: Mapping[str, int]
) -> Iterable[Extent]:
    """The whole source, paddings too, but for the tensors that do not lie there as they are."""
    copied = 0
    for key, tensor in tensors.items():
        content, offset = content_of(tensor), offsets[key]
        if content == Copy(source, offset, tensor.nbytes) or not tensor.nbytes:
            continue
        yield Extent(copied, Copy(source, copied, offset - copied))
        yield Extent(offset, content)
        copied = offset + tensor.nbytes
    if copied < source.size:
        yield Extent(copied, Copy(source, copied, source.size - copied))


def _pattern(values: Mapping[str, Value], tensors: Mapping[str, LazyTensor]) -> SourceFile | None:
    """The file that the output may be a changed copy of: where the first stored bytes lie."""
    stored = [tensor.stored for tensor in tensors.values()]
    contents = [value.content for value in values.values()]
    for where in (*stored, *contents):
        if where is not None and not isinstance(where, bytes):
            return where.source if isinstance(where.source, SourceFile) else None
    return None


def _header_bytes(
    version: int,
    values: Mapping[str, Value],
    tensors: Mapping[str, LazyTensor],
    alignment: int,
) -> tuple[bytes, dict[str, int]]:
    """The header without its padding, and the offset of each tensor in the data."""
    parts = [
        header.START.pack(header.MAGIC, version),
        header.COUNTS.pack(len(tensors), len(values)),
    ]
    for key, value in values.items():
        parts += [encode_string(key), value.encoded()]
    offsets: dict[str, int] = {}
    position = 0
    for name, tensor in tensors.items():
        offsets[name] = position
        parts += [_entry(name, tensor), LENGTH.pack(position)]
        position = padded(position + tensor.nbytes, alignment)
    return b"".join(parts), offsets


def _entry(name: str, tensor: LazyTensor) -> bytes:
    """Name, shape and type of a tensor as GGUF states them."""
    label = encode_string(name)
    if not 0 < len(label) - LENGTH.size <= header.MAX_NAME:
        raise _refusal(name, f"a name of more than {header.MAX_NAME} bytes")
    shape = tensor.shape
    if len(shape) > header.MAX_DIMENSIONS:
        raise _refusal(name, f"{len(shape)} dimensions, at most {header.MAX_DIMENSIONS}")
    if tensor.encoding is not None and (not shape or shape[-1] % tensor.encoding.block):
        raise _refusal(name, f"rows of {shape[-1:]} values do not fit {tensor.kind}'s blocks")
    sizes = b"".join(map(LENGTH.pack, reversed(shape)))
    return b"".join([label, WORD.pack(len(shape)), sizes, WORD.pack(_type_id(name, tensor))])


def _type_id(name: str, tensor: LazyTensor) -> int:
    if tensor.encoding is None:
        number = _IDS.get(tensor.kind)
    else:
        from adaptool.encodings.ggml import TYPES

        number = next((n for n, kind in TYPES.items() if kind.name == tensor.kind), None)
    if number is None:
        raise _refusal(name, f"values of the type {tensor.kind}")
    return number


def _refusal(name: str, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"tensor {shown(name)}: {what}: a GGUF file cannot hold it", code="NOT_EXPRESSIBLE"
    )
