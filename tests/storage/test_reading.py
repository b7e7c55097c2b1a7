"""What is accepted as an input file, and what is not."""

import errno
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import AdaptoolError, CorruptInputError, ResourceLimitError, StorageError
from adaptool.storage import SourceFile, inside, read_json, read_text, syscalls

from .writer import SOURCE

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def put(folder: Path, data: bytes | str, name: str = "file.json") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


class TestSourceFile:
    def test_reads(self, source: Path) -> None:
        with SourceFile.open(source) as opened:
            assert (opened.path, opened.size) == (source, len(SOURCE))
            assert opened.read(0, opened.size) == SOURCE
            assert opened.read(300, 7) == SOURCE[300:307]
            assert opened.read(opened.size, 0) == b""
            buffer = bytearray(10)
            opened.read_into(5, memoryview(buffer))
            assert buffer == SOURCE[5:15]
            opened.read_into(7, memoryview(buffer).cast("H", (1, 5)))
            assert buffer == SOURCE[7:17]
            opened.read_into(opened.size, memoryview(b""))
            opened.verify_unchanged()

    @pytest.mark.parametrize(
        ("offset", "size"),
        [(-1, 1), (0, -1), (0, len(SOURCE) + 1), (len(SOURCE), 1), (2**63, 1), (0, 2**70)],
    )
    def test_stays_in_bounds(self, source: Path, offset: int, size: int) -> None:
        with SourceFile.open(source) as opened, pytest.raises(CorruptInputError) as caught:
            opened.read(offset, size)
        assert str(source) in caught.value.message

    def test_closing(self, source: Path) -> None:
        opened = SourceFile.open(source)
        fd = opened.fd
        opened.close()
        opened.close()
        with pytest.raises(ValueError, match="closed"):
            opened.read(0, 1)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
        forgotten = SourceFile.open(source)
        fd = forgotten.fd
        del forgotten
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

    def test_missing(self, tmp_path: Path, source: Path) -> None:
        for path in (tmp_path / "missing", source / "below"):
            with pytest.raises(StorageError) as caught:
                SourceFile.open(path)
            assert caught.value.code == "NOT_FOUND"
            assert str(path) in caught.value.message

    def test_not_permitted(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> int:
            raise PermissionError(errno.EACCES, "no")

        monkeypatch.setattr(syscalls, "open", refuse)
        with pytest.raises(StorageError) as caught:
            SourceFile.open(source)
        assert caught.value.code == "PERMISSION"

    def test_only_regular_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        os.mkfifo(tmp_path / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket")
            for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero")):
                with pytest.raises(CorruptInputError, match="regular"):
                    SourceFile.open(path)

    def test_a_pointer_is_not_the_file(self, tmp_path: Path) -> None:
        with pytest.raises(CorruptInputError, match="git-LFS pointer") as caught:
            SourceFile.open(put(tmp_path, POINTER, "model.safetensors"))
        assert "git lfs pull" in (caught.value.hint or "")

    def test_changes_are_noticed(self, source: Path, tmp_path: Path) -> None:
        def touch() -> None:
            os.utime(source, ns=(1, 1))

        def replace() -> None:
            status = source.stat()
            new = put(tmp_path, SOURCE, "new")
            os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
            new.rename(source)

        for change in (touch, lambda: put(tmp_path, b"x", "source.bin"), replace, source.unlink):
            put(tmp_path, SOURCE, "source.bin")
            with SourceFile.open(source) as opened:
                change()
                with pytest.raises(CorruptInputError) as caught:
                    opened.verify_unchanged()
                assert caught.value.code == "INPUT_CHANGED"

    def test_a_file_that_shrinks(self, source: Path) -> None:
        with SourceFile.open(source) as opened:
            os.truncate(source, 1000)
            with pytest.raises(CorruptInputError) as caught:
                opened.read(500, 1000)
            assert caught.value.code == "INPUT_CHANGED"
            with pytest.raises(CorruptInputError):
                opened.read_into(500, memoryview(bytearray(1000)))

    def test_a_failing_device(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> Any:
            raise OSError(errno.EIO, "broken")

        with SourceFile.open(source) as opened:
            monkeypatch.setattr(syscalls, "pread", fail)
            monkeypatch.setattr(syscalls, "preadv", fail)
            for read in (lambda: opened.read(0, 1), lambda: opened.read_into(0, bytearray(1))):
                with pytest.raises(StorageError) as caught:
                    read()
                assert caught.value.code == "DEVICE"

    def test_many_threads(self, source: Path) -> None:
        with SourceFile.open(source) as opened:
            wrong = []

            def read(start: int) -> None:
                for at in range(start, len(SOURCE) - 100, 97):
                    if opened.read(at, 100) != SOURCE[at : at + 100]:
                        wrong.append(at)

            threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong


class TestText:
    def test_with_and_without_a_mark(self, tmp_path: Path) -> None:
        assert read_text(put(tmp_path, "größe")) == "größe"
        assert read_text(put(tmp_path, b"\xef\xbb\xbfa")) == "a"
        assert read_text(put(tmp_path, b"")) == ""

    def test_limit(self, tmp_path: Path) -> None:
        assert read_text(put(tmp_path, "12345"), 5) == "12345"
        with pytest.raises(ResourceLimitError) as caught:
            read_text(put(tmp_path, "123456"), 5)
        assert "file.json" in caught.value.message

    @pytest.mark.parametrize("data", [b"\xff", b"a\xc0\x80", b"\xed\xa0\x80", POINTER])
    def test_not_text(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(CorruptInputError, match=r"file\.json"):
            read_text(put(tmp_path, data))


class TestJson:
    def test_sound(self, tmp_path: Path) -> None:
        value = {"a": [1, -2.5, None, True, "x"], "model_max_length": int(1e30), "é": {"a": {}}}
        assert read_json(put(tmp_path, json.dumps(value))) == value
        assert read_json(put(tmp_path, "\ufeff[]")) == []

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[1,]",
            "{'a': 1}",
            "[] []",
            '{"a": 1, "a": 1}',
            '[{"b": {"a": 1, "a": 2}}]',
            '{"\\n\\ud800": 1, "\\n\\ud800": 1}',
            "NaN",
            "[Infinity]",
            "-Infinity",
            "1e999",
            "-1e999",
            "1" * 400,
            "1" * 5000,
            "[" * 100_000,
            '{"a":' * 100_000,
            '"a\nb"',
            '"\0"',
        ],
    )
    def test_unsound(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(CorruptInputError) as caught:
            read_json(put(tmp_path, text))
        assert str(tmp_path / "file.json") in caught.value.message
        assert caught.value.message.isprintable()


class TestInside:
    @pytest.mark.parametrize("name", ["a.bin", "sub/a.bin", "./a.bin", "a..b", "...", "ä", "c d"])
    def test_plain_names(self, tmp_path: Path, name: str) -> None:
        assert inside(tmp_path, name) == tmp_path / name

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "./",
            "..",
            "../a",
            "a/../../b",
            "a/..",
            "/etc/passwd",
            "//host/share",
            "\\\\host\\share",
            "a\\b",
            "C:a",
            "c:/a",
            "a\0b",
            "\ud800",
        ],
    )
    def test_names_that_lead_elsewhere(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(CorruptInputError) as caught:
            inside(tmp_path, name)
        assert caught.value.code == "PATH_ESCAPE"
        assert caught.value.message.isprintable()
        caught.value.message.encode()

    def test_links(self, tmp_path: Path) -> None:
        model, secret = tmp_path / "model", put(tmp_path, "secret", "secret")
        model.mkdir()
        put(model, "x", "real")
        (model / "near").symlink_to("real")
        (model / "far").symlink_to(secret)
        (model / "up").symlink_to("..")
        (model / "circle").symlink_to("circle")
        (tmp_path / "alias").symlink_to(model)
        assert inside(model, "near") == model / "near"
        assert inside(tmp_path / "alias", "near") == tmp_path / "alias" / "near"
        for name in ("far", "up/secret", "up"):
            with pytest.raises(CorruptInputError):
                inside(model, name)
        with pytest.raises(AdaptoolError):
            SourceFile.open(inside(model, "circle"))

    def test_the_hugging_face_cache(self, tmp_path: Path) -> None:
        blobs = tmp_path / "models--a--b" / "blobs"
        snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
        foreign = tmp_path / "models--c--d" / "blobs"
        for folder in (blobs, snapshot / "onnx", foreign, blobs / "deep"):
            folder.mkdir(parents=True)
        for path in (blobs / "00ff", foreign / "00ff", blobs / "deep" / "00ff"):
            path.write_bytes(b"x")
        (snapshot / "a").symlink_to("../../blobs/00ff")
        (snapshot / "onnx" / "b").symlink_to("../../../blobs/00ff")
        (snapshot / "foreign").symlink_to(foreign / "00ff")
        (snapshot / "deep").symlink_to("../../blobs/deep/00ff")
        (tmp_path / "alias").symlink_to(snapshot)
        assert inside(snapshot, "a") == snapshot / "a"
        assert inside(tmp_path / "alias", "onnx/b")
        assert inside(snapshot / "onnx", "b")
        for name in ("foreign", "deep"):
            with pytest.raises(CorruptInputError):
                inside(snapshot, name)


def test_nothing_but_the_standard_library_is_imported() -> None:
    import adaptool.storage

    folder = Path(adaptool.storage.__file__).parent
    allowed = {*sys.stdlib_module_names, "adaptool"}
    for path in folder.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                module = line.split()[1]
                assert module.split(".")[0] in allowed, f"{path.name}: {line}"
                if module.startswith("adaptool"):
                    assert module.startswith(("adaptool.errors", "adaptool.storage")), line
