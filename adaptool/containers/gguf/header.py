"""The header of a GGUF file, read without trusting it.

Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md - magic, version, counts, then
`key -> value`, then `tensor -> (shape, type, offset)`, then the tensors in that order, each
padded to the alignment. The checks are those of ggml's own reader and some more; every count is
compared with the bytes left before anything is reserved.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from adaptool.canonical import Stored
from adaptool.containers.gguf.cursor import Cursor
from adaptool.containers.gguf.values import ARRAY_HEAD, LENGTH, SIZES, WORD, Kind, Value
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, ResourceLimitError
from adaptool.storage import SourceFile, shown

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Both have one layout; 3 added files for big-endian machines."""
ALIGNMENT = "general.alignment"
TYPE = "general.type"
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
"""Bytes; a page is 4096, a huge page of memory 2 MB and nobody aligns files to it."""
MAX_HEADER = 1 << 30
"""Bytes; the largest published vocabularies need about 30 MB."""
MAX_KEYS = 100_000
MAX_TENSORS = 200_000
"""Per file; the largest published models have a few thousand."""
MAX_KEY = 65_535
MAX_NAME = 63
"""Bytes of a tensor's name: ggml keeps it in a field of 64 with a zero at the end."""
MAX_DIMENSIONS = 4
MAX_SIZE = 2**63 - 1
MAX_DEPTH = 4
"""Arrays in arrays; ggml reads none, and nobody writes them."""
MAX_ELEMENTS = 4_000_000
"""Strings in arrays, per file; the largest published vocabularies have a million with merges."""
_ARRAY_COST = 64
"""An array in an array counts as that many strings: it takes as long to pass."""
HELD = 64 << 10
"""Bytes of one value that are kept in memory; larger ones are read when asked for."""

START = struct.Struct("<4sI")
COUNTS = struct.Struct("<QQ")
_SMALLEST_KEY = LENGTH.size + WORD.size + 1
_SMALLEST_TENSOR = LENGTH.size + WORD.size + WORD.size + LENGTH.size


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies.

    Attributes:
        name: unique in the file.
        shape: sizes, slowest dimension first (the file has them the other way round).
        type_id: ggml's number of the type.
        offset: bytes from the start of the file.
        nbytes: bytes, without padding.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    Attributes:
        version: 2 or 3.
        values: key -> value, in the order of the file.
        tensors: in the order of the file, which is the order of their data.
        alignment: of each tensor's offset, in bytes.
        data_start: offset of the first tensor.
        sha256: of all bytes before the padding in front of the data.
    """

    version: int
    values: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    alignment: int
    data_start: int
    sha256: str


def read_header(source: SourceFile) -> Header:
    """Parse and check the header of an open file.

    Raises:
        CorruptInputError: any contradiction, naming file and key or tensor.
        IncompatibleError: a version, byte order or tensor type that this program does not read.
        ResourceLimitError: a header that the format allows but this program does not read.
    """
    cursor = Cursor(source, MAX_HEADER, hashed=True)
    version, tensor_count, key_count = _read_counts(cursor)
    values = _read_values(cursor, key_count)
    alignment = read_alignment(values, source)
    if TYPE in values:
        _stated_type(values[TYPE], source)
    stated = [_read_entry(cursor, alignment) for _ in range(tensor_count)]
    data_start = padded(cursor.position, alignment)
    tensors: dict[str, TensorEntry] = {}
    position = data_start
    for name, shape, type_id, offset, nbytes in stated:
        where = f"{shown(source.path)}: tensor {shown(name)}"
        if name in tensors:
            raise CorruptInputError(f"{where} stands twice")
        if data_start + offset != position:
            raise CorruptInputError(
                f"{where}: at byte {offset} of the data, expected {position - data_start}"
            )
        if position + nbytes > source.size:
            raise CorruptInputError(
                f"{where}: ends at byte {position + nbytes}, the file at {source.size}",
                hint="truncated: download it again",
            )
        tensors[name] = TensorEntry(name, shape, type_id, position, nbytes)
        position = padded(position + nbytes, alignment)
    if source.size > position:
        raise CorruptInputError(
            f"{shown(source.path)}: tensors end at byte {position}, the file at {source.size}",
            hint="padded or joined with another file: download it again",
        )
    return Header(version, values, tuple(tensors.values()), alignment, data_start, cursor.sha256())


def general_type(source: SourceFile) -> str | None:
    """What an open file says it holds: "model", "adapter", "imatrix"; None if it is no GGUF.

    Reads up to that key, near the start; a file without it is a model.

    Raises CorruptInputError, IncompatibleError or ResourceLimitError as `read_header` does.
    """
    if source.size < len(MAGIC) or source.read(0, len(MAGIC)) != MAGIC:
        return None
    cursor = Cursor(source, MAX_HEADER)
    _, _, count = _read_counts(cursor)
    for _ in range(count):
        key = _read_name(cursor, "a key", MAX_KEY)
        value = _read_value(cursor, key, [MAX_ELEMENTS])
        if key == TYPE:
            return _stated_type(value, source)
    return "model"


def _stated_type(value: Value, source: SourceFile) -> str:
    if value.kind is not Kind.STRING or not isinstance(value.content, bytes):
        raise CorruptInputError(f"{shown(source.path)}: {TYPE} is no word ({value.kind.name})")
    return str(value.plain())


def version_of(source: SourceFile | None) -> int | None:
    """The version of an open file that is read here; None for anything else."""
    if source is None or source.size < START.size:
        return None
    magic, version = START.unpack(source.read(0, START.size))
    return version if magic == MAGIC and version in VERSIONS else None


def padded(position: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not before `position`."""
    return position + -position % alignment


def read_alignment(values: Mapping[str, Value], source: SourceFile | None = None) -> int:
    """`general.alignment` of a file's values, checked."""
    value = values.get(ALIGNMENT)
    if value is None:
        return DEFAULT_ALIGNMENT
    number = value.plain() if value.kind is Kind.U32 else None
    if not isinstance(number, int) or number & (number - 1) or not 0 < number <= MAX_ALIGNMENT:
        where = shown(source.path) if source else "the output"
        raise CorruptInputError(
            f"{where}: {ALIGNMENT} is {shown(str(number)[:40])} ({value.kind.name}), "
            f"expected a power of two up to {MAX_ALIGNMENT} (U32)"
        )
    return number


def _read_counts(cursor: Cursor) -> tuple[int, int, int]:
    path = cursor.source.path
    if cursor.source.size < START.size:
        raise CorruptInputError(
            f"{shown(path)}: {cursor.source.size} bytes are too few for a GGUF file"
        )
    magic, version = cursor.unpack(START, "the start")
    if magic != MAGIC:
        raise CorruptInputError(f"{shown(path)}: starts with {magic!r}, a GGUF file with {MAGIC!r}")
    if version and not version & 0xFFFF:
        raise IncompatibleError(
            f"{shown(path)}: a GGUF file for big-endian machines",
            hint="convert it with gguf_convert_endian.py of llama.cpp",
            code="BIG_ENDIAN",
        )
    if version not in VERSIONS:
        raise IncompatibleError(
            f"{shown(path)}: version {version} of GGUF, expected 2 or 3",
            hint="convert the model again with today's llama.cpp" if version == 1 else None,
            code="UNKNOWN_FORMAT",
        )
    tensors, keys = cursor.unpack(COUNTS, "the counts")
    if keys * _SMALLEST_KEY + tensors * _SMALLEST_TENSOR > cursor.left:
        raise CorruptInputError(
            f"{shown(path)}: {keys} keys and {tensors} tensors stated, {cursor.left} bytes follow",
            hint="truncated: download it again",
        )
    if keys > MAX_KEYS or tensors > MAX_TENSORS:
        raise ResourceLimitError(
            f"{shown(path)}: {keys} keys and {tensors} tensors, "
            f"at most {MAX_KEYS} and {MAX_TENSORS} are read"
        )
    return version, tensors, keys


def _read_values(cursor: Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    budget = [MAX_ELEMENTS]
    for _ in range(count):
        key = _read_name(cursor, "a key", MAX_KEY)
        if key in values:
            raise CorruptInputError(
                f"{shown(cursor.source.path)}: the key {shown(key[:200])} stands twice"
            )
        values[key] = _read_value(cursor, key, budget)
    return values


def _read_name(cursor: Cursor, what: str, limit: int) -> str:
    (length,) = cursor.unpack(LENGTH, what)
    if not 0 < length <= limit:
        raise CorruptInputError(
            f"{shown(cursor.source.path)}: {what} of {length} bytes, expected 1 to {limit}"
        )
    try:
        return cursor.take(length, what).decode()
    except UnicodeDecodeError:
        raise CorruptInputError(f"{shown(cursor.source.path)}: {what} that is not UTF-8") from None


def _read_value(cursor: Cursor, key: str, budget: list[int]) -> Value:
    """The value of a key; `budget[0]` is what may still be read of elements of varying size."""
    what = f"the value of {shown(key[:200])}"
    kind = _read_kind(cursor, what)
    start = cursor.position
    element, count = None, 1
    if kind is Kind.ARRAY:
        element, count = _skip_array(cursor, what, budget, 1)
    elif kind is Kind.STRING:
        cursor.skip_strings(1, what)
    else:
        cursor.skip(SIZES[kind], what)
    size = cursor.position - start
    if size > HELD:
        return Value(kind, Stored(cursor.source, start, size), element, count)
    value = Value(kind, cursor.source.read(start, size), element, count)
    if kind is not Kind.ARRAY or element is Kind.BOOL:
        try:
            value.plain()
        except AdaptoolError as error:
            raise CorruptInputError(
                f"{shown(cursor.source.path)}: {what}: {error.message}"
            ) from None
    return value


def _read_kind(cursor: Cursor, what: str) -> Kind:
    (word,) = cursor.unpack(WORD, what)
    try:
        return Kind(word)
    except ValueError:
        raise CorruptInputError(
            f"{shown(cursor.source.path)}: {what} has the unknown type {word}"
        ) from None


def _skip_array(cursor: Cursor, what: str, budget: list[int], depth: int) -> tuple[Kind, int]:
    element = _read_kind(cursor, what)
    (count,) = cursor.unpack(LENGTH, what)
    if element in SIZES:
        cursor.skip(count * SIZES[element], what)
        return element, count
    smallest = LENGTH.size if element is Kind.STRING else ARRAY_HEAD.size
    cursor.require(count, smallest, what)
    budget[0] -= count * (1 if element is Kind.STRING else _ARRAY_COST)
    if budget[0] < 0:
        raise ResourceLimitError(
            f"{shown(cursor.source.path)}: {what}: more than {MAX_ELEMENTS} strings in one file"
        )
    if element is Kind.STRING:
        cursor.skip_strings(count, what)
        return element, count
    if depth == MAX_DEPTH:
        raise ResourceLimitError(f"{shown(cursor.source.path)}: {what}: arrays nested too deeply")
    for _ in range(count):
        _skip_array(cursor, what, budget, depth + 1)
    return element, count


def _read_entry(cursor: Cursor, alignment: int) -> tuple[str, tuple[int, ...], int, int, int]:
    """Name, shape, type, offset in the data and bytes of the tensor that is described here."""
    from adaptool.encodings.ggml import TYPES

    name = _read_name(cursor, "a tensor's name", MAX_NAME)
    what = f"tensor {shown(name)}"
    where = f"{shown(cursor.source.path)}: {what}"
    (dimensions,) = cursor.unpack(WORD, what)
    if dimensions > MAX_DIMENSIONS:
        raise CorruptInputError(f"{where}: {dimensions} dimensions, at most {MAX_DIMENSIONS}")
    sizes = cursor.unpack(struct.Struct(f"<{dimensions}Q"), what)
    (type_id,) = cursor.unpack(WORD, what)
    (offset,) = cursor.unpack(LENGTH, what)
    if offset % alignment:
        raise CorruptInputError(f"{where}: offset {offset} is no multiple of {alignment}")
    kind = TYPES.get(type_id)
    if kind is None:
        raise IncompatibleError(
            f"{where}: type {type_id}, which this program does not know",
            hint="a newer kind of quantisation, or a damaged file",
            code="UNKNOWN_TYPE",
        )
    count = prod(sizes)
    if count > MAX_SIZE or any(size > MAX_SIZE for size in sizes):
        raise CorruptInputError(f"{where}: shape {sizes[::-1]} is larger than any file")
    if (sizes[0] if sizes else 1) % kind.block:
        raise CorruptInputError(
            f"{where}: rows of {sizes[0] if sizes else 1} values, "
            f"not a multiple of {kind.name}'s {kind.block}"
        )
    return name, tuple(sizes[::-1]), type_id, offset, count // kind.block * kind.size
