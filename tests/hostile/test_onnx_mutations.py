"""Whatever is changed in an ONNX file, the answer is an AdaptoolError or a sound reading, and soon.

What is still read is written as it was, to the byte, and what is changed afterwards is what the
onnx package reads in its place.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import onnx
import pytest

from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions
from adaptool.containers import onnx as container
from adaptool.errors import AdaptoolError

from .hammering import Hammer
from .onnx import (
    SOUND_NODES,
    SOUND_TENSORS,
    TOP,
    blob,
    graph,
    lay_files,
    model,
    number,
    varint,
)

QUICK = 20_000
LONG = 1_000_000
PARTS = 20
SAVED = 50
"""One in so many of those that are read is written, too."""
REWRITTEN = 600

HOSTILE = [
    *(number(field, size) for field in (1, 2, 14, 20) for size in (0, 1, 2**31, 2**62, TOP)),
    *(varint(size) for size in (0, 1, 127, 128, 2**31, 2**32, 2**62, TOP)),
    *(blob(field, data) for field in (1, 5, 8, 9, 13) for data in (b"", b"\0", b"\xff" * 9)),
    b"", b"\0", b"\xff" * 12, b"\x0b", b"\x0c",
]  # fmt: skip


def mutated(random: Random) -> bytes:
    """The sound model after some changes of a field, a bit or a run of bytes."""
    messages = [list(one) for one in (*SOUND_TENSORS, *SOUND_NODES)]
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        message = random.choice(messages)
        place = random.randrange(len(message))
        other: Sequence[bytes] = random.choice(messages)
        message[place : place + random.choice((0, 1, 1))] = [
            random.choice((random.choice(HOSTILE), random.choice(other or [b""])))
        ]
    count = len(SOUND_TENSORS)
    data = bytearray(model(graph(messages[:count], messages[count:])))
    for _ in range(random.choice((0, 0, 1, 2))):
        start = random.randrange(len(data))
        how = random.randrange(5)
        if how == 0:
            data[start] ^= 1 << random.randrange(8)
        elif how == 1:
            data[start:start] = random.randbytes(random.randrange(1, 9))
        elif how == 2:
            del data[start : start + random.randrange(1, 40)]
        elif how == 3:
            data[start : start + 8] = random.choice(HOSTILE)
        else:
            del data[random.randrange(len(data)) + 1 :]
    return bytes(data)


def hammer(seed: str, folder: Path, count: int) -> int:
    """Open so many mutations; returns how many were refused."""
    copy = folder / "copy.onnx"
    run = Hammer(lay_files(folder) / "model.onnx", container.open)
    for index, content, checkpoint in run.survivors(seed, count, mutated):
        assert sum(t.nbytes for t in checkpoint.tensors.values()) < 1 << 16
        if index % SAVED == 0 and not has_data_files(checkpoint):
            container.save(checkpoint, copy, SaveOptions(force=True))
            assert copy.read_bytes() == content, f"{seed} {index}"
    return run.refused


def has_data_files(checkpoint: object) -> bool:
    held = container.model_of(checkpoint).holders.values()
    return any(h.stored and h.stored.source.path.suffix != ".onnx" for h in held)


def test_mutations(tmp_path: Path) -> None:
    """Always the same ones."""
    refused = hammer("quick", tmp_path, QUICK)
    assert QUICK // 4 < refused < QUICK * 19 // 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_mutations(tmp_path: Path, part: int) -> None:
    hammer(f"long {part}", tmp_path, LONG // PARTS)


def test_rewritten(tmp_path: Path) -> None:
    """A model that is read, with a tensor and a property changed, is what onnx reads of both."""
    path, copy = lay_files(tmp_path) / "model.onnx", tmp_path / "copy.onnx"
    done = 0
    for index in range(REWRITTEN):
        path.unlink(missing_ok=True)
        path.write_bytes(mutated(Random(zlib.crc32(f"rewritten {index}".encode()))))
        try:
            checkpoint = container.open(path)
        except AdaptoolError:
            continue
        large = checkpoint.tensors.get("large")
        if large is None or not large.dtype.is_floating:
            continue
        tensors = {**checkpoint.tensors, "large": from_values(large.values() * 2)}
        changed = replace(checkpoint, tensors=tensors, metadata={**checkpoint.metadata, "k": "v"})
        try:
            container.save(changed, copy, SaveOptions(force=True))
        except AdaptoolError as error:
            assert error.exit_code == 4
            continue
        done += 1
        again = container.open(copy)
        assert again.graph == checkpoint.graph
        assert again.metadata["k"] == "v"
        assert list(again.tensors["large"].bytes()) == list(tensors["large"].bytes())
        others = {n: t for n, t in checkpoint.tensors.items() if n != "large"}
        assert set(others) == set(again.tensors) - {"large"}
        for name, tensor in others.items():
            assert [bytes(b) for b in tensor.bytes()] == [
                bytes(b) for b in again.tensors[name].bytes()
            ]
        read = onnx.load(copy, load_external_data=False)
        assert "large" in [t.name for t in read.graph.initializer]
    assert done > REWRITTEN // 5
