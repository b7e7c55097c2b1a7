"""A killed or interrupted writer leaves the old output, none, or the complete new one."""

import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adaptool.storage import syscalls

from .conftest import Start
from .test_failures import CALLS, refuse, renew
from .writer import Kind, expected, snapshot, staging_of, write_output

KILLS = 25  # of each kind


def generation_of(found: Any) -> int:
    data = found["one.bin"] if isinstance(found, dict) else found
    return int(data[11:19])


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_killed_at_random_moments(tmp_path: Path, source: Path, start: Start, kind: Kind) -> None:
    moments = random.Random(20)
    stale_runs = 0
    target = tmp_path / "target"
    for number in range(KILLS):
        with start(target, kind, "loop") as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        now = snapshot(target)
        if now is not None:
            assert now == expected(kind, generation_of(now)), f"kill {number}: a mixture"
        left = staging_of(target).exists() and any(staging_of(target).iterdir())
        stale = write_output(target, kind, source, generation=0, force=True)
        assert stale == left
        assert snapshot(target) == expected(kind, 0)
        assert not staging_of(target).exists()
        stale_runs += stale
    assert stale_runs > 0


@pytest.mark.parametrize("lacking", [(), ("exchange", "rename_new")])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_killed_before_each_call(
    tmp_path: Path,
    source: Path,
    kind: Kind,
    existing: bool,
    lacking: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the kernel lives on; spare the disk
    target = tmp_path / "target"
    old = expected(kind, 0) if existing else None
    seen = set()
    for nth in range(1, 1000):
        renew(target, kind, source, existing=existing)
        died = _run_and_die(target, kind, source, nth, lacking, force=existing)
        now = snapshot(target)
        if not died:
            break
        # Where names cannot be exchanged there is a moment without any: the next run puts
        # the old output back before it does anything else.
        allowed = (old, expected(kind, 1), None) if lacking else (old, expected(kind, 1))
        assert now in allowed, f"call {nth}"
        if now is None and existing:
            assert snapshot(staging_of(target) / "replaced") == old
        seen.add(now is not None and generation_of(now))
        write_output(target, kind, source, generation=2, force=True)
        assert snapshot(target) == expected(kind, 2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["source.bin", "target"]
    assert now == expected(kind, 1)
    assert seen >= {0 if existing else False, 1}


def _run_and_die(
    target: Path, kind: Kind, source: Path, nth: int, lacking: tuple[str, ...], *, force: bool
) -> bool:
    """Write generation 1 in a fork that kills itself before its n-th system call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            for name in lacking:
                setattr(syscalls, name, refuse(38))
            count = [0]
            for name in CALLS:
                setattr(syscalls, name, _deadly(getattr(syscalls, name), count, nth))
            write_output(target, kind, source, generation=1, force=force)
            status = 0
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _deadly(real: Callable[..., Any], count: list[int], nth: int) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10)
        return real(*args)

    return call


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_interrupted(
    tmp_path: Path, source: Path, start: Start, kind: Kind, existing: bool
) -> None:
    target = tmp_path / "target"
    renew(target, kind, source, existing=existing)
    with start(target, kind, "wait") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert staging_of(target).exists()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert b"KeyboardInterrupt" in errors
    assert snapshot(target) == (expected(kind, 0) if existing else None)
    assert not staging_of(target).exists()
