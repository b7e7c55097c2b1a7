"""ONNX Runtime's adapter files, byte by byte: named tensors and two versions.

Schema: onnxruntime/lora/adapter_format/adapter_schema.fbs, a flatbuffer
(https://flatbuffers.dev/internals) with the file identifier TORT:

    Adapter   { format_version, adapter_version, model_version: int; parameters: [Parameter] }
    Parameter { name: string; dims: [int64]; data_type: int (ONNX's); raw_data: [ubyte] (align 8) }

What stands behind the last table belongs to nobody: there the notes of `trailer` are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from adaptool.canonical import LazyTensor, Stored
from adaptool.canonical.tensors import from_storage
from adaptool.containers._content import content_of
from adaptool.containers.onnx.elements import DTYPES, NUMBERS
from adaptool.errors import CorruptInputError, IncompatibleError, ResourceLimitError
from adaptool.storage import Bytes, Extent, SourceFile, shown

IDENTIFIER = b"TORT"
FORMAT_VERSION = 1
LARGEST = 2**31 - 1
"""Bytes that the offsets of a flatbuffer reach."""
MAX_PARAMETERS = 200_000
MAX_NAME = 1024
MAX_DIMENSIONS = 8

_WORD, _SIGNED, _HALF = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<H")
_VTABLE = struct.pack("<6H", 12, 20, 4, 8, 12, 16)
"""Both tables have four fields of four bytes, so they share the list of where these stand."""
_ROOT = 20
_VTABLE_AT = 8


@dataclass(frozen=True)
class Parameters:
    """What a file holds.

    Attributes:
        tensors: by the names of a graph's inputs.
        adapter_version, model_version: whatever their writer meant by them.
        end: the byte behind the last one that belongs to the flatbuffer.
    """

    tensors: Mapping[str, LazyTensor]
    adapter_version: int = 1
    model_version: int = 1
    end: int = 0


def read_parameters(source: SourceFile) -> Parameters:
    """The tensors of an open file; of their values nothing is read.

    Raises:
        CorruptInputError: not such a file, or offsets and sizes that contradict each other.
        IncompatibleError: a version or an element type that is not known.
        ResourceLimitError: more tensors than the stated limit.
    """
    cursor = _Cursor(source)
    if source.size < _VTABLE_AT or source.read(4, 4) != IDENTIFIER:
        raise cursor.broken("no TORT at byte 4: not an adapter of ONNX Runtime")
    root = cursor.table(cursor.word(0))
    version = root.number(0)
    if version != FORMAT_VERSION:
        raise IncompatibleError(
            f"{shown(source.path)}: version {version} of the adapter format, {FORMAT_VERSION} is "
            "known",
            code="UNKNOWN_VERSION",
        )
    tensors: dict[str, LazyTensor] = {}
    first, count = root.vector(3, 4)
    if count > MAX_PARAMETERS:
        raise ResourceLimitError(f"{shown(source.path)}: {count} tensors, at most {MAX_PARAMETERS}")
    for index in range(count):
        at = first + 4 * index
        name, tensor = _parameter(cursor.table(at + cursor.word(at)))
        if name in tensors:
            raise cursor.broken(f"{shown(name)} stands twice")
        tensors[name] = tensor
    return Parameters(tensors, root.number(1), root.number(2), cursor.end)


class _Cursor:
    """Numbers of a file, each checked to lie within it."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.end = 0

    def word(self, at: int) -> int:
        return int(_WORD.unpack(self.take(at, 4))[0])

    def signed(self, at: int) -> int:
        return int(_SIGNED.unpack(self.take(at, 4))[0])

    def half(self, at: int) -> int:
        return int(_HALF.unpack(self.take(at, 2))[0])

    def take(self, at: int, size: int) -> bytes:
        self.reach(at, size)
        return self.source.read(at, size)

    def reach(self, at: int, size: int) -> None:
        if at < 0 or at + size > self.source.size:
            raise self.broken(f"points to bytes {at} to {at + size} of {self.source.size}")
        self.end = max(self.end, at + size)

    def table(self, at: int) -> _Table:
        return _Table(self, at, at - self.signed(at))

    def broken(self, what: str) -> CorruptInputError:
        return CorruptInputError(f"{shown(self.source.path)}: {what}")


@dataclass(frozen=True)
class _Table:
    """Fields by number; where each stands is told by another place of the file, its vtable."""

    cursor: _Cursor
    at: int
    vtable: int

    def _field(self, index: int) -> int | None:
        """Where a field stands; None for one that was left out, which means its default."""
        within = 4 + 2 * index
        if within + 2 > self.cursor.half(self.vtable):
            return None
        offset = self.cursor.half(self.vtable + within)
        return self.at + offset if offset else None

    def number(self, index: int) -> int:
        at = self._field(index)
        return 0 if at is None else self.cursor.signed(at)

    def vector(self, index: int, width: int) -> tuple[int, int]:
        """Where the elements of a list start, and how many there are; all lie in the file."""
        at = self._field(index)
        if at is None:
            return 0, 0
        start = at + self.cursor.word(at)
        count = self.cursor.word(start)
        self.cursor.reach(start + 4, count * width)
        return start + 4, count


def _parameter(table: _Table) -> tuple[str, LazyTensor]:
    cursor = table.cursor
    start, length = table.vector(0, 1)
    if not 0 < length <= MAX_NAME:
        raise cursor.broken(f"a tensor's name of {length} bytes")
    try:
        name = cursor.take(start, length).decode()
    except UnicodeDecodeError:
        raise cursor.broken("a tensor's name is not UTF-8") from None
    dtype = DTYPES.get(table.number(2))
    if dtype is None:
        raise IncompatibleError(
            f"{shown(cursor.source.path)}: {shown(name)} has elements of type {table.number(2)}",
            code="UNKNOWN_TYPE",
        )
    start, count = table.vector(1, 8)
    if count > MAX_DIMENSIONS:
        raise cursor.broken(f"{shown(name)} has {count} dimensions")
    shape = struct.unpack(f"<{count}q", cursor.take(start, 8 * count))
    start, size = table.vector(3, 1)
    if any(n < 0 for n in shape) or dtype.nbytes(prod(shape)) != size:
        raise cursor.broken(f"{shown(name)} has {size} bytes, its sizes are {list(shape)}")
    return name, from_storage(Stored(cursor.source, start, size), shape, dtype)


def lay_out(parameters: Parameters) -> tuple[int, tuple[Extent, ...]]:
    """The file with these parameters in their order: its size and its extents.

    Every part stands behind what points to it, so tensors are streamed as they come.

    Raises IncompatibleError for a type that the format has no number for, and beyond 2 GiB.
    """
    tensors = parameters.tensors
    position = _ROOT + 20 + 4 + 4 * len(tensors)
    pointers: list[bytes] = []
    extents: list[Extent] = []
    for index, (name, tensor) in enumerate(tensors.items()):
        pointers.append(_WORD.pack(position - (_ROOT + 24 + 4 * index)))
        head, data = _entry(position, name, tensor)
        extents.append(Extent(position, Bytes(head)))
        if tensor.nbytes:
            extents.append(Extent(data, content_of(tensor)))
        position = data + tensor.nbytes + -tensor.nbytes % 4
    if position > LARGEST:
        raise IncompatibleError(
            f"{position} bytes: an adapter of ONNX Runtime ends at 2 GiB",
            hint="write it with --dtype f16, or reduce its ranks",
            code="NOT_EXPRESSIBLE",
        )
    head = b"".join([
        _WORD.pack(_ROOT), IDENTIFIER, _VTABLE,
        struct.pack("<iiii", _ROOT - _VTABLE_AT, FORMAT_VERSION, parameters.adapter_version,
                    parameters.model_version),
        _WORD.pack(4), _WORD.pack(len(tensors)), *pointers,
    ])  # fmt: skip
    return position, (Extent(0, Bytes(head)), *extents)


def _entry(position: int, name: str, tensor: LazyTensor) -> tuple[bytes, int]:
    """The table, sizes and name of one tensor that start at `position`; where its data start."""
    number = NUMBERS.get(tensor.dtype)
    if number is None or tensor.encoding is not None or not tensor.shape:
        raise IncompatibleError(
            f"{name}: an ONNX adapter holds no {'values' if tensor.shape else 'single value'} of "
            f"the type {tensor.kind}",
            code="NOT_EXPRESSIBLE",
        )
    label = name.encode()
    dims = _aligned(position + 20, 4)
    text = dims + 4 + 8 * len(tensor.shape)
    data = _aligned(text + 4 + len(label) + 1, 4)
    head = bytearray(data + 4 - position)
    struct.pack_into("<iIIiI", head, 0, position - _VTABLE_AT, text - position - 4,
                     dims - position - 8, number, data - position - 16)  # fmt: skip
    struct.pack_into(f"<I{len(tensor.shape)}q", head, dims - position, len(tensor.shape),
                     *tensor.shape)  # fmt: skip
    struct.pack_into(f"<I{len(label)}s", head, text - position, len(label), label)
    _WORD.pack_into(head, data - position, tensor.nbytes)
    return bytes(head), data + 4


def _aligned(position: int, length: int) -> int:
    """The next place for a list whose elements stand at multiples of 8 behind its length."""
    return position + -(position + length) % 8
