"""All that is in a folder: flushed to the device, or removed."""

import errno
import os
from pathlib import Path

from adaptool.storage import syscalls
from adaptool.storage.failures import blaming

_NO_FOLDER_FSYNC = (errno.EINVAL, errno.EOPNOTSUPP)


def flush_tree(folder: Path) -> Path:
    """Return when all files and folders in `folder`, and it itself, are on the device.

    Returns its last entry, or `folder` if it is empty. Raises StorageError.
    """
    path = folder
    with blaming(folder):
        entries = syscalls.scandir(folder)
    for entry in entries:
        path = folder / entry.name
        with blaming(path):
            if entry.is_dir(follow_symlinks=False):
                flush_tree(path)
                continue
            fd = syscalls.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                syscalls.fsync(fd)
            finally:
                syscalls.close(fd)
    with blaming(folder):
        flush_folder(folder)
    return path


def flush_folder(folder: Path) -> None:
    """Return when a folder's entries are on the device, where its file system can say so."""
    fd = syscalls.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
    finally:
        syscalls.close(fd)


def remove_contents(folder: Path) -> None:
    """Remove all that is in `folder`, not following links; goes on after a failure.

    Raises the first OSError at the end.
    """
    failure: OSError | None = None
    for entry in syscalls.scandir(folder):
        path = folder / entry.name
        try:
            if entry.is_dir(follow_symlinks=False):
                remove_contents(path)
                syscalls.rmdir(path)
            else:
                syscalls.unlink(path)
        except OSError as error:
            failure = failure or error
    if failure:
        raise failure
