"""GGUF values and headers, against the gguf package's writer and reader."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.containers import SaveOptions
from adaptool.containers.gguf import Kind, Value, general_type, save_file
from adaptool.containers.gguf.cursor import STEP, Cursor
from adaptool.containers.gguf.header import HELD, Header, read_header
from adaptool.encodings.ggml import TYPES
from adaptool.errors import CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile

TEXTS = ["", "a", "▁the", "é" * 300, "\x00", "emoji 🐢", "x" * 5000]


def header_of(path: Path) -> Header:
    return read_header(SourceFile.open(path))


def write_with_gguf(path: Path, fill, endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE) -> Path:
    """A file of the gguf package's writer."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SCALARS = {
    "u8": (Value.u8(255), 255), "u16": (Value.u16(65_535), 65_535),
    "u32": (Value.u32(2**32 - 1), 2**32 - 1), "i32": (Value.i32(-(2**31)), -(2**31)),
    "u64": (Value.u64(2**64 - 1), 2**64 - 1), "i64": (Value.i64(-(2**63)), -(2**63)),
    "f32": (Value.f32(0.1), float(np.float32(0.1))), "f64": (Value.f64(0.1), 0.1),
    "bool": (Value.boolean(True), True), "string": (Value.string("▁é"), "▁é"),
    "strings": (Value.strings(TEXTS), TEXTS), "no strings": (Value.strings([]), []),
    "ints": (Value.ints([-1, 2]), [-1, 2]), "bytes": (Value.ints([0, 255], Kind.U8), [0, 255]),
    "floats": (Value.floats([0.5, 2]), [0.5, 2.0]),
    "doubles": (Value.floats([0.1], Kind.F64), [0.1]),
    "booleans": (Value.booleans([True, False]), [True, False]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALARS)
def test_a_value_is_what_it_was_made_of(name):
    value, plain = SCALARS[name]
    assert value.plain() == plain
    assert type(value.plain()) is type(plain)
    assert len(value.encoded()) == value.size
    assert value.encoded()[:4] == struct.pack("<I", value.kind)


@pytest.mark.parametrize(
    "make",
    [lambda: Value.u8(256), lambda: Value.u32(-1), lambda: Value.i32(2**31),
     lambda: Value.ints([1, 2**40]), lambda: Value.f32(1e300), lambda: Value.u16(0.5)],
)  # fmt: skip
def test_a_number_that_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match="not values of the kind"):
        make()


def test_the_gguf_package_reads_every_kind(tmp_path):
    path = tmp_path / "x.gguf"
    values = {name.replace(" ", "_"): value for name, (value, _) in SCALARS.items()}
    save_file(path, {"general.architecture": Value.string("llama")} | values, {}, SaveOptions())
    fields = gguf.GGUFReader(path).fields
    for name, (_, plain) in SCALARS.items():
        assert fields[name.replace(" ", "_")].contents() == plain, name


def test_every_kind_of_the_gguf_package_is_read(tmp_path):
    def fill(writer):
        writer.add_uint8("u8", 1)
        writer.add_int8("i8", -1)
        writer.add_uint16("u16", 2)
        writer.add_int16("i16", -2)
        writer.add_uint32("u32", 3)
        writer.add_int32("i32", -3)
        writer.add_uint64("u64", 4)
        writer.add_int64("i64", -4)
        writer.add_float32("f32", 0.5)
        writer.add_float64("f64", 0.1)
        writer.add_bool("bool", True)
        writer.add_string("string", "▁é")
        writer.add_array("strings", TEXTS)
        writer.add_array("ints", [1, -2])
        writer.add_array("floats", [0.5])
        writer.add_array("truths", [True, False])
        writer.add_array("nested", [[1, 2], [3]])

    values = header_of(write_with_gguf(tmp_path / "x.gguf", fill)).values
    assert {key: value.plain() for key, value in values.items()} == {
        "general.architecture": "llama",
        "u8": 1, "i8": -1, "u16": 2, "i16": -2, "u32": 3, "i32": -3, "u64": 4, "i64": -4,
        "f32": 0.5, "f64": 0.1, "bool": True, "string": "▁é", "strings": TEXTS, "ints": [1, -2],
        "floats": [0.5], "truths": [True, False], "nested": [[1, 2], [3]],
    }  # fmt: skip
    assert [value.kind.name for value in values.values()][1:12] == [
        "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F32", "F64", "BOOL",
    ]  # fmt: skip


def test_tensors_lie_where_the_gguf_package_says(tmp_path):
    def fill(writer):
        writer.add_custom_alignment(128)
        for name, type_ in (("q8", gguf.GGMLQuantizationType.Q8_0),
                            ("mx", gguf.GGMLQuantizationType.MXFP4)):  # fmt: skip
            values = gguf.quantize(np.ones((3, 64), np.float32), type_)
            writer.add_tensor(name, values, raw_dtype=type_)
        for dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64):
            writer.add_tensor(np.dtype(dtype).name, np.arange(30, dtype=dtype).reshape(5, 3, 2))

    path = write_with_gguf(tmp_path / "x.gguf", fill)
    header = header_of(path)
    theirs = gguf.GGUFReader(path)
    assert header.alignment == 128
    assert header.data_start == theirs.data_offset
    for ours, tensor in zip(header.tensors, theirs.tensors, strict=True):
        assert ours.name == tensor.name
        assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert ours.type_id == tensor.tensor_type
        assert ours.offset == tensor.data_offset
        assert ours.nbytes == tensor.n_bytes


def test_every_type_of_the_gguf_package_has_the_same_blocks():
    sizes = {int(t): size for t, size in gguf.GGML_QUANT_SIZES.items() if t.name != "Q8_1"}
    assert {n: (TYPES[n].block, TYPES[n].size) for n in sizes} == sizes


def test_a_file_for_big_endian_machines_is_named_as_such(tmp_path):
    path = write_with_gguf(tmp_path / "x.gguf", lambda w: w.add_uint32("a.b", 1),
                           gguf.GGUFEndian.BIG)  # fmt: skip
    with pytest.raises(Exception, match="big-endian") as caught:
        header_of(path)
    assert caught.value.code == "BIG_ENDIAN"


def test_a_large_value_stays_in_the_file(tmp_path):
    path = tmp_path / "x.gguf"
    texts = [f"token {i}" for i in range(20_000)]
    values = {"a.long": Value.strings(texts), "a.text": Value.string("x" * (HELD + 1)),
              "a.numbers": Value.floats(range(30_000)), "a.short": Value.string("y")}  # fmt: skip
    save_file(path, values, {}, SaveOptions())
    read = header_of(path).values
    assert [isinstance(value.content, bytes) for value in read.values()] == [False] * 3 + [True]
    for key, value in values.items():
        assert read[key].plain() == value.plain()
        assert read[key].encoded() == value.encoded()
        assert (read[key].element, read[key].count) == (value.element, value.count)


def test_a_wrong_string_far_inside_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "x.gguf"
    texts = ["abcdefgh"] * 20_000
    save_file(path, {"a.long": Value.strings(texts)}, {}, SaveOptions())
    content = bytearray(path.read_bytes())
    content[content.rfind(b"abcdefgh")] = 0xFF
    path.write_bytes(content)
    value = header_of(path).values["a.long"]
    with pytest.raises(CorruptInputError, match=r"x\.gguf: .*utf-8"):
        value.plain()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 70), max_size=200), st.integers(1, 40))
def test_strings_are_passed_wherever_a_step_ends(lengths, step):
    """A window that is smaller than what it holds is no different from a large one."""
    data = b"".join(struct.pack("<Q", n) + bytes(n) for n in lengths) + b"end"
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        Path(file.name).write_bytes(data)
        patch.setattr("adaptool.containers.gguf.cursor.STEP", step)
        for hashed in (False, True):
            cursor = Cursor(SourceFile.open(Path(file.name)), len(data), hashed=hashed)
            cursor.skip_strings(len(lengths), "strings")
            assert cursor.take(3, "the end") == b"end"
            assert cursor.left == 0


def test_the_digest_is_of_what_was_passed(tmp_path):
    path = tmp_path / "x"
    content = bytes(range(256)) * (STEP // 60)
    path.write_bytes(content)
    cursor = Cursor(SourceFile.open(path), len(content), hashed=True)
    for size in (1, 7, STEP, 2 * STEP + 5, 3):
        cursor.skip(size, "bytes")
    assert cursor.sha256() == hashlib.sha256(content[: cursor.position]).hexdigest()


def test_a_limit_is_kept(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    cursor = Cursor(SourceFile.open(path), 50)
    cursor.skip(50, "bytes")
    with pytest.raises(ResourceLimitError):
        cursor.take(1, "a byte")


@pytest.mark.parametrize("kind", ["adapter", "imatrix", "mmproj", "model"])
def test_a_file_says_what_it_holds(tmp_path, kind):
    path = tmp_path / "x.gguf"
    values = {"a.b": Value.strings(["x"] * 10_000), "general.type": Value.string(kind)}
    save_file(path, values, {}, SaveOptions())
    assert general_type(path) == kind


def test_a_file_that_does_not_say_it_is_a_model(tmp_path):
    save_file(tmp_path / "x.gguf", {"a.b": Value.u8(1)}, {}, SaveOptions())
    assert general_type(tmp_path / "x.gguf") == "model"
    (tmp_path / "y").write_bytes(b"something else")
    assert general_type(tmp_path / "y") is None
    (tmp_path / "z").write_bytes(b"")
    assert general_type(tmp_path / "z") is None


def test_opening_imports_neither_torch_nor_numpy(tmp_path):
    path = write_with_gguf(tmp_path / "x.gguf", lambda w: w.add_tensor(
        "q8", gguf.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0))  # fmt: skip
    script = (
        "import sys; from pathlib import Path; from adaptool.containers import gguf, SaveOptions;"
        "c = gguf.open(Path(sys.argv[1])); gguf.plan(c, Path('y.gguf'), SaveOptions());"
        "sys.exit(' '.join(m for m in ('torch', 'numpy', 'gguf') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
