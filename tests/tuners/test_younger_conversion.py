"""Younger types written back: the same tensors, or a plain LoRA that means the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel  # noqa: TID251
from safetensors.torch import load_file, save_file
from zoo.models import BASES, read_tensors

from .matrix import Case, build, exit_code, merged, quiet
from .test_younger_merges import CASES

if TYPE_CHECKING:
    from pathlib import Path

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SAME = ["randlora-gpt2", "road-2-biases", "hira", "supertuning-supra", "peanut-deep", "waveft",
        "pvera", "frod", "glora-biases", "kasa"]  # fmt: skip
PLAIN = ["vblora-largest", "delora", "gralora-gpt2", "tinylora-tied", "unilora", "bd-lora"]


@pytest.mark.parametrize("name", SAME)
def test_tensors_and_config_stay(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    copy = tmp_path / "copy"
    assert exit_code("convert", built.adapter, "-o", copy) == 0
    before, after = load_file(built.adapter / FILE), load_file(copy / FILE)
    assert set(after) == set(before)
    assert all(torch.equal(before[key], after[key]) for key in before)
    configs = [json.loads((folder / CONFIG).read_text()) for folder in (built.adapter, copy)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_lora(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    built = build(case, tmp_path)
    assert exit_code("convert", built.adapter, "-o", tmp_path / "lora") == 0
    assert json.loads((tmp_path / "lora" / CONFIG).read_text())["peft_type"] == "LORA"
    kind = BASES[case.base]
    with quiet():
        model = PeftModel.from_pretrained(kind.read(built.base, torch.float32), tmp_path / "lora")
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
    actual = read_tensors(tmp_path / "merged")
    for tensor, wanted in built.expected.items():
        torch.testing.assert_close(actual[tensor], wanted, rtol=1e-5, atol=1e-5)


def test_plain_ones_can_be_combined(tmp_path: Path) -> None:
    """Their shared tensors are in the factors then, and stand in nobody's way."""
    one, two = build(CASES["vblora"], tmp_path / "1"), build(CASES["gralora"], tmp_path / "2")
    both = tmp_path / "both"
    assert exit_code("combine", one.adapter, two.adapter, "-o", both) == 0
    base = read_tensors(one.base)
    for name, actual in merged(replace(one, adapter=both), tmp_path / "out").items():
        wanted = one.expected[name].double() + two.expected[name].double() - base[name].double()
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-5)


def refused(case: Case, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    built = build(case, folder)
    assert exit_code("merge", built.base, built.adapter, "-o", folder / "out") == 4
    assert not (folder / "out").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["unilora", "frod", "tinylora"])
def test_what_the_file_does_not_hold(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What follows from the order of a model's modules, or from all its layers, is not guessed."""
    left_out = {"unilora": "save_indices", "frod": "save_projection", "tinylora": "save_projection"}
    whole = CASES[name]
    case = Case(whole.base, lambda: _without(whole, left_out[name]))
    assert "UNSUPPORTED" not in (said := refused(case, tmp_path, capsys))
    assert {"unilora": "unilora_theta_d", "frod": "frod_V", "tinylora": "tinylora_P"}[name] in said


def _without(case: Case, key: str) -> object:
    config = case.config()
    setattr(config, key, False)
    return config


def test_a_sketch_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(CASES["pissa"], tmp_path)
    config = json.loads((built.adapter / CONFIG).read_text())
    config["init_lora_weights"] = "pissa_niter_4"
    (built.adapter / CONFIG).write_text(json.dumps(config))
    assert exit_code("merge", built.base, built.adapter, "-o", tmp_path / "out") == 4
    assert "pissa_niter_4" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["use_dora", "target_parameters"])
def test_pissa_of_another_kind(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"peft_type": "LORA", "init_lora_weights": "pissa", key: ["experts"]}
    config["use_dora"] = key == "use_dora"
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert exit_code("inspect", tmp_path) == 4
    assert f"pissa together with {key}" in capsys.readouterr().err


def test_a_projection_of_another_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose vector a module has is told by its random numbers, which are nobody's here."""
    built = build(CASES["tinylora"], tmp_path)
    tensors = load_file(built.adapter / FILE)
    key = next(name for name in tensors if name.endswith("tinylora_P"))
    tensors[key] = tensors[key] + 1
    save_file(tensors, built.adapter / FILE, {"format": "pt"})
    assert exit_code("merge", built.base, built.adapter, "-o", tmp_path / "out") == 4
    assert "tinylora_v" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_zeros_that_are_not(tmp_path: Path) -> None:
    built = build(CASES["glora-column-alone"], tmp_path)
    tensors = load_file(built.adapter / FILE)
    key = next(name for name in tensors if name.endswith("glora_A.zeros"))
    tensors[key][0, 0] = 1
    save_file(tensors, built.adapter / FILE, {"format": "pt"})
    assert exit_code("merge", built.base, built.adapter, "-o", tmp_path / "out") == 3
    assert not (tmp_path / "out").exists()


def test_several_updates_of_one_weight(tmp_path: Path) -> None:
    """Two adapters see the same base: their changes add up."""
    one, two = build(CASES["hira"], tmp_path / "1"), build(CASES["deft"], tmp_path / "2")
    base = read_tensors(one.base)
    actual = merged(one, tmp_path / "out", "--adapter", two.adapter)
    for name, stored in base.items():
        both = one.expected[name].double() + two.expected[name].double() - stored.double()
        torch.testing.assert_close(actual[name].double(), both, rtol=1e-5, atol=1e-5)
