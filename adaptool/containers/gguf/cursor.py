"""Reading a file forward, in large steps and never beyond its end."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from adaptool.errors import CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile, shown

STEP = 256 << 10
"""Bytes read at a time."""

_U64 = struct.Struct("<Q")


class Cursor:
    """A place in a file that moves forward; what it passes is hashed if that is wanted.

    Every size is compared with the bytes left before anything is read or reserved.

    Attributes:
        source: the file.
    """

    __slots__ = ("_at", "_digest", "_limit", "_start", "_window", "source")

    def __init__(self, source: SourceFile, limit: int, *, hashed: bool = False) -> None:
        """From the first byte; ResourceLimitError once more than `limit` bytes are passed."""
        self.source = source
        self._limit = limit
        self._digest = hashlib.sha256() if hashed else None
        self._window = b""
        self._start = 0  # of the window, in the file
        self._at = 0  # in the window

    @property
    def position(self) -> int:
        """Bytes passed."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.source.size - self.position

    def sha256(self) -> str:
        """Digest of all bytes passed, by a cursor that hashes."""
        if self._digest is None:
            raise TypeError("nothing was hashed")
        digest = self._digest.copy()
        digest.update(self._window[: self._at])
        return digest.hexdigest()

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        """The numbers that stand here."""
        self._fill(layout.size, what)
        self._at += layout.size
        return layout.unpack_from(self._window, self._at - layout.size)

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes; for short things."""
        self._fill(size, what)
        self._at += size
        return self._window[self._at - size : self._at]

    def skip(self, size: int, what: str) -> None:
        """Pass `size` bytes of any number, holding one step of them at a time."""
        self._check(size, what)
        if self._digest is None and size > len(self._window) - self._at:
            self._start, self._at, self._window = self.position + size, 0, b""
            return
        while size > (held := len(self._window) - self._at):
            self._at += held
            size -= held
            self._fill(1, what)
        self._at += size

    def skip_strings(self, count: int, what: str) -> None:
        """Pass `count` strings: a length (u64) and as many bytes, each.

        A vocabulary has a few hundred thousand of them, hence the loop over plain locals that
        ends by running off the window.
        """
        unpack, head = _U64.unpack_from, _U64.size
        while count:
            self._fill(head, what)
            window, at, done = self._window, self._at, 0
            try:
                for done in range(1, count + 1):  # noqa: B007 - counts those before the last
                    at += head + unpack(window, at)[0]
            except (struct.error, OverflowError):
                done -= 1
            count -= done
            self.skip(at - self._at, what)

    def require(self, count: int, size: int, what: str) -> None:
        """Raise CorruptInputError unless `count` things of at least `size` bytes can follow."""
        if count * size > self.left:
            raise self._short(f"{count} elements", what)

    def _fill(self, size: int, what: str) -> None:
        """Have the next `size` bytes in the window."""
        if len(self._window) - self._at >= size:
            return
        self._check(size, what)
        if self._digest is not None:
            self._digest.update(self._window[: self._at])
        self._start, self._at = self.position, 0
        self._window = self.source.read(self._start, min(max(size, STEP), self.left))

    def _check(self, size: int, what: str) -> None:
        if size > self.left:
            raise self._short(f"{size} bytes", what)
        if self.position + size > self._limit:
            raise ResourceLimitError(
                f"{shown(self.source.path)}: a header of more than {self._limit} bytes"
            )

    def _short(self, needed: str, what: str) -> CorruptInputError:
        return CorruptInputError(
            f"{shown(self.source.path)}: {what}: {needed} stated, "
            f"{self.left} bytes are left in the file",
            hint="truncated: download it again",
        )
