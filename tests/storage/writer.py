"""A small output with every sort of content, written as the package's users write one.

Also a program, for tests that kill, interrupt or race a writer:

    python writer.py TARGET KIND SOURCE [loop | wait]

`loop` replaces the target by generation 1, 2, 3 ... until killed; `wait` takes half
a minute over its chunks. Both print a line once they are that far.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from adaptool.storage import (
    Bytes,
    Chunk,
    Computed,
    Copy,
    Extent,
    FilePlan,
    SourceFile,
    Staging,
    write_files,
)

Kind = Literal["file", "directory"]
SIZE = 40_000
SOURCE = bytes(range(256)) * 200
Snapshot = dict[str, bytes] | bytes | None


def expected(kind: Kind, generation: int) -> Snapshot:
    """What the target holds after a complete run."""
    data = (
        _header(generation)
        + SOURCE[100:1100]
        + SOURCE[1100:10_100]
        + bytes(500)
        + _computed(generation)
    )
    data += bytes(SIZE - len(data))
    if kind == "file":
        return data
    return {
        "config.json": b"{}%d" % generation,
        "one.bin": data,
        "two.bin": data,
        "empty.bin": b"",
    }


def snapshot(path: Path) -> Snapshot:
    """What is at `path` now."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in path.iterdir()}
    return path.read_bytes() if path.exists() else None


def write_output(
    target: Path,
    kind: Kind,
    source: Path,
    *,
    generation: int,
    force: bool,
    required: int = 0,
    pause: float = 0,
) -> bool:
    """Write one generation; returns whether a killed run had left something."""
    with (
        SourceFile.open(source) as opened,
        Staging(target, kind=kind, required=required, inputs=[source], force=force) as staging,
    ):
        if kind == "file":
            plans = [_plan("whatever", opened, generation, pause)]
        else:
            plans = [_plan(name, opened, generation, pause) for name in ("one.bin", "two.bin")]
            plans.append(FilePlan("empty.bin", 0, ()))
        write_files(staging, plans, workers=2, progress=None)
        if kind == "directory":
            staging.write_file("config.json", b"{}%d" % generation)
        staging.commit()
        return staging.stale


def staging_of(target: Path) -> Path:
    """Where an output is staged."""
    return target.with_name(f".{target.name}.adaptool-partial")


def _plan(name: str, source: SourceFile, generation: int, pause: float) -> FilePlan:
    computed = _computed(generation)

    def produce(start: int) -> Iterator[memoryview | bytes]:
        yield computed[start : start + 700]
        if pause:
            print("ready", flush=True)
        step = 1 if pause else 300
        for at in range(start + 700, start + 1000, step):
            time.sleep(pause)
            yield memoryview(bytearray(computed[at : at + step]))

    header = _header(generation)
    end = len(header) + 10_000
    chunks = [Chunk(start, 1000, partial(produce, start)) for start in (0, 1000, 2000)]
    return FilePlan(
        name,
        SIZE,
        (
            Extent(0, Bytes(header)),
            Extent(len(header), Copy(source, 100, 1000)),
            Extent(len(header) + 1000, Copy(source, 1100, 9000)),
            Extent(end + 500, Computed(3000, chunks)),
        ),
    )


def _header(generation: int) -> bytes:
    return b"generation %08d " % generation


def _computed(generation: int) -> bytes:
    return (b"%08d" % generation) * 375


def main(target: str, kind: Kind, source: str, mode: str = "once") -> None:
    """See the module."""
    place, base = Path(target), Path(source)
    if mode == "loop":
        print("ready", flush=True)
        for generation in range(1, 1_000_000):
            write_output(place, kind, base, generation=generation, force=True)
    else:
        write_output(
            place, kind, base, generation=1, force=mode == "wait", pause=0.1 * (mode == "wait")
        )


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
