"""The list of an MLC folder's tensors, read without trusting it, and written as MLC writes it.

tensor-cache.json (apache-tvm, tvm/contrib/tvmjs.py) has `metadata` and `records`: one for each
shard, with `records` of its own: one for each tensor, with its place in the shard.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from adaptool.canonical import DType
from adaptool.errors import JSON, CorruptInputError, IncompatibleError
from adaptool.storage import read_json, shown

FILE = "tensor-cache.json"
OLD_FILE = "ndarray-cache.json"
"""What web-llm asked for up to its version 0.2.79: the same content."""
NATIVE_FILE = "tensor-cache-b16.json"
"""The same list for readers that keep packed float32 as the bfloat16 that it is."""

LIMIT = 64 << 20
MAX_DIMENSIONS = 32
MAX_NAME = 1024

SUFFIX = ".bin"
SHARD = "raw-shard"
PACKED = "f32-to-bf16"
"""The format of a record; it says something of float32 alone: values are stored as bfloat16."""
RAW = "raw"

DTYPES = {
    dtype.value: dtype
    for dtype in (
        DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT8_E4M3, DType.FLOAT8_E5M2,
        DType.UINT32, DType.INT32, DType.UINT16, DType.INT16, DType.UINT8, DType.INT8,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One tensor in a shard.

    Attributes:
        name: MLC's.
        shape: sizes.
        dtype: as stated: what the runtime makes of it.
        format: RAW or PACKED.
        offset: bytes, in the shard.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    format: str
    offset: int

    @property
    def stored(self) -> DType:
        """The type of what lies in the shard."""
        packed = self.dtype is DType.FLOAT32 and self.format == PACKED
        return DType.BFLOAT16 if packed else self.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the shard."""
        return self.stored.nbytes(prod(self.shape))

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.nbytes

    def stated(self, *, native: bool = False) -> dict[str, JSON]:
        """As it stands in the list; `native`: in that of NATIVE_FILE."""
        unpacked = native and self.stored is not self.dtype
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": (self.stored if unpacked else self.dtype).value,
            "format": RAW if unpacked else self.format,
            "nbytes": self.nbytes,
            "byteOffset": self.offset,
        }


@dataclass(frozen=True)
class Shard:
    """One file: its name, bytes, tensors, and its digest if one is stated."""

    name: str
    nbytes: int
    records: tuple[Record, ...]
    md5sum: str | None = None


def encode(metadata: Mapping[str, JSON], shards: Sequence[Shard], *, native: bool = False) -> bytes:
    """The list as a file, byte for byte as MLC writes it; `native`: that of NATIVE_FILE."""
    records: list[JSON] = [
        {
            "dataPath": shard.name,
            "format": SHARD,
            "nbytes": shard.nbytes,
            "records": [record.stated(native=native) for record in shard.records],
            "md5sum": shard.md5sum,
        }
        for shard in shards
    ]
    return json.dumps({"metadata": dict(metadata), "records": records}, indent=4).encode()


def read_cache(path: Path) -> tuple[dict[str, object], list[Shard]]:
    """The metadata and the shards that a list states; nothing of the shards is looked at.

    Raises:
        CorruptInputError: it contradicts itself, or is no such list.
        IncompatibleError: a type or a way of storing that this program does not read.
        ResourceLimitError, StorageError: see `read_json`.
    """
    content = read_json(path, LIMIT)
    entries = content.get("records") if isinstance(content, dict) else None
    metadata = content.get("metadata", {}) if isinstance(content, dict) else None
    if not isinstance(metadata, dict) or not isinstance(entries, list):
        raise CorruptInputError(f"{shown(path)}: no list of shards with metadata")
    shards = [_shard(path, entry) for entry in entries]
    _refuse_twice(path, "shard", [shard.name for shard in shards])
    _refuse_twice(path, "tensor", [record.name for shard in shards for record in shard.records])
    return metadata, shards


def _refuse_twice(path: Path, what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CorruptInputError(f"{shown(path)}: the {what} {shown(name)} stands twice")
        seen.add(name)


def _shard(path: Path, entry: object) -> Shard:
    name = entry.get("dataPath") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str):
        raise CorruptInputError(f"{shown(path)}: a shard without dataPath")
    where = f"{shown(path)}: shard {shown(name[:MAX_NAME])}"
    if PurePosixPath(name).as_posix() != name or not name.endswith(SUFFIX):
        raise CorruptInputError(f"{where}: is not the plain name of a {SUFFIX} file")
    if entry.get("format") != SHARD:
        raise _unknown(where, "format", entry.get("format"))
    nbytes, records, digest = entry.get("nbytes"), entry.get("records"), entry.get("md5sum")
    if not _is_natural(nbytes) or not isinstance(records, list):
        raise CorruptInputError(f"{where}: nbytes and records are expected")
    if digest is not None and not (isinstance(digest, str) and len(digest) <= 64):
        raise CorruptInputError(f"{where}: md5sum is no digest")
    found = tuple(_record(path, record) for record in records)
    position = 0
    for record in sorted(found, key=lambda record: (record.offset, record.end)):
        place = f"{where}: tensor {shown(record.name)}"
        if record.nbytes and record.offset < position:
            raise CorruptInputError(
                f"{place} overlaps the tensor before it, at byte {record.offset}"
            )
        if record.end > nbytes:
            raise CorruptInputError(f"{place} ends at byte {record.end}, the shard at {nbytes}")
        position = max(position, record.end)
    return Shard(name, nbytes, found, digest)


def _record(path: Path, entry: object) -> Record:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise CorruptInputError(f"{shown(path)}: a tensor without a name, or with too long a one")
    where = f"{shown(path)}: tensor {shown(name)}"
    shape, code, form = entry.get("shape"), entry.get("dtype"), entry.get("format")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(map(_is_natural, shape))
    ):
        raise CorruptInputError(f"{where}: shape {shown(str(shape)[:80])} is not a list of sizes")
    if not isinstance(code, str) or code not in DTYPES:
        raise _unknown(where, "dtype", code)
    if form not in (RAW, PACKED):
        raise _unknown(where, "format", form)
    nbytes, offset = entry.get("nbytes"), entry.get("byteOffset")
    if not _is_natural(offset):
        raise CorruptInputError(f"{where}: byteOffset {shown(str(offset)[:80])} is no place")
    record = Record(name, tuple(shape), DTYPES[code], form, offset)
    if not _is_natural(nbytes) or nbytes != record.nbytes:
        raise CorruptInputError(
            f"{where}: {code} ({form}) of shape {shown(str(shape)[:80])} needs {record.nbytes} "
            f"bytes, {shown(str(nbytes)[:80])} are stated"
        )
    return record


def _is_natural(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63


def _unknown(where: str, what: str, value: object) -> IncompatibleError:
    return IncompatibleError(
        f"{where}: the {what} {shown(str(value)[:80])} is not read here", code="UNKNOWN_FORMAT"
    )
