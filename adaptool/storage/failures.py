"""What an errno means to a person."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaptool.errors import StorageError

_MEANINGS: dict[int, tuple[str, str, str | None]] = {
    errno.ENOSPC: ("NO_SPACE", "no space left on the device", "free some space"),
    errno.EDQUOT: ("NO_SPACE", "the disk quota is used up", "free some space"),
    errno.EFBIG: ("FILE_TOO_LARGE", "larger than the largest allowed file", "see `ulimit -f`"),
    errno.ENOENT: ("NOT_FOUND", "not found", None),
    errno.ENOTDIR: ("NOT_FOUND", "a part of the path is not a folder", None),
    errno.EEXIST: ("EXISTS", "exists already", None),
    errno.ENOTEMPTY: ("EXISTS", "exists already and is not empty", None),
    errno.EACCES: ("PERMISSION", "permission denied", None),
    errno.EPERM: ("PERMISSION", "not permitted", None),
    errno.EROFS: ("PERMISSION", "the file system is read-only", None),
    errno.EBUSY: ("BUSY", "in use (a mount point?)", "name a folder inside it"),
    errno.EIO: ("DEVICE", "the device reported an input/output error", None),
    errno.EMFILE: ("TOO_MANY_FILES", "too many open files", "see `ulimit -n`"),
    errno.ENFILE: ("TOO_MANY_FILES", "too many open files in the whole system", None),
    errno.ENAMETOOLONG: ("NAME_TOO_LONG", "the name is too long", "choose a shorter name"),
    errno.ELOOP: ("LINK", "a symbolic link in a circle, or where none may be", None),
    errno.EXDEV: ("CROSS_DEVICE", "cannot be moved between two file systems", None),
}


def storage_error(error: OSError, path: Path) -> StorageError:
    """The StorageError that says what `error` means for the file at `path`."""
    number = error.errno or 0
    code, meaning, hint = _MEANINGS.get(
        number, (StorageError.default_code, error.strerror or str(error), None)
    )
    return StorageError(
        f"{shown(path)}: {meaning}",
        hint=hint,
        code=code,
        details={"path": shown(path), "errno": errno.errorcode.get(number, str(number))},
    )


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn an OSError raised inside into the StorageError of `path`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def shown(path: Path | str) -> str:
    """The path on one printable line: control characters and odd bytes are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)
