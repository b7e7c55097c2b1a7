"""What is refused before work begins, and who wins a race."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adaptool.errors import AdaptoolError, StorageError, UsageError
from adaptool.storage import FilePlan, Staging, syscalls, write_files

from .conftest import Start
from .writer import Kind, expected, snapshot, staging_of, write_output


def stage(target: Path, *, kind: Kind = "directory", required: int = 0, force: bool = False,
          inputs: tuple[Path, ...] = ()) -> Staging:  # fmt: skip
    return Staging(target, kind=kind, required=required, inputs=inputs, force=force)


def refusal(staging: Staging, error: type[AdaptoolError] = StorageError) -> AdaptoolError:
    """The error on entering; nothing is made, moved or removed."""
    parent = staging.target.parent
    before = sorted(parent.rglob("*")) if parent.exists() else None
    with pytest.raises(error) as caught, staging:
        pytest.fail("was not refused")
    assert "\n" not in caught.value.message
    assert (sorted(parent.rglob("*")) if parent.exists() else None) == before
    return caught.value


class TestInputs:
    def test_output_is_an_input(self, source: Path) -> None:
        refusal(stage(source, kind="file", inputs=(source,), force=True), UsageError)

    def test_output_is_an_input_by_another_name(self, tmp_path: Path, source: Path) -> None:
        link, twin = tmp_path / "link", tmp_path / "twin"
        link.symlink_to(source)
        twin.hardlink_to(source)
        refusal(stage(link, kind="file", inputs=(source,), force=True), UsageError)
        refusal(stage(twin, kind="file", inputs=(source,), force=True), UsageError)
        refusal(stage(source, kind="file", inputs=(link,), force=True), UsageError)

    def test_output_inside_an_input(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        refusal(stage(tmp_path / "base" / "new", inputs=(tmp_path / "base",)), UsageError)
        (tmp_path / "alias").symlink_to(tmp_path / "base")
        refusal(stage(tmp_path / "alias" / "new", inputs=(tmp_path / "base",)), UsageError)

    def test_input_inside_the_output(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").touch()
        inputs = (tmp_path / "out" / "config.json",)
        refusal(stage(tmp_path / "out", inputs=inputs, force=True), UsageError)

    def test_neighbours_are_fine(self, tmp_path: Path, source: Path) -> None:
        with stage(tmp_path / "source", inputs=(source, tmp_path / "missing" / "x")):
            pass
        assert sorted(tmp_path.iterdir()) == [source]

    def test_the_root_of_all_folders(self) -> None:
        with pytest.raises(UsageError), stage(Path("/")):
            pass


class TestTarget:
    def test_exists(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.json").touch()
        (tmp_path / "out.bin").touch()
        for kind, name in (("directory", "out"), ("file", "out.bin")):
            error = refusal(stage(tmp_path / name, kind=kind))  # type: ignore[arg-type]
            assert error.code == "EXISTS"
            assert "--force" in (error.hint or "")

    @pytest.mark.parametrize("force", [False, True])
    def test_of_the_other_kind(self, tmp_path: Path, source: Path, force: bool) -> None:
        (tmp_path / "out").mkdir()
        os.mkfifo(tmp_path / "pipe")
        assert refusal(stage(source, force=force)).code == "EXISTS"
        assert refusal(stage(tmp_path / "out", kind="file", force=force)).code == "EXISTS"
        assert refusal(stage(tmp_path / "pipe", kind="file", force=force)).code == "EXISTS"

    @pytest.mark.parametrize("name", ["adaptool.json", "config.json", "adapter_config.json"])
    def test_only_what_looks_like_a_model_is_replaced(self, tmp_path: Path, name: str) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.txt").touch()
        assert refusal(stage(out, force=True)).code == "EXISTS"
        (out / name).touch()
        with stage(out, force=True):
            pass
        (out / "folder").mkdir()
        assert "folder" in refusal(stage(out, force=True)).message
        (out / "folder").rmdir()
        (out / "folder").symlink_to(name)
        assert "folder" in refusal(stage(out, force=True)).message

    def test_an_empty_folder_is_filled(self, tmp_path: Path, source: Path) -> None:
        (tmp_path / "out").mkdir()
        write_output(tmp_path / "out", "directory", source, generation=1, force=False)
        assert snapshot(tmp_path / "out") == expected("directory", 1)

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_a_link_is_resolved(self, tmp_path: Path, source: Path, kind: Kind) -> None:
        (tmp_path / "there").mkdir()
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "there" / "real")
        for generation in (1, 2):
            write_output(link, kind, source, generation=generation, force=generation > 1)
            assert link.is_symlink()
            assert snapshot(tmp_path / "there" / "real") == expected(kind, generation)

    def test_no_parent(self, tmp_path: Path, source: Path) -> None:
        for parent in (tmp_path / "missing", source):
            error = refusal(stage(parent / "out"))
            assert error.code == "NOT_FOUND"
            assert str(parent) in error.message

    def test_too_long_a_name(self, tmp_path: Path) -> None:
        assert refusal(stage(tmp_path / ("x" * 250))).code == "NAME_TOO_LONG"

    def test_a_name_with_a_line_break(self, tmp_path: Path) -> None:
        (tmp_path / "a\nb").touch()
        refusal(stage(tmp_path / "a\nb", kind="file"))

    def test_too_little_space(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(syscalls, "free_bytes", lambda _: 1009)
        error = refusal(stage(tmp_path / "out", required=1000))
        assert error.code == "NO_SPACE"
        assert "1010" in error.message
        assert "1009" in error.message
        with stage(tmp_path / "out", required=999):
            pass


class TestCommit:
    def test_not_without_entering_or_twice(self, tmp_path: Path) -> None:
        staging = stage(tmp_path / "out")
        with pytest.raises(AdaptoolError):
            staging.commit()
        with staging:
            staging.commit()
            with pytest.raises(AdaptoolError):
                staging.commit()
        assert (tmp_path / "out").is_dir()

    def test_leaving_without_it_changes_nothing(self, tmp_path: Path) -> None:
        for error in (ValueError, KeyboardInterrupt, SystemExit):
            with pytest.raises(error), stage(tmp_path / "out") as staging:
                staging.write_file("a", b"a")
                raise error
        with stage(tmp_path / "out") as staging:
            staging.write_file("a", b"a")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("count", [0, 2])
    def test_a_file_is_one_file(self, tmp_path: Path, count: int) -> None:
        with pytest.raises(AdaptoolError), stage(tmp_path / "out", kind="file") as staging:
            for number in range(count):
                staging.write_file(str(number), b"")
            staging.commit()
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("without", [False, True])
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_a_target_made_meanwhile_is_kept(
        self, tmp_path: Path, kind: Kind, without: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if without:
            monkeypatch.setattr(syscalls, "_LIBC", None)
        target = tmp_path / "out"
        with pytest.raises(StorageError) as caught, stage(target, kind=kind) as staging:
            staging.write_file("a", b"new")
            if kind == "directory":
                target.mkdir()
                (target / "mine").write_bytes(b"mine")
            else:
                target.write_bytes(b"mine")
            staging.commit()
        assert caught.value.code == "EXISTS"
        assert snapshot(target) == (b"mine" if kind == "file" else {"mine": b"mine"})
        assert sorted(tmp_path.iterdir()) == [target]

    def test_rights_follow_the_umask(self, tmp_path: Path, source: Path) -> None:
        before = os.umask(0o027)
        try:
            write_output(tmp_path / "d", "directory", source, generation=1, force=False)
            write_output(tmp_path / "f", "file", source, generation=1, force=False)
        finally:
            os.umask(before)
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "d" / "one.bin").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "d" / "config.json").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640

    def test_a_name_is_a_name(self, tmp_path: Path) -> None:
        with stage(tmp_path / "out") as staging:
            for name in ("", ".", "..", "a//b", "a/../b", "a/", "/a", "../a", "a\0"):
                with pytest.raises(AdaptoolError):
                    staging.write_file(name, b"")
            staging.write_file("a", b"")
            staging.write_file("onnx/a", b"deep")
            assert (staging.folder / "onnx" / "a").read_bytes() == b"deep"
            with pytest.raises(StorageError) as caught:
                staging.write_file("a", b"")
            assert caught.value.code == "EXISTS"


class TestOtherWriters:
    def test_second_is_told_at_once(self, tmp_path: Path) -> None:
        with stage(tmp_path / "out") as first:
            assert refusal(stage(tmp_path / "out")).code == "BUSY"
            assert first.folder.is_dir()
            with stage(tmp_path / "other"):
                pass
            first.commit()

    def test_leftovers_are_removed_and_reported(self, tmp_path: Path) -> None:
        output = staging_of(tmp_path / "out") / "output"
        output.mkdir(parents=True)
        (output / "half.bin").write_bytes(b"half")
        (output / "link").symlink_to("/")
        with stage(tmp_path / "out") as staging:
            assert staging.stale
            assert not any(staging.folder.iterdir())
        with stage(tmp_path / "out") as staging:
            assert not staging.stale

    def test_something_else_stands_in_the_way(self, tmp_path: Path) -> None:
        place = staging_of(tmp_path / "out")
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
        assert refusal(stage(tmp_path / "out")).code == "EXISTS"
        place.unlink()
        place.touch()
        assert refusal(stage(tmp_path / "out")).code == "EXISTS"

    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_eight_at_once(self, tmp_path: Path, source: Path, start: Start, kind: Kind) -> None:
        target = tmp_path / "out"
        writers = [start(target, kind, "once") for _ in range(8)]
        errors = [writer.communicate(timeout=30)[1].decode() for writer in writers]
        won = [writer.returncode == 0 for writer in writers]
        assert sum(won) == 1, errors
        for victory, error in zip(won, errors, strict=True):
            assert victory or "exists already" in error or "another run is writing" in error
        assert snapshot(target) == expected(kind, 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source.bin"]

    def test_a_reader_sees_one_generation(self, tmp_path: Path, source: Path, start: Start) -> None:
        target = tmp_path / "out"
        write_output(target, "directory", source, generation=0, force=False)
        with start(target, "directory", "loop") as process:
            assert process.stdout is not None
            process.stdout.readline()
            seen = {read_generation(target) for _ in range(1000)}
            while len(seen) < 5 and process.poll() is None:
                seen.add(read_generation(target))
            process.kill()
        assert len(seen) >= 5


def read_generation(target: Path) -> bytes | None:
    """The one generation in a folder's files, opened together; None if it went meanwhile."""
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # the name itself is never free
    try:
        found = set()
        for name in ("one.bin", "two.bin"):
            fd = os.open(name, os.O_RDONLY, dir_fd=folder)
            found.add(os.pread(fd, 20, 0))
            os.close(fd)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    (generation,) = found
    return generation


class TestRealLimits:
    @contextmanager
    def tmpfs(self, folder: Path, options: str) -> Iterator[Path]:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a tmpfs")
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    @pytest.mark.parametrize("percent", [25, 50, 75, 99])
    def test_a_full_disk(self, tmp_path: Path, percent: int) -> None:
        with self.tmpfs(tmp_path / "disk", "size=4m") as disk:
            target = disk / "out"
            with stage(target) as staging:
                staging.write_file("config.json", b"old")
                staging.commit()
            size = (4 << 20) * 100 // percent
            with pytest.raises(StorageError) as caught, stage(target, force=True) as staging:
                staging.write_file("config.json", b"new")
                write_files(staging, [FilePlan("a", size, ())], workers=1, progress=None)
            assert caught.value.code == "NO_SPACE"
            error = refusal(stage(target, required=size, force=True))
            assert error.code == "NO_SPACE"
            assert snapshot(target) == {"config.json": b"old"}
            assert sorted(disk.iterdir()) == [target]

    def test_too_few_inodes(self, tmp_path: Path, source: Path) -> None:
        with self.tmpfs(tmp_path / "disk", "size=4m,nr_inodes=5") as disk:
            with pytest.raises(StorageError) as caught:
                write_output(disk / "out", "directory", source, generation=1, force=False)
            assert caught.value.code == "NO_SPACE"
            assert not any(disk.iterdir())

    def test_another_file_system_than_the_source(self, tmp_path: Path, source: Path) -> None:
        with self.tmpfs(tmp_path / "disk", "size=4m") as disk:
            for generation in (1, 2):
                write_output(disk / "out", "directory", source, generation=generation, force=True)
            assert snapshot(disk / "out") == expected("directory", 2)

    def test_a_mount_point_is_no_target(self, tmp_path: Path) -> None:
        with self.tmpfs(tmp_path / "disk", "size=4m") as disk:
            assert "mount point" in refusal(stage(disk)).message

    def test_a_read_only_file_system(self, tmp_path: Path) -> None:
        with self.tmpfs(tmp_path / "disk", "size=4m,ro") as disk:
            assert refusal(stage(disk / "out")).code == "PERMISSION"

    @pytest.mark.parametrize("preallocate", [False, True])
    def test_the_largest_allowed_file(
        self, tmp_path: Path, source: Path, preallocate: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not preallocate:
            monkeypatch.setattr(syscalls, "fallocate", lambda *_: None)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
        try:
            with pytest.raises(StorageError) as caught:
                write_output(tmp_path / "out", "file", source, generation=1, force=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.code == "FILE_TOO_LARGE"
        assert json.loads(json.dumps(caught.value.details))["errno"] == "EFBIG"
        assert sorted(tmp_path.iterdir()) == [source]
