"""Plans become files, whatever their pieces and however many workers."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from adaptool.errors import AdaptoolError, CorruptInputError, StorageError, UsageError
from adaptool.storage import (
    Bytes,
    Chunk,
    Computed,
    Content,
    Copy,
    Extent,
    FilePlan,
    SourceFile,
    Staging,
    syscalls,
    write_files,
    writing,
)

from .writer import SOURCE, expected, snapshot, write_output


def save(target: Path, *plans: FilePlan, workers: int = 2) -> int:
    """Write and commit; returns the bytes reported as progress."""
    done: list[int] = []
    with Staging(target, kind="directory", required=0, inputs=(), force=False) as staging:
        write_files(staging, plans, workers=workers, progress=done.append)
        staging.commit()
    return sum(done)


def computed(data: bytes, step: int) -> Computed:
    def produce(start: int) -> Iterator[memoryview | bytes]:
        part = data[start : start + step]
        yield part[:3]
        yield b""
        yield memoryview(part[3:])

    starts = range(0, len(data), step)
    return Computed(
        len(data),
        [Chunk(at, min(step, len(data) - at), partial(produce, at)) for at in starts],
    )


@pytest.mark.parametrize("workers", [0, 1, 2, 8])
@pytest.mark.parametrize("in_kernel", [True, False])
def test_random_plans(
    tmp_path: Path, source: Path, workers: int, in_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "_PIECE", 900)
    monkeypatch.setattr(writing, "_BUFFER", 70)
    if not in_kernel:
        monkeypatch.setattr(syscalls, "copy_file_range", lambda *_: 0)
    choice = random.Random(workers)
    for number in range(10):
        with SourceFile.open(source) as opened:
            plans, files, total = [], {}, 0
            for name in "abc":
                extents, data = [], b""
                for _ in range(choice.randrange(12)):
                    data += bytes(choice.choice([0, 0, 1, 300]))
                    start, size = choice.randrange(5000), choice.choice([0, 1, 40, 5000])
                    part = SOURCE[start : start + size]
                    sorts: list[Content] = [
                        Bytes(part),
                        Copy(opened, start, size),
                        computed(part, 300),
                    ]
                    content = choice.choice(sorts)
                    extents.append(Extent(len(data), content))
                    data += part
                    total += size
                data += bytes(choice.choice([0, 100]))
                plans.append(FilePlan(name, len(data), tuple(extents)))
                files[name] = data
            target = tmp_path / str(number)
            assert save(target, *plans, workers=workers) == total
            assert snapshot(target) == files


def test_neighbours_are_copied_as_one(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    real = syscalls.copy_file_range

    def copy(one: int, other: int, size: int, start: int, offset: int) -> int:
        copied.append((start, offset, size))
        return real(one, other, size, start, offset)

    monkeypatch.setattr(syscalls, "copy_file_range", copy)
    with SourceFile.open(source) as opened:
        extents = (
            Extent(8, Copy(opened, 100, 50)),
            Extent(58, Copy(opened, 150, 50)),
            Extent(108, Copy(opened, 200, 50)),
            Extent(158, Copy(opened, 300, 10)),  # further on in the source
            Extent(200, Copy(opened, 310, 10)),  # further on in the target
        )
        save(tmp_path / "out", FilePlan("a", 300, extents), workers=1)
    assert sorted(copied) == [(100, 8, 150), (300, 158, 10), (310, 200, 10)]


@pytest.mark.parametrize("buffers", [[b"12345"], [b"1234", b"5"], [b"123"], []])
def test_a_chunk_keeps_its_word(tmp_path: Path, buffers: list[bytes]) -> None:
    extents = (Extent(0, Computed(4, [Chunk(0, 4, lambda: iter(buffers))])),)
    with pytest.raises(AdaptoolError):
        save(tmp_path / "out", FilePlan("a", 9, extents))
    assert not any(tmp_path.iterdir())


def test_endless_chunk(tmp_path: Path) -> None:
    def produce() -> Iterator[bytes]:
        while True:
            yield b"12"

    with pytest.raises(AdaptoolError):
        save(
            tmp_path / "out",
            FilePlan("a", 9, (Extent(0, Computed(4, [Chunk(0, 4, produce)])),)),
        )


@pytest.mark.parametrize("error", [UsageError("no"), ValueError("no"), MemoryError()])
def test_first_error_stops_all(tmp_path: Path, error: Exception) -> None:
    failed = threading.Event()
    started = []

    def fail() -> Iterator[bytes]:
        yield b"1"
        failed.set()
        raise error

    def go_on() -> Iterator[bytes]:
        started.append(1)
        failed.wait(10)
        for _ in range(1_000_000):  # without the stop this would end in another error
            yield b""
        raise AssertionError("was not stopped")

    chunks = [Chunk(0, 10, fail), *(Chunk(at, 5, go_on) for at in range(10, 100, 5))]
    plan = FilePlan("a", 100, (Extent(0, Computed(100, chunks)),))
    with pytest.raises(type(error)) as caught:
        save(tmp_path / "out", plan, workers=2)
    assert caught.value is error
    assert len(started) <= 2
    assert not any(tmp_path.iterdir())


def test_interrupt_stops_all(tmp_path: Path) -> None:
    first = threading.Lock()

    def produce() -> Iterator[bytes]:
        yield b"1"
        stopped = threading.Event()
        stopped.wait(0.2)  # the main thread waits for its workers by now
        if first.acquire(blocking=False):
            os.kill(os.getpid(), signal.SIGINT)
        while not stopped.wait(0.01):
            yield b""

    chunks = [Chunk(at, 10, produce) for at in (0, 10)]
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "out", FilePlan("a", 20, (Extent(0, Computed(20, chunks)),)))
    assert not any(tmp_path.iterdir())


def test_changed_source(tmp_path: Path, source: Path) -> None:
    def produce() -> Iterator[bytes]:
        with source.open("r+b") as file:
            file.write(b"new")
        yield b"1"

    with SourceFile.open(source) as opened:
        extents = (
            Extent(0, Copy(opened, 0, 100)),
            Extent(100, Computed(1, [Chunk(0, 1, produce)])),
        )
        with pytest.raises(CorruptInputError) as caught:
            save(tmp_path / "out", FilePlan("a", 101, extents))
    assert caught.value.code == "INPUT_CHANGED"
    assert sorted(tmp_path.iterdir()) == [source]


def test_shrunken_source(tmp_path: Path, source: Path) -> None:
    with SourceFile.open(source) as opened:
        with source.open("r+b") as file:
            file.truncate(10)
        with pytest.raises(CorruptInputError):
            save(tmp_path / "out", FilePlan("a", 100, (Extent(0, Copy(opened, 0, 100)),)))


def test_two_files_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        save(tmp_path / "out", FilePlan("a", 1, ()), FilePlan("a", 1, ()))


def test_signals_in_between(tmp_path: Path, source: Path) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for generation in range(5):
            write_output(tmp_path / "out", "directory", source, generation=generation, force=True)
            assert snapshot(tmp_path / "out") == expected("directory", generation)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


@pytest.mark.parametrize(
    ("name", "size", "extents"),
    [
        ("a//b", 1, ()),
        ("../b", 1, ()),
        ("..", 1, ()),
        ("", 1, ()),
        ("a", 1, (Extent(0, Bytes(b"12")),)),
        ("a", 4, (Extent(-1, Bytes(b"12")),)),
        ("a", 4, (Extent(2, Bytes(b"12")), Extent(0, Bytes(b"12")))),
        ("a", 4, (Extent(0, Bytes(b"12")), Extent(1, Bytes(b"12")))),
        ("a", 4, (Extent(0, computed(b"1234", 3)), Extent(3, Bytes(b"")))),
        ("a", 4, (Extent(0, Computed(4, [])),)),
        ("a", 4, (Extent(0, Computed(2, [Chunk(1, 1, lambda: iter(()))])),)),
        ("a", 4, (Extent(0, Computed(1, [Chunk(0, 2, lambda: iter(()))])),)),
    ],
)
def test_plans_that_contradict_themselves(
    name: str, size: int, extents: tuple[Extent, ...]
) -> None:
    with pytest.raises(AdaptoolError) as caught:
        FilePlan(name, size, extents)
    assert caught.value.code == "PLAN"
