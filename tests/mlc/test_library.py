"""Compiled libraries: the list that they embed, and what `verify` makes of it and of an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adaptool.errors import (
    AdaptoolError,
    CorruptInputError,
    IncompatibleError,
    ResourceLimitError,
    UsageError,
)
from adaptool.jobs.verifying import Verification, verify
from adaptool.targets.webllm import library as reader
from adaptool.targets.webllm.library import read_library

from .exports import exported, library_text, records, write_library, write_model

HUB = "resolve/main"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with a model, its export in q4f32_1, and a library that fits it."""
    folder = tmp_path_factory.mktemp("built")
    exported(write_model(folder / "base", "llama"), folder / "web", "q4f32_1")
    write_library(folder / "fits.wasm", library_text(folder / "web"))
    return folder


@pytest.fixture
def web(built, tmp_path) -> Path:
    """A copy of the export that a test may spoil."""
    shutil.copytree(built / "web", tmp_path / "web")
    return tmp_path / "web"


def wrong(verification: Verification) -> list[str]:
    return [f"{one.what}: {one.detail}" for one in verification.wrong]


def edit(path: Path, change: Any) -> None:
    """A JSON file changed in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2))


# -- reading --------------------------------------------------------------------------------------


def test_the_list_is_found_among_other_data(built):
    found = read_library(built / "fits.wasm")
    assert (found.model_type, found.quantization) == ("llama", "q4f32_1")
    assert (found.active, found.chunk) == (None, 1024)
    assert list(found.params) == [record["name"] for record in records(built / "web")]
    embedding = found.params["model.embed_tokens.q_weight"]
    assert (embedding.shape, embedding.dtype) == (("vocab_size", 8), "uint32")
    assert found.params["model.norm.weight"].dtype == "float32"


@pytest.mark.parametrize(
    "text",
    [
        '{"model_type": "llama"}',
        '{"params": []}',
        '{"params": [{"name": "x"}]}',
        '{"params": "none"}',
        '{"params": [',
        '{"a": ' * 3000 + '{"params": 1}' + "}" * 3000,
        '{"' * 5000 + '"params"',
        '"params"' * 500,
    ],
)
def test_a_file_without_a_list_is_refused(text, tmp_path):
    with pytest.raises(CorruptInputError, match="no list of parameters"):
        read_library(write_library(tmp_path / "x.wasm", text))


def test_what_is_no_webassembly_is_refused(tmp_path):
    (tmp_path / "x.wasm").write_text('{"params": []}')
    with pytest.raises(CorruptInputError, match="not WebAssembly"):
        read_library(tmp_path / "x.wasm")


def test_an_absurd_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "LIMIT", 1000)
    with pytest.raises(ResourceLimitError):
        read_library(write_library(tmp_path / "x.wasm", "x" * 2000))


def test_little_is_parsed_of_a_hostile_file(tmp_path, monkeypatch):
    """Nested beginnings, all of which would be long to parse: the budget ends it."""
    parsed = []
    plain = reader._decoded

    def counted(text: bytes) -> Any:
        parsed.append(len(text))
        return plain(text)

    monkeypatch.setattr(reader, "_decoded", counted)
    monkeypatch.setattr(reader, "_BUDGET", 100_000)
    text = '{"a":' * 50 + '{"b": [' + "1," * 20_000 + '"params"'
    with pytest.raises(CorruptInputError):
        read_library(write_library(tmp_path / "x.wasm", text * 10))
    assert sum(parsed) <= 100_000


# -- verifying ------------------------------------------------------------------------------------


def test_a_sound_export(built):
    found = verify(built / "web", library=built / "fits.wasm")
    assert wrong(found) == []
    assert any("fits.wasm asks for the" in one.what for one in found.findings)
    assert any(one.what == f"{HUB}/params_shard_0.bin" for one in found.findings)


def test_another_byte_in_a_shard_is_found(web):
    shard = web / HUB / "params_shard_0.bin"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    (found,) = wrong(verify(web))
    assert "params_shard_0.bin: md5" in found


def test_a_short_shard_cannot_be_read(web):
    shard = web / HUB / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    (web / "adaptool.json").unlink()
    with pytest.raises(CorruptInputError, match=r"params_shard_0\.bin"):
        verify(web, target="webllm")


@pytest.mark.parametrize("name", ["tensor-cache.json", "ndarray-cache.json"])
def test_both_lists_are_needed(web, name):
    (web / HUB / name).unlink()
    assert wrong(verify(web)) == [f"lists of tensors: {name} is missing"]


def test_lists_that_differ(web):
    edit(web / HUB / "ndarray-cache.json", lambda c: c["metadata"].update(ParamSize=1))
    assert "differ" in " ".join(wrong(verify(web)))


def changed(web: Path, change: Any) -> list[str]:
    """What is wrong after mlc-chat-config.json was changed; its size is not looked at."""
    edit(web / HUB / "mlc-chat-config.json", change)
    (web / "adaptool.json").unlink()
    return wrong(verify(web, target="webllm"))


def test_tensors_must_be_those_of_the_architecture(web):
    found = changed(web, lambda c: c["model_config"].update(num_hidden_layers=1))
    assert len(found) == sum("layers.1." in record["name"] for record in records(web))
    assert all("model.layers.1." in one and "no place" in one for one in found)


def test_sizes_must_be_those_of_the_configuration(web):
    found = changed(web, lambda c: c["model_config"].update(intermediate_size=128))
    assert min(found) == (
        "tensor model.layers.0.mlp.down_proj.q_scale: float32 [64, 3], the architecture has "
        "float32 [64, 4]"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(sliding_window_size=16), "both set"),
        (lambda c: c.update(tokenizer_files=[]), "none that WebLLM reads"),
        (lambda c: c.update(tokenizer_files=["tokenizer.model"]), "tokenizer.model is missing"),
        (lambda c: c.pop("conv_template"), "no seps"),
        (lambda c: c.update(quantization="q9"), "q9"),
    ],
)
def test_settings_that_webllm_would_stumble_over(web, change, words):
    assert words in " ".join(changed(web, change))


def test_a_configuration_without_sizes_cannot_be_read(web):
    with pytest.raises(CorruptInputError, match="head_dim"):
        changed(web, lambda c: c["model_config"].pop("head_dim"))


def test_absurd_sizes_are_refused(web):
    with pytest.raises(AdaptoolError):
        changed(web, lambda c: c["model_config"].update(num_hidden_layers=10**9))


def test_every_difference_from_a_library_is_one_finding(built, tmp_path):
    text = library_text(built / "web", quantization="q4f16_1", active_vocab_size=90)
    params = {p["name"]: p for p in text["params"]}
    params["model.norm.weight"]["dtype"] = "float16"
    params["model.layers.0.mlp.down_proj.q_weight"]["shape"] = [64, 16]
    params["lm_head.q_scale"]["shape"] = ["unheard_of", 2]
    params["model.layers.1.input_layernorm.weight"]["name"] = "model.layers.1.ln.weight"
    found = wrong(verify(built / "web", library=write_library(tmp_path / "x.wasm", text)))
    assert len(found) == 7
    assert all("x.wasm" in one for one in found)
    for words in (
        "is for quantization q4f16_1, the model is q4f32_1",
        "model.norm.weight: asks for float16, it is float32",
        "down_proj.q_weight: asks for shape [64, 16], it is [64, 12]",
        "lm_head.q_scale: asks for shape ['unheard_of', 2], it is [96, 2]",
        "asks for model.layers.1.ln.weight, which is not there",
        "does not know model.layers.1.input_layernorm.weight",
        "6 of 96 tokens lie beyond its 90",
    ):
        assert any(words in one for one in found), words


# -- exporting with a library ---------------------------------------------------------------------


def test_a_library_travels_along(built, tmp_path):
    report = exported(built / "base", tmp_path / "web", "q4f32_1", library=built / "fits.wasm")
    copy = tmp_path / "web/library/fits.wasm"
    assert copy.read_bytes() == (built / "fits.wasm").read_bytes()
    (record,) = json.loads((tmp_path / "web/app-config.json").read_text())["model_list"]
    assert record["model_lib"] == "library/fits.wasm"
    assert not any("compile" in note for note in report.notes)
    assert "record.model_lib" in report.loading
    assert wrong(verify(tmp_path / "web")) == []
    write_library(copy, library_text(tmp_path / "web", model_type="qwen2") | {"x": "y" * 9})
    (tmp_path / "web/adaptool.json").unlink()
    assert "is for model_type qwen2" in " ".join(wrong(verify(tmp_path / "web", target="webllm")))
    copy.unlink()
    assert "fits.wasm is missing" in " ".join(wrong(verify(tmp_path / "web", target="webllm")))


def test_a_library_of_another_dtype_is_refused(built, tmp_path):
    with pytest.raises(IncompatibleError) as caught:
        exported(built / "base", tmp_path / "web", "q4f16_1", library=built / "fits.wasm")
    assert caught.value.code == "LIBRARY_MISMATCH"
    assert "quantization q4f32_1" in caught.value.message
    assert not (tmp_path / "web").exists()


def test_tokens_that_a_library_masks_are_only_said(built, tmp_path):
    library = write_library(tmp_path / "x.wasm", library_text(built / "web", active_vocab_size=90))
    report = exported(built / "base", tmp_path / "web", "q4f32_1", library=library)
    assert any("6 of 96 tokens" in note for note in report.notes)


def test_a_library_is_called_wasm(built, tmp_path):
    with pytest.raises(UsageError, match=r"\.wasm"):
        exported(built / "base", tmp_path / "web", "q4f32_1", library=tmp_path / "x.so")
