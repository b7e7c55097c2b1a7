"""An output that appears whole or not at all.

Everything is written into `.<name>.adaptool-partial/`, next to the target and so on its
file system, and moved into place by one rename. The folder is locked while its writer
lives; the lock dies with the process, so a folder that can be locked was left by a
killed run and is cleaned up by the next.

    .<name>.adaptool-partial/
        output/      what will be the target: the folder, or the one file in it
        replaced/    only where two names cannot be exchanged at once: the old target,
                     for the moment between two renames; it is put back if the second fails
"""

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from adaptool.errors import AdaptoolError, StorageError, UsageError
from adaptool.storage import syscalls
from adaptool.storage.extents import check_name
from adaptool.storage.failures import blaming, shown, storage_error
from adaptool.storage.trees import flush_folder, flush_tree, remove_contents

Kind = Literal["file", "directory"]

OWN_MARKS = ("adaptool.json", "config.json", "adapter_config.json", "model_index.json")
"""A folder without any of these is not a model or adapter, and is never replaced."""

OWN_FOLDERS = ("onnx", "resolve", "runtime", "adapters", "library")
"""Folders in an output; with any other the output is somebody else's as well."""

_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_NO_RENAMEAT2 = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)
_ATTEMPTS = 20  # to get hold of a folder that other writers create and remove meanwhile


class Staging:
    """The place where an output is written before it is the output.

    Entering checks all that can be known before hours of work, takes the lock and makes
    the folder; leaving removes it. Only `commit` changes the target.

    Args:
        target: the path to be; a link is resolved once, here.
        kind: one file, or a folder of files.
        required: bytes that will be written.
        inputs: files and folders that are read meanwhile.
        force: replace an existing target.

    Attributes:
        target: absolute, without links.
        folder: where files are created until `commit`.
        stale: whether a killed run had left something, which is now removed.

    Raises (on entering):
        UsageError: the target is, holds or is inside an input.
        StorageError: EXISTS, BUSY (another writer), NO_SPACE, NOT_FOUND (no parent
            folder), or the system's refusal. The target is as it was.
    """

    def __init__(
        self, target: Path, *, kind: Kind, required: int, inputs: Sequence[Path], force: bool
    ) -> None:
        self.target = Path(os.path.realpath(target))
        self.kind = kind
        self.stale = False
        self._required = required
        self._inputs = tuple(inputs)
        self._force = force
        self._root = self.target.parent / f".{self.target.name}.adaptool-partial"
        self._lock: int | None = None
        self.folder = self._root / "output"
        self._replaced = self._root / "replaced"

    def __enter__(self) -> Self:
        self._check_inputs()
        self._check_parent()
        self._occupied()
        try:
            self._acquire()
            self._recover()
            self._occupied()  # again: another writer may have committed before the lock was free
            self._check_space()
            with blaming(self.folder):
                syscalls.mkdir(self.folder)
        except BaseException as error:
            self._release(error)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release(error)

    def create(self, name: str) -> int:
        """A descriptor of a new, empty file `name`, a path in the output; the caller closes it."""
        check_name(name)
        path = self.folder / name
        with blaming(path):
            self._make_parents(path)
            return syscalls.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)

    def _make_parents(self, path: Path) -> None:
        """The folders between the output's own and a file in it."""
        if path.parent == self.folder or os.path.lexists(path.parent):
            return
        self._make_parents(path.parent)
        syscalls.mkdir(path.parent)

    def write_file(self, name: str, data: bytes) -> None:
        """A new small file with `data` in it."""
        fd = self.create(name)
        with blaming(self.folder / name):
            try:
                syscalls.pwrite(fd, data, 0)
            finally:
                syscalls.close(fd)

    def commit(self) -> None:
        """Make what was written the target: flush it to the device, then rename.

        Until the rename the old target is untouched, and after it the new one is
        complete, also where one of these is raised:

        StorageError:
            NOT_DURABLE: the new output is in place, but the parent folder could not be
                flushed. It is not taken back: what is visible is whole, and a second
                rename on a failing device would be no safer.
            STAGING_LEFT: the new output is in place; the hidden folder could not be removed.
        """
        if self._lock is None:
            raise AdaptoolError("commit outside of `with`, or twice")
        staged = self._flush()
        with blaming(self.target):
            if self.kind == "directory":
                self._place_directory(occupied=self._occupied())
            else:
                self._place_file(staged, occupied=self._occupied())
        try:
            flush_folder(self.target.parent)
        except OSError as error:
            raise StorageError(
                f"{shown(self.target)}: complete and in place, but its folder could not be "
                f"flushed to the device: {error.strerror}",
                code="NOT_DURABLE",
            ) from error
        self._release(None)

    # -- before ---------------------------------------------------------------------------

    def _check_inputs(self) -> None:
        if not self.target.name:
            raise UsageError(f"{shown(self.target)}: cannot be an output")
        for given in self._inputs:
            path = Path(os.path.realpath(given))
            if _same(path, self.target):
                raise UsageError(f"{shown(self.target)}: the output is also an input")
            if any(_same(path, folder) for folder in self.target.parents):
                raise UsageError(
                    f"{shown(self.target)}: the output is inside the input {shown(given)}"
                )
            if any(_same(self.target, folder) for folder in path.parents):
                raise UsageError(
                    f"{shown(given)}: the input is inside the output {shown(self.target)}"
                )

    def _check_parent(self) -> None:
        parent = self.target.parent
        try:
            with blaming(parent):
                found = stat.S_ISDIR(syscalls.stat(parent).st_mode)
        except StorageError as error:
            if error.code != "NOT_FOUND":
                raise
            found = False
        if not found:
            raise StorageError(
                f"{shown(parent)}: there is no such folder to put {shown(self.target.name)} in",
                hint=f"mkdir -p {shown(parent)}",
                code="NOT_FOUND",
            )

    def _occupied(self) -> bool:
        """Whether there is something to replace, after refusing all that may not be replaced."""
        with blaming(self.target):
            try:
                status = syscalls.lstat(self.target)
            except FileNotFoundError:
                return False
            if self.kind == "file":
                if not stat.S_ISREG(status.st_mode):
                    raise self._refusal("exists and is not a regular file", hint=None)
            elif not stat.S_ISDIR(status.st_mode):
                raise self._refusal("exists and is not a folder", hint=None)
            elif status.st_dev != syscalls.lstat(self.target.parent).st_dev:
                raise self._refusal("is a mount point", hint="name a folder inside it")
            else:
                entries = syscalls.scandir(self.target)
                if not entries:
                    return False
        if not self._force:
            raise self._refusal("exists already", hint="use --force to replace it")
        if self.kind == "directory":
            with blaming(self.target):
                self._check_recognised(entries)
        return True

    def _check_recognised(self, entries: Sequence[os.DirEntry[str]]) -> None:
        hint = "remove it yourself, or choose another name"
        self._check_regular(entries, hint)
        if not any(entry.name in OWN_MARKS for entry in entries):
            raise self._refusal("is not replaced, since it has no config.json or the like", hint)

    def _check_regular(self, entries: Sequence[os.DirEntry[str]], hint: str) -> None:
        """Refuse links and devices, also in the few folders that an output of ours can have."""
        for entry in entries:
            path = Path(entry.path)
            known = path.relative_to(self.target).parts[0] in OWN_FOLDERS
            if entry.is_dir(follow_symlinks=False):
                if not known:
                    raise self._refusal(
                        f"is not replaced, since no output has the folder {shown(entry.name)} that "
                        "is in it",
                        hint,
                    )
                self._check_regular(syscalls.scandir(path), hint)
            elif not entry.is_file(follow_symlinks=False):
                raise self._refusal(
                    f"is not replaced, since {shown(entry.name)} in it is not a regular file", hint
                )

    def _refusal(self, what: str, hint: str | None) -> StorageError:
        return StorageError(f"{shown(self.target)}: {what}", hint=hint, code="EXISTS")

    def _check_space(self) -> None:
        with blaming(self.target.parent):
            free = syscalls.free_bytes(self.target.parent)
        needed = self._required + self._required // 100
        if free < needed:
            raise StorageError(
                f"{shown(self.target)}: needs {needed} bytes, {free} are free",
                hint="free some space, or write to another device",
                code="NO_SPACE",
                details={"required": needed, "free": free},
            )

    # -- the folder and its lock ----------------------------------------------------------

    def _acquire(self) -> None:
        with blaming(self._root):
            for _ in range(_ATTEMPTS):
                created = self._make_root()
                try:
                    fd = syscalls.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue  # its owner finished in between
                except OSError:
                    self._unmake_root(created)
                    raise
                try:
                    if self._try_lock(fd, created):
                        self._lock, fd = fd, -1
                        return
                except BaseException:
                    self._unmake_root(created)
                    raise
                finally:
                    if fd >= 0:
                        syscalls.close(fd)
        raise self._busy()

    def _make_root(self) -> bool:
        try:
            syscalls.mkdir(self._root)
        except FileExistsError:
            status = syscalls.lstat(self._root)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise StorageError(
                    f"{shown(self._root)}: in the way, and not a folder of this user",
                    hint="remove it",
                    code="EXISTS",
                ) from None
            return False
        return True

    def _unmake_root(self, created: bool) -> None:
        if created:
            with suppress(OSError):
                syscalls.rmdir(self._root)

    def _try_lock(self, fd: int, created: bool) -> bool:
        """Lock `fd`; False if it is no longer the folder at the path."""
        try:
            syscalls.flock(fd)
        except BlockingIOError:
            raise self._busy() from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            if not created:  # without locks, a living writer looks like a dead one
                raise self._busy() from error
        try:
            return os.path.samestat(syscalls.fstat(fd), syscalls.lstat(self._root))
        except FileNotFoundError:
            return False

    def _busy(self) -> StorageError:
        return StorageError(
            f"{shown(self.target)}: another run is writing it (into {shown(self._root.name)})",
            hint="wait for it, or choose another output",
            code="BUSY",
        )

    def _recover(self) -> None:
        """Undo what a killed run left: its old target goes back, its partial output goes."""
        with blaming(self._root):
            self.stale = bool(syscalls.scandir(self._root))
            if self.stale:
                self._put_back()
                remove_contents(self._root)

    def _put_back(self) -> None:
        if os.path.lexists(self._replaced) and not os.path.lexists(self.target):
            syscalls.rename(self._replaced, self.target)

    def _release(self, error: BaseException | None) -> None:
        """Remove the folder, then the lock. A failure is raised only if nothing else is wrong."""
        if self._lock is None:
            return
        try:
            self._put_back()
            remove_contents(self._root)
            syscalls.rmdir(self._root)
        except OSError as failure:
            left = f"{storage_error(failure, self._root).message}; the folder was left behind"
            if error is not None:
                error.add_note(left)
            else:
                raise StorageError(
                    left, hint=f"rm -r {shown(self._root)}", code="STAGING_LEFT"
                ) from failure
        finally:
            fd, self._lock = self._lock, None
            with suppress(OSError):  # the lock is gone all the same
                syscalls.close(fd)

    # -- commit ---------------------------------------------------------------------------

    def _flush(self) -> Path:
        """Flush every file and the folder; returns the last file."""
        with blaming(self.folder):
            count = len(syscalls.scandir(self.folder))
        if self.kind == "file" and count != 1:
            raise AdaptoolError(f"{shown(self.target)}: {count} files were made for it")
        return flush_tree(self.folder)

    def _place_file(self, staged: Path, *, occupied: bool) -> None:
        if not occupied:
            try:
                return syscalls.rename_new(staged, self.target)
            except OSError as error:
                if error.errno not in _NO_RENAMEAT2:
                    raise
        return syscalls.rename(staged, self.target)

    def _place_directory(self, *, occupied: bool) -> None:
        if not occupied:
            return syscalls.rename(self.folder, self.target)
        try:
            return syscalls.exchange(self.folder, self.target)
        except OSError as error:
            if error.errno not in _NO_RENAMEAT2:
                raise
        syscalls.rename(self.target, self._replaced)
        return syscalls.rename(self.folder, self.target)  # should it fail, _release puts back


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one thing: by name, or by another name or mount of it."""
    if one == other:
        return True
    with blaming(one):
        try:
            return os.path.samestat(syscalls.lstat(one), syscalls.lstat(other))
        except (FileNotFoundError, NotADirectoryError):
            return False
