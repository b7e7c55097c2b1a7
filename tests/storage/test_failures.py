"""Every call to the operating system fails once, in every way: the old output survives.

The loop is SQLite's: the first call fails, then the second, until a run gets through.
"""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import StorageError
from adaptool.storage import syscalls

from .writer import Kind, expected, snapshot, staging_of, write_output

CALLS = (
    "open",
    "close",
    "pread",
    "pwrite",
    "fsync",
    "fallocate",
    "copy_file_range",
    "rename",
    "rename_new",
    "exchange",
    "mkdir",
    "unlink",
    "rmdir",
    "scandir",
    "fstat",
    "stat",
    "lstat",
    "free_bytes",
    "flock",
)
REMOVING = ("unlink", "rmdir", "scandir")
RENAMING = ("rename", "rename_new", "exchange")


class Saboteur:
    """Replaces one call so that its n-th use fails, and notes whether the target was renamed."""

    def __init__(self, patch: pytest.MonkeyPatch, target: Path) -> None:
        self.patch = patch
        self.target = target
        self.fired = False
        self.placed = False
        for name in RENAMING:
            self._watch(name)

    def fail(self, name: str, nth: int, number: int) -> None:
        real = getattr(syscalls, name)
        count = 0

        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count != nth:
                return real(*args)
            self.fired = True
            if name == "close":  # as Linux does: closed, and an error on top
                real(*args)
            raise OSError(number, os.strerror(number))

        self.patch.setattr(syscalls, name, call)

    def _watch(self, name: str) -> None:
        real: Callable[[Path, Path], None] = getattr(syscalls, name)

        def call(one: Path, other: Path) -> None:
            real(one, other)
            if other == self.target and one.name != "replaced":
                self.placed = True

        self.patch.setattr(syscalls, name, call)


def refuse(number: int) -> Callable[..., Any]:
    """A call that this system is said to lack."""

    def call(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def renew(target: Path, kind: Kind, source: Path, *, existing: bool) -> None:
    """Bring the target back to generation 0, or to nothing."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if existing:
        write_output(target, kind, source, generation=0, force=False)


@pytest.mark.parametrize(
    ("lacking", "number"),
    [
        ((), errno.ENOSPC),
        ((), errno.EIO),
        ((), errno.EACCES),
        ((), errno.EINTR),
        (("exchange", "rename_new", "copy_file_range"), errno.EIO),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_nth_call_fails(
    tmp_path: Path,
    source: Path,
    kind: Kind,
    existing: bool,
    lacking: tuple[str, ...],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of runs: spare the disk
    target = tmp_path / "target"
    old = expected(kind, 0) if existing else None
    points = 0
    for name in CALLS:
        for nth in range(1, 200):
            renew(target, kind, source, existing=existing)
            problem = None
            with pytest.MonkeyPatch.context() as patch:
                for absent in lacking:
                    patch.setattr(syscalls, absent, refuse(errno.EINVAL))
                saboteur = Saboteur(patch, target)
                saboteur.fail(name, nth, number)
                try:
                    write_output(target, kind, source, generation=1, force=existing)
                except StorageError as error:
                    problem = error
            if not saboteur.fired:
                assert problem is None
                break
            points += 1
            where = f"{name} number {nth}: {problem}"
            now = snapshot(target)
            assert now == (expected(kind, 1) if saboteur.placed else old), where
            if problem is None:
                assert saboteur.placed, where
                assert name == "close", where
            else:
                assert "\n" not in problem.message
                assert str(tmp_path) in problem.message
            if name not in REMOVING:
                assert not staging_of(target).exists(), where
            write_output(target, kind, source, generation=2, force=True)
            assert snapshot(target) == expected(kind, 2), where
            assert sorted(path.name for path in tmp_path.iterdir()) == ["source.bin", "target"]
    assert points > 30


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_the_system_lacks_is_done_another_way(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, number: int
) -> None:
    target = tmp_path / "target"
    write_output(target, kind, source, generation=0, force=False)
    monkeypatch.setattr(syscalls, "copy_file_range", refuse(number))
    monkeypatch.setattr(syscalls, "fallocate", refuse(errno.EOPNOTSUPP))
    monkeypatch.setattr(syscalls, "exchange", refuse(errno.ENOSYS))
    monkeypatch.setattr(syscalls, "flock", refuse(errno.ENOSYS))
    write_output(target, kind, source, generation=1, force=True)
    assert snapshot(target) == expected(kind, 1)


def test_without_locks_a_leftover_counts_as_a_living_writer(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "flock", refuse(errno.ENOSYS))
    staging_of(tmp_path / "target").mkdir()
    with pytest.raises(StorageError) as caught:
        write_output(tmp_path / "target", "file", source, generation=1, force=False)
    assert caught.value.code == "BUSY"


def test_old_output_outlives_a_rename_that_cannot_be_undone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write_output(target, "directory", source, generation=0, force=False)
    real, calls = syscalls.rename, []

    def rename(one: Path, other: Path) -> None:
        calls.append(one)
        if len(calls) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(one, other)

    monkeypatch.setattr(syscalls, "exchange", refuse(errno.ENOSYS))
    monkeypatch.setattr(syscalls, "rename", rename)
    with pytest.raises(StorageError) as caught:
        write_output(target, "directory", source, generation=1, force=True)
    assert "left behind" in caught.value.__notes__[0]
    assert snapshot(staging_of(target) / "replaced") == expected("directory", 0)

    monkeypatch.undo()
    with pytest.raises(StorageError) as caught:  # put back first, and so in the way
        write_output(target, "directory", source, generation=2, force=False)
    assert caught.value.code == "EXISTS"
    assert snapshot(target) == expected("directory", 0)
    assert not staging_of(target).exists()


def test_new_output_stays_when_its_folder_cannot_be_flushed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    real = syscalls.fsync

    def fsync(fd: int) -> None:
        if target.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(syscalls, "fsync", fsync)
    with pytest.raises(StorageError) as caught:
        write_output(target, "directory", source, generation=1, force=False)
    assert caught.value.code == "NOT_DURABLE"
    assert snapshot(target) == expected("directory", 1)
    assert not staging_of(target).exists()


def test_short_reads_and_writes_are_continued(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, preadv, pwrite = os.pread, os.preadv, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 777), at))
    monkeypatch.setattr(os, "preadv", lambda fd, to, at: preadv(fd, [to[0][:777]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:333], at))
    for lacking in (False, True):
        if lacking:
            monkeypatch.setattr(syscalls, "copy_file_range", refuse(errno.EXDEV))
        else:
            real = os.copy_file_range
            monkeypatch.setattr(
                os,
                "copy_file_range",
                lambda a, b, size, x, y, real=real: real(a, b, min(size, 999), x, y),
            )
        write_output(tmp_path / "target", "directory", source, generation=1, force=True)
        assert snapshot(tmp_path / "target") == expected("directory", 1)


def test_a_write_that_moves_nothing_is_an_error(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(StorageError):
        write_output(tmp_path / "target", "file", source, generation=1, force=False)
    assert sorted(tmp_path.iterdir()) == [source]
