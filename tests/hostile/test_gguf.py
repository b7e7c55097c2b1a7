"""Hostile GGUF files: refused in one line with the right code, soon, and without much memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from adaptool.containers import modules, open_checkpoint
from adaptool.errors import AdaptoolError

from .gguf import BROKEN, INSPECT, SOUND, cases
from .measures import check_cheap
from .test_cli import Run, check_refused, run, run_case, run_inside

__all__ = ["run_case", "run_inside"]

CASES = {case.name: case for case in cases()}


def test_enough() -> None:
    assert len(CASES) >= 100


def test_undamaged(tmp_path: Path) -> None:
    """What the cases start from is sound, so it is the damage that is refused."""
    (tmp_path / "model.gguf").write_bytes(SOUND.bytes)
    done = run(tmp_path, INSPECT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str, run_case: Run) -> None:
    check_refused(tmp_path, tmp_path, CASES[name], run_case)


@pytest.mark.parametrize("name", BROKEN)
def test_refused_without_memory(tmp_path: Path, name: str) -> None:
    """Nothing is reserved because a file states a large number."""
    content, code, _ = BROKEN[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    modules()  # imported before anything is measured
    check_cheap(path, code, len(content))


def test_truncated_anywhere(tmp_path: Path) -> None:
    """Every length but the whole one is noticed; the padding at the very end may be missing."""
    path = tmp_path / "model.gguf"
    whole = SOUND.bytes
    needed = len(whole) - 54
    for size in range(needed):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:size])
        with pytest.raises(AdaptoolError) as caught:
            open_checkpoint(path)
        assert caught.value.exit_code == 3
        assert "model.gguf" in caught.value.message
    for size in range(needed, len(whole) + 1):
        path.unlink(missing_ok=True)
        path.write_bytes(whole[:size])
        assert len(open_checkpoint(path).tensors) == 6
