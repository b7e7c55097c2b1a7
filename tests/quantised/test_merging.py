"""Merging into quantised models on disk, against PEFT on the weights that the library decodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import peft  # noqa: TID251
import pytest
import torch
import transformers as tf  # noqa: TID251
from click.testing import CliRunner

from adaptool.cli import group
from adaptool.containers import open_checkpoint
from adaptool.encodings.checkpoints import dequantised
from adaptool.errors import IncompatibleError, UsageError
from adaptool.jobs.merging import merge_files
from tests.quantised.models import (
    VOCABULARY,
    read_tensors,
    write_bitsandbytes,
    write_plain,
    write_settings,
)

TARGETS = ["q_proj", "down_proj"]
HOW = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nested": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A plain model, its quantised forms, a strong adapter and a weak one."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("shelf")
    plain = write_plain(folder / "plain")
    for name, how in HOW.items():
        write_bitsandbytes(folder / name, plain, **how)
    for name, strength in (("strong", 0.1), ("weak", 0.015)):
        write_adapter(plain, folder / name, strength)
    yield folder


def write_adapter(base: Path, folder: Path, strength: float) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(base)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)
    tuned.save_pretrained(folder)


def inputs() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"})
    with torch.no_grad():
        return model(inputs()).logits.float()


def merge_with_peft(base: Path, adapter: Path) -> torch.Tensor:
    """The library decodes its weights, PEFT merges into them, in float32."""
    model = tf.AutoModelForCausalLM.from_pretrained(base, device_map={"": "cpu"})
    model = model.dequantize().float()
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.no_grad():
        return merged(inputs()).logits


def test_the_view_is_a_plain_checkpoint(shelf: Path) -> None:
    stored = open_checkpoint(shelf / "nested")
    plain = read_tensors(shelf / "plain")
    view = dequantised(stored)
    assert {n: t.shape for n, t in view.tensors.items()} == {
        n: tuple(t.shape) for n, t in plain.items()
    }
    assert "quantization_config" not in view.config
    for name in ("lm_head.weight", "model.norm.weight"):  # what was not converted
        assert view.tensors[name] is stored.tensors[name]


@pytest.mark.parametrize("name", HOW)
def test_logits_are_those_of_peft_on_the_decoded_model(shelf: Path, tmp_path: Path,
                                                       name: str) -> None:  # fmt: skip
    report = merge_files(shelf / name, {str(shelf / "strong"): 1.0}, tmp_path / "m", dtype="f32",
                         base_weights="dequantized")  # fmt: skip
    expected = merge_with_peft(shelf / name, shelf / "strong")
    got = logits(tmp_path / "m")
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert report.survival is not None
    assert report.survival.ratio == pytest.approx(1)


@pytest.mark.parametrize("name", ["nf4", "nested"])
def test_the_result_speaks_as_the_adapter_did_in_training(shelf: Path, tmp_path: Path,
                                                          name: str) -> None:  # fmt: skip
    """Nearer by far to the quantised model with its adapter than a merge into the original."""
    lora = shelf / "strong"
    base = write_bitsandbytes(tmp_path / "q", shelf / "plain", dtype=torch.float32, **HOW[name])
    model = tf.AutoModelForCausalLM.from_pretrained(base, device_map={"": "cpu"})
    tuned = peft.PeftModel.from_pretrained(model, lora).train()  # else its weights are repacked
    with torch.no_grad():
        trained = tuned(inputs()).logits
    away = {}
    for how in ("dequantized", shelf / "plain"):
        merge_files(base, {str(lora): 1.0}, tmp_path / "m", dtype="f32", base_weights=how,
                    force=True)  # fmt: skip
        away[how] = float((logits(tmp_path / "m") - trained).norm() / trained.norm())
    assert away["dequantized"] < 1e-3
    assert away[shelf / "plain"] > 20 * away["dequantized"]


@pytest.mark.parametrize("name", HOW)
def test_by_default_the_result_is_plain(shelf: Path, tmp_path: Path, name: str) -> None:
    report = merge_files(shelf / name, {str(shelf / "strong"): 1.0}, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert "quantization_config" not in config
    merged, plain = read_tensors(tmp_path / "m"), read_tensors(shelf / "plain")
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {
        n: (t.shape, t.dtype) for n, t in plain.items()
    }
    decoded = dequantised(open_checkpoint(shelf / name))
    touched = {n for n in merged if any(f"{t}.weight" in n for t in TARGETS)}
    assert report.touched == len(touched) == 4
    for key in merged.keys() - touched:
        assert torch.equal(merged[key], decoded.tensors[key].values())
    (note,) = [n for n in report.notes if "decoded" in n]
    assert "the result is not quantised" in note
    assert "the result is not quantised" in (tmp_path / "m" / "README.md").read_text()
    assert note in json.loads((tmp_path / "m" / "adaptool.json").read_text())["notes"]


def test_into_the_original(shelf: Path, tmp_path: Path) -> None:
    adapter = {str(shelf / "strong"): 1.0}
    report = merge_files(shelf / "nf4", adapter, tmp_path / "m", base_weights=shelf / "plain")
    merge_files(shelf / "plain", adapter, tmp_path / "n")
    one, two = read_tensors(tmp_path / "m"), read_tensors(tmp_path / "n")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    quantised, plain = dequantised(open_checkpoint(shelf / "nf4")), read_tensors(shelf / "plain")
    names = [n for n in plain if any(f"{t}.weight" in n for t in TARGETS)]
    flat = torch.cat([plain[n].double().view(-1) for n in names])
    away = torch.cat([quantised.tensors[n].values().double().view(-1) for n in names]) - flat
    (note,) = report.notes
    said = re.search(r"the two are ([0-9.]+)% apart", note)
    assert said is not None
    assert float(said[1]) == pytest.approx(100 * float(away.norm() / flat.norm()), abs=0.05)
    assert "not into those of nf4" in note


def test_another_model_is_not_the_original(shelf: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {n: torch.randn_like(t) * t.float().std() for n, t in
               read_tensors(shelf / "plain").items()}  # fmt: skip
    from safetensors.torch import save_file

    (tmp_path / "other").mkdir()
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_bytes((shelf / "plain/config.json").read_bytes())
    with pytest.raises(IncompatibleError) as caught:
        merge_files(shelf / "nf4", {str(shelf / "strong"): 1.0}, tmp_path / "m",
                    base_weights=tmp_path / "other")  # fmt: skip
    assert caught.value.code == "OTHER_MODEL"
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", HOW)
def test_requantised(shelf: Path, tmp_path: Path, name: str) -> None:
    """What was not touched keeps its bytes; what was is read by the library as was measured."""
    adapter = {str(shelf / "strong"): 1.0}
    report = merge_files(shelf / name, adapter, tmp_path / "m", requantize=True)
    before, after = read_tensors(shelf / name), read_tensors(tmp_path / "m")
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    for key in before:
        if not any(t in key for t in TARGETS):
            assert torch.equal(before[key], after[key])
    assert (tmp_path / "m" / "config.json").read_bytes() == (
        shelf / name / "config.json"
    ).read_bytes()
    merge_files(shelf / name, adapter, tmp_path / "exact", dtype="f32")
    exact, start = read_tensors(tmp_path / "exact"), dequantised(open_checkpoint(shelf / name))
    stored = dequantised(open_checkpoint(tmp_path / "m"))
    meant = along = 0.0
    for key in exact:
        if any(f"{t}.weight" in key for t in TARGETS):
            base = start.tensors[key].values().double()
            change = exact[key].double() - base
            meant += float(change.square().sum())
            along += float(((stored.tensors[key].values().double() - base) * change).sum())
    assert report.survival is not None
    assert report.survival.ratio == pytest.approx(along / meant, abs=0.01)
    assert report.survival.ratio > 0.9
    logits_of = logits(tmp_path / "m", torch.bfloat16)  # transformers loads it as it loads the base
    assert logits_of.isfinite().all()
    library = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "m", device_map={"": "cpu"})
    state = library.dequantize().state_dict()
    assert all(torch.equal(state[n], t.values()) for n, t in stored.tensors.items())


def test_a_weak_update_does_not_survive_four_bits(shelf: Path, tmp_path: Path) -> None:
    adapter = {str(shelf / "weak"): 1.0}
    with pytest.raises(IncompatibleError, match="would survive the rounding to nf4") as caught:
        merge_files(shelf / "nf4", adapter, tmp_path / "m", requantize=True)
    assert caught.value.code == "UPDATE_LOST"
    assert "--base-weights" in (caught.value.hint or "")
    assert not (tmp_path / "m").exists()
    report = merge_files(shelf / "nf4", adapter, tmp_path / "m", requantize=True, allow_loss=True)
    assert report.survival is not None
    assert (report.survival.ratio or 1) < 0.5
    merge_files(shelf / "nf4", adapter, tmp_path / "once", requantize=True,
                base_weights=shelf / "plain")  # fmt: skip
    once = merge_files(shelf / "nf4", adapter, tmp_path / "once", requantize=True, force=True,
                       base_weights=shelf / "plain")  # fmt: skip
    assert once.survival is not None
    assert (once.survival.ratio or 0) > 0.8


def test_shards(shelf: Path, tmp_path: Path) -> None:
    sharded = write_bitsandbytes(tmp_path / "s", shelf / "plain", max_shard_size="100KB",
                                 **HOW["nested"])  # fmt: skip
    assert len(list(sharded.glob("*.safetensors"))) > 2
    adapter = {str(shelf / "strong"): 1.0}
    for options in ({}, {"requantize": True}):
        merge_files(shelf / "nested", adapter, tmp_path / "one", force=True, **options)
        merge_files(sharded, adapter, tmp_path / "many", force=True, **options)
        one, many = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "many")
        assert one.keys() == many.keys()
        assert all(torch.equal(one[name], many[name]) for name in one)
        assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2


def gptq_like(shelf: Path, folder: Path) -> Path:
    """The plain model with one module as GPTQ stores it."""
    tensors = read_tensors(shelf / "plain")
    module = "model.layers.0.self_attn.q_proj"
    out, inputs = tensors.pop(f"{module}.weight").shape
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(-(1 << 31), 1 << 31, (inputs // 8, out), generator=generator)
    tensors |= {
        f"{module}.qweight": words.int(),
        f"{module}.qzeros": torch.full((1, out // 8), 0x77777777, dtype=torch.int32),
        f"{module}.scales": torch.full((1, out), 0.01, dtype=torch.float16),
    }
    config = json.loads((shelf / "plain" / "config.json").read_text())
    return write_settings(folder, tensors, {"quant_method": "gptq", "bits": 4, "group_size": -1},
                          config)  # fmt: skip


def test_a_scheme_that_is_only_read(shelf: Path, tmp_path: Path) -> None:
    base = gptq_like(shelf, tmp_path / "gptq")
    adapter = {str(shelf / "strong"): 1.0}
    report = merge_files(base, adapter, tmp_path / "m")
    assert any("gptq 4 bits" in note for note in report.notes)
    name = "model.layers.0.self_attn.q_proj.weight"
    decoded = dequantised(open_checkpoint(base)).tensors[name].values()
    merged = read_tensors(tmp_path / "m")[name]
    assert decoded.dtype == merged.dtype == torch.float16
    assert not torch.equal(decoded, merged)
    with pytest.raises(IncompatibleError) as caught:
        merge_files(base, adapter, tmp_path / "n", requantize=True)
    assert caught.value.code == "NOT_ENCODABLE"


def test_requests_that_make_no_sense(shelf: Path, tmp_path: Path) -> None:
    adapter = {str(shelf / "strong"): 1.0}
    for base, options in (
        ("plain", {"requantize": True}),
        ("plain", {"base_weights": "dequantized"}),
        ("plain", {"base_weights": shelf / "plain"}),
        ("nf4", {"requantize": True, "dtype": "f32"}),
        ("nf4", {"base_weights": shelf / "int8"}),
        ("nf4", {"imatrix": shelf / "x"}),
    ):
        with pytest.raises(UsageError):
            merge_files(shelf / base, adapter, tmp_path / "m", **options)  # type: ignore[arg-type]


def test_on_the_command_line(shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    done = CliRunner().invoke(group, ["merge", str(shelf / "nf4"), str(shelf / "strong"), "-o",
                                      str(out), "--requantize", "--json"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["survival"]["ratio"] > 0.9
    dry = CliRunner().invoke(group, ["merge", str(shelf / "nf4"), str(shelf / "strong"), "-o",
                                     str(tmp_path / "n"), "--dry-run", "--json"])  # fmt: skip
    assert json.loads(dry.stdout)["touched"] == 4
    assert not (tmp_path / "n").exists()
