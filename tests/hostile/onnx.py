"""ONNX models that lie: what is wrong, and the file. Written without any library."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import Case

INSPECT = ("inspect", "models/model.onnx")
FLOAT, UINT8, INT64, STRING, BFLOAT16, INT4 = 1, 2, 7, 8, 16, 22
TOP = 2**64 - 1
DATA = bytes(range(256)) * 8
"""The content of a data file."""

Message = Sequence[bytes]
"""A message in the fields that it consists of."""


def varint(number: int) -> bytes:
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % 2**64)


def blob(field: int, content: bytes | str | Message, length: int | None = None) -> bytes:
    """A field of bytes, text or a message; `length` is what it states."""
    if isinstance(content, str):
        content = content.encode()
    data = content if isinstance(content, bytes) else b"".join(content)
    return varint(field << 3 | 2) + varint(len(data) if length is None else length) + data


def tensor(
    name: str | bytes = "w", dims: Sequence[int] = (4, 2), kind: int = FLOAT,
    raw: bytes | None = None, *more: bytes,
) -> list[bytes]:  # fmt: skip
    """A TensorProto; without `raw`, `more` has its values."""
    fields = [*(number(1, size) for size in dims), number(2, kind)]
    fields += [blob(8, name)] if name else []
    return fields + ([] if raw is None else [blob(9, raw)]) + list(more)


def external(dims: Sequence[int] = (4, 2), kind: int = FLOAT, **entries: object) -> list[bytes]:
    """A TensorProto whose values lie in a data file."""
    pairs = [blob(13, [blob(1, key), blob(2, str(value))]) for key, value in entries.items()]
    return [*tensor("w", dims, kind), *pairs, number(14, 1)]


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: Message,
         domain: str = "") -> list[bytes]:  # fmt: skip
    return [
        *(blob(1, one) for one in inputs), *(blob(2, one) for one in outputs), blob(3, f"/{op}"),
        blob(4, op), *(blob(5, one) for one in attributes), blob(7, domain),
    ]  # fmt: skip


def value(name: str, *sizes: int | str) -> list[bytes]:
    dims = [blob(1, [number(1, n) if isinstance(n, int) else blob(2, n)]) for n in sizes]
    return [blob(1, name), blob(2, [blob(1, [number(1, FLOAT), blob(2, dims)])])]


def graph(tensors: Sequence[Message], nodes: Sequence[Message] = (), *more: bytes) -> list[bytes]:
    return [
        *(blob(1, one) for one in nodes), blob(2, "g"), *(blob(5, one) for one in tensors),
        blob(11, value("x", "n", 4)), blob(12, value("y", "n", 2)), *more,
    ]  # fmt: skip


def model(inner: Message, *more: bytes) -> bytes:
    opsets = blob(8, [number(2, 21)]), blob(8, [blob(1, "com.microsoft"), number(2, 1)])
    return b"".join([number(1, 10), blob(7, inner), *opsets, *more])


def holding(*tensors: Message) -> bytes:
    return model(graph(tensors))


def floats(count: int) -> bytes:
    return struct.pack(f"<{count}f", *range(count))


def nested(depth: int, padding: bytes = b"") -> Message:
    """Graphs in graphs, which hold padding at the bottom."""
    inner: Message = graph([tensor("deep", (4, 2), FLOAT, floats(8)), *[tensor("p", (len(padding),),
                           UINT8, padding)] * bool(padding)])  # fmt: skip
    for _ in range(depth):
        inner = graph([], [branching(inner)])
    return inner


PACKED = node("MatMulNBits", ["x", "q", "s"], ["z"], *(
    [blob(1, key), number(3, size), number(20, 2)]
    for key, size in (("K", 32), ("N", 2), ("bits", 4), ("block_size", 16))
), domain="com.microsoft")  # fmt: skip
BRANCH = graph([tensor("inner", (300,), FLOAT, floats(300))], [node("Neg", ["inner"], ["out"])])
SOUND_TENSORS: tuple[list[bytes], ...] = (
    tensor("w", (4, 2), FLOAT, floats(8)),
    tensor("large", (40, 10), FLOAT, floats(400)),
    tensor("typed", (300,), FLOAT, None, blob(4, floats(300))),
    tensor("few", (3,), INT64, None, blob(7, varint(5) + varint(TOP) + varint(7))),
    tensor("text", (2,), STRING, None, blob(6, "a"), blob(6, "b")),
    tensor("nothing", (0, 3), FLOAT),
    tensor("scalar", (), FLOAT, floats(1)),
    tensor("nibbles", (3,), INT4, b"\x21\x03"),
    tensor("q", (2, 2, 8), UINT8, bytes(range(32))),
    tensor("s", (2, 2), FLOAT, floats(4)),
    [*external((16, 16), FLOAT, location="data.bin", offset=64, length=1024)[:3], blob(8, "far"),
     *external((16, 16), FLOAT, location="data.bin", offset=64, length=1024)[4:]],
)  # fmt: skip


def constant(name: str, count: int) -> list[bytes]:
    values = tensor("", (count,), FLOAT, floats(count))
    return node("Constant", [], [name], [blob(1, "value"), blob(5, values), number(20, 4)])


def branching(inner: Message) -> list[bytes]:
    return node("If", ["c"], ["z"], [blob(1, "then_branch"), blob(6, inner), number(20, 5)])


SOUND_NODES: tuple[list[bytes], ...] = (
    node("MatMul", ["x", "w"], ["y"]),
    constant("c", 2),
    constant("big", 500),
    branching(BRANCH),
    PACKED,
)
SOUND = model(
    graph(SOUND_TENSORS, SOUND_NODES), blob(14, [blob(1, "key"), blob(2, "text")])
)  # fmt: skip

_W = tensor("w", (4, 2), FLOAT, floats(8))
_SEGMENT = blob(3, [number(1, 0), number(2, 8)])

BROKEN: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "empty": (b"", 3, ("no graph",)),
    "text": (b"# ONNX models are not text\n" * 9, 3, ()),
    "zeros": (bytes(4096), 3, ()),
    "ones": (b"\xff" * 4096, 3, ()),
    "no graph": (number(1, 10), 3, ("no graph",)),
    "half a model": (SOUND[: len(SOUND) // 2], 3, ("at byte",)),
    "graph longer than the file": (
        number(1, 10) + blob(7, graph([_W]), 5000), 3, ("5000 bytes",)),
    "graph of 2^64 - 1 bytes": (number(1, 10) + blob(7, graph([_W]), TOP), 3, (str(TOP),)),
    "a number of eleven bytes": (b"\x08" + b"\xff" * 10 + b"\x01", 3, ("does not end",)),
    "a field of type 3": (model(graph([_W])) + b"\x0b", 3, ("type 3",)),
    "two graphs": (model([*graph([_W]), blob(10, "x" * 2000)], blob(7, graph([_W]) * 40)), 3,
                   ("twice",)),
    "tensor without a name": (holding(tensor("", (4, 2), FLOAT, floats(8))), 3, ("no name",)),
    "name twice": (holding(_W, _W), 3, ("two tensors", "w")),
    "name not UTF-8": (holding(tensor(b"\xff\xfe", (4, 2), FLOAT, floats(8))), 3, ("UTF-8",)),
    "name that a terminal obeys": (
        holding(tensor("\x1b[31m\r\n\u202e", (4, 2), FLOAT, b"")), 3, ("\\x1b[31m\\r\\n",)),
    "negative size": (holding(tensor("w", (-4, 2), FLOAT, floats(8))), 3, ("negative", "-4")),
    "two negative sizes": (holding(tensor("w", (-4, -2), FLOAT, floats(8))), 3, ("negative",)),
    "size of 2^62": (holding(tensor("w", (2**62,), FLOAT, floats(8))), 3, ("32 bytes",)),
    "sizes of 2^63 - 1": (holding(tensor("w", (2**63 - 1,) * 4, FLOAT, floats(8))), 3, ()),
    "1,000 sizes": (holding(tensor("w", (2**40,) * 1000, FLOAT, floats(8))), 3, ("impossible",)),
    "sizes without values": (holding(tensor("w", (4, 2), FLOAT)), 3, ("0 bytes",)),
    "raw_data shorter than dims": (holding(tensor("w", (4, 2), FLOAT, bytes(31))), 3, ("31",)),
    "raw_data longer than dims": (holding(tensor("w", (4, 2), FLOAT, bytes(33))), 3, ("33",)),
    "large raw_data a byte short": (holding(tensor("w", (4000,), FLOAT, bytes(15999))), 3,
                                    ("15999",)),
    "values of no size": (holding(tensor("w", (0, 2), FLOAT, bytes(4))), 3, ("4 bytes",)),
    "unknown type": (holding(tensor("w", (4, 2), 99, floats(8))), 3, ("type 99",)),
    "no type": (holding(tensor("w", (4, 2), 0, floats(8))), 3, ("type 0",)),
    "type -1": (holding(tensor("w", (4, 2), -1, floats(8))), 3, ("type -1",)),
    "values twice": (holding(tensor("w", (2,), FLOAT, floats(2), blob(4, floats(2)))), 3,
                     ("twice",)),
    "large values twice": (
        holding(tensor("w", (300,), FLOAT, floats(300), blob(4, floats(300)))), 3, ("twice",)),
    "large raw_data twice": (
        holding(tensor("w", (300,), FLOAT, floats(300), blob(9, floats(300)))), 3, ("twice",)),
    "values in another type's field": (
        holding(tensor("w", (2,), INT64, None, blob(4, floats(2)))), 3, ("float_data",)),
    "large values in another type's field": (
        holding(tensor("w", (300,), INT64, None, blob(4, floats(600)))), 3, ("another type",)),
    "too few strings": (holding(tensor("w", (3,), STRING, None, blob(6, "a"))), 3, ("string",)),
    "a segment": (holding([*_W, _SEGMENT]), 3, ("segment",)),
    "graphs 60 deep": (model(nested(60, bytes(3000))), 3, ("nested",)),
    "small graphs 60 deep": (model(nested(60)), 3, ()),
    "in a branch, a byte short": (
        model(graph([_W], [node("If", ["c"], ["z"], [blob(1, "b"), blob(6, graph([tensor("v",
              (2,), FLOAT, bytes(7))])), number(20, 5)])])), 3, ("7 bytes",)),
    "in a Constant, a byte short": (
        model(graph([_W], [node("Constant", [], ["c"], [blob(1, "value"), blob(5, tensor("",
              (2,), FLOAT, bytes(7))), number(20, 4)])])), 3, ("7 bytes",)),
}  # fmt: skip
"""What is wrong -> the file, the exit code and what the message has to name."""

_OUT: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "location ..": ({"location": "../secret.bin"}, ("../secret.bin",)),
    "location inside, then ..": ({"location": "sub/../../secret.bin"}, ("secret.bin",)),
    "absolute location": ({"location": "/etc/passwd"}, ("/etc/passwd",)),
    "location with a drive": ({"location": "C:\\secret.bin"}, ("secret.bin",)),
    "location with backslashes": ({"location": "..\\secret.bin"}, ("secret.bin",)),
    "location with NUL": ({"location": "data.bin\0"}, ("data.bin",)),
    "no location": ({"offset": 0}, ("location",)),
    "empty location": ({"location": ""}, ("location",)),
    "location is the folder": ({"location": "."}, ()),
    "symbolic link out": ({"location": "link.bin"}, ("link.bin", "leads out")),
    "folder that leads out": ({"location": "out/secret.bin"}, ("leads out",)),
    "hard link out": ({"location": "hard.bin"}, ("hard.bin", "hard links")),
    "a pipe": ({"location": "pipe"}, ("pipe", "regular")),
    "a folder": ({"location": "sub"}, ("sub", "regular")),
    "length beyond the file": ({"location": "data.bin", "offset": 2040, "length": 32},
                               ("2040 to 2072", "2048")),
    "offset beyond the file": ({"location": "data.bin", "offset": 2**40}, ("2048",)),
    "offset 2^63": ({"location": "data.bin", "offset": 2**63}, ()),
    "offset of 30 digits": ({"location": "data.bin", "offset": 10**29}, ("offset",)),
    "negative offset": ({"location": "data.bin", "offset": -1}, ("offset", "-1")),
    "offset that is no number": ({"location": "data.bin", "offset": "0x10"}, ("offset",)),
    "offset in other digits": ({"location": "data.bin", "offset": "\u0661"}, ("offset",)),
    "negative length": ({"location": "data.bin", "length": -32}, ("length",)),
    "length of another size": ({"location": "data.bin", "length": 16}, ("16 bytes", "32")),
    "length 2^62": ({"location": "data.bin", "length": 2**62}, ("32",)),
}  # fmt: skip
"""External data: entries -> what the message has to name."""


def lay_files(folder: Path) -> Path:
    """`models/` with a data file and ways out of it, and a secret beside it."""
    (folder / "secret.bin").write_bytes(DATA)
    models = folder / "models"
    (models / "sub").mkdir(parents=True)
    (models / "data.bin").write_bytes(DATA)
    (models / "link.bin").symlink_to("../secret.bin")
    (models / "out").symlink_to("..")
    (models / "hard.bin").hardlink_to(folder / "secret.bin")
    os.mkfifo(models / "pipe")
    return models


def _put(content: bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (lay_files(folder) / "model.onnx").write_bytes(content)

    return damage


def _huge(folder: Path) -> None:
    path = lay_files(folder) / "model.onnx"
    path.write_bytes(SOUND)
    with path.open("r+b") as file:
        file.truncate(2**31)


def _padded(folder: Path) -> None:
    """A doc_string of 200 MB, which is no tensor's."""
    inner = b"".join(graph([_W]))
    path = lay_files(folder) / "model.onnx"
    head = number(1, 10) + varint(6 << 3 | 2) + varint(200 << 20)
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.seek(len(head) + (200 << 20))
        file.write(blob(7, inner))


def cases() -> list[Case]:
    """All of them, as command lines."""
    broken = [
        Case(f"onnx: {what}", code, _put(content), ("model.onnx", *words), INSPECT,
             inside=bool(index % 8))
        for index, (what, (content, code, words)) in enumerate(BROKEN.items())
    ]  # fmt: skip
    outside = [
        Case(f"onnx data: {what}", 3, _put(holding(external(**entries))), words, INSPECT,
             inside=bool(index % 8))
        for index, (what, (entries, words)) in enumerate(_OUT.items())
    ]  # fmt: skip
    twice = [*external(location="data.bin"), blob(13, [blob(1, "location"), blob(2, "x")])]
    both = [*external(location="data.bin"), blob(9, floats(8))]
    missing = _put(holding(external(location="missing.bin")))
    return [
        *broken,
        *outside,
        Case("onnx data: location twice", 3, _put(holding(twice)), ("twice",), INSPECT,
             inside=True),
        Case("onnx data: in two places", 3, _put(holding(both)), ("both",), INSPECT, inside=True),
        Case("onnx data: strings", 3, _put(holding(external((1,), STRING, location="data.bin"))),
             ("string",), INSPECT, inside=True),
        Case("onnx data: missing", 6, missing, ("missing.bin",), INSPECT, inside=True),
        Case("onnx: 2 GiB", 3, _huge, ("2 GiB",), INSPECT),
        Case("onnx: 200 MB beside the tensors", 8, _padded, ("128 MiB",), INSPECT),
    ]  # fmt: skip
