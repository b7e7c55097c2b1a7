"""Whatever is changed in a GGUF file, the answer is an AdaptoolError or a sound reading, and soon.

What is still read is written as it was, to the byte: nothing in a file is overlooked.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from adaptool.containers import SaveOptions, gguf
from adaptool.containers.gguf.values import Value
from adaptool.errors import AdaptoolError

from .gguf import BROKEN, SOUND, TOP, Forged, u32, u64
from .hammering import Hammer

QUICK = 20_000
LONG = 2_000_000
PARTS = 20
SAVED = 50
"""One in so many of those that are read is written, too."""
COMPARED = 3_000

FLAT = replace(SOUND, pairs=SOUND.pairs[:-1])
"""Without arrays in arrays, which ggml does not read."""
HOSTILE = [
    *(u64(n) for n in (0, 1, 2, 3, 31, 32, 33, 64, 2**31, 2**32, 2**61, 2**62 + 1, 2**63, TOP)),
    *(u32(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 12, 13, 30, 64, 99, 2**31, 2**32 - 1)),
    b"", b"\0", b"\xff" * 8, b"GGUF",
]  # fmt: skip


def mutated(sound: Forged, random: Random) -> bytes:
    """A sound file after some changes of a field, a bit or a run of bytes."""
    header = sound.header()
    size = len(b"".join(header))
    fields = list(header)
    for _ in range(random.choice((0, 1, 1, 1, 2))):
        place = random.randrange(len(fields))
        fields[place] = random.choice((
            random.choice(HOSTILE), random.choice(HOSTILE), random.choice(header),
            random.choice(HOSTILE)[:8] + fields[place][8:],
        ))  # fmt: skip
    data = bytearray(sound.joined(fields))
    for _ in range(random.choice((0, 0, 1, 2))):
        start = random.randrange(size)
        how = random.randrange(5)
        if how == 0 and start < len(data):
            data[start] ^= 1 << random.randrange(8)
        elif how == 1:
            data[start:start] = random.randbytes(random.randrange(1, 9))
        elif how == 2:
            del data[start : start + random.randrange(1, 40)]
        elif how == 3:
            data[start : start + 8] = random.choice(HOSTILE)
        else:
            del data[random.randrange(len(data) + 1) :]
    return bytes(data)


def hammer(seed: str, folder: Path, count: int) -> int:
    """Open so many mutations; returns how many were refused."""
    copy = folder / "copy.gguf"
    run = Hammer(folder / "model.gguf", gguf.open)
    for number, content, checkpoint in run.survivors(seed, count, partial(mutated, SOUND)):
        for value in checkpoint.metadata.values():
            assert isinstance(value, Value)
            try:
                value.plain()
            except AdaptoolError as error:
                assert error.exit_code == 3
        assert gguf.plan(checkpoint, copy, SaveOptions()).nbytes == len(content)
        if number % SAVED == 0:
            gguf.save(checkpoint, copy, SaveOptions(force=True))
            assert copy.read_bytes() == content, f"{seed} {number}"
    return run.refused


def test_mutations(tmp_path: Path) -> None:
    """Always the same ones."""
    refused = hammer("quick", tmp_path, QUICK)
    assert QUICK // 2 < refused < QUICK * 19 // 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_many_mutations(tmp_path: Path, part: int) -> None:
    hammer(f"long {part}", tmp_path, LONG // PARTS)


def test_flipped_anywhere_in_the_header(tmp_path: Path) -> None:
    """A flipped bit is noticed, or is in the file that comes out as well."""
    path, copy = tmp_path / "model.gguf", tmp_path / "copy.gguf"
    for place in range(len(b"".join(SOUND.header()))):
        changed = bytearray(SOUND.bytes)
        changed[place] ^= 1 << place % 8
        path.unlink(missing_ok=True)
        path.write_bytes(changed)
        try:
            checkpoint = gguf.open(path)
        except AdaptoolError as error:
            assert error.exit_code in (3, 4, 6, 8)
            continue
        assert gguf.plan(checkpoint, copy, SaveOptions()).nbytes == len(changed)
        if place % 8 == 0:
            gguf.save(checkpoint, copy, SaveOptions(force=True))
            assert copy.read_bytes() == changed


# -- ggml's own reader ----------------------------------------------------------------------------

JUDGE = """
import ctypes, pathlib, sys

class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p)]

library = ctypes.CDLL(sys.argv[1])
library.gguf_init_from_file.restype = ctypes.c_void_p
library.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
library.gguf_free.argtypes = [ctypes.c_void_p]
for path in sorted(pathlib.Path(sys.argv[2]).iterdir())[int(sys.argv[3]):]:
    print(path.name, end=" ", flush=True)
    found = library.gguf_init_from_file(bytes(path), Params(True, None))
    print("yes" if found else "no", flush=True)
    if found:
        library.gguf_free(found)
"""


STRICTER = {
    "key of 70,000 bytes", "key not UTF-8", "key of half a character", "string not UTF-8",
    "name of no length", "name not UTF-8", "neither true nor false", "truths that are none",
    # the header is sound, and ggml leaves the data to whoever reads it
    "a tensor too few", "3 dimensions stated, 2 given", "larger than the file", "a byte short",
    "no data", "a byte too many", "two files in one", "name that a terminal obeys",
    "a type in a number", "types in a list", "a type of 100,000 letters",
    # the header is sound, and what it says of a split model is llama.cpp's business
    "part of a split model by another name", "split.count in a string", "split.count of -1",
}  # fmt: skip
"""What ggml lets pass and is refused here."""


def judge(folder: Path) -> dict[str, str]:
    """What ggml's reader says of each file's header: "yes", "no" or "crash"."""
    home = importlib.util.find_spec("xllamacpp")
    if home is None or home.origin is None:
        pytest.skip("xllamacpp is not installed")
    library = next(Path(home.origin).parent.glob("xllamacpp*.so"))
    verdicts: dict[str, str] = {}
    total = sum(1 for _ in folder.iterdir())
    while len(verdicts) < total:
        done = subprocess.run(
            [sys.executable, "-c", JUDGE, library, folder, str(len(verdicts))],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", check=False,
            timeout=120,
        )  # fmt: skip
        for line in done.stdout.splitlines():
            name, _, word = line.partition(" ")
            verdicts[name] = word or "crash"
    return verdicts


def opens(path: Path) -> bool:
    try:
        gguf.open(path)
    except AdaptoolError:
        return False
    return True


def test_the_same_as_ggml(tmp_path: Path) -> None:
    """What is read here is read by ggml, too: 3,000 mutations without arrays in arrays."""
    for number in range(COMPARED):
        content = mutated(FLAT, Random(zlib.crc32(f"ggml {number}".encode())))
        (tmp_path / f"{number:06d}.gguf").write_bytes(content)
    verdicts = judge(tmp_path)
    assert COMPARED // 20 < list(verdicts.values()).count("yes") < COMPARED // 2
    wrong = [n for n, word in verdicts.items() if opens(tmp_path / n) and word != "yes"]
    assert wrong == []


def test_no_laxer_than_ggml(tmp_path: Path) -> None:
    """Every broken file that ggml refuses is refused here as well, and some more are."""
    for number, (content, _, _) in enumerate(BROKEN.values()):
        (tmp_path / f"{number:06d}").write_bytes(content)
    verdicts = judge(tmp_path)
    accepted = {what for what, word in zip(BROKEN, verdicts.values(), strict=True) if word == "yes"}
    assert accepted <= STRICTER
