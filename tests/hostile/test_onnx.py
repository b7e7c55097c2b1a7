"""Hostile ONNX files: refused in one line with the right code, soon, and without much memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from adaptool.containers import modules, open_checkpoint
from adaptool.errors import AdaptoolError

from .measures import check_cheap
from .onnx import BROKEN, INSPECT, SOUND, cases, holding, lay_files, tensor
from .test_cli import Run, check_refused, run, run_case, run_inside

__all__ = ["run_case", "run_inside"]

CASES = {case.name: case for case in cases()}


def test_enough() -> None:
    assert len(CASES) >= 65


def test_undamaged(tmp_path: Path) -> None:
    """What the cases start from is sound, so it is the damage that is refused."""
    (lay_files(tmp_path) / "model.onnx").write_bytes(SOUND)
    done = run(tmp_path, INSPECT)
    assert (done.returncode, done.stderr) == (0, "")
    tensors = open_checkpoint(tmp_path / "models/model.onnx").tensors
    assert set(tensors) == {
        "w", "large", "typed", "few", "nothing", "scalar", "q", "far", "c", "big", "inner",
    }  # fmt: skip
    assert tensors["few"].values().tolist() == [5, -1, 7]
    assert tensors["q"].shape == (2, 32)


@pytest.mark.parametrize("name", CASES)
def test_refused(tmp_path: Path, name: str, run_case: Run) -> None:
    check_refused(tmp_path, tmp_path, CASES[name], run_case)


@pytest.mark.parametrize("name", BROKEN)
def test_refused_without_memory(tmp_path: Path, name: str) -> None:
    """Nothing is reserved because a file states a large number."""
    content, code, _ = BROKEN[name]
    path = lay_files(tmp_path) / "model.onnx"
    path.write_bytes(SOUND)
    open_checkpoint(path)  # what is imported is imported before anything is measured
    path.write_bytes(content)
    modules()
    check_cheap(path, code, len(content))


def test_nothing_outside_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No case makes a file outside the model's folder be opened for reading."""
    opened: list[str] = []
    real = os.open

    def watched(path: object, *arguments: object, **keywords: object) -> int:
        opened.append(os.path.realpath(os.fspath(path)))
        return real(path, *arguments, **keywords)

    for index, case in enumerate(CASES.values()):
        if not case.name.startswith("onnx data"):
            continue
        folder = tmp_path / str(index)
        folder.mkdir()
        case.damage(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", watched)
            with pytest.raises(AdaptoolError):
                open_checkpoint(folder / "models/model.onnx")
    strangers = [path for path in opened if "/models/" not in path]
    assert opened
    assert strangers == []


def test_large_tensors_are_not_read(tmp_path: Path) -> None:
    """A tensor of 1 GB in a sparse file takes no memory when it is opened."""
    head = holding(tensor("w", (2**28,), 1, b""))
    content = holding(tensor("w", (2**28,), 1, bytes(1 << 20)))
    assert len(head) < 100
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    modules()
    with pytest.raises(AdaptoolError):
        open_checkpoint(path)
    tracemalloc.start()
    try:
        with pytest.raises(AdaptoolError, match="1048576 bytes"):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 19
    finally:
        tracemalloc.stop()


def test_truncated_anywhere(tmp_path: Path) -> None:
    """Every length of a model without its tail is noticed, or leaves a smaller sound model."""
    path = lay_files(tmp_path) / "model.onnx"
    names = set(open_sound(path).tensors)
    for size in range(0, len(SOUND), 7):
        path.unlink()
        path.write_bytes(SOUND[:size])
        try:
            found = open_checkpoint(path)
        except AdaptoolError as error:
            assert error.exit_code == 3
            assert "model.onnx" in error.message
        else:
            assert set(found.tensors) <= names


def open_sound(path: Path) -> object:
    path.write_bytes(SOUND)
    return open_checkpoint(path)
