"""Merges of whole folders: odd bases, tokenizers, adapters that carry a copy of the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adaptool.errors import IncompatibleError
from adaptool.jobs.merging import merge_files

SITE = "layers.0.q_proj"


def base_folder(folder: Path, config: dict[str, object], **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"of": "the base"}')
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def adapter_folder(folder: Path, **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    save_file({f"base_model.model.{k}": v.contiguous() for k, v in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


def factors(site: str = SITE, out: int = 4, inputs: int = 4) -> dict[str, torch.Tensor]:
    return {f"{site}.lora_A.weight": torch.randn(2, inputs),
            f"{site}.lora_B.weight": torch.randn(out, 2)}  # fmt: skip


@pytest.mark.parametrize(
    "weights",
    [
        {f"{SITE}.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
         f"{SITE}.weight_scale_inv": torch.ones(1)},
        {f"{SITE}.weight": torch.ones(4, 4, dtype=torch.int8)},
    ],
)  # fmt: skip
def test_quantised_weights_are_refused(weights, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", {}, **weights)
    adapter = adapter_folder(tmp_path / "a", **factors())
    with pytest.raises(IncompatibleError, match="a quantised weight"):
        merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packed_base_is_named_as_such(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "hqq"}}
    packed = {f"{SITE}.weight": torch.zeros(8, 1, dtype=torch.uint8)}
    base = base_folder(tmp_path / "base", config, **packed)
    adapter = adapter_folder(tmp_path / "a", **factors())
    with pytest.raises(IncompatibleError) as caught:
        merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
    assert "is quantised with 'hqq'" in str(caught.value)


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_new_vocabulary_brings_its_tokenizer(with_tokenizer: bool, tmp_path: Path) -> None:
    embedding = torch.randn(6, 4)
    base = base_folder(tmp_path / "base", {"vocab_size": 6}, **{"embed_tokens.weight": embedding})
    adapter = adapter_folder(tmp_path / "a", **{"embed_tokens.weight": torch.randn(8, 4)})
    if with_tokenizer:
        (adapter / "tokenizer.json").write_text('{"of": "the adapter"}')
    report = merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 8
    owner = "the adapter" if with_tokenizer else "the base"
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"of": owner}
    assert any("tokenizer" in note for note in report.notes)


def test_an_unchanged_vocabulary_keeps_the_base_s_tokenizer(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", {}, **{f"{SITE}.weight": torch.randn(4, 4)})
    adapter = adapter_folder(tmp_path / "a", **factors())
    (adapter / "tokenizer.json").write_text('{"of": "the adapter"}')
    merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"of": "the base"}


@pytest.mark.parametrize("same", [True, False])
def test_two_adapters_that_carry_the_base(same: bool, tmp_path: Path) -> None:
    """Targeted embeddings are saved with a copy of the base: equal copies are one."""
    embedding = torch.randn(6, 4)
    base = base_folder(tmp_path / "base", {}, **{"embed_tokens.weight": embedding})
    deltas, paths = [], []
    for number in range(2):
        a, b = torch.randn(2, 6), torch.randn(4, 2)
        copy = embedding + (0 if same else number)
        paths.append(adapter_folder(tmp_path / f"a{number}", **{
            "embed_tokens.base_layer.weight": copy, "embed_tokens.lora_embedding_A": a,
            "embed_tokens.lora_embedding_B": b}))  # fmt: skip
        deltas.append((b.double() @ a.double()).T)
    pairs = [(str(paths[0]), 0.5), (str(paths[1]), -2.0)]
    if not same:
        with pytest.raises(IncompatibleError, match="their own copy"):
            merge_files(base, pairs, tmp_path / "out")
        return
    merge_files(base, pairs, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["embed_tokens.weight"]
    assert torch.allclose(found.double(), embedding.double() + 0.5 * deltas[0] - 2 * deltas[1],
                          atol=1e-5)  # fmt: skip


def test_one_file_carries_its_record_inside(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", {}, **{f"{SITE}.weight": torch.randn(4, 4)})
    adapter = adapter_folder(tmp_path / "a", **factors())
    merge_files(base / "model.safetensors", {str(adapter): 0.5}, tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        record = json.loads(file.metadata()["adaptool"])
    assert record["inputs"][1] == {"name": "a", "scale": 0.5}


def test_a_name_with_two_meanings_is_refused(tmp_path: Path) -> None:
    weights = {f"model.{SITE}.weight": torch.randn(4, 4), f"bert.{SITE}.weight": torch.randn(4, 4)}
    base = base_folder(tmp_path / "base", {}, **weights)
    adapter = adapter_folder(tmp_path / "a", **factors())
    with pytest.raises(IncompatibleError, match="could mean"):
        merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
