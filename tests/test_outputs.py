"""Outputs as values: in folders, joined, finished after writing; scratch folders."""

from __future__ import annotations

import pytest

from adaptool.containers import Output, SaveOptions
from adaptool.errors import AdaptoolError, StorageError
from adaptool.storage import Bytes, Extent, FilePlan, scratch_beside


def planned(name: str, content: bytes) -> FilePlan:
    return FilePlan(name, len(content), (Extent(0, Bytes(content)),))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_outputs_join_in_folders(tmp_path):
    model = Output((planned("model.bin", b"weights"),), {"model.json": b"{}"}, is_folder=True)
    both = model.within("onnx") + Output((planned("page", b"hello"),), {"config.json": b"[]"})
    assert both.nbytes == 7 + 2 + 5 + 2
    saved = both.write(tmp_path / "out", SaveOptions())
    assert contents(tmp_path / "out") == {
        "onnx/model.bin": b"weights", "onnx/model.json": b"{}", "page": b"hello",
        "config.json": b"[]",
    }  # fmt: skip
    assert set(saved.files) == set(both.names)
    assert saved.nbytes == both.nbytes


def test_two_files_of_one_name_are_a_mistake():
    one = Output((), {"a": b""})
    with pytest.raises(ValueError, match="'a'"):
        one + one


def test_an_output_is_finished_where_its_files_lie(tmp_path):
    seen = []

    def finish(folder):
        seen.append(contents(folder))
        return {"digest": b"of " + (folder / "model.bin").read_bytes()}

    model = Output((planned("model.bin", b"weights"),), finish=finish)
    saved = (model.within("deep") + Output((), {"config.json": b"{}"})).write(
        tmp_path / "out", SaveOptions()
    )
    assert seen == [{"model.bin": b"weights"}]
    assert contents(tmp_path / "out")["deep/digest"] == b"of weights"
    assert "deep/digest" in saved.files
    assert saved.nbytes == 7 + 2 + 10


@pytest.mark.parametrize("guilty", ["verify", "finish"])
def test_what_is_refused_at_the_end_is_not_there(tmp_path, guilty):
    def refuse(*_):
        raise AdaptoolError("no")

    bad = Output((planned("a", b"1"),), is_folder=True, **{guilty: refuse}).within("x")
    with pytest.raises(AdaptoolError, match="no"):
        (Output((), {"config.json": b"{}"}) + bad).write(tmp_path / "out", SaveOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_nested_output_is_replaced_but_no_strangers_folder(tmp_path):
    made = Output((), {"adaptool.json": b"{}", "onnx/model.onnx": b"1"}, is_folder=True)
    made.write(tmp_path / "out", SaveOptions())
    with pytest.raises(StorageError):
        made.write(tmp_path / "out", SaveOptions())
    made.write(tmp_path / "out", SaveOptions(force=True))
    (tmp_path / "out" / "onnx" / "link").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="link"):
        made.write(tmp_path / "out", SaveOptions(force=True))
    (tmp_path / "out" / "onnx" / "link").unlink()
    (tmp_path / "out" / "photos").mkdir()
    with pytest.raises(StorageError, match="photos"):
        made.write(tmp_path / "out", SaveOptions(force=True))


def test_scratch_folders_lie_beside_and_are_gone(tmp_path):
    target = tmp_path / "out"
    with scratch_beside(target) as scratch:
        assert list(tmp_path.iterdir()) == []
        one, two = scratch(), scratch()
        assert one != two
        (one / "deep").mkdir()
        (one / "deep" / "file").write_text("x")
        assert tmp_path in one.parents
    assert list(tmp_path.iterdir()) == []


def test_scratch_is_removed_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), scratch_beside(tmp_path / "out") as scratch:
        (scratch() / "file").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
