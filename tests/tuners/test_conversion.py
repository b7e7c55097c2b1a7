"""Other types of PEFT written back: the same tensors, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel  # noqa: TID251
from safetensors.torch import load_file, save_file
from zoo.models import BASES, read_tensors

from adaptool.errors import IncompatibleError
from adaptool.formats import ReadOptions, WriteOptions
from adaptool.formats.peft import read, write

from .matrix import Built, build, exit_code, merged, quiet
from .test_merges import CASES

if TYPE_CHECKING:
    from pathlib import Path

SAME = ["ia3-biases", "loha-conv-cp", "lokr", "oft-embedding", "boft-bert", "vera", "vera-unsaved",
        "ln-bert", "tokens", "tokens-tied", "fourier"]  # fmt: skip
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.mark.parametrize("name", SAME)
def test_tensors_and_config_stay(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    copy = tmp_path / "copy"
    assert exit_code("convert", built.adapter, "-o", copy) == 0
    before, after = load_file(built.adapter / FILE), load_file(copy / FILE)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    configs = [json.loads((folder / CONFIG).read_text()) for folder in (built.adapter, copy)]
    assert configs[0] == configs[1]
    again = merged(Built(built.base, copy, {}), tmp_path / "again")
    once = merged(built, tmp_path / "once")
    assert all(torch.equal(once[key], again[key]) for key in once)


def test_another_dtype(tmp_path: Path) -> None:
    built = build(CASES["oft"], tmp_path)
    assert exit_code("convert", built.adapter, "-o", tmp_path / "c", "--dtype", "bfloat16") == 0
    before, after = load_file(built.adapter / FILE), load_file(tmp_path / "c" / FILE)
    assert all(torch.equal(before[key].bfloat16(), after[key]) for key in before)


def test_adalora_becomes_lora(tmp_path: Path) -> None:
    case = CASES["adalora"]
    built = build(case, tmp_path)
    assert exit_code("convert", built.adapter, "-o", tmp_path / "lora") == 0
    assert json.loads((tmp_path / "lora" / CONFIG).read_text())["peft_type"] == "LORA"
    kind = BASES[case.base]
    with quiet():
        model = PeftModel.from_pretrained(kind.read(built.base, torch.float32), tmp_path / "lora")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name, tensor in read_tensors(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, built.expected[name], rtol=1e-5, atol=1e-5)


def test_what_no_file_can_hold(tmp_path: Path) -> None:
    built = build(CASES["oft"], tmp_path)
    adapter = read(built.adapter, ReadOptions())
    stray = replace(adapter, config={})
    with pytest.raises(IncompatibleError, match="rotation"):
        write(stray, tmp_path / "out", WriteOptions())
    assert not (tmp_path / "out").exists()
    gguf = tmp_path / "out.gguf"
    assert exit_code("convert", built.adapter, "-o", gguf, "--base", built.base) == 4
    assert exit_code("combine", built.adapter, built.adapter, "-o", tmp_path / "both") == 4
    assert exit_code("reduce", built.adapter, "--rank", 2, "-o", tmp_path / "less") == 4


def test_names_of_adapters_left_in(tmp_path: Path) -> None:
    built = build(CASES["oft"], tmp_path)
    tensors = load_file(built.adapter / FILE)
    named = {key.replace(".oft_R.weight", ".oft_R.mine.weight"): t for key, t in tensors.items()}
    assert set(named) != set(tensors)
    save_file(named, built.adapter / FILE, {"format": "pt"})
    actual = merged(built, tmp_path / "out")
    for name, want in built.expected.items():
        torch.testing.assert_close(actual[name], want, rtol=1e-5, atol=1e-6)
