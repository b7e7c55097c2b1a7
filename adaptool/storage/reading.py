"""Opening what others wrote: bounded, regular files only, nothing outside the folder."""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from adaptool.errors import JSON, CorruptInputError, ResourceLimitError
from adaptool.storage import syscalls
from adaptool.storage.failures import blaming, shown

CONTAINERS_LIMIT = 1_000_000
"""Lists and tables in one JSON file; each costs 64 bytes of memory for 3 bytes of text."""
TEXT_LIMIT = 10_000_000
"""Bytes; the largest real tokenizer configurations and indexes are a tenth of it or less."""

_POINTER_START = b"version https://git-lfs.github.com/spec/"
_POINTER_LIMIT = 1024  # bytes; git-LFS itself treats nothing larger as a pointer
_INT_DIGITS = 309  # as many as the largest double; tokenizers do write int(1e30)


class SourceFile:
    """An input file, open for reading at given places by many threads at once.

    Reads are bounded by the size at opening, so no number found in a file can make a
    read larger than the file. Closed by `close`, by `with`, or with the last reference.

    Attributes:
        path: as given; errors name it.
        size: bytes, at opening.
    """

    __slots__ = ("_fd", "_identity", "path", "size")

    def __init__(self, path: Path, fd: int, status: os.stat_result) -> None:
        self.path = path
        self.size = status.st_size
        self._identity = _identify(status)
        self._fd: int | None = fd

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a regular file.

        Raises:
            StorageError: missing (code NOT_FOUND), or not permitted.
            CorruptInputError: a folder, pipe, socket or device; or a git-LFS pointer,
                which stands where the real file has not been downloaded.
        """
        with blaming(path):
            try:  # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever
                fd = syscalls.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno in (errno.ENXIO, errno.ENODEV):
                    raise _not_regular(path) from error
                raise
        try:
            with blaming(path):
                status = syscalls.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(path)
        except BaseException:
            syscalls.close(fd)
            raise
        source = cls(path, fd, status)
        if source.size < _POINTER_LIMIT:
            _refuse_pointer(source)
        return source

    @property
    def fd(self) -> int:
        """The descriptor; ValueError once closed."""
        if self._fd is None:
            raise ValueError(f"{shown(self.path)} is closed")
        return self._fd

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; CorruptInputError where the file does not reach that far."""
        self._check(offset, size)
        with blaming(self.path):
            data = syscalls.pread(self.fd, size, offset)
            while len(data) < size:  # one call moves at most 2 GB
                more = syscalls.pread(self.fd, size - len(data), offset + len(data))
                if not more:
                    raise self._shrunk(offset + len(data))
                data += more
        return data

    def read_into(self, offset: int, buffer: memoryview | bytearray) -> None:
        """Fill a writable contiguous `buffer` from `offset`, without a copy in between."""
        view = memoryview(buffer)
        size = view.nbytes
        self._check(offset, size)
        if not size:
            return
        view = view.cast("B")
        done = 0
        with blaming(self.path):
            while done < size:
                count = syscalls.preadv(self.fd, view[done:], offset + done)
                if not count:
                    raise self._shrunk(offset + done)
                done += count

    def verify_unchanged(self) -> None:
        """Raise CorruptInputError (INPUT_CHANGED) if the path leads to other bytes by now."""
        with blaming(self.path):
            try:
                identity = _identify(syscalls.stat(self.path))
            except FileNotFoundError:
                identity = None
        if identity != self._identity:
            raise CorruptInputError(
                f"{shown(self.path)}: was changed, replaced or removed while it was being read",
                hint="run again when nothing else writes to it",
                code="INPUT_CHANGED",
            )

    def close(self) -> None:
        """Give the descriptor back; twice is as good as once."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with blaming(self.path):
                syscalls.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def __repr__(self) -> str:
        return f"SourceFile({shown(self.path)!r}, size={self.size})"

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CorruptInputError(
                f"{shown(self.path)}: bytes {offset} to {offset + size} are asked for, "
                f"but the file has {self.size}"
            )

    def _shrunk(self, offset: int) -> CorruptInputError:
        return CorruptInputError(
            f"{shown(self.path)}: ends at byte {offset}, but had {self.size} when opened",
            code="INPUT_CHANGED",
        )


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """The whole of a small UTF-8 file, without its byte order mark.

    Raises:
        StorageError: missing or unreadable.
        ResourceLimitError: more than `limit` bytes.
        CorruptInputError: not UTF-8, not a regular file, or a git-LFS pointer.
    """
    with SourceFile.open(path) as source:
        if source.size > limit:
            raise ResourceLimitError(
                f"{shown(path)}: {source.size} bytes, more than the {limit} allowed for such a file"
            )
        data = source.read(0, source.size)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptInputError(f"{shown(path)}: not UTF-8 text (byte {error.start})") from error


def read_json(path: Path, limit: int = TEXT_LIMIT) -> object:
    """The value in a JSON file, read more strictly than the `json` module does.

    A key that stands twice, NaN, Infinity, a number beyond a double's range, or nesting
    deeper than the interpreter's stack is refused: two readers could take two meanings
    from such a file, or fall over it.

    Raises:
        CorruptInputError, ResourceLimitError, StorageError: as `read_text`, and the above.
    """
    text = read_text(path, limit)
    if text.count("{") + text.count("[") > CONTAINERS_LIMIT:
        raise ResourceLimitError(
            f"{shown(path)}: more than {CONTAINERS_LIMIT} lists and tables in one JSON file"
        )
    try:
        value: object = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
        refuse_surrogates(text, value)
    except RecursionError as error:
        raise CorruptInputError(f"{shown(path)}: JSON nested too deeply") from error
    except ValueError as error:
        raise CorruptInputError(f"{shown(path)}: not sound JSON: {error}") from error
    return value


def read_object(path: Path, limit: int = TEXT_LIMIT) -> dict[str, JSON]:
    """The object in a JSON file.

    Raises as `read_json`, and CorruptInputError for a value of another kind.
    """
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise CorruptInputError(f"{shown(path)}: not a JSON object")
    return value


def refuse_surrogates(text: str, value: object) -> None:
    """Refuse half a character, which JSON can spell but no file can hold.

    Args:
        text: the JSON text that `value` was read from; few texts need a closer look.
        value: any JSON value.

    Raises ValueError.
    """
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None


def inside(folder: Path, name: str) -> Path:
    """The path of `name`, a relative name found in a file, which must stay in `folder`.

    Links are followed: what they lead to must be in `folder` too. The one exception is
    the Hugging Face cache, whose `<repo>/snapshots/<revision>/<file>` is a link to
    `<repo>/blobs/<hash>` of the same repository.

    Raises:
        CorruptInputError: absolute, with `..`, a drive, a backslash or NUL, empty, not
            encodable, or leading out of the folder through a link.
    """
    steps = [step for step in name.split("/") if step not in ("", ".")]
    if (
        not steps
        or ".." in steps
        or name.startswith("/")
        or re.search(r"[\\\0]|^[A-Za-z]:", name)
        or not _encodable(name)
    ):
        raise CorruptInputError(
            f"{shown(folder)}: names a file {ascii(name)[:200]}, not a plain relative name",
            code="PATH_ESCAPE",
        )
    path = folder / name
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if home not in real.parents and not _in_same_cache(home, real):
        raise CorruptInputError(
            f"{shown(path)}: is a link that leads out of its folder", code="PATH_ESCAPE"
        )
    return path


def _identify(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _not_regular(path: Path) -> CorruptInputError:
    return CorruptInputError(f"{shown(path)}: not a regular file")


def _refuse_pointer(source: SourceFile) -> None:
    if source.read(0, min(source.size, len(_POINTER_START))) == _POINTER_START:
        source.close()
        raise CorruptInputError(
            f"{shown(source.path)}: is a git-LFS pointer, not the file it stands for",
            hint="run `git lfs pull` in that folder",
            code="LFS_POINTER",
        )


def _encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _in_same_cache(home: Path, real: Path) -> bool:
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots":
            return real.parent == folder.parent.parent / "blobs"
    return False


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {ascii(twice)[:100]} stands twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _bounded_int(digits: str) -> int:
    if len(digits) > _INT_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of a double")
    return value
