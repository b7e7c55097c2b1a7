"""Whatever is changed in a file, the answer is an AdaptoolError or a sound reading, and soon."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from random import Random

import pytest

from adaptool.containers._header import read_header
from adaptool.errors import AdaptoolError
from adaptool.formats import read_adapter
from adaptool.storage import SourceFile

from .files import lay_out
from .mutations import TARGETS, Target

QUICK = 4_000
LONG = 400_000
PARTS = 10
SECONDS = 1.0


def hammer(name: str, seed: str, folder: Path, count: int) -> int:
    """Feed `count` mutations to a parser; returns how many it refused."""
    target, apply = Target(folder), TARGETS[name]
    refused = 0
    for number in range(count):
        start = time.process_time()
        try:
            apply(target, Random(zlib.crc32(f"{name} {seed} {number}".encode())))
        except AdaptoolError as error:
            refused += 1
            assert error.exit_code in (3, 4, 6, 8)
            assert len(error.message) < 12_000
        except Exception as error:
            raise AssertionError(f"{name} {seed} {number}: {error!r}") from error
        assert time.process_time() - start < SECONDS, f"{name} {seed} {number}"
    return refused


@pytest.mark.parametrize("name", list(TARGETS))
def test_mutations(tmp_path: Path, name: str) -> None:
    """20,000 in all, always the same ones."""
    refused = hammer(name, "quick", tmp_path, QUICK)
    assert QUICK // 20 < refused < QUICK


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", list(TARGETS))
def test_many_mutations(tmp_path: Path, name: str, part: int) -> None:
    """2,000,000 in all."""
    hammer(name, f"long {part}", tmp_path, LONG // PARTS)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """The weights of a sound adapter."""
    lay_out(tmp_path)
    return tmp_path / "adapter" / "adapter_model.safetensors"


def test_truncated_anywhere(sound: Path) -> None:
    """Every length but the whole one is noticed."""
    whole = sound.read_bytes()
    for size in range(len(whole)):
        sound.write_bytes(whole[:size])
        with pytest.raises(AdaptoolError) as caught:
            read_adapter(sound.parent)
        assert caught.value.exit_code == 3
        assert "adapter" in caught.value.message


def test_flipped_anywhere_in_the_header(sound: Path) -> None:
    """A flipped bit is noticed, or has changed a name or a spelling and nothing else."""
    whole = sound.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    with SourceFile.open(sound) as source:
        expected = sorted((t.shape, t.dtype) for t in read_header(source).tensors.values())
    for place in range(size):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            sound.write_bytes(changed)
            try:
                with SourceFile.open(sound) as source:
                    header = read_header(source)
            except AdaptoolError as error:
                assert error.exit_code in (3, 8)
                continue
            assert sum(t.nbytes for t in header.tensors.values()) == len(whole) - size
            assert len(header.tensors) == len(expected)


def test_flipped_bits_and_peft(sound: Path) -> None:
    """The same for the whole reader: no other exception leaves it."""
    whole = sound.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    for place in range(size):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        sound.write_bytes(changed)
        with pytest.raises(AdaptoolError):
            read_adapter(sound.parent)
