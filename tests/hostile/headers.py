"""Headers of safetensors files: what is wrong, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import INSPECT, MERGE, Case, framed, put, thinned

SOUND = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)


def one(data: bytes = DATA, **changes: Any) -> bytes:
    """A file with the tensor `sad.weight`, one field of it changed."""
    return framed(json.dumps({"sad.weight": SOUND | changes}).encode(), data)


def two(first: list[int], second: list[int], size: int) -> bytes:
    """Two tensors of 8 bytes that are said to lie at these places."""
    entries = {"joy.weight": SOUND | {"data_offsets": first}}
    entries["sad.weight"] = SOUND | {"data_offsets": second}
    return framed(json.dumps(entries).encode(), bytes(size))


def with_metadata(value: Any) -> bytes:
    return framed(json.dumps({"__metadata__": value, "sad.weight": SOUND}).encode(), DATA)


_TEXT = json.dumps({"sad.weight": SOUND}).encode()

# name -> file, words of the message beside the file's name
BROKEN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ()),
    "seven bytes": (bytes(7), ()),
    "no header": (bytes(8), ()),
    "length of 2^63": (framed(_TEXT, DATA, 2**63), ()),
    "length of 2^64 - 1": (framed(_TEXT, DATA, 2**64 - 1), ()),
    "length beyond the file": (framed(_TEXT, DATA, 10_000), ()),
    "length of more than 100 MB": (framed(_TEXT, DATA, 100_000_001), ()),
    "length that cuts the text": (framed(_TEXT, DATA, len(_TEXT) - 3), ()),
    "no JSON": (framed(b"{what is this}"), ()),
    "a pickle": (framed(b"\x80\x02}q\x00."), ()),
    "a list": (framed(b"[1, 2]"), ()),
    "spaces first": (framed(b"  " + _TEXT, DATA), ()),
    "no UTF-8": (framed(b'{"\xff": 1}'), ()),
    "deep nesting": (framed(b'{"a":' + b"[" * 60_000 + b"]" * 60_000 + b"}"), ()),
    "a name twice": (framed(_TEXT[:-1] + b"," + _TEXT[1:], DATA), ("twice",)),
    "overlap": (two([0, 8], [4, 12], 12), ("sad.weight",)),
    "the same bytes twice": (two([0, 8], [0, 8], 8), ("sad.weight",)),
    "gap": (two([0, 8], [16, 24], 24), ("sad.weight",)),
    "trailing bytes": (one(DATA + b"x"), ()),
    "truncated": (one(DATA[:7]), ("sad.weight",)),
    "shape too large": (one(shape=[3]), ("sad.weight",)),
    "shape too small": (one(shape=[1]), ("sad.weight",)),
    "wider type": (one(dtype="F64"), ("sad.weight",)),
    "unknown type": (one(dtype="F33"), ("sad.weight", "F33")),
    "type in a list": (one(dtype=["F32"]), ("sad.weight",)),
    "half a byte": (one(dtype="F4", shape=[1], data_offsets=[0, 1]), ("sad.weight",)),
    "negative size": (one(shape=[-2]), ("sad.weight",)),
    "two negative sizes": (one(shape=[-1, -2]), ("sad.weight",)),
    "true as a size": (one(shape=[True, 2]), ("sad.weight",)),
    "fractional size": (one(shape=[2.0]), ("sad.weight",)),
    "size of 2^63": (one(shape=[2**63]), ("sad.weight",)),
    "product of 2^80": (one(shape=[2**40, 2**40]), ("sad.weight",)),
    "product of 2^64": (one(shape=[2**32, 2**32]), ("sad.weight",)),
    "shape in a string": (one(shape="2"), ("sad.weight",)),
    "50 dimensions": (one(shape=[1] * 49 + [2]), ("sad.weight",)),
    "5000 dimensions": (one(shape=[1] * 4999 + [2]), ("sad.weight",)),
    "end of 2^62": (one(data_offsets=[0, 2**62]), ("sad.weight",)),
    "end of 2^200": (one(data_offsets=[0, 2**200]), ("sad.weight",)),
    "reversed": (one(data_offsets=[8, 0]), ("sad.weight",)),
    "negative start": (one(data_offsets=[-8, 0]), ("sad.weight",)),
    "three offsets": (one(data_offsets=[0, 4, 8]), ("sad.weight",)),
    "offset in a string": (one(data_offsets=["0", 8]), ("sad.weight",)),
    "a field too many": (one(more=1), ("sad.weight",)),
    "no fields": (framed(b'{"sad.weight": {}}'), ("sad.weight",)),
    "entry is a number": (framed(b'{"sad.weight": 8}'), ("sad.weight",)),
    "number of 5000 digits": (framed(b'{"sad.weight": ' + b"9" * 5000 + b"}"), ()),
    "metadata with a number": (with_metadata({"a": 1}), ("__metadata__",)),
    "metadata is a list": (with_metadata(["a"]), ("__metadata__",)),
    "name of 5000 characters": (framed(json.dumps({"n" * 5000: SOUND}).encode(), DATA), ("5000",)),
    "control characters in a name": (
        framed(json.dumps({"\x1b[31m\r\nadaptool: fine\x00\u202e": {}}).encode()),
        ("\\x1b[31m\\r\\n",),
    ),
    "half a surrogate in a name": (framed(b'{"a\\ud800": 1}'), ()),
}

_MANY = b"{" + b",".join(
    b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_001)
) + b"}"  # fmt: skip
_LISTS = b'{"a":[' + b",".join([b"[]"] * 2_000_000) + b"]}"


def _large(path: Path) -> None:
    """A header that the format allows but that is larger than any real one; takes no space."""
    with path.open("wb") as file:
        file.write((90_000_000).to_bytes(8, "little") + b"{")
        file.truncate(90_000_100)


def cases() -> list[Case]:
    """Every header in the model and in the adapter."""
    found = []
    for where, file, command in (
        ("base", "base/model.safetensors", MERGE),
        ("adapter", "adapter/adapter_model.safetensors", INSPECT),
    ):
        name = file.rpartition("/")[2]
        broken = [
            Case(f"{where}: {what}", 3, put(file, content), (name, *words), command)
            for what, (content, words) in BROKEN.items()
        ]
        found += thinned(broken, 3 if where == "base" else 6)
        found += [
            Case(f"{where}: 90 MB", 8, lambda f, p=file: _large(f / p), (name,), command),
            Case(f"{where}: 200,001 tensors", 8, put(file, framed(_MANY)), (name,), command),
            Case(f"{where}: two million lists", 8, put(file, framed(_LISTS)), (name,), command),
        ]
    return found
