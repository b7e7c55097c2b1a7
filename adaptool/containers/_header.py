"""The header of a safetensors file, read without trusting it.

Format: https://huggingface.co/docs/safetensors - 8 bytes little-endian length, that many bytes
of JSON `name -> {dtype, shape, data_offsets}`, then the tensors, contiguous, to the end.
Everything is checked against the size of the file before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from adaptool.canonical import DType, LazyTensor, Stored
from adaptool.canonical.tensors import from_storage
from adaptool.errors import CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile, refuse_surrogates, shown

MAX_HEADER = 32 << 20
"""Bytes; the largest published models need about 15 MB."""
SPEC_HEADER = 100_000_000
MAX_TENSORS = 200_000
"""Per file; the largest published models have half as many in all their files."""
MAX_DIMENSIONS = 32
MAX_NAME = 1024

NAMES = {
    "F64": DType.FLOAT64, "F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16,
    "F8_E4M3": DType.FLOAT8_E4M3, "F8_E5M2": DType.FLOAT8_E5M2, "F8_E8M0": DType.FLOAT8_E8M0,
    "F8_E4M3FNUZ": DType.FLOAT8_E4M3FNUZ, "F8_E5M2FNUZ": DType.FLOAT8_E5M2FNUZ,
    "F6_E2M3": DType.FLOAT6_E2M3, "F6_E3M2": DType.FLOAT6_E3M2, "F4": DType.FLOAT4,
    "C64": DType.COMPLEX64, "BOOL": DType.BOOL,
    "I64": DType.INT64, "I32": DType.INT32, "I16": DType.INT16, "I8": DType.INT8,
    "U64": DType.UINT64, "U32": DType.UINT32, "U16": DType.UINT16, "U8": DType.UINT8,
}  # fmt: skip
CODES = {dtype: code for code, dtype in NAMES.items()}


@dataclass(frozen=True)
class Header:
    """A checked header: lazy tensors in file order, free metadata, and its digest."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]
    sha256: str


def read_header(source: SourceFile) -> Header:
    """Parse and check the header of an open file.

    Raises:
        CorruptInputError: any contradiction, naming file and tensor.
        ResourceLimitError: a header that the format allows but this program does not read.
    """
    path = source.path
    if source.size < 8:
        raise CorruptInputError(f"{path}: {source.size} bytes are too few for a safetensors file")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > source.size - 8 or length > SPEC_HEADER:
        raise CorruptInputError(
            f"{path}: header of {length} bytes stated, {source.size - 8} bytes follow",
            hint="not a safetensors file, or truncated: download it again",
        )
    if length > MAX_HEADER:
        raise ResourceLimitError(f"{path}: header of {length} bytes, at most {MAX_HEADER} are read")
    raw = source.read(8, length)
    if raw.count(b"{") > MAX_TENSORS or raw.count(b"[") > 3 * MAX_TENSORS:
        raise ResourceLimitError(f"{path}: more than {MAX_TENSORS} tensors stated")
    entries = _parse(raw, path)
    metadata = _metadata(entries.pop("__metadata__", {}), path)
    start = 8 + length
    tensors: dict[str, LazyTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        tensor = _tensor(source, name, entry, start)
        if tensor.stored is None:
            raise TypeError(name)
        tensors[name] = tensor
        spans.append((tensor.stored.offset, tensor.stored.offset + tensor.stored.size, name))
    position = start
    for begin, end, name in sorted(spans):
        if begin != position:
            word = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise CorruptInputError(f"{path}: tensor {shown(name)} {word}, at byte {begin}")
        position = end
    if position != source.size:
        raise CorruptInputError(
            f"{path}: tensors end at byte {position}, the file at {source.size}",
            hint="truncated or padded: download it again",
        )
    ordered = {name: tensors[name] for _, _, name in sorted(spans)}
    return Header(ordered, metadata, hashlib.sha256(raw).hexdigest())


def _parse(raw: bytes, path: Path) -> dict[str, object]:
    if not raw.startswith(b"{"):
        raise CorruptInputError(f"{path}: the header is not a JSON object")
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique)
        refuse_surrogates(text, value)
    except (ValueError, RecursionError) as error:
        raise CorruptInputError(f"{path}: the header is not valid: {error}") from None
    if not isinstance(value, dict):
        raise CorruptInputError(f"{path}: the header is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name stands twice")
    return value


def _metadata(value: object, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise CorruptInputError(f"{path}: __metadata__ is not a table of strings")
    return value


def _tensor(source: SourceFile, name: str, entry: object, start: int) -> LazyTensor:
    where = f"{source.path}: tensor {shown(name)}"
    if len(name) > MAX_NAME:
        raise CorruptInputError(f"{source.path}: a tensor name of {len(name)} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptInputError(f"{where}: expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in NAMES:
        raise CorruptInputError(f"{where}: unknown dtype {shown(str(code))}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise CorruptInputError(f"{where}: shape {shown(str(shape)[:80])} is not a list of sizes")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptInputError(f"{where}: data_offsets {shown(str(offsets)[:80])} are no range")
    begin, end = offsets
    if start + end > source.size:
        raise CorruptInputError(
            f"{where}: ends at byte {start + end}, the file at {source.size}",
            hint="truncated: download it again",
        )
    dtype = NAMES[code]
    bits = prod(shape) * dtype.bits
    if bits != (end - begin) * 8:
        raise CorruptInputError(
            f"{where}: {code} of shape {shape} needs {bits // 8} bytes, {end - begin} are stated"
        )
    return from_storage(Stored(source, start + begin, end - begin), tuple(shape), dtype)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def write_header(
    tensors: dict[str, LazyTensor], metadata: dict[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Bytes of a header for tensors laid out in this order, and the offset of each tensor.

    Offsets count from the start of the file. The header is padded with spaces to a multiple
    of 8 bytes, as the format's own writer does.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    relative: dict[str, int] = {}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        entries[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        relative[name] = position
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {n: start + o for n, o in relative.items()}
