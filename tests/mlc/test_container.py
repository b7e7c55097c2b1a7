"""MLC's weight folders: written as TVM writes them, read by TVM and by us, hostile ones refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.measures import check_cheap
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import cpu
from tvm.contrib import tvmjs

from adaptool.canonical import Checkpoint, DType, LazyTensor, Provenance
from adaptool.canonical.tensors import from_values
from adaptool.cli import main
from adaptool.containers import (
    SaveOptions,
    _content,
    find,
    modules,
    open_checkpoint,
    plan_checkpoint,
    save_checkpoint,
)
from adaptool.containers.mlc import lay_out
from adaptool.containers.mlc.writing import CAP, divide
from adaptool.encodings.mlc import SCHEMES, Ledger, decoded, plain, quantised
from adaptool.errors import AdaptoolError, IncompatibleError

from . import literal

LISTS = ("tensor-cache.json", "ndarray-cache.json")
B16 = "tensor-cache-b16.json"
SMALL = SaveOptions(max_shard_size=1 << 11, workers=2)
CHAT = {"mlc-chat-config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}

WEIGHTS = {
    "model.embed_tokens.weight": ((40, 96), torch.bfloat16),
    "model.layers.0.self_attn.qkv_proj.weight": ((48, 96), torch.float32),
    "model.layers.0.self_attn.o_proj.weight": ((24, 70), torch.float16),  # ragged
    "model.layers.0.mlp.down_proj.weight": ((3, 17), torch.float32),
    "model.layers.0.input_layernorm.weight": ((96,), torch.float32),
    "model.norm.weight": ((96,), torch.bfloat16),
}


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Normal numbers with groups of zeros, in several types."""
    rng = np.random.default_rng(7)
    found = {}
    for name, (shape, dtype) in WEIGHTS.items():
        values = torch.from_numpy(rng.standard_normal(shape)) * scale
        values[..., 33:66] = 0
        found[name] = values.to(dtype)
    return found


def checkpoint(
    tensors: Mapping[str, LazyTensor], files: Mapping[str, bytes] = CHAT, **metadata: object
) -> Checkpoint:
    return Checkpoint(tensors, "mlc", Provenance("small", "mlc"), metadata=metadata,
                      side_files=dict(files))  # fmt: skip


def encoded(name: str, values: Mapping[str, torch.Tensor], *, optimize: bool = False) -> Checkpoint:
    """A model as a scheme stores it."""
    scheme, ledger = SCHEMES[name], Ledger()
    tensors: dict[str, LazyTensor] = {}
    for key, value in values.items():
        if not scheme.bits or value.dim() < 2:
            tensors[key] = plain(scheme, from_values(value), name=key)
            continue
        stem = key.removesuffix("weight")
        tensors[f"{stem}q_weight"], tensors[f"{stem}q_scale"] = quantised(
            scheme, from_values(value), optimize, name=key, ledger=ledger
        )
    return checkpoint(tensors, parameters=sum(value.numel() for value in values.values()))


def read_with_tvm(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    found, metadata = tvmjs.load_tensor_cache(str(folder), cpu())
    return {name: array.numpy() for name, array in found.items()}, metadata


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*"))
            if f.is_file()}  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# -- what the readers find ------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("name", SCHEMES)
def test_both_readers_find_the_formulas(name: str, optimize: bool, out: Path) -> None:
    values = weights()
    scheme, half = SCHEMES[name], SCHEMES[name].dtype is DType.FLOAT16
    save_checkpoint(encoded(name, values, optimize=optimize), out, SMALL)
    assert len(list(out.glob("params_shard_*.bin"))) > 2
    ours, (theirs, metadata) = open_checkpoint(out), read_with_tvm(out)
    assert ours.tensors.keys() == theirs.keys()
    for key, value in values.items():
        single = value.float().numpy()
        if key in ours.tensors:
            wanted = literal.stored(name, single)
            wanted = wanted if half else literal.widened(wanted)
            np.testing.assert_array_equal(ours.tensors[key].values().float(), wanted)
            np.testing.assert_array_equal(theirs[key], wanted)
            assert theirs[key].dtype == literal.MODEL[name]
            continue
        stem, width = key.removesuffix("weight"), single.shape[1]
        codes, scales = (theirs[f"{stem}{part}"] for part in ("q_weight", "q_scale"))
        assert (codes.dtype, scales.dtype) == (np.uint32, literal.MODEL[name])
        pair = [ours.tensors[f"{stem}{part}"] for part in ("q_weight", "q_scale")]
        np.testing.assert_array_equal(pair[0].values().numpy(), codes)
        np.testing.assert_array_equal(pair[1].values().float(), scales.astype(np.float32))
        plainly = [codes, scales if half else literal.bfloat16(scales)]
        if not optimize:
            for one, other in zip(plainly, literal.quantised(name, single), strict=True):
                np.testing.assert_array_equal(one, other)
        wanted = literal.decoded(name, *plainly, width)
        np.testing.assert_array_equal(decoded(scheme, *pair, width).values(), wanted)
    assert metadata["ParamSize"] == len(theirs)
    assert metadata["ParamBytes"] == sum(array.nbytes for array in theirs.values())
    count = sum(value.numel() for value in values.values())
    assert metadata["BitsPerParam"] == metadata["ParamBytes"] * 8 / count
    assert (out / B16).exists() != half


@pytest.mark.parametrize("scale", [1e-6, 1e-8])
def test_scales_that_vanish(scale: float, out: Path) -> None:
    values = weights(scale)
    save_checkpoint(encoded("q4f16_1", values), out, SMALL)
    theirs = read_with_tvm(out)[0]
    for key in ("model.embed_tokens.", "model.layers.0.mlp.down_proj."):
        found = theirs[f"{key}q_weight"], theirs[f"{key}q_scale"]
        wanted = literal.quantised("q4f16_1", values[f"{key}weight"].float().numpy())
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_too_large_for_float16(out: Path) -> None:
    values = weights(1e5)
    del values["model.layers.0.self_attn.o_proj.weight"]  # is float16 itself
    with pytest.raises(IncompatibleError, match="65504") as caught:
        save_checkpoint(encoded("q4f16_1", values), out, SMALL)
    assert caught.value.code == "OUT_OF_RANGE"
    assert not out.exists()
    save_checkpoint(encoded("q4f32_1", values), out, SMALL)


# -- the same files as TVM's own writer -----------------------------------------------------------


def arrays(sizes: list[int], dtype: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {f"tensor.{n}": (rng.standard_normal(size) * 100).astype(dtype)
            for n, size in enumerate(sizes)}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint32"])
def test_files_are_those_of_tvm(dtype: str, tmp_path: Path, out: Path) -> None:
    """Shards of 1 MiB: small tensors, some as large as half a shard, and larger than one."""
    given_ = arrays(
        [10, 300_000, 5, 700_000, 100_000, 262_144, 200_000, 524_288, 1, 131_072], dtype
    )
    tensors = {name: from_values(torch.from_numpy(array)) for name, array in given_.items()}
    if dtype == "float32":
        tensors = {name: plain(SCHEMES["q0f32"], tensor) for name, tensor in tensors.items()}
    save_checkpoint(checkpoint(tensors, {}, parameters=1234), out,
                    SaveOptions(max_shard_size=1 << 20))  # fmt: skip
    ours = contents(out)
    metadata = json.loads(ours["tensor-cache.json"])["metadata"]
    theirs = tmp_path / "theirs"
    tvmjs.dump_tensor_cache(given_, str(theirs), meta_data=metadata, shard_cap_mb=1,
                            show_progress=False)  # fmt: skip
    wanted = contents(theirs)
    assert ours.pop("ndarray-cache.json") == wanted["tensor-cache.json"]
    assert list(ours) == list(wanted)
    assert ours == wanted
    assert list(metadata) == ["ParamSize", "ParamBytes", "BitsPerParam"]
    assert metadata["ParamBytes"] == sum(array.nbytes for array in given_.values())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=30), st.integers(2, 64))
def test_shards_are_those_of_tvm(sizes: list[int], cap: int) -> None:
    class Sharding(tvmjs.TensorCacheShardingManager):
        def _commit_internal(self, data, records):  # without files
            self.shard_records.append([record["name"] for record in records])
            assert [record["byteOffset"] for record in records] == [
                sum(r["nbytes"] for r in records[:i]) for i in range(len(records))
            ]

    sharding = Sharding("", "", cap)
    for number, size in enumerate(sizes):
        sharding.append_or_update(bytes(size), str(number), (size,), "uint8", "raw")
    theirs = sharding.finish()
    ours = divide({str(number): size for number, size in enumerate(sizes)}, cap)
    pending = [record["name"] for record in sharding.curr_records]  # empty ones at the end
    assert ours == theirs + ([pending] if pending else [])


def test_shards_of_32_mebibytes() -> None:
    assert CAP == 32 << 20
    mebi = {"a": 10, "b": 17, "large": 40, "c": 4, "half": 16, "d": 1}
    groups = divide({name: size << 20 for name, size in mebi.items()}, CAP)
    assert groups == [["large"], ["half"], ["a", "b", "c"], ["d"]]


# -- opening and saving again ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "resolve/main"])
@pytest.mark.parametrize("name", SCHEMES)
def test_unmodified_is_written_byte_for_byte(
    name: str, where: str, tmp_path: Path, out: Path
) -> None:
    made = lay_out(encoded(name, weights()), tmp_path, SMALL)
    (made.within(where) if where else made).write(out, SMALL)
    found = open_checkpoint(out)
    assert found.container == "mlc"
    assert found.config == {"model_type": "llama"}
    again = tmp_path / "again"
    planned = plan_checkpoint(found, again, SaveOptions())
    saved = save_checkpoint(found, again, SaveOptions())
    assert contents(again) == contents(out / where)
    assert saved.nbytes == sum(map(len, contents(again).values()))
    assert set(saved.files) == set(contents(again)) == {*planned.files, *contents(again)}


def test_layout_of_the_input_is_kept(tmp_path: Path, out: Path) -> None:
    """A large tensor that was put before the pending one would change places if shards were
    filled anew."""
    tensors = {n: from_values(torch.full((s,), 3.0).half()) for n, s in (("a", 20), ("b", 17))}
    save_checkpoint(checkpoint(tensors), out, SaveOptions(max_shard_size=64))
    assert list(open_checkpoint(out).tensors) == ["b", "a"]
    save_checkpoint(open_checkpoint(out), tmp_path / "again", SaveOptions())
    assert contents(tmp_path / "again") == contents(out)
    save_checkpoint(open_checkpoint(out), tmp_path / "one", SaveOptions(max_shard_size=1 << 20))
    assert len(list((tmp_path / "one").glob("*.bin"))) == 1


def test_float32_and_bfloat16_as_they_are(tmp_path: Path, out: Path) -> None:
    """Float32 can be stored in full, and bfloat16 can be meant."""
    values = {"full": torch.randn(5), "packed": torch.randn(6).bfloat16(),
              "meant": torch.randn(7).bfloat16()}  # fmt: skip
    tensors = {name: from_values(value) for name, value in values.items()}
    save_checkpoint(checkpoint(tensors, bfloat16=("meant",)), out, SaveOptions())
    records = json.loads((out / LISTS[0]).read_bytes())["records"][0]["records"]
    stated = {r["name"]: (r["dtype"], r["format"], r["nbytes"]) for r in records}
    assert stated == {"full": ("float32", "raw", 20), "packed": ("float32", "f32-to-bf16", 12),
                      "meant": ("bfloat16", "f32-to-bf16", 14)}  # fmt: skip
    found = open_checkpoint(out)
    for name, value in values.items():
        assert torch.equal(found.tensors[name].values(), value)
    theirs = read_with_tvm(out)[0]
    np.testing.assert_array_equal(theirs["full"], values["full"].numpy())
    np.testing.assert_array_equal(theirs["packed"], values["packed"].float().numpy())
    native = json.loads((out / B16).read_bytes())["records"][0]["records"]
    assert [(r["dtype"], r["format"]) for r in native] == [
        ("float32", "raw"), ("bfloat16", "raw"), ("bfloat16", "f32-to-bf16")
    ]  # fmt: skip
    save_checkpoint(found, tmp_path / "again", SaveOptions())
    assert contents(tmp_path / "again") == contents(out)


def test_empty_tensors(out: Path) -> None:
    tensors = {"none": from_values(torch.zeros(0, 4)), "scalar": from_values(torch.tensor(2.0))}
    save_checkpoint(checkpoint({n: t.cast(DType.FLOAT16) for n, t in tensors.items()}), out,
                    SaveOptions())  # fmt: skip
    found = open_checkpoint(out).tensors
    assert {name: tensor.shape for name, tensor in found.items()} == {"none": (0, 4), "scalar": ()}
    assert float(found["scalar"].values()) == 2.0


def test_many_workers_and_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name, chunk, workers in (("one", _content.CHUNK, 1), ("many", 64, 4)):
        monkeypatch.setattr(_content, "CHUNK", chunk)
        options = SaveOptions(max_shard_size=1 << 12, workers=workers)
        save_checkpoint(encoded("q4f16_1", weights()), tmp_path / name, options)
        written.append(contents(tmp_path / name))
    assert written[0] == written[1]


def test_digests(out: Path) -> None:
    save_checkpoint(encoded("q4f32_1", weights()), out, SMALL)
    assert (out / LISTS[0]).read_bytes() == (out / LISTS[1]).read_bytes()
    files = open_checkpoint(out).provenance.files
    for name in (LISTS[0], B16):
        for shard in json.loads((out / name).read_bytes())["records"]:
            data = (out / shard["dataPath"]).read_bytes()
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            assert (shard["md5sum"], shard["nbytes"]) == (digest, len(data))
            assert files[shard["dataPath"]] == {"bytes": len(data), "md5sum": digest}


@pytest.mark.parametrize("name", LISTS)
def test_recognised_by_either_list(name: str, out: Path) -> None:
    save_checkpoint(encoded("q0f16", weights()), out, SMALL)
    for other in {*LISTS, B16} - {name}:
        (out / other).unlink(missing_ok=True)
    found = find(out)
    assert found is not None
    assert found[0] == "mlc"
    assert len(found[1].open(out).tensors) == len(WEIGHTS)
    (out / "model.safetensors").touch()
    assert found[1].recognises(out) is False
    assert found[1].recognises(out / name) is False


@pytest.mark.parametrize(
    ("tensor", "word"),
    [(from_values(torch.zeros(3, dtype=torch.complex64)), "complex64"),
     (from_values(torch.zeros(3, dtype=torch.float64)), "float64")],
    ids=["complex", "double"],
)  # fmt: skip
def test_types_that_shards_cannot_hold(tensor: LazyTensor, word: str, out: Path) -> None:
    with pytest.raises(IncompatibleError, match=f"sad.*{word}") as caught:
        save_checkpoint(checkpoint({"sad": tensor}), out, SaveOptions())
    assert caught.value.code == "NOT_EXPRESSIBLE"
    assert not out.exists()


def test_inspect(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = lay_out(encoded("q4f16_1", weights()), out, SMALL)
    made.within("resolve/main").write(out, SMALL)
    assert main(["inspect", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["model_type"]) == ("mlc", "llama")
    assert facts["dtypes"] == {"uint32": 4, "float16": 6}
    assert facts["parameters"] == sum(values.numel() for values in weights().values())
    assert facts["quantised"] is True


# -- hostile folders ------------------------------------------------------------------------------

RECORD = {"name": "sad", "shape": [2, 3], "dtype": "float16", "format": "f32-to-bf16",
          "nbytes": 12, "byteOffset": 0}  # fmt: skip
GLAD = {**RECORD, "name": "glad", "byteOffset": 12}
SHARD = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": 24,
         "records": [RECORD, GLAD], "md5sum": "0" * 32}  # fmt: skip
SOUND = {"metadata": {"ParamSize": 2, "ParamBytes": 24.0, "BitsPerParam": 16.0},
         "records": [SHARD]}  # fmt: skip


def listing(content: object = SOUND) -> bytes:
    return json.dumps(content).encode()


def sharded(**changes: Any) -> bytes:
    """The list with one field of the shard changed."""
    return listing({**SOUND, "records": [{**SHARD, **changes}]})


def recorded(**changes: Any) -> bytes:
    """The list with one field of the first tensor changed."""
    return sharded(records=[{**RECORD, **changes}, GLAD])


def lacking(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != key}


# name -> list, exit code, words of the message
BROKEN: dict[str, tuple[bytes, int, tuple[str, ...]]] = {
    "empty": (b"", 3, ()),
    "no JSON": (b"\x80\x02}q\x00.", 3, ()),
    "a list": (b"[]", 3, ()),
    "null": (b"null", 3, ()),
    "deep nesting": (b'{"records":' + b"[" * 60_000 + b"]" * 60_000 + b"}", 3, ()),
    "a million lists": (b'{"records":[' + b"[]," * 1_000_001 + b"[]]}", 8, ()),
    "a key twice": (b'{"records": [], ' + listing()[1:], 3, ("twice",)),
    "NaN": (listing({**SOUND, "metadata": {"ParamBytes": float("nan")}}), 3, ("NaN",)),
    "no records": (listing({"metadata": {}}), 3, ()),
    "records in a table": (listing({**SOUND, "records": {}}), 3, ()),
    "metadata in a list": (listing({**SOUND, "metadata": []}), 3, ()),
    "a shard in a list": (listing({**SOUND, "records": [[]]}), 3, ("dataPath",)),
    "no dataPath": (listing({**SOUND, "records": [lacking(SHARD, "dataPath")]}), 3, ("dataPath",)),
    "dataPath is a number": (sharded(dataPath=7), 3, ("dataPath",)),
    "dataPath is empty": (sharded(dataPath=""), 3, ()),
    "dataPath is absolute": (sharded(dataPath="/etc/params.bin"), 3, ("/etc/params.bin",)),
    "dataPath leads out": (sharded(dataPath="../params_shard_0.bin"), 3, ("../params",)),
    "dataPath is a detour": (sharded(dataPath="./params_shard_0.bin"), 3, ("./params",)),
    "dataPath is no shard": (sharded(dataPath="tensor-cache.json"), 3, ("tensor-cache.json",)),
    "dataPath with a NUL": (sharded(dataPath="\0.bin"), 3, ()),
    "dataPath with a line": (sharded(dataPath="a\nb.bin"), 6, ()),
    "dataPath with half a character": (sharded(dataPath="\ud800.bin"), 3, ()),
    "shard is missing": (sharded(dataPath="params_shard_1.bin"), 6, ("params_shard_1.bin",)),
    "shard twice": (listing({**SOUND, "records": [SHARD, SHARD]}), 3, ("twice",)),
    "shard of another format": (sharded(format="zip"), 4, ("zip",)),
    "shard larger than stated": (sharded(nbytes=20, records=[RECORD]), 3, ("24", "20")),
    "shard smaller than stated": (sharded(nbytes=25), 3, ("24", "25")),
    "shard of 2^70 bytes": (sharded(nbytes=2**70), 3, ("nbytes",)),
    "shard of -1 bytes": (sharded(nbytes=-1), 3, ("nbytes",)),
    "shard of a true size": (sharded(nbytes=True), 3, ("nbytes",)),
    "shard without nbytes": (listing({**SOUND, "records": [lacking(SHARD, "nbytes")]}), 3, ()),
    "shard without tensors": (sharded(records=None), 3, ("records",)),
    "digest is a number": (sharded(md5sum=7), 3, ("md5sum",)),
    "digest is long": (sharded(md5sum="0" * 10_000), 3, ("md5sum",)),
    "tensor is a number": (sharded(records=[7]), 3, ()),
    "tensor without a name": (sharded(records=[lacking(RECORD, "name"), GLAD]), 3, ()),
    "name is empty": (recorded(name=""), 3, ()),
    "name is long": (recorded(name="x" * 2000), 3, ()),
    "name twice": (recorded(name="glad"), 3, ("glad", "twice")),
    "name with a line": (recorded(name="a\nb", shape=[-1]), 3, ()),
    "shape is missing": (sharded(records=[lacking(RECORD, "shape"), GLAD]), 3, ("sad",)),
    "shape is a number": (recorded(shape=6), 3, ("sad",)),
    "negative size": (recorded(shape=[-2, -3]), 3, ("sad",)),
    "fractional size": (recorded(shape=[2.0, 3]), 3, ("sad",)),
    "true as a size": (recorded(shape=[True, 6]), 3, ("sad",)),
    "size of 2^64": (recorded(shape=[2**64, 0]), 3, ("sad",)),
    "product of 2^120": (recorded(shape=[2**60, 2**60]), 3, ("sad",)),
    "5000 dimensions": (recorded(shape=[1] * 4998 + [2, 3]), 3, ("sad",)),
    "shape too large": (recorded(shape=[2, 4]), 3, ("sad", "16")),
    "shape too small": (recorded(shape=[2, 2]), 3, ("sad", "8")),
    "unknown dtype": (recorded(dtype="float33"), 4, ("sad", "float33")),
    "dtype in a list": (recorded(dtype=["float16"]), 4, ("sad",)),
    "dtype is missing": (sharded(records=[lacking(RECORD, "dtype"), GLAD]), 4, ("sad",)),
    "wider type": (recorded(dtype="uint32"), 3, ("sad", "24")),
    "unpacked float32": (recorded(dtype="float32", format="raw"), 3, ("sad", "24")),
    "unknown format": (recorded(format="f32-to-fp8"), 4, ("sad", "f32-to-fp8")),
    "format is missing": (sharded(records=[lacking(RECORD, "format"), GLAD]), 4, ("sad",)),
    "nbytes is missing": (sharded(records=[lacking(RECORD, "nbytes"), GLAD]), 3, ("sad",)),
    "nbytes in a string": (recorded(nbytes="12"), 3, ("sad",)),
    "nbytes of 2^63": (recorded(nbytes=2**63), 3, ("sad",)),
    "offset is missing": (sharded(records=[lacking(RECORD, "byteOffset"), GLAD]), 3, ("sad",)),
    "offset is negative": (recorded(byteOffset=-12), 3, ("sad",)),
    "offset of 2^62": (recorded(byteOffset=2**62), 3, ("sad",)),
    "offset beyond the end": (recorded(byteOffset=24), 3, ("sad",)),
    "overlap": (recorded(byteOffset=1), 3, ("glad", "overlaps")),
    "the same bytes twice": (recorded(byteOffset=12), 3, ("overlaps",)),
    "5000 digits": (listing().replace(b'"nbytes": 24', b'"nbytes": ' + b"9" * 5000), 3, ()),
}  # fmt: skip


def write_hostile(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "params_shard_0.bin").write_bytes(bytes(range(24)))
    (folder / "tensor-cache.json").write_bytes(content)
    return folder


def test_undamaged(out: Path) -> None:
    """What the cases start from is sound, so it is the damage that is refused."""
    found = open_checkpoint(write_hostile(out, listing()))
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        "sad": (2, 3), "glad": (2, 3)
    }  # fmt: skip
    assert found.metadata == {"parameters": 12}


@pytest.mark.parametrize("name", BROKEN)
def test_refused(name: str, out: Path) -> None:
    content, code, words = BROKEN[name]
    modules()  # imported before anything is measured
    check_refused(write_hostile(out, content), code, words)
    check_cheap(out, code, 16 * len(content))


def check_refused(folder: Path, code: int, words: tuple[str, ...]) -> None:
    with pytest.raises(AdaptoolError) as caught:
        open_checkpoint(folder)
    message = caught.value.message
    assert caught.value.exit_code == code
    assert message.isprintable()
    assert folder.name in message
    assert all(word in message for word in words)


def link_out(folder: Path) -> None:
    (folder / "params_shard_0.bin").rename(folder.parent / "elsewhere.bin")
    (folder / "params_shard_0.bin").symlink_to(folder.parent / "elsewhere.bin")


def make_folder(folder: Path) -> None:
    (folder / "params_shard_0.bin").unlink()
    (folder / "params_shard_0.bin").mkdir()


def make_pointer(folder: Path) -> None:
    oid = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    (folder / "params_shard_0.bin").write_bytes(oid)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (link_out, 3),
        (make_folder, 3),
        (make_pointer, 3),
        (lambda folder: (folder / "params_shard_0.bin").unlink(), 6),
        (lambda folder: (folder / "mlc-chat-config.json").write_text("[]"), 3),
        (lambda folder: (folder / "tensor-cache.json").rename(folder / B16), 4),
    ],
    ids=["link", "folder", "pointer", "missing", "config", "no list"],
)
def test_refused_folders(damage: Callable[[Path], object], code: int, out: Path) -> None:
    damage(write_hostile(out, listing()))
    check_refused(out, code, ())


@pytest.mark.parametrize("stated", [0, -1, 5e-324, 1e308, 10**300, "16", None, True])
@pytest.mark.parametrize("key", ["ParamBytes", "BitsPerParam"])
def test_quotients_that_say_nothing(key: str, stated: Any, tmp_path: Path, out: Path) -> None:
    """Nobody computes with them, so they are no reason to refuse a model."""
    metadata = {**SOUND["metadata"], key: stated}
    found = open_checkpoint(write_hostile(out, listing({**SOUND, "metadata": metadata})))
    save_checkpoint(found, tmp_path / "again", SaveOptions())
    assert len(open_checkpoint(tmp_path / "again").tensors) == 2


def test_truncated_anywhere(out: Path) -> None:
    whole = listing()
    write_hostile(out, whole)
    for size in range(0, len(whole), 7):
        (out / "tensor-cache.json").write_bytes(whole[:size])
        check_refused(out, 3, ())


def test_changed_while_it_is_written(tmp_path: Path, out: Path) -> None:
    """A shard that is replaced meanwhile is not taken for what it was."""
    found = open_checkpoint(write_hostile(out, listing()))
    shutil.copy(out / "params_shard_0.bin", tmp_path / "new")
    (tmp_path / "new").replace(out / "params_shard_0.bin")
    with pytest.raises(AdaptoolError) as caught:
        save_checkpoint(replace(found, side_files={}), tmp_path / "again", SaveOptions())
    assert caught.value.code == "INPUT_CHANGED"
    assert not (tmp_path / "again").exists()
