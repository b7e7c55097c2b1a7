"""GGUF models opened, changed and saved; the gguf package and ggml read what was written."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hostile.gguf import SOUND, U32, Forged, pair, tensor, u32
from hostile.test_gguf_mutations import judge

from adaptool.canonical import Checkpoint, DType, LazyTensor, Provenance
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, find, open_checkpoint, plan_checkpoint, save_checkpoint
from adaptool.containers.gguf import Value, save_file, size_of_file
from adaptool.containers.gguf.header import read_header
from adaptool.containers.gguf.imatrix import read_importance
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.storage import SourceFile

Q8 = gguf.GGMLQuantizationType.Q8_0
NO_OPTIONS = SaveOptions()


@dataclass(frozen=True)
class PlainQ8:
    """Q8_0 by the gguf package."""

    name: str = "Q8_0"
    block: int = 32
    size: int = 34

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(gguf.dequantize(packed.numpy().reshape(-1, 34), Q8).reshape(-1))

    def encode(self, values, importance=None, noise=None) -> torch.Tensor:
        return torch.from_numpy(gguf.quantize(values.numpy(), Q8).reshape(-1))


def encoded(values: torch.Tensor) -> LazyTensor:
    """A tensor that is packed when it is written, as a merge makes them."""
    flat, encoding, width = values.reshape(-1), PlainQ8(), values.shape[-1]

    def packed(start, stop, block):
        for first in range(start, stop, block):
            yield encoding.encode(flat[first : min(first + block, stop)].reshape(-1, width))

    def decoded(start, stop, block):
        for piece in packed(start, stop, block):
            yield encoding.decode(piece)

    return LazyTensor(tuple(values.shape), DType.FLOAT32, decoded, None, 4 * width, encoding,
                      packed)  # fmt: skip


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


ARRAYS = {
    "token_embd.weight": random(10, 64),
    "blk.0.attn_q.weight": random(64, 64),
    "blk.0.ffn_up_exps.weight": random(3, 8, 32),
    "output_norm.weight": random(64),
    "odd.weight": random(7, 5),
}
PACKED = {"blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"}


def write_model(path: Path, alignment: int = 32, **parts: int) -> Path:
    """A model by the gguf package's writer."""
    writer = gguf.GGUFWriter(path, "llama", **parts)
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_license("mit")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(1)
    writer.add_array("llama.attention.head_count_kv", [2, 4])
    writer.add_token_list([f"▁token{i}" for i in range(10)])
    writer.add_token_scores([float(i) for i in range(10)])
    for name, values in ARRAYS.items():
        if name in PACKED:
            writer.add_tensor(name, gguf.quantize(values, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.gguf")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def read_arrays(*paths: Path) -> dict[str, np.ndarray]:
    """All tensors of some files, by the gguf package, as numbers."""
    found = {}
    for path in paths:
        for one in gguf.GGUFReader(path).tensors:
            shape = tuple(int(n) for n in reversed(one.shape))
            found[one.name] = gguf.dequantize(one.data, one.tensor_type).reshape(shape)
    return found


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


# -- opening --------------------------------------------------------------------------------------


def test_a_model_opens_with_the_values_that_the_gguf_package_reads(model):
    checkpoint = open_checkpoint(model)
    wanted = read_arrays(model)
    assert list(checkpoint.tensors) == list(ARRAYS)
    for name, one in checkpoint.tensors.items():
        assert one.kind == ("Q8_0" if name in PACKED else "float32")
        assert one.shape == ARRAYS[name].shape
        np.testing.assert_array_equal(one.values().numpy(), wanted[name], err_msg=name)


def test_settings_are_plain_and_values_typed_in_order(model):
    checkpoint = open_checkpoint(model)
    assert checkpoint.config == {
        "general.architecture": "llama", "general.type": "model", "general.name": "tiny",
        "general.license": "mit", "llama.block_count": 1, "llama.attention.head_count_kv": [2, 4],
        "tokenizer.ggml.scores": [float(i) for i in range(10)],
    }  # fmt: skip
    assert [key for key in gguf.GGUFReader(model).fields if not key.startswith("GGUF.")] == list(
        checkpoint.metadata
    )
    assert checkpoint.metadata["tokenizer.ggml.tokens"].plain()[3] == "▁token3"
    assert checkpoint.provenance.name == "model"
    assert checkpoint.provenance.license == "mit"
    facts = checkpoint.provenance.files["model.gguf"]
    assert facts["bytes"] == model.stat().st_size
    assert len(facts["header_sha256"]) == 64
    assert checkpoint.shards == checkpoint.side_files == {}


def test_what_is_recognised(tmp_path, model):
    adapter = {"general.type": Value.string("adapter")}
    save_file(tmp_path / "adapter.gguf", adapter, {}, NO_OPTIONS)
    (tmp_path / "blob").write_bytes(model.read_bytes())
    (tmp_path / "text.gguf").write_text("no GGUF")
    names = ("model.gguf", "blob", "adapter.gguf", "text.gguf", "absent.gguf", "absent")
    found = {name: find(tmp_path / name) for name in names}
    assert {name: one and one[0] for name, one in found.items()} == {
        "model.gguf": "gguf", "blob": "gguf", "adapter.gguf": None, "text.gguf": "gguf",
        "absent.gguf": "gguf", "absent": None,
    }  # fmt: skip


def test_a_folder_with_one_model(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    assert find(folder) is None
    for kind in ("adapter", "imatrix", "mmproj"):
        save_file(folder / f"{kind}.gguf", {"general.type": Value.string(kind)}, {}, NO_OPTIONS)
    write_model(folder / "z.gguf")
    assert list(open_checkpoint(folder).tensors) == list(ARRAYS)
    write_model(folder / "another.gguf")
    with pytest.raises(IncompatibleError, match="2 GGUF models"):
        open_checkpoint(folder)
    (folder / "another.gguf").unlink()
    save_checkpoint(open_checkpoint(folder), tmp_path / "z", SaveOptions(max_shard_size=4000))
    for part in (tmp_path / "z").iterdir():
        part.rename(folder / part.name)
    with pytest.raises(IncompatibleError, match="2 GGUF models"):
        open_checkpoint(folder)
    (folder / "z.gguf").unlink()
    assert len(open_checkpoint(folder).provenance.files) == 3
    (folder / "model.safetensors").write_bytes(b"")
    assert find(folder)[0] == "safetensors"


# -- saving what nobody touched -------------------------------------------------------------------

UNTOUCHED = {
    "everything": SOUND,
    "version 2": replace(SOUND, version=2),
    "no last padding": replace(SOUND, data=SOUND.data[:-54]),
    "half of the last padding": replace(SOUND, data=SOUND.data[:-20]),
    "padding that is not zero": replace(
        SOUND, data=SOUND.data[:50] + b"\xaa" * 14 + SOUND.data[64:]
    ),
    "alignment of 1": Forged(
        (pair("general.alignment", U32, u32(1)),),
        (tensor("a", (3,), 1), tensor("b", (5,), 24, 6)), bytes(range(11)), 1,
    ),
    "alignment of 4096": Forged(
        (pair("general.alignment", U32, u32(4096)),), data=bytes(range(32)) * 128, alignment=4096
    ),
    "no tensors": Forged(tensors=(), data=b""),
    "no keys": Forged(pairs=()),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTOUCHED)
def test_an_untouched_model_is_the_same_file(tmp_path, out, name):
    path = tmp_path / "in.gguf"
    path.write_bytes(UNTOUCHED[name].bytes)
    checkpoint = open_checkpoint(path)
    planned = plan_checkpoint(checkpoint, out, NO_OPTIONS)
    saved = save_checkpoint(checkpoint, out, SaveOptions(workers=2))
    assert out.read_bytes() == path.read_bytes()
    assert (planned.nbytes, planned.files) == (saved.nbytes, saved.files)
    assert saved.nbytes == path.stat().st_size


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_an_untouched_model_of_the_gguf_package_is_the_same_file(tmp_path, out, alignment):
    path = write_model(tmp_path / "in.gguf", alignment)
    save_checkpoint(open_checkpoint(path), out, NO_OPTIONS)
    assert out.read_bytes() == path.read_bytes()


# -- saving what was changed ----------------------------------------------------------------------


def changed(checkpoint: Checkpoint, **tensors: LazyTensor) -> Checkpoint:
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    assert set(named) <= set(checkpoint.tensors)
    return replace(checkpoint, tensors={**checkpoint.tensors, **named})


def test_a_changed_tensor_of_the_same_kind_changes_its_bytes_only(model, out):
    values = torch.from_numpy(random(64, 64) + 1)
    norm = torch.full((64,), 2.0)
    checkpoint = changed(
        open_checkpoint(model), blk__0__attn_q__weight=encoded(values),
        output_norm__weight=from_values(norm),
    )  # fmt: skip
    save_checkpoint(checkpoint, out, SaveOptions(workers=3))
    wanted = bytearray(model.read_bytes())
    entries = {entry.name: entry for entry in read_header(SourceFile.open(model)).tensors}
    for name, content in (
        ("blk.0.attn_q.weight", gguf.quantize(values.numpy(), Q8).tobytes()),
        ("output_norm.weight", norm.numpy().tobytes()),
    ):
        entry = entries[name]
        assert len(content) == entry.nbytes
        wanted[entry.offset : entry.offset + entry.nbytes] = content
    assert out.read_bytes() == wanted


def test_many_chunks_of_whole_rows(model, out, monkeypatch):
    """However the work is cut, the bytes are the same."""
    values = torch.from_numpy(random(64, 64))
    checkpoint = changed(open_checkpoint(model), blk__0__attn_q__weight=encoded(values))
    monkeypatch.setattr("adaptool.containers._content.CHUNK", 200)
    done: list[int] = []
    saved = save_checkpoint(checkpoint, out, SaveOptions(workers=2, progress=done.append))
    assert out.read_bytes() == model.read_bytes()
    assert sum(done) == saved.nbytes


def test_another_kind_moves_what_follows(model, out):
    wanted = read_arrays(model)
    values = torch.from_numpy(wanted["blk.0.attn_q.weight"])
    before = open_checkpoint(model)
    checkpoint = changed(
        before, blk__0__attn_q__weight=from_values(values.bfloat16()),
        token_embd__weight=encoded(torch.from_numpy(ARRAYS["token_embd.weight"])),
        odd__weight=before.tensors["odd.weight"].cast(DType.FLOAT16),
    )  # fmt: skip
    save_checkpoint(checkpoint, out, NO_OPTIONS)
    wanted["blk.0.attn_q.weight"] = values.bfloat16().float().numpy()
    packed = gguf.quantize(ARRAYS["token_embd.weight"], Q8)
    wanted["token_embd.weight"] = gguf.dequantize(packed, Q8)
    wanted["odd.weight"] = ARRAYS["odd.weight"].astype(np.float16)
    assert_same(read_arrays(out), wanted)
    again = open_checkpoint(out)
    assert [one.kind for one in again.tensors.values()] == [
        "Q8_0", "bfloat16", "Q8_0", "float32", "float16",
    ]  # fmt: skip
    assert out.stat().st_size % 32 == 0


def test_version_2_stays_version_2(tmp_path, out):
    path = tmp_path / "in.gguf"
    path.write_bytes(replace(SOUND, version=2).bytes)
    checkpoint = changed(open_checkpoint(path), last=from_values(torch.ones(5, dtype=torch.half)))
    save_checkpoint(checkpoint, out, NO_OPTIONS)
    assert out.read_bytes()[:8] == b"GGUF" + struct.pack("<I", 2)


def test_changed_values_keep_their_order(model, out):
    checkpoint = open_checkpoint(model)
    metadata = {**checkpoint.metadata, "general.name": Value.string("other"), "adaptool": "how"}
    save_checkpoint(replace(checkpoint, metadata=metadata), out, NO_OPTIONS)
    fields = gguf.GGUFReader(out).fields
    assert [key for key in fields if not key.startswith("GGUF.")] == list(metadata)
    assert fields["general.name"].contents() == "other"
    assert fields["adaptool"].contents() == "how"
    assert_same(read_arrays(out), read_arrays(model))


def test_another_alignment(model, out):
    checkpoint = open_checkpoint(model)
    metadata = {**checkpoint.metadata, "general.alignment": Value.u32(512)}
    save_checkpoint(replace(checkpoint, metadata=metadata), out, NO_OPTIONS)
    assert_same(read_arrays(out), read_arrays(model))
    assert all(entry.offset % 512 == 0 for entry in read_header(SourceFile.open(out)).tensors)


def of(**tensors: LazyTensor) -> Checkpoint:
    return Checkpoint(tensors, "gguf", Provenance("x", "gguf"),
                      metadata={"general.architecture": Value.string("llama")})  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("n" * 64, torch.ones(2), "64|63"),
        ("é" * 32, torch.ones(2), "63"),
        ("deep", torch.ones(1, 1, 1, 1, 2), "5 dimensions"),
        ("kind", torch.ones(2, dtype=torch.uint8), "uint8"),
        ("truth", torch.ones(2, dtype=torch.bool), "bool"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, out, name, value, word):
    with pytest.raises(IncompatibleError, match=word) as caught:
        save_checkpoint(of(**{name: from_values(value)}), out, NO_OPTIONS)
    assert caught.value.code == "NOT_EXPRESSIBLE"
    assert list(tmp_path.iterdir()) == []


def test_rows_that_do_not_fit_blocks_are_refused(out):
    one = encoded(torch.ones(2, 64)).reshaped(8, 16)
    with pytest.raises(IncompatibleError, match="Q8_0"):
        save_checkpoint(of(x=one), out, NO_OPTIONS)


def test_a_refusal_at_the_end_leaves_nothing(tmp_path, model, out):
    def refuse():
        raise AdaptoolError("no")

    with pytest.raises(AdaptoolError, match="no"):
        save_checkpoint(open_checkpoint(model), out, SaveOptions(approve=refuse))
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_input_that_changes_meanwhile_is_noticed(model, out):
    def change():
        model.write_bytes(model.read_bytes())
        return {}

    with pytest.raises(CorruptInputError) as caught:
        save_checkpoint(open_checkpoint(model), out, SaveOptions(approve=change))
    assert caught.value.code == "INPUT_CHANGED"
    assert not out.exists()


def test_one_file_from_values_and_tensors(out):
    tensors = {"b": from_values(torch.arange(6.0).reshape(2, 3)), "a": from_values(torch.ones(1))}
    values = {"general.type": Value.string("adapter"), "adapter.lora.alpha": Value.f32(8)}
    saved = save_file(out, values, tensors, NO_OPTIONS)
    assert saved.nbytes == size_of_file(values, tensors) == out.stat().st_size
    assert_same(read_arrays(out), {"b": np.arange(6.0).reshape(2, 3), "a": np.ones(1)})


# -- split models ---------------------------------------------------------------------------------


def test_a_split_model(tmp_path, model):
    """Each part is filled up to the size that was asked for; keys are llama-gguf-split's."""
    folder = tmp_path / "big"
    records = {"adaptool.json": b"{}"}
    options = SaveOptions(max_shard_size=4000, approve=lambda: records)
    saved = save_checkpoint(open_checkpoint(model), folder, options)
    names = [f"big-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    assert list(saved.files) == names
    assert sorted(path.name for path in folder.iterdir()) == ["adaptool.json", *names]
    assert_same(read_arrays(*(folder / name for name in names)), read_arrays(model))
    first, *others = (read_header(SourceFile.open(folder / name)).values for name in names)
    own = ["split.no", "split.tensors.count", "split.count"]
    assert list(first) == [*open_checkpoint(model).metadata, *own]
    for number, values in enumerate((first, *others)):
        if number:
            assert list(values) == own
        assert [values[key] for key in own] == [Value.u16(number), Value.i32(5), Value.u16(3)]


@pytest.mark.parametrize("place", ["", "big-00001-of-00003.gguf", "big-00003-of-00003.gguf"])
def test_any_part_opens_all_and_they_make_one_file(tmp_path, model, out, place):
    save_checkpoint(open_checkpoint(model), tmp_path / "big", SaveOptions(max_shard_size=4000))
    checkpoint = open_checkpoint(tmp_path / "big" / place)
    assert list(checkpoint.tensors) == list(ARRAYS)
    assert checkpoint.provenance.name == "big"
    assert len(checkpoint.provenance.files) == len(set(checkpoint.shards.values())) == 3
    save_checkpoint(checkpoint, out, NO_OPTIONS)
    assert out.read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    "parts",
    [
        {"split_max_tensors": 2},
        {"split_max_size": 4000},
        {"split_max_tensors": 1, "small_first_shard": True},
    ],
)
def test_parts_by_the_gguf_package(tmp_path, model, out, parts):
    write_model(tmp_path / "theirs.gguf", **parts)
    first = next(tmp_path.glob("theirs-00001-of-*.gguf"))
    save_checkpoint(open_checkpoint(first), out, NO_OPTIONS)
    assert out.read_bytes() == model.read_bytes()


def test_parts_with_another_alignment(tmp_path, out):
    model = write_model(tmp_path / "in.gguf", alignment=256)
    save_checkpoint(open_checkpoint(model), tmp_path / "big", SaveOptions(max_shard_size=1))
    assert len(list((tmp_path / "big").iterdir())) == len(ARRAYS)
    save_checkpoint(open_checkpoint(tmp_path / "big"), out, NO_OPTIONS)
    assert out.read_bytes() == model.read_bytes()


def test_several_files_need_a_folder(tmp_path, model, out):
    checkpoint = open_checkpoint(model)
    with pytest.raises(UsageError, match="3 files") as caught:
        plan_checkpoint(checkpoint, out, SaveOptions(max_shard_size=4000))
    assert str(tmp_path / "out") in (caught.value.hint or "")
    save_checkpoint(checkpoint, out, SaveOptions(max_shard_size=10**9))
    assert out.read_bytes() == model.read_bytes()


def test_a_folder_with_one_file(tmp_path, model):
    saved = save_checkpoint(open_checkpoint(model), tmp_path / "one", NO_OPTIONS)
    assert saved.files == ("one.gguf",)
    assert (tmp_path / "one" / "one.gguf").read_bytes() == model.read_bytes()


def test_ggml_reads_all_that_is_written(tmp_path, model):
    files = tmp_path / "files"
    files.mkdir()
    checkpoint = open_checkpoint(model)
    save_checkpoint(checkpoint, files / "same.gguf", NO_OPTIONS)
    other = changed(checkpoint, odd__weight=checkpoint.tensors["odd.weight"].cast(DType.FLOAT16))
    save_checkpoint(other, files / "other.gguf", NO_OPTIONS)
    save_checkpoint(checkpoint, tmp_path / "big", SaveOptions(max_shard_size=4000))
    for part in (tmp_path / "big").iterdir():
        part.rename(files / part.name)
    verdicts = judge(files)
    assert len(verdicts) == 5
    assert set(verdicts.values()) == {"yes"}


# -- importance -----------------------------------------------------------------------------------


def write_importance(path: Path, sums: np.ndarray, counts: np.ndarray) -> Path:
    values = {"general.type": Value.string("imatrix")}
    tensors = {
        "blk.0.attn_q.weight.in_sum2": from_values(torch.from_numpy(sums)),
        "blk.0.attn_q.weight.counts": from_values(torch.from_numpy(counts)),
    }
    save_file(path, values, tensors, NO_OPTIONS)
    return path


def test_importance_is_a_mean_square(tmp_path):
    """Of an expert that no activation met every column matters the same."""
    sums = np.array([[2, 4, 6], [0, 0, 0], [9, 3, 0]], np.float32)
    counts = np.array([[4], [0], [3]], np.float32)
    found = read_importance(write_importance(tmp_path / "i.gguf", sums, counts))
    assert list(found) == ["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(
        found["blk.0.attn_q.weight"].values().numpy(), [0.5, 1, 1.5, 1, 1, 1, 3, 1, 0]
    )


def entry(name: str, calls: int, *numbers: float) -> bytes:
    values = struct.pack(f"<{len(numbers)}f", *numbers)
    label = name.encode()
    return struct.pack("<i", len(label)) + label + struct.pack("<ii", calls, len(numbers)) + values


def test_importance_of_the_older_format(tmp_path):
    path = tmp_path / "imatrix.dat"
    entries = entry("blk.0.attn_q.weight", 4, 2, 4, 6) + entry("output.weight", 1, 1, 0)
    path.write_bytes(struct.pack("<i", 2) + entries + struct.pack("<ii", 4, 8) + b"wiki.txt")
    found = {name: one.values().tolist() for name, one in read_importance(path).items()}
    assert found == {"blk.0.attn_q.weight": [0.5, 1, 1.5], "output.weight": [1, 0]}


ONE = entry("w", 1, 1)
BAD_LEGACY = {
    "empty": b"", "no entries": struct.pack("<i", 0), "-1 entries": struct.pack("<i", -1) + ONE,
    "2^31 - 1 entries": struct.pack("<i", 2**31 - 1) + ONE,
    "an entry less": struct.pack("<i", 2) + ONE,
    "name of no length": struct.pack("<i", 1) + entry("", 1, 1),
    "name of 2^31 - 1 bytes": struct.pack("<iiii", 1, 2**31 - 1, 1, 1) + b"xxxx",
    "name not UTF-8": struct.pack("<i", 1) + ONE.replace(b"w", b"\xff"),
    "no values": struct.pack("<i", 1) + entry("w", 1) + bytes(8),
    "-1 values": struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, -1) + bytes(8),
    "2^31 - 1 values": struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 2**31 - 1),
    "-1 calls": struct.pack("<i", 1) + entry("w", -1, 1),
    "twice": struct.pack("<i", 2) + ONE + ONE,
    "cut": (struct.pack("<i", 1) + entry("w", 1, 1, 2))[:-1],
    "text": b"this is no importance matrix at all",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LEGACY)
def test_broken_importance_is_refused(tmp_path, name):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(BAD_LEGACY[name])
    with pytest.raises(CorruptInputError, match=r"imatrix\.dat"):
        read_importance(path)


@pytest.mark.parametrize(
    ("sums", "counts"),
    [([[1, -1]], [[1]]), ([[1, np.nan]], [[1]]), ([[1, 1]], [[np.inf]]), ([[1, 1]], [[-1]])],
)
def test_importance_that_is_no_mean_square(tmp_path, sums, counts):
    path = write_importance(tmp_path / "i.gguf", np.float32(sums), np.float32(counts))
    importance = read_importance(path)
    with pytest.raises(CorruptInputError, match="attn_q"):
        importance["blk.0.attn_q.weight"].values()


def test_what_is_no_importance(tmp_path, model):
    with pytest.raises(IncompatibleError, match="holds a model"):
        read_importance(model)
    counts = write_importance(tmp_path / "i.gguf", np.ones((2, 3), np.float32),
                              np.ones((3, 1), np.float32))  # fmt: skip
    with pytest.raises(CorruptInputError, match="3 counts for 2 matrices"):
        read_importance(counts)
    save_file(tmp_path / "e.gguf", {"general.type": Value.string("imatrix")}, {}, NO_OPTIONS)
    with pytest.raises(CorruptInputError, match="no importance"):
        read_importance(tmp_path / "e.gguf")
