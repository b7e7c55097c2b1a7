"""Protocol buffers as they lie in a file: fields of a message, read without reading what is large.

https://protobuf.dev/programming-guides/encoding: a field is a varint `number << 3 | type` and
content whose length the type tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adaptool.errors import CorruptInputError
from adaptool.storage import SourceFile, shown

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_WINDOW = 1 << 16
_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its bytes in the file are `start..stop`, its content `content..stop`."""

    number: int
    type: int
    start: int
    content: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self.stop - self.content


class Reader:
    """Fields of an open file; small pieces are read through a window."""

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self._first = 0
        self._window = b""

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message at `start..stop`, in their order.

        Raises CorruptInputError where a field does not end within the message.
        """
        position = start
        while position < stop:
            key, content = self._varint(position, stop)
            kind = key & 7
            if kind == BYTES:
                size, content = self._varint(content, stop)
                end = content + size
            elif kind == VARINT:
                _, end = self._varint(content, stop)
            elif kind in (FIXED32, FIXED64):
                end = content + (4 if kind == FIXED32 else 8)
            else:
                raise self._broken(position, f"a field of type {kind}")
            if end > stop:
                raise self._broken(position, f"a field of {end - content} bytes")
            yield Field(key >> 3, kind, position, content, end)
            position = end

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        value = 0
        for index in range(_VARINT_BYTES):
            if position + index >= stop:
                break
            byte = self._byte(position + index)
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value, position + index + 1
        raise self._broken(position, "a number that does not end")

    def _byte(self, position: int) -> int:
        index = position - self._first
        if not 0 <= index < len(self._window):
            size = min(_WINDOW, self.source.size - position)
            self._window, self._first = self.source.read(position, size), position
            index = 0
        return self._window[index]

    def _broken(self, position: int, what: str) -> CorruptInputError:
        return CorruptInputError(
            f"{shown(self.source.path)}: {what} at byte {position} does not fit its message; "
            "not an ONNX file, or a damaged one"
        )


def varint(value: int) -> bytes:
    """A number from 0 as a varint."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def head(number: int, size: int) -> bytes:
    """What stands before the content of a field of bytes."""
    return varint(number << 3 | BYTES) + varint(size)
