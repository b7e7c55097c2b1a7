"""The one door to the operating system.

Everything in `storage` that touches a disk goes through `syscalls.<name>(...)`, so a
test that replaces one function here can make the n-th call of it fail. The functions
add nothing but what a caller would otherwise repeat: full writes, and one spelling
(OSError with ENOSYS) for calls this system lacks.
"""

import ctypes
import errno
import fcntl
import os
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_WRITE_RANGE = 2


def open(path: Path, flags: int, mode: int = 0o666) -> int:
    """A new file descriptor, never inherited by a child program."""
    return os.open(path, flags | os.O_CLOEXEC, mode)


def close(fd: int) -> None:
    """Give the descriptor back."""
    os.close(fd)


def pread(fd: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes at `offset`; fewer near the end of the file."""
    return os.pread(fd, size, offset)


def preadv(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; returns the bytes read, fewer near the end of the file."""
    return os.preadv(fd, [buffer], offset)


def pwrite(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`, however many calls that takes."""
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    done = os.pwrite(fd, data, offset)
    if done == size:
        return
    rest = memoryview(data).cast("B")
    while done < size:
        written = os.pwrite(fd, rest[done:], offset + done)
        if written == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += written


def fsync(fd: int) -> None:
    """Return when the file's bytes (or the folder's entries) are on the device."""
    os.fsync(fd)


def fallocate(fd: int, size: int) -> None:
    """Reserve `size` bytes of zeros, so that a full disk is noticed now and not in an hour."""
    if not hasattr(os, "posix_fallocate"):
        raise _absent("posix_fallocate")
    os.posix_fallocate(fd, 0, size)


def ftruncate(fd: int, size: int) -> None:
    """Set the file's size; new bytes are zeros and take no space yet."""
    os.ftruncate(fd, size)


def copy_file_range(source: int, target: int, size: int, start: int, offset: int) -> int:
    """Copy inside the kernel from `start` to `offset`; returns the bytes copied, maybe fewer."""
    if not hasattr(os, "copy_file_range"):
        raise _absent("copy_file_range")
    return os.copy_file_range(source, target, size, start, offset)


def rename(source: Path, target: Path) -> None:
    """Move atomically, over an existing file or an empty folder."""
    os.rename(source, target)


def rename_new(source: Path, target: Path) -> None:
    """Move atomically to a name that must be free (FileExistsError if it is not)."""
    _renameat2(source, target, _RENAME_NOREPLACE)


def exchange(one: Path, other: Path) -> None:
    """Swap two names atomically; OSError ENOSYS or EINVAL where the system cannot."""
    _renameat2(one, other, _RENAME_EXCHANGE)


def mkdir(path: Path) -> None:
    """A new folder with the rights that the umask leaves."""
    os.mkdir(path)


def unlink(path: Path) -> None:
    """Remove a file, or a link and not what it points to."""
    os.unlink(path)


def rmdir(path: Path) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def scandir(path: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder."""
    with os.scandir(path) as entries:
        return list(entries)


def fstat(fd: int) -> os.stat_result:
    """What an open descriptor is."""
    return os.fstat(fd)


def stat(path: Path) -> os.stat_result:
    """What a path leads to, through links."""
    return os.stat(path)


def lstat(path: Path) -> os.stat_result:
    """What stands at a path itself: a link is a link."""
    return os.lstat(path)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write to the file system of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def flock(fd: int) -> None:
    """Lock exclusively or raise BlockingIOError at once; a killed process loses its lock."""
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _renameat2(source: Path, target: Path, flags: int) -> None:
    call = getattr(_LIBC, "renameat2", None)
    if call is None:
        raise _absent("renameat2")
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(target))


def start_writeback(fd: int, offset: int, size: int) -> None:
    """Let the device begin to write a range, without waiting; a hint that may do nothing.

    A later `fsync` then finds little left to do. It promises nothing, so its errors mean nothing.
    """
    call = getattr(_LIBC, "sync_file_range", None)
    if call is not None:
        number = ctypes.c_int64
        call(ctypes.c_int(fd), number(offset), number(size), ctypes.c_uint(_WRITE_RANGE))


def _absent(name: str) -> OSError:
    return OSError(errno.ENOSYS, f"{name}: {os.strerror(errno.ENOSYS)}")
