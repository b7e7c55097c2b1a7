"""Models split into several files: PREFIX-00001-of-00003.gguf and so on.

As llama.cpp's llama-gguf-split writes them: the first part has all key-values, each part has
`split.no` (u16, from 0), `split.count` (u16) and `split.tensors.count` (i32, of all parts).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adaptool.containers.gguf.header import ALIGNMENT, Header
from adaptool.containers.gguf.values import Value
from adaptool.errors import CorruptInputError, IncompatibleError, StorageError
from adaptool.storage import shown

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
KEYS = (NUMBER, COUNT, TENSORS)
MAX_PARTS = 65_535
"""What `split.count` can hold."""

_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def part_name(prefix: str, number: int, count: int) -> str:
    """The file name of part `number`, from 1, of `count`."""
    return f"{prefix}-{number:05d}-of-{count:05d}.gguf"


def model_of(path: Path) -> tuple[str, int]:
    """What a file's name says: what the model is called, and of how many parts it is one."""
    match = _NAME.fullmatch(path.name)
    return (match["prefix"], int(match["count"])) if match else (path.stem, 1)


def parts_of(path: Path, header: Header) -> list[Path]:
    """All files of the model that one of them belongs to; the file itself if it is not split.

    Raises:
        CorruptInputError: the file's name and its keys contradict each other.
        StorageError: a part is missing (NOT_FOUND).
    """
    count = _number(path, header.values, COUNT, 1)
    if count <= 1:
        return [path]
    number = _number(path, header.values, NUMBER, 0)
    match = _NAME.fullmatch(path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise CorruptInputError(
            f"{shown(path)}: is part {number + 1} of {count} of a split model, "
            f"its name says otherwise",
            hint=f"rename it to {shown(part_name('MODEL', number + 1, count))}, with all others",
        )
    parts = [path.with_name(part_name(match["prefix"], n, count)) for n in range(1, count + 1)]
    for position, part in enumerate(parts, 1):
        if not part.exists():
            raise StorageError(
                f"{shown(part)}: part {position} of {count} of this model is missing",
                hint="download all its parts into one folder",
                code="NOT_FOUND",
            )
    return parts


def check_part(path: Path, header: Header, number: int, count: int) -> None:
    """Raise CorruptInputError unless a header says that it is part `number`, from 0, of `count`."""
    stated = _number(path, header.values, NUMBER, 0), _number(path, header.values, COUNT, 1)
    if stated != (number, count):
        raise CorruptInputError(
            f"{shown(path)}: says it is part {stated[0] + 1} of {stated[1]}, "
            f"expected {number + 1} of {count}",
            hint="parts of different models are mixed in this folder",
        )


def join_values(headers: Mapping[Path, Header]) -> dict[str, Value]:
    """The key-values of all parts as those of one file.

    Raises CorruptInputError if two parts disagree, or tensors are missing from their sum.
    """
    joined: dict[str, Value] = {}
    total = sum(len(header.tensors) for header in headers.values())
    for number, (path, header) in enumerate(headers.items()):
        stated = _number(path, header.values, TENSORS, total)
        if stated != total:
            raise CorruptInputError(
                f"{shown(path)}: {stated} tensors stated for all parts, they have {total}"
            )
        for key, value in header.values.items():
            if key in KEYS or (number and key == ALIGNMENT):
                continue  # each file has its own alignment; the first one's is kept
            if key in joined and joined[key].encoded() != value.encoded():
                raise CorruptInputError(
                    f"{shown(path)}: {shown(key[:200])} differs from the first part's",
                    hint="parts of different models are mixed in this folder",
                )
            joined.setdefault(key, value)
    return joined


def split_values(
    values: Mapping[str, Value], number: int, count: int, tensors: int
) -> dict[str, Value]:
    """The key-values of part `number`, from 0: those of the model in the first part only.

    Raises IncompatibleError for more parts than the format can count.
    """
    if count > MAX_PARTS:
        raise IncompatibleError(
            f"{count} parts, at most {MAX_PARTS} are possible",
            hint="choose a larger --max-shard-size",
        )
    own = {key: value for key, value in values.items() if key not in KEYS} if number == 0 else {}
    return own | {
        NUMBER: Value.u16(number),
        TENSORS: Value.i32(tensors),
        COUNT: Value.u16(count),
    }


def _number(path: Path, values: Mapping[str, Value], key: str, default: int) -> int:
    value = values.get(key)
    if value is None:
        return default
    number = value.plain()
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise CorruptInputError(f"{shown(path)}: {key} is {shown(str(number)[:40])}, not a count")
    return number
