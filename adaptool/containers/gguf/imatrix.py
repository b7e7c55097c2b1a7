"""Importance matrices of llama.cpp: how much each input column of a weight matters.

llama-imatrix adds up the squares of the activations that meet each column. Two formats: a GGUF
file (`general.type` is "imatrix") with `<tensor>.in_sum2` and `<tensor>.counts`, and the older
imatrix.dat, entries without any mark at the start.
"""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor, Stored
from adaptool.canonical.tensors import from_recipe, from_storage
from adaptool.containers.gguf.cursor import Cursor
from adaptool.containers.gguf.header import MAX_TENSORS, general_type, read_header
from adaptool.containers.gguf.reading import PLAIN
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.storage import SourceFile, shown

if TYPE_CHECKING:
    import torch

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_LEGACY = 4 << 30
"""Bytes of an imatrix.dat; those of the largest models have a few hundred million."""
MAX_NAME = 1024

_NUMBER = struct.Struct("<i")
_SMALLEST_ENTRY = 3 * _NUMBER.size + 1


def read_importance(path: Path) -> dict[str, LazyTensor]:
    """Mean square of the activations for each input column, by the name of the weight.

    Returns:
        GGUF tensor name -> float32 [matrices * width]: for a stack of experts one expert's
        columns after another's. What no activation met matters like everything else: 1.

    Raises:
        CorruptInputError: a broken file; when values are read, a negative or non-finite one.
        IncompatibleError: a GGUF file that is no importance matrix.
        ResourceLimitError: more entries than any model has.
        StorageError: not found, not readable.
    """
    source = SourceFile.open(path)
    kind = general_type(source)
    if kind is None:
        return _read_legacy(source)
    if kind != "imatrix":
        raise IncompatibleError(
            f"{shown(path)}: holds a {shown(kind[:40])}, not an importance matrix",
            hint="make one with llama-imatrix",
            code="UNKNOWN_FORMAT",
        )
    return _read_gguf(source)


def _read_gguf(source: SourceFile) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    for entry in read_header(source).tensors:
        where = f"{shown(source.path)}: tensor {shown(entry.name)}"
        dtype = PLAIN.get(entry.type_id)
        if dtype is not DType.FLOAT32 or len(entry.shape) not in (1, 2):
            raise CorruptInputError(f"{where}: expected F32 with one row per matrix")
        stored = Stored(source, entry.offset, entry.nbytes)
        found[entry.name] = from_storage(stored, entry.shape, dtype)
    importance: dict[str, LazyTensor] = {}
    for name, sums in found.items():
        weight = name.removesuffix(SUMS)
        if weight == name:
            continue
        where = f"{shown(source.path)}: tensor {shown(name)}"
        counts = found.get(weight + COUNTS)
        matrices = sums.shape[0] if len(sums.shape) == 2 else 1
        if counts is None or not matrices or counts.count != matrices:
            has = "no" if counts is None else f"{counts.count}"
            raise CorruptInputError(f"{where}: {has} counts for {matrices} matrices")
        mean = partial(_mean_squares, where, sums, counts, matrices)
        importance[weight] = from_recipe((sums.count,), DType.FLOAT32, mean)
    return _some(importance, source)


def _mean_squares(where: str, sums: LazyTensor, counts: LazyTensor, matrices: int) -> torch.Tensor:
    """Float32 [matrices * width]."""
    import torch

    total = sums.values().reshape(matrices, -1)
    number = counts.values().reshape(matrices, 1)
    _check(where, total, number)
    met = number > 0
    return torch.where(met, total / number.where(met, 1), 1.0).reshape(-1)


def _read_legacy(source: SourceFile) -> dict[str, LazyTensor]:
    """imatrix.dat: a number of entries, each a name, a number of calls, and values.

    The values are means times calls. What follows the entries (the last call's number, the
    name of the data set) says nothing about them.
    """
    cursor = Cursor(source, MAX_LEGACY)
    (entries,) = cursor.unpack(_NUMBER, "the number of entries")
    cursor.require(max(entries, 0), _SMALLEST_ENTRY, "the entries")
    if not 0 < entries <= MAX_TENSORS:
        raise CorruptInputError(
            f"{shown(source.path)}: {entries} entries stated: not an importance matrix"
        )
    importance: dict[str, LazyTensor] = {}
    for _ in range(entries):
        name = _read_name(cursor)
        what = f"entry {shown(name)}"
        where = f"{shown(source.path)}: {what}"
        calls, count = (*cursor.unpack(_NUMBER, what), *cursor.unpack(_NUMBER, what))
        if name in importance or count <= 0 or calls < 0:
            raise CorruptInputError(f"{where}: {count} values of {calls} calls, or a second time")
        stored = Stored(source, cursor.position, count * DType.FLOAT32.nbytes(1))
        cursor.skip(stored.size, what)
        scaled = from_storage(stored, (count,), DType.FLOAT32)
        importance[name] = from_recipe(
            (count,), DType.FLOAT32, partial(_divided, where, scaled, calls)
        )
    return _some(importance, source)


def _read_name(cursor: Cursor) -> str:
    (length,) = cursor.unpack(_NUMBER, "an entry's name")
    if not 0 < length <= MAX_NAME:
        raise CorruptInputError(
            f"{shown(cursor.source.path)}: an entry's name of {length} bytes: "
            "not an importance matrix"
        )
    try:
        return cursor.take(length, "an entry's name").decode()
    except UnicodeDecodeError:
        raise CorruptInputError(
            f"{shown(cursor.source.path)}: an entry's name is not UTF-8"
        ) from None


def _divided(where: str, scaled: LazyTensor, calls: int) -> torch.Tensor:
    values = scaled.values()
    _check(where, values)
    return values / max(calls, 1)


def _check(where: str, *parts: torch.Tensor) -> None:
    if any(not bool((part >= 0).logical_and(part.isfinite()).all()) for part in parts):
        raise CorruptInputError(f"{where}: a mean square that is negative or not finite")


def _some(importance: dict[str, LazyTensor], source: SourceFile) -> dict[str, LazyTensor]:
    if not importance:
        raise CorruptInputError(f"{shown(source.path)}: no importance of any weight in it")
    return importance
