"""Opening GGUF models: one file, all parts of a split one, or a folder with either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adaptool.canonical import Checkpoint, DType, LazyTensor, Provenance, Stored
from adaptool.canonical.provenance import origin
from adaptool.canonical.tensors import from_packed, from_storage
from adaptool.containers.gguf import header, splits
from adaptool.containers.gguf.header import Header, TensorEntry, read_header
from adaptool.containers.gguf.values import Kind, Value
from adaptool.errors import JSON, AdaptoolError, CorruptInputError, IncompatibleError
from adaptool.storage import SourceFile, shown

SUFFIX = ".gguf"
NOT_MODELS = ("adapter", "imatrix")
SHORT = 1024
"""Elements of an array of numbers that still belongs to the configuration."""
LICENSE = "general.license"

PLAIN = {
    0: DType.FLOAT32, 1: DType.FLOAT16, 30: DType.BFLOAT16, 28: DType.FLOAT64,
    24: DType.INT8, 25: DType.INT16, 26: DType.INT32, 27: DType.INT64,
}  # fmt: skip
"""ggml's numbers of the types that are stored value by value."""


def recognises(path: Path) -> bool:
    """A GGUF file that holds a model, or a folder with one such model and no safetensors."""
    if path.is_dir():
        return not any(path.glob("*.safetensors")) and any(
            _holds_model(file) for file in path.glob(f"*{SUFFIX}")
        )
    return _holds_model(path)


def general_type(path: Path) -> str | None:
    """What a file says it holds ("model", "adapter", "imatrix" ...); None if it is no GGUF file.

    Raises:
        CorruptInputError: a GGUF file that is broken before it says so.
        StorageError: not found, not readable.
    """
    with SourceFile.open(path) as source:
        return header.general_type(source)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the container protocol's verb
    """A checkpoint of lazy tensors by GGUF name; only headers are read.

    `config` has the scalars and short arrays of numbers by their GGUF keys, `metadata` all
    values as they are stored. Of a split model any part, or its folder, opens all.

    Raises:
        CorruptInputError: a header is broken, or parts contradict each other.
        IncompatibleError: a version, byte order or tensor type that this program does not read.
        StorageError: not found, not readable, a part is missing.
    """
    parts = _read_parts(_only_model(path) if path.is_dir() else path)
    headers = {part: found for part, (_, found) in parts.items()}
    is_split = len(parts) > 1
    values = splits.join_values(headers) if is_split else next(iter(headers.values())).values
    tensors: dict[str, LazyTensor] = {}
    shards: dict[str, str] = {}
    for part, (source, found) in parts.items():
        for entry in found.tensors:
            if entry.name in tensors:
                raise CorruptInputError(
                    f"{shown(part)}: tensor {shown(entry.name)} "
                    f"stands in {shown(shards[entry.name])} as well"
                )
            tensors[entry.name] = lazy_tensor(source, entry)
            shards[entry.name] = part.name
    config = _config(values)
    stated = config.get(LICENSE)
    return Checkpoint(
        tensors=tensors,
        container="gguf",
        provenance=Provenance(
            name=_name(path),
            format="gguf",
            files={
                part.name: {"bytes": source.size, "header_sha256": found.sha256}
                for part, (source, found) in parts.items()
            },
            license=stated[:100] if isinstance(stated, str) and stated else None,
        ),
        config=config,
        metadata=values,
        shards=shards if is_split else {},
    )


def _read_parts(path: Path) -> dict[Path, tuple[SourceFile, Header]]:
    """The files of a model in their order, open, with their headers."""
    source = SourceFile.open(path)
    read = {path: (source, read_header(source))}
    parts = splits.parts_of(path, read[path][1])
    for number, part in enumerate(parts):
        if part not in read:
            source = SourceFile.open(part)
            read[part] = source, read_header(source)
        if len(parts) > 1:
            splits.check_part(part, read[part][1], number, len(parts))
    return {part: read[part] for part in parts}


def lazy_tensor(source: SourceFile, entry: TensorEntry) -> LazyTensor:
    """The tensor of an open file that a header's entry describes.

    Raises IncompatibleError for a type whose values nobody can read.
    """
    stored = Stored(source, entry.offset, entry.nbytes)
    if entry.type_id in PLAIN:
        return from_storage(stored, entry.shape, PLAIN[entry.type_id])
    from adaptool.encodings.ggml import encoding

    try:
        return from_packed(stored, entry.shape, encoding(entry.type_id))
    except IncompatibleError as error:
        raise IncompatibleError(
            f"{shown(source.path)}: tensor {shown(entry.name)}: {error.message}",
            hint=error.hint,
            code=error.code,
        ) from None


def _config(values: Mapping[str, Value]) -> dict[str, JSON]:
    """What is small: scalars, strings that the header's reader kept, short arrays of numbers."""
    return {
        key: value.plain()
        for key, value in values.items()
        if isinstance(value.content, bytes)
        and (
            value.kind is not Kind.ARRAY
            or (value.count <= SHORT and value.element not in (Kind.STRING, Kind.ARRAY))
        )
    }


def _name(path: Path) -> str:
    folder = origin(path if path.is_dir() else path.parent)
    return folder if path.is_dir() or "/" in folder else splits.model_of(path)[0]


def _holds_model(path: Path) -> bool:
    try:
        kind = general_type(path)
    except AdaptoolError:
        kind = None  # opening it will say what is wrong
    return path.suffix == SUFFIX if kind is None else kind not in NOT_MODELS


def _only_model(folder: Path) -> Path:
    """The one model in a folder, or a part of it; projectors and adapters may lie beside it."""
    files = [file for file in sorted(folder.glob(f"*{SUFFIX}")) if _is_model(file)]
    models = {splits.model_of(file) for file in files}
    if len(models) == 1:
        return files[0]
    raise IncompatibleError(
        f"{shown(folder)}: {len(models)} GGUF models here", hint="name one of them",
        code="AMBIGUOUS" if files else "UNKNOWN_FORMAT",
    )  # fmt: skip


def _is_model(file: Path) -> bool:
    try:
        return general_type(file) in (None, "model")
    except AdaptoolError:
        return True
