"""Typed values of GGUF's key-value section.

Spec: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, `gguf_metadata_value_t`. A value
keeps the bytes that the file has for it, in memory or (a vocabulary) where they lie, so that
what nobody changed is written as it was read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from adaptool.canonical import Stored
from adaptool.errors import JSON, CorruptInputError
from adaptool.storage import shown


class Kind(IntEnum):
    """The type word of a value."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


CODES = {
    Kind.U8: "B", Kind.I8: "b", Kind.U16: "H", Kind.I16: "h", Kind.U32: "I", Kind.I32: "i",
    Kind.F32: "f", Kind.BOOL: "?", Kind.U64: "Q", Kind.I64: "q", Kind.F64: "d",
}  # fmt: skip
"""Letters of the `struct` module for the kinds of fixed size."""
SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in CODES.items()}
"""Bytes of one value of a fixed size."""

WORD = struct.Struct("<I")
LENGTH = struct.Struct("<Q")
ARRAY_HEAD = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True)
class Value:
    """One value: a scalar, a string or an array.

    Attributes:
        kind: its type word.
        content: its bytes after the type word; where they lie if they are many.
        element: kind of the elements of an array; else None.
        count: elements of an array; else 1.
    """

    kind: Kind
    content: bytes | Stored
    element: Kind | None = None
    count: int = 1

    @property
    def size(self) -> int:
        """Bytes of `encoded()`."""
        content = self.content
        return WORD.size + (len(content) if isinstance(content, bytes) else content.size)

    def encoded(self) -> bytes:
        """The type word and the content, as they stand in a file."""
        return WORD.pack(self.kind) + self._bytes()

    def plain(self) -> JSON:
        """The value as a Python scalar, string or list; a large array is read in one go.

        Raises CorruptInputError for a string that is not UTF-8, or a bool that is neither 0 nor 1.
        """
        data = self._bytes()
        try:
            return _decode(data, self.kind, 0)[0]
        except ValueError as error:
            content = self.content
            where = "a value" if isinstance(content, bytes) else shown(content.source.path)
            raise CorruptInputError(f"{where}: {error}") from None

    def _bytes(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        buffer = bytearray(self.content.size)
        self.content.source.read_into(self.content.offset, memoryview(buffer))
        return bytes(buffer)

    @classmethod
    def u8(cls, number: int) -> Value:
        """An unsigned integer of 8 bits."""
        return _scalar(Kind.U8, number)

    @classmethod
    def u16(cls, number: int) -> Value:
        """An unsigned integer of 16 bits."""
        return _scalar(Kind.U16, number)

    @classmethod
    def i32(cls, number: int) -> Value:
        """An integer of 32 bits."""
        return _scalar(Kind.I32, number)

    @classmethod
    def u32(cls, number: int) -> Value:
        """An unsigned integer of 32 bits."""
        return _scalar(Kind.U32, number)

    @classmethod
    def i64(cls, number: int) -> Value:
        """An integer of 64 bits."""
        return _scalar(Kind.I64, number)

    @classmethod
    def u64(cls, number: int) -> Value:
        """An unsigned integer of 64 bits."""
        return _scalar(Kind.U64, number)

    @classmethod
    def f32(cls, number: float) -> Value:
        """A number rounded to 32 bits."""
        return _scalar(Kind.F32, number)

    @classmethod
    def f64(cls, number: float) -> Value:
        """A number of 64 bits."""
        return _scalar(Kind.F64, number)

    @classmethod
    def boolean(cls, truth: bool) -> Value:
        """A truth value."""
        return _scalar(Kind.BOOL, truth)

    @classmethod
    def string(cls, text: str) -> Value:
        """A string, stored as UTF-8."""
        return cls(Kind.STRING, encode_string(text))

    @classmethod
    def strings(cls, texts: Sequence[str]) -> Value:
        """An array of strings."""
        return _array(Kind.STRING, len(texts), b"".join(map(encode_string, texts)))

    @classmethod
    def ints(cls, numbers: Sequence[int], kind: Kind = Kind.I32) -> Value:
        """An array of integers, of 32 bits with a sign unless another kind is named."""
        return _numbers(kind, numbers)

    @classmethod
    def floats(cls, numbers: Sequence[float], kind: Kind = Kind.F32) -> Value:
        """An array of numbers rounded to 32 bits, or of 64 bits."""
        return _numbers(kind, numbers)

    @classmethod
    def booleans(cls, truths: Sequence[bool]) -> Value:
        """An array of truth values."""
        return _numbers(Kind.BOOL, truths)


def encode_string(text: str) -> bytes:
    """A string as GGUF stores it: its length in bytes (u64), then UTF-8."""
    data = text.encode()
    return LENGTH.pack(len(data)) + data


def _scalar(kind: Kind, number: float) -> Value:
    return Value(kind, _pack(kind, [number]))


def _numbers(kind: Kind, numbers: Sequence[float]) -> Value:
    return _array(kind, len(numbers), _pack(kind, numbers))


def _array(kind: Kind, count: int, data: bytes) -> Value:
    return Value(Kind.ARRAY, ARRAY_HEAD.pack(kind, count) + data, kind, count)


def _pack(kind: Kind, numbers: Sequence[float]) -> bytes:
    try:
        return struct.pack(f"<{len(numbers)}{CODES[kind]}", *numbers)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"not values of the kind {kind.name}: {error}") from None


def _decode(data: bytes, kind: Kind, at: int) -> tuple[JSON, int]:
    """The value of `kind` at `at` of checked bytes, and where it ends."""
    if kind is Kind.ARRAY:
        word, count = ARRAY_HEAD.unpack_from(data, at)
        return _decode_array(data, Kind(word), count, at + ARRAY_HEAD.size)
    items, end = _decode_array(data, kind, 1, at)
    return items[0], end


def _decode_array(data: bytes, kind: Kind, count: int, at: int) -> tuple[list[JSON], int]:
    if kind is Kind.STRING:
        texts: list[JSON] = []
        for _ in range(count):
            (length,) = LENGTH.unpack_from(data, at)
            at += LENGTH.size + length
            texts.append(data[at - length : at].decode())
        return texts, at
    if kind is Kind.ARRAY:
        items: list[JSON] = []
        for _ in range(count):
            item, at = _decode(data, kind, at)
            items.append(item)
        return items, at
    end = at + count * SIZES[kind]
    if kind is Kind.BOOL and count and max(data[at:end]) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    return list(struct.unpack_from(f"<{count}{CODES[kind]}", data, at)), end
