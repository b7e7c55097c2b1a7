"""GGUF models that lie: what is wrong, and the file. Written without any library."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .files import Case, put

U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 2, 4, 5, 6, 7, 8, 9, 10, 12
TOP = 2**64 - 1
INSPECT = ("inspect", "model.gguf")


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(content: str | bytes, length: int | None = None) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return u64(len(data) if length is None else length) + data


def pair(key: str | bytes, kind: int, *data: bytes) -> list[bytes]:
    """A key and its value, field by field."""
    return [text(key), u32(kind), *data]


def array(key: str, element: int, count: int, *data: bytes) -> list[bytes]:
    return pair(key, ARRAY, u32(element), u64(count), *data)


def tensor(
    name: str | bytes = "t.weight", sizes: Sequence[int] = (4, 2), kind: int = 0, offset: int = 0,
    dimensions: int | None = None,
) -> list[bytes]:  # fmt: skip
    """What a file says of a tensor, field by field; sizes are as in the file, fastest first."""
    count = len(sizes) if dimensions is None else dimensions
    return [text(name), u32(count), *map(u64, sizes), u32(kind), u64(offset)]


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))


@dataclass(frozen=True)
class Forged:
    """A file in the fields that it consists of."""

    pairs: Sequence[list[bytes]] = (ARCHITECTURE,)
    tensors: Sequence[list[bytes]] = field(default_factory=lambda: (tensor(),))
    data: bytes = bytes(32)
    alignment: int = 32
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None

    def header(self) -> list[bytes]:
        """Every field before the data."""
        tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        keys = len(self.pairs) if self.key_count is None else self.key_count
        start = [self.magic, u32(self.version), u64(tensors), u64(keys)]
        return [*start, *(part for group in (*self.pairs, *self.tensors) for part in group)]

    @property
    def bytes(self) -> bytes:
        return self.joined(self.header())

    def joined(self, header: Sequence[bytes]) -> bytes:
        """These fields, padding and the data."""
        head = b"".join(header)
        return head + bytes(-len(head) % self.alignment) + self.data


def keyed(*pairs: list[bytes], alignment: int = 32) -> bytes:
    """A file with more keys."""
    return Forged((ARCHITECTURE, *pairs), alignment=alignment).bytes


def holding(*tensors: list[bytes], data: bytes = bytes(32)) -> bytes:
    """A file with these tensors."""
    return Forged(tensors=tensors, data=data).bytes


SOUND = Forged(
    (
        ARCHITECTURE,
        pair("general.alignment", U32, u32(64)),
        pair("general.name", STRING, text("Ünder")),
        pair("a.count", U32, u32(7)),
        pair("a.ratio", F32, struct.pack("<f", 0.5)),
        pair("a.double", F64, struct.pack("<d", 0.1)),
        pair("a.truth", BOOL, b"\x01"),
        pair("a.large", U64, u64(2**40)),
        array("a.sizes", I32, 3, u32(1), u32(2), u32(3)),
        array("a.truths", BOOL, 2, b"\x00\x01"),
        array("tokens", STRING, 3, text("a"), text(""), text("▁the")),
        array("nested", ARRAY, 2, u32(U8), u64(1), b"x", u32(STRING), u64(1), text("y")),
    ),
    (
        tensor("token_embd.weight", (4, 3)),
        tensor("blk.0.attn_q.weight", (32, 2), 8, 64),
        tensor("blk.0.ffn_up_exps.weight", (2, 3, 2), 1, 192),
        tensor("scalar", (), 0, 256),
        tensor("nothing", (0,), 0, 320),
        tensor("last", (5,), 30, 320),
    ),
    bytes(range(48)) + bytes(16) + bytes(range(68)) + bytes(60) + bytes(range(24)) + bytes(40)
    + bytes(4) + bytes(60) + bytes(range(10)) + bytes(54),
    64,
)  # fmt: skip
"""A file with something of everything."""

_TWO = (tensor("joy.weight", (8,)), tensor("sad.weight", (8,), offset=32))
_NESTED = [u32(ARRAY), u64(1)] * 5 + [u32(U8), u64(1), b"x"]

# name -> file, exit code, words of the message
BROKEN: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "empty": (b"", 3, ()),
    "magic only": (b"GGUF", 3, ()),
    "old magic": (Forged(magic=b"tjgg").bytes, 3, ("GGUF",)),
    "magic in small letters": (Forged(magic=b"gguf").bytes, 3, ("GGUF",)),
    "a zip": (b"PK\x03\x04" + bytes(100), 3, ("GGUF",)),
    "only zeros": (bytes(4096), 3, ("GGUF",)),
    "version 0": (Forged(version=0).bytes, 4, ("version 0",)),
    "version 1": (Forged(version=1).bytes, 4, ("version 1",)),
    "version 4": (Forged(version=4).bytes, 4, ("version 4",)),
    "version 2^32 - 1": (Forged(version=2**32 - 1).bytes, 4, ("version 4294967295",)),
    "big-endian": (Forged(version=3 << 24).bytes, 4, ("big-endian",)),
    "no counts": (SOUND.bytes[:8], 3, ()),
    "half the counts": (SOUND.bytes[:20], 3, ()),
    "2^64 - 1 tensors": (Forged(tensor_count=TOP).bytes, 3, (str(TOP),)),
    "2^64 - 1 keys": (Forged(key_count=TOP).bytes, 3, (str(TOP),)),
    "2^32 keys": (Forged(key_count=2**32).bytes, 3, ("4294967296",)),
    "2^40 tensors": (Forged(tensor_count=2**40).bytes, 3, ()),
    "a tensor too many": (Forged(tensor_count=2).bytes, 3, ()),
    "a tensor too few": (Forged(tensors=_TWO, data=bytes(64), tensor_count=1).bytes, 3, ()),
    "a key too many": (Forged(key_count=2).bytes, 3, ()),
    "a key too few": (Forged(key_count=0).bytes, 3, ()),
    "key of no length": (keyed(pair("", U8, b"x")), 3, ("a key of 0 bytes",)),
    "key of 2^64 - 1 bytes": (keyed([text("k", TOP), u32(U8), b"x"]), 3, (str(TOP),)),
    "key of 2^63 bytes": (keyed([text("k", 2**63), u32(U8), b"x"]), 3, ()),
    "key of 70,000 bytes": (keyed(pair("k" * 70_000, U8, b"x")), 3, ("70000",)),
    "key longer than the file": (keyed([text("k", 5000), u32(U8), b"x"]), 3, ("5000",)),
    "key not UTF-8": (keyed(pair(b"a.\xff", U8, b"x")), 3, ("UTF-8",)),
    "key of half a character": (keyed(pair(b"\xed\xa0\x80", U8, b"x")), 3, ("UTF-8",)),
    "key twice": (keyed(ARCHITECTURE), 3, ("general.architecture", "twice")),
    "key that a terminal obeys": (
        keyed(*[pair("\x1b[31m\r\n\u202e", U8, b"x")] * 2), 3, ("\\x1b[31m\\r\\n",)),
    "unknown kind": (keyed(pair("a.x", 13, u64(0))), 3, ("a.x", "13")),
    "kind 2^32 - 1": (keyed(pair("a.x", 2**32 - 1, u64(0))), 3, ("a.x",)),
    "string of 2^64 - 1 bytes": (keyed(pair("a.x", STRING, text("x", TOP))), 3, ("a.x",)),
    "string of 2^63 - 8 bytes": (keyed(pair("a.x", STRING, text("x", 2**63 - 8))), 3, ("a.x",)),
    "string longer than the file": (keyed(pair("a.x", STRING, text("x", 4096))), 3, ("a.x",)),
    "string not UTF-8": (keyed(pair("a.x", STRING, text(b"\xc3\x28"))), 3, ("a.x", "utf-8")),
    "neither true nor false": (keyed(pair("a.x", BOOL, b"\x02")), 3, ("a.x", "truth")),
    "elements of an unknown kind": (keyed(array("a.x", 13, 1, u64(0))), 3, ("a.x", "13")),
    "2^64 - 1 bytes in an array": (keyed(array("a.x", U8, TOP)), 3, ("a.x",)),
    "2^61 numbers in an array": (keyed(array("a.x", U64, 2**61)), 3, ("a.x",)),
    "2^62 + 1 numbers in an array": (keyed(array("a.x", U32, 2**62 + 1, u32(1))), 3, ("a.x",)),
    "2^61 strings in an array": (keyed(array("a.x", STRING, 2**61, text("x"))), 3, ("a.x",)),
    "2^64 - 1 strings in an array": (keyed(array("a.x", STRING, TOP, text("x"))), 3, ("a.x",)),
    "2^60 arrays in an array": (keyed(array("a.x", ARRAY, 2**60, u32(U8))), 3, ("a.x",)),
    "a string of 2^64 - 9 bytes in an array": (
        keyed(array("a.x", STRING, 2, text("x", TOP - 8), text("y"))), 3, ("a.x",)),
    "the last string too long": (keyed(array("a.x", STRING, 2, text("x"), text("y", 999))), 3, ()),
    "a string less than stated": (keyed(array("a.x", STRING, 9, text("x"))), 3, ()),
    "truths that are none": (keyed(array("a.x", BOOL, 2, b"\x01\xff")), 3, ("a.x", "truth")),
    "arrays six deep": (keyed(pair("a.x", ARRAY, *_NESTED)), 8, ("a.x", "nested")),
    "alignment of 0": (keyed(pair("general.alignment", U32, u32(0))), 3, ("alignment",)),
    "alignment of 3": (keyed(pair("general.alignment", U32, u32(3))), 3, ("alignment",)),
    "alignment of 2^31": (keyed(pair("general.alignment", U32, u32(2**31))), 3, ("alignment",)),
    "alignment in a string": (
        keyed(pair("general.alignment", STRING, text("32"))), 3, ("alignment", "STRING")),
    "alignment of 64 bits": (keyed(pair("general.alignment", U64, u64(32))), 3, ("alignment",)),
    "alignment of -32": (
        keyed(pair("general.alignment", I32, struct.pack("<i", -32))), 3, ("alignment",)),
    "alignment that the tensors do not keep": (
        Forged((ARCHITECTURE, pair("general.alignment", U32, u32(64))), _TWO, bytes(64)).bytes,
        3, ("sad.weight",)),
    "a type in a number": (keyed(pair("general.type", U32, u32(1))), 3, ("general.type",)),
    "types in a list": (
        keyed(array("general.type", STRING, 1, text("model"))), 3, ("general.type",)),
    "a type of 100,000 letters": (
        keyed(pair("general.type", STRING, text("x" * 100_000))), 3, ("general.type",)),
    "name of 64 bytes": (holding(tensor("n" * 64)), 3, ("64",)),
    "name of 32 letters and 64 bytes": (holding(tensor("é" * 32)), 3, ("64",)),
    "name of no length": (holding(tensor("")), 3, ("name",)),
    "name of 2^64 - 1 bytes": (holding([text("t", TOP), *tensor()[1:]]), 3, (str(TOP),)),
    "name not UTF-8": (holding(tensor(b"\xfft")), 3, ("UTF-8",)),
    "name twice": (
        holding(tensor("sad"), tensor("sad", offset=32), data=bytes(64)), 3, ("sad", "twice")),
    "name that a terminal obeys": (
        holding(tensor("\x1b[2J\n", (4, 999))), 3, ("\\x1b[2J\\n",)),
    "5 dimensions": (holding(tensor(sizes=(8, 1, 1, 1, 1))), 3, ("t.weight", "5")),
    "2^32 - 1 dimensions": (holding(tensor(dimensions=2**32 - 1)), 3, ("t.weight",)),
    "3 dimensions stated, 2 given": (holding(tensor(dimensions=3)), 3, ("end at",)),
    "size of 2^63": (holding(tensor(sizes=(2**63,))), 3, ("t.weight",)),
    "size of 2^64 - 1": (holding(tensor(sizes=(TOP, 1))), 3, ("t.weight",)),
    "a size of 2^64 - 1 and one of 0": (holding(tensor(sizes=(TOP, 0))), 3, ("t.weight",)),
    "product of 2^64": (holding(tensor(sizes=(2**32, 2**32))), 3, ("t.weight",)),
    "product of 2^64 + 8": (holding(tensor(sizes=(8, 2**61 + 1))), 3, ("t.weight",)),
    "product of 2^252": (holding(tensor(sizes=(2**63 - 1,) * 4)), 3, ("t.weight",)),
    "bytes of 2^64": (holding(tensor(sizes=(2**62,))), 3, ("t.weight",)),
    "larger than the file": (holding(tensor(sizes=(4, 3))), 3, ("t.weight",)),
    "rows that do not fit the blocks": (
        holding(tensor(sizes=(33, 1), kind=8), data=bytes(64)), 3, ("t.weight", "Q8_0")),
    "a scalar in blocks": (holding(tensor(sizes=(), kind=8), data=bytes(64)), 3, ("t.weight",)),
    "a removed type": (holding(tensor(kind=4)), 4, ("t.weight", "type 4")),
    "an unknown type": (holding(tensor(kind=99)), 4, ("t.weight", "type 99")),
    "type 2^32 - 1": (holding(tensor(kind=2**32 - 1)), 4, ("t.weight",)),
    "offset of 1": (holding(tensor(offset=1)), 3, ("t.weight",)),
    "offset of 32": (holding(tensor(offset=32), data=bytes(64)), 3, ("t.weight",)),
    "offset of 2^63": (holding(tensor(offset=2**63)), 3, ("t.weight",)),
    "offset of 2^64 - 32": (holding(tensor(offset=2**64 - 32)), 3, ("t.weight",)),
    "overlap": (
        holding(_TWO[0], tensor("sad.weight", (8,)), data=bytes(64)), 3, ("sad.weight",)),
    "gap": (
        holding(_TWO[0], tensor("sad.weight", (8,), offset=64), data=bytes(96)),
        3, ("sad.weight",)),
    "swapped": (holding(_TWO[1], _TWO[0], data=bytes(64)), 3, ("sad.weight",)),
    "a byte short": (holding(tensor(), data=bytes(31)), 3, ("t.weight", "ends at")),
    "no data": (holding(tensor(), data=b""), 3, ("t.weight",)),
    "a byte too many": (holding(tensor(), data=bytes(33)), 3, ("tensors end at",)),
    "two files in one": (holding(tensor(), data=bytes(32)) * 2, 3, ("tensors end at",)),
    "part of a split model by another name": (
        keyed(pair("split.count", U16, b"\x03\0"), pair("split.no", U16, b"\0\0")),
        3, ("part 1 of 3",)),
    "split.count in a string": (keyed(pair("split.count", STRING, text("3"))), 3, ("split.count",)),
    "split.count of -1": (
        keyed(pair("split.count", I32, struct.pack("<i", -1))), 3, ("split.count",)),
}  # fmt: skip


def part(number: int, count: int, total: int, name: str = "t", **more: int) -> bytes:
    """One of the files of a split model."""
    own = [pair(key, U32, u32(value)) for key, value in more.items()]
    start = (ARCHITECTURE,) if number == 0 else ()
    return Forged(
        (
            *start,
            *own,
            pair("split.no", U16, struct.pack("<H", number)),
            pair("split.count", U16, struct.pack("<H", count)),
            pair("split.tensors.count", I32, struct.pack("<i", total)),
        ),
        (tensor(f"{name}.{number}"),),
    ).bytes


def parts(*contents: bytes | None, stated: int | None = None) -> Callable[[Path], object]:
    """Damage: a split model of these files; None for one that is missing."""

    def damage(folder: Path) -> None:
        count = len(contents) if stated is None else stated
        for number, content in enumerate(contents, 1):
            if content is not None:
                put(f"model-{number:05d}-of-{count:05d}.gguf", content)(folder)

    return damage


def _sparse(header: bytes, size: int) -> Callable[[Path], object]:
    """Damage: a file of `size` bytes that takes no space."""

    def damage(folder: Path) -> None:
        with (folder / "model.gguf").open("wb") as file:
            file.write(header)
            file.truncate(size)

    return damage


def _two_models(folder: Path) -> None:
    (folder / "models").mkdir()
    for name in ("one", "other"):
        put(f"models/{name}.gguf", SOUND.bytes)(folder)


def cases() -> list[Case]:
    """All of them, as command lines."""
    opened = [
        Case(f"gguf: {what}", code, put("model.gguf", content), ("model.gguf", *words), INSPECT,
             inside=bool(number % 8))
        for number, (what, (content, code, words)) in enumerate(BROKEN.items())
    ]  # fmt: skip
    first = ("inspect", "model-00001-of-00002.gguf")
    second = ("inspect", "model-00002-of-00002.gguf")
    head = Forged((ARCHITECTURE, array("a.x", U8, 2**31)), ()).header()
    strings = Forged((ARCHITECTURE, array("a.x", STRING, 5_000_000)), ()).header()
    arrays = Forged((ARCHITECTURE, array("a.x", ARRAY, 1_000_000)), ()).header()
    return [
        *opened,
        Case("gguf: header of 2 GB", 8, _sparse(b"".join(head), 2**31 + 200), ("header",), INSPECT),
        Case("gguf: 5,000,000 strings", 8, _sparse(b"".join(strings), 2**26), ("a.x",), INSPECT),
        Case("gguf: 1,000,000 arrays", 8, _sparse(b"".join(arrays), 2**26), ("a.x",), INSPECT),
        Case("gguf: 200,001 tensors", 8,
             _sparse(b"".join(Forged(tensor_count=200_001).header()), 2**24), ("200001",), INSPECT),
        Case("gguf: 100,001 keys", 8,
             _sparse(b"".join(Forged(key_count=100_001).header()), 2**24), ("100001",), INSPECT),
        Case("gguf: second part missing", 6, parts(part(0, 2, 2), None),
             ("model-00002-of-00002.gguf", "part 2 of 2"), first, inside=True),
        Case("gguf: first part missing", 6, parts(None, part(1, 2, 2)),
             ("model-00001-of-00002.gguf",), second, inside=True),
        Case("gguf: 65,535 parts", 6, parts(part(0, 65_535, 2), stated=65_535),
             ("model-00002-of-65535.gguf",), ("inspect", "model-00001-of-65535.gguf")),
        Case("gguf: a part twice", 3, parts(part(0, 2, 2), part(0, 2, 2)),
             ("model-00002-of-00002.gguf", "part 1 of 2"), first, inside=True),
        Case("gguf: part of a larger model", 3, parts(part(0, 2, 2), part(1, 3, 2)),
             ("model-00002-of-00002.gguf", "part 2 of 3"), first, inside=True),
        Case("gguf: a part that is whole", 3, parts(part(0, 2, 2), SOUND.bytes),
             ("model-00002-of-00002.gguf",), first, inside=True),
        Case("gguf: too few tensors in all", 3, parts(part(0, 2, 3), part(1, 2, 3)),
             ("3 tensors",), first, inside=True),
        Case("gguf: -1 tensors in all", 3, parts(part(0, 2, -1), part(1, 2, -1)),
             ("split.tensors.count",), first, inside=True),
        Case("gguf: parts that contradict each other", 3,
             parts(part(0, 2, 2, a=1), part(1, 2, 2, a=2)), ("differs",), first, inside=True),
        Case("gguf: a tensor in two parts", 3,
             parts(part(0, 2, 2), part(1, 2, 2).replace(text("t.1"), text("t.0"))),
             ("t.0",), first, inside=True),
        Case("gguf: a broken second part", 3, parts(part(0, 2, 2), part(1, 2, 2)[:-1]),
             ("model-00002-of-00002.gguf", "ends at"), first, inside=True),
        Case("gguf: a file name that a terminal obeys", 3,
             put("\x1b[2J\n.gguf", BROKEN["no data"][0]), ("\\x1b[2J\\n.gguf", "t.weight"),
             ("inspect", "\x1b[2J\n.gguf"), inside=True),
        Case("gguf: two models in a folder", 4, _two_models, ("2 GGUF models",),
             ("inspect", "models"), inside=True),
    ]  # fmt: skip
