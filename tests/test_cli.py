"""The commands, as people and programs run them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adaptool.cli import main
from adaptool.demonstration import demo_folder

DEMO = demo_folder()
MODEL = DEMO / "model"
ADAPTERS = ("pirate", "cowboy", "formal")
EXPECTED: dict[str, Any] = json.loads((DEMO / "expected.json").read_text())
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    """Run a command with --json; returns its object after checking the exit code."""

    def call(*arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        assert err == ""
        facts = json.loads(out)
        assert facts["ok"] is (code == 0)
        if code:
            assert facts["exit_code"] == code
        return facts

    return call


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file or of a folder's files."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def config_of(adapter: Path) -> dict[str, Any]:
    return json.loads((adapter / "adapter_config.json").read_text())


def deltas(adapter: Path) -> dict[str, torch.Tensor]:
    """Weight name -> scaling * B A in float64, computed the long way."""
    config, tensors = config_of(adapter), load_file(adapter / WEIGHTS)
    root = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
    assert not config["alpha_pattern"]
    assert not config["rank_pattern"]
    return {
        name.removeprefix(PREFIX).replace("lora_A.weight", "weight"): (
            tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
        )
        * (config["lora_alpha"] / root)
        for name, a in tensors.items()
        if name.endswith("lora_A.weight")
    }


def digests(folder: Path, *, leave: tuple[str, ...] = ("adaptool.json",)) -> dict[str, str]:
    """File name -> hash."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.name not in leave
    }


def edited(adapter: Path, target: Path, **changes: object) -> Path:
    """A copy of an adapter with another config."""
    shutil.copytree(adapter, target)
    config = {**config_of(adapter), **changes}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- inspect --------------------------------------------------------------------------------------


def test_inspect_adapter_as_json(run):
    facts = run("inspect", DEMO / "pirate")
    modules = facts.pop("modules")
    assert {key: facts[key] for key in ("kind", "format", "name", "method", "base", "task")} == {
        "kind": "adapter", "format": "peft", "name": "pirate", "method": "lora",
        "base": "adaptool/demo", "task": "CAUSAL_LM",
    }  # fmt: skip
    assert facts["mergeable"] is True
    assert facts["parameters"] == 65536
    assert facts["bytes"] == 262144
    assert facts["dtypes"] == {"float32": 28}
    assert facts["ranks"] == {"8": 14}
    assert facts["layers"] == [0, 1]
    leaves = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert facts["targets"] == dict.fromkeys(leaves, 2)
    assert facts["unknown_keys"] == []
    assert facts["extra_tensors"] == []
    assert facts["files"][WEIGHTS]["bytes"] == (DEMO / "pirate" / WEIGHTS).stat().st_size
    assert modules["model.layers.0.mlp.down_proj.weight"] == {
        "kind": "low-rank", "shape": [256, 512], "rank": 8, "scaling": 2.0, "alpha": 16.0,
    }  # fmt: skip


def test_inspect_states_the_effective_scaling(run):
    facts = run("inspect", DEMO / "cowboy")
    assert facts["ranks"] == {"4": 8}
    assert {m["scaling"] for m in facts["modules"].values()} == {8 / 4**0.5}
    facts = run("inspect", DEMO / "formal")
    assert set(facts["kinds"]) == {"dora"}
    assert facts["method"] == "dora"


def test_inspect_checkpoint_as_json(run):
    facts = run("inspect", MODEL)
    tensors = tensors_of(MODEL)
    assert facts["kind"] == "checkpoint"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == sum(t.numel() for t in tensors.values())
    assert facts["tensors"] == len(tensors)
    assert facts["dtypes"] == {"bfloat16": len(tensors)}
    assert facts["layers"] == 2
    assert facts["tied_embeddings"] is True


def test_inspect_as_text(capsys):
    assert main(["inspect", str(DEMO / "pirate")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("adapter pirate", "65,536", "8 x14", "float32 x28", "adaptool/demo", "0-1"):
        assert text in out
    assert "nan" not in out.lower()
    assert main(["inspect", str(DEMO / "pirate"), "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("adapter", ["pirate", "cowboy"])
def test_statistics_equal_the_dense_computation(adapter, run):
    modules = run("inspect", DEMO / adapter, "--stats", "--against", MODEL)["modules"]
    base = tensors_of(MODEL)
    dense = deltas(DEMO / adapter)
    assert set(modules) == set(dense)
    for name, delta in dense.items():
        row, norm = modules[name], float(delta.norm())
        values = torch.linalg.svdvals(delta)[: row["rank"]]
        assert row["norm"] == pytest.approx(norm, rel=1e-5)
        assert row["relative"] == pytest.approx(norm / float(base[name].double().norm()), rel=1e-5)
        assert row["singular_values"] == pytest.approx(values.tolist(), rel=1e-5)
        shares = values.square() / values.square().sum()
        entropy = -(shares * shares.log()).sum()
        assert row["effective_rank"] == pytest.approx(entropy.exp().item(), rel=1e-5)
        assert row["nonfinite"] == 0


def test_statistics_count_what_is_not_finite(run, tmp_path):
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "broken")
    tensors = load_file(adapter / WEIGHTS)
    name = next(iter(tensors))
    tensors[name][0, :3] = torch.tensor([float("nan"), float("inf"), 1.0])
    save_file(tensors, adapter / WEIGHTS)
    modules = run("inspect", adapter, "--stats")["modules"]
    assert sum(m["nonfinite"] for m in modules.values()) == 2


def test_against_says_whether_it_fits(run, tmp_path):
    assert run("inspect", DEMO / "pirate", "--against", MODEL)["fits"] is True
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "deeper")
    tensors = load_file(adapter / WEIGHTS)
    moved = {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()}
    save_file(moved, adapter / WEIGHTS)
    assert main(["inspect", str(adapter), "--against", str(MODEL), "--json"]) == 4
    assert main(["inspect", str(adapter), "--against", str(MODEL)]) == 4


def test_against_finds_a_wrong_shape(tmp_path):
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "wider")
    tensors = load_file(adapter / WEIGHTS)
    wide = {n: torch.zeros(8, v.shape[1] + 1) if "lora_A" in n else v for n, v in tensors.items()}
    save_file(wide, adapter / WEIGHTS)
    assert main(["inspect", str(adapter), "--against", str(MODEL), "--json"]) == 4


# -- merge ----------------------------------------------------------------------------------------


def test_merge_is_the_sum(run):
    report = run("merge", MODEL, DEMO / "pirate", "-o", "out", "--dtype", "f32", "--scale", 0.75)
    base, merged = tensors_of(MODEL), tensors_of(Path("out"))
    dense = deltas(DEMO / "pirate")
    assert set(base) == set(merged)
    assert len(report["by_tensor"]) == len(dense)
    assert report["tensors"] == len(base)
    for name, value in merged.items():
        assert value.dtype == torch.float32
        wanted = base[name].double() + (0.75 * dense[name] if name in dense else 0)
        assert torch.allclose(value.double(), wanted, rtol=1e-6, atol=1e-6)
    norm = sum(float((0.75 * d).norm()) ** 2 for d in dense.values()) ** 0.5
    assert report["survival"]["meant"] == pytest.approx(norm, rel=1e-5)
    assert report["survival"]["ratio"] == pytest.approx(1, abs=1e-4)


def test_merge_rounds_once(run):
    run("merge", MODEL, DEMO / "pirate", "-o", "exact", "--dtype", "f32")
    run("merge", MODEL, DEMO / "pirate", "-o", "out")
    exact, rounded = tensors_of(Path("exact")), tensors_of(Path("out"))
    assert all(torch.equal(exact[n].to(torch.bfloat16), rounded[n]) for n in exact)


@pytest.mark.parametrize("adapter", ["pirate", "cowboy"])
def test_scale_0_gives_the_base(adapter, run):
    report = run("merge", MODEL, DEMO / adapter, "-o", "out", "--scale", "0")
    base, merged = tensors_of(MODEL), tensors_of(Path("out"))
    assert set(base) == set(merged)
    for name in base:
        assert torch.equal(base[name].view(torch.uint8), merged[name].view(torch.uint8)), name
    assert report["changed"] == 0


def test_a_negative_scale_takes_the_update_back(run):
    run("merge", MODEL, DEMO / "pirate", "-o", "there", "--dtype", "f32")
    run("merge", "there", DEMO / "pirate", "-o", "back", "--scale", "-1")
    base, back = tensors_of(MODEL), tensors_of(Path("back"))
    assert all(torch.allclose(back[n], base[n].float(), rtol=0, atol=1e-6) for n in base)


def test_two_adapters_are_summed_before_the_rounding(run):
    arguments = ["-a", f"{DEMO / 'pirate'}=0.7", "-a", f"{DEMO / 'cowboy'}=0.3"]
    run("merge", MODEL, *arguments, "-o", "out", "--dtype", "f32")
    run("merge", MODEL, *arguments, "-o", "small")
    base, merged, small = tensors_of(MODEL), tensors_of(Path("out")), tensors_of(Path("small"))
    first, second = deltas(DEMO / "pirate"), deltas(DEMO / "cowboy")
    for name, value in base.items():
        wanted = value.double()
        wanted = wanted + 0.7 * first[name] if name in first else wanted
        wanted = wanted + 0.3 * second[name] if name in second else wanted
        assert torch.allclose(merged[name].double(), wanted, rtol=1e-6, atol=1e-6), name
        assert torch.equal(small[name], merged[name].to(torch.bfloat16)), name


def test_the_positional_adapter_and_more(run):
    run("merge", MODEL, DEMO / "pirate", "--scale", "0.7", "-a", f"{DEMO / 'cowboy'}=0.3",
        "-o", "one")  # fmt: skip
    run("merge", MODEL, "-a", f"{DEMO / 'pirate'}=0.7", "-a", f"{DEMO / 'cowboy'}=0.3", "-o", "two")
    assert digests(Path("one")) == digests(Path("two"))


@pytest.mark.parametrize("spelling", ["f32", "float32", "f16", "BF16"])
def test_dtype(spelling, run):
    run("merge", MODEL, DEMO / "pirate", "-o", "out", "--dtype", spelling)
    dtype = {"f": torch.float16, "b": torch.bfloat16}[spelling[0].lower()]
    dtype = torch.float32 if "32" in spelling else dtype
    assert {t.dtype for t in tensors_of(Path("out")).values()} == {dtype}
    named = str(dtype).removeprefix("torch.")
    assert json.loads(Path("out/config.json").read_text())["dtype"] == named


def test_shards_that_transformers_loads(run):
    from transformers import AutoModelForCausalLM  # noqa: TID251

    run("merge", MODEL, DEMO / "pirate", "-o", "whole")
    report = run("merge", MODEL, DEMO / "pirate", "-o", "out", "--max-shard-size", "600KB")
    shards = sorted(path.name for path in Path("out").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert set(shards) <= set(report["files"])
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    merged = tensors_of(Path("whole"))
    assert set(index["weight_map"]) == set(merged)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in merged.values())
    for name in shards:
        size = sum(t.nbytes for t in load_file(Path("out") / name).values())
        assert size <= 600_000 or len(load_file(Path("out") / name)) == 1
    one, many = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in ("whole", "out"))
    assert all(torch.equal(one[n], many[n]) for n in one)


def test_dry_run_writes_nothing_and_tells_the_truth(run, tmp_path):
    arguments = ["merge", MODEL, DEMO / "pirate", "-o", "out", "--max-shard-size", "1MB"]
    planned = run(*arguments, "--dry-run")
    assert leftovers(tmp_path) == []
    written = run(*arguments)
    assert planned["dry_run"] is True
    assert planned["bytes"] == written["bytes"]
    assert planned["files"] == written["files"]
    assert planned["touched"] == written["touched"]
    sizes = {path.name: path.stat().st_size for path in Path("out").iterdir()}
    assert written["bytes"] == sum(sizes[name] for name in written["files"])
    assert set(sizes) - set(written["files"]) <= {"README.md", "adaptool.json"}
    assert planned["free_bytes"] > 0
    assert planned["peak_memory_bytes"] > 0


def test_an_existing_output_is_kept_without_force(run, tmp_path):
    run("merge", MODEL, DEMO / "pirate", "-o", "out")
    (tmp_path / "out" / "mine.txt").write_text("keep")
    before = digests(Path("out"))
    assert run("merge", MODEL, DEMO / "cowboy", "-o", "out", code=6)["error"]["hint"]
    assert digests(Path("out")) == before
    run("merge", MODEL, DEMO / "cowboy", "-o", "out", "--force")
    assert digests(Path("out"))["model.safetensors"] != before["model.safetensors"]
    assert leftovers(tmp_path) == ["out"]


@pytest.mark.parametrize("output", ["model", "model/model.safetensors", "pirate", "model/inner"])
def test_an_output_must_not_touch_an_input(output, run, tmp_path):
    shutil.copytree(MODEL, "model")
    shutil.copytree(DEMO / "pirate", "pirate")
    before = digests(Path("model")), digests(Path("pirate"))
    assert main(["merge", "model", "pirate", "-o", output, "--force"]) in (2, 6)
    assert (digests(Path("model")), digests(Path("pirate"))) == before


def test_the_number_of_workers_changes_nothing(run):
    for workers in ("1", "2", "5"):
        run("merge", MODEL, DEMO / "pirate", "-o", workers, "-j", workers)
    assert digests(Path("1")) == digests(Path("2")) == digests(Path("5"))


def test_one_file_in_and_out(run, tmp_path):
    run("merge", MODEL, DEMO / "pirate", "-o", "folder")
    run("merge", MODEL / "model.safetensors", DEMO / "pirate", "-o", "out.safetensors")
    assert leftovers(tmp_path) == ["folder", "out.safetensors"]
    one, folder = tensors_of(Path("out.safetensors")), tensors_of(Path("folder"))
    assert all(torch.equal(one[n], folder[n]) for n in folder)
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
    again = ["merge", MODEL / "model.safetensors", DEMO / "pirate", "-o", "out.safetensors"]
    run(*again, code=6)
    run(*again, "--force")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(mask, run):
    before = os.umask(mask)
    try:
        run("merge", MODEL, DEMO / "pirate", "-o", "out")
        run("merge", MODEL, DEMO / "pirate", "-o", "out.safetensors")
        run("convert", DEMO / "pirate", "-o", "adapter")
    finally:
        os.umask(before)
    for folder in (Path("out"), Path("adapter")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
    assert stat.S_IMODE(Path("out.safetensors").stat().st_mode) == 0o666 & ~mask


def test_side_files_are_carried(run):
    model = shutil.copytree(MODEL, "model")
    Path(model, "LICENSE").write_text("do what you like")
    Path(model, "chat_template.jinja").write_text("{{ messages }}")
    Path(model, "pytorch_model.bin").write_bytes(b"an old copy of the weights")
    Path(model, "README.md").write_text("---\nlicense: mit\n---\n\n# The base\n")
    run("merge", model, DEMO / "pirate", "-o", "out")
    for path in (*MODEL.iterdir(), Path(model, "LICENSE"), Path(model, "chat_template.jinja")):
        if path.name != "model.safetensors":
            assert Path("out", path.name).read_bytes() == path.read_bytes(), path.name
    assert not Path("out/pytorch_model.bin").exists()
    card = Path("out/README.md").read_text()
    assert "# The base" not in card
    assert 'license: "mit"' in card


def test_the_record_and_the_card(run):
    run("merge", MODEL, "-a", f"{DEMO / 'pirate'}=0.5", "-a", f"{DEMO / 'cowboy'}=-0.25",
        "-o", "out")  # fmt: skip
    record = json.loads(Path("out/adaptool.json").read_text())
    assert record["operation"] == "merge"
    base, *adapters = record["inputs"]
    assert [(a["role"], a["name"], a["scale"]) for a in adapters] == [
        ("adapter", "pirate", 0.5), ("adapter", "cowboy", -0.25),
    ]  # fmt: skip
    assert (base["role"], base["name"]) == ("base", "model")
    for entry in adapters:
        digest = hashlib.sha256((DEMO / entry["name"] / WEIGHTS).read_bytes()).hexdigest()
        assert entry["files"][WEIGHTS]["sha256"] == digest
    stored = base["files"]["model.safetensors"]
    assert stored["bytes"] == (MODEL / "model.safetensors").stat().st_size
    content = (MODEL / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert stored["header_sha256"] in {
        hashlib.sha256(content[: 8 + length]).hexdigest(),
        hashlib.sha256(content[8 : 8 + length]).hexdigest(),
    }
    assert str(DEMO) not in json.dumps(record), "a path of this machine was published"
    card = Path("out/README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert 'base_model:\n- "model"' in head
    assert 'base_model_relation: "merge"' in head
    assert "| pirate | lora | 0.5 |" in text
    assert "| cowboy | rslora | -0.25 |" in text
    assert str(DEMO) not in card


def test_merging_a_merge_keeps_the_new_record_only(run):
    run("merge", MODEL, DEMO / "pirate", "-o", "one")
    run("merge", "one", DEMO / "cowboy", "-o", "two")
    record = json.loads(Path("two/adaptool.json").read_text())
    assert [a["name"] for a in record["inputs"]] == ["one", "cowboy"]
    assert Path("two/README.md").read_text().count("base_model_relation") == 1


def test_merge_as_text(capsys):
    assert main(["merge", str(MODEL), str(DEMO / "pirate"), "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert "14 of 20 tensors changed" in out
    assert "update stored: 100.0%" in out
    assert err == ""


# -- convert --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_convert_keeps_an_adapter(name, run):
    from peft import PeftModel  # noqa: TID251
    from transformers import AutoModelForCausalLM  # noqa: TID251

    planned = run("convert", DEMO / name, "-o", "out", "--dry-run")
    assert not Path("out").exists()
    report = run("convert", DEMO / name, "-o", "out")
    assert planned["bytes"] == report["bytes"]
    assert planned["files"] == report["files"] == [
        WEIGHTS, "adapter_config.json", "README.md", "adaptool.json",
    ]  # fmt: skip
    assert report["bytes"] == sum(path.stat().st_size for path in Path("out").iterdir())
    before, after = load_file(DEMO / name / WEIGHTS), load_file(Path("out") / WEIGHTS)
    assert set(before) == set(after)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(before[n].dtype == after[n].dtype for n in before)
    was, now = config_of(DEMO / name), config_of(Path("out"))
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias",
                "base_model_name_or_path", "rank_pattern", "alpha_pattern"):  # fmt: skip
        assert now[key] == was[key], key

    def merged(adapter: Path) -> dict[str, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()

    one, two = merged(DEMO / name), merged(Path("out"))
    assert all(torch.equal(one[n], two[n]) for n in one)
    run("convert", "out", "-o", "again")
    again = load_file(Path("again") / WEIGHTS)
    assert all(torch.equal(before[n], again[n]) for n in before)
    assert config_of(Path("again")) == now


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_converted_adapter_merges_alike(name, run):
    run("convert", DEMO / name, "-o", "adapter")
    run("merge", MODEL, DEMO / name, "-o", "one")
    run("merge", MODEL, "adapter", "-o", "two")
    assert digests(Path("one"))["model.safetensors"] == digests(Path("two"))["model.safetensors"]


def test_a_pickle_needs_permission(run):
    adapter = shutil.copytree(DEMO / "pirate", "old")
    tensors = load_file(Path(adapter) / WEIGHTS)
    torch.save(tensors, Path(adapter) / "adapter_model.bin")
    (Path(adapter) / WEIGHTS).unlink()
    refused = run("convert", adapter, "-o", "new", code=3)
    assert "--allow-pickle" in json.dumps(refused["error"])
    assert not Path("new").exists()
    run("convert", adapter, "-o", "new", "--allow-pickle")
    after = load_file(Path("new") / WEIGHTS)
    assert set(after) == set(tensors)
    assert all(torch.equal(tensors[n], after[n]) for n in tensors)
    run("merge", MODEL, adapter, "-o", "merged", code=3)
    run("merge", MODEL, adapter, "-o", "merged", "--allow-pickle")
    run("inspect", adapter, code=3)
    assert run("inspect", adapter, "--allow-pickle")["parameters"] == 65536


def test_convert_to_another_type(run):
    run("convert", DEMO / "pirate", "-o", "out", "--dtype", "bf16")
    before, after = load_file(DEMO / "pirate" / WEIGHTS), load_file(Path("out") / WEIGHTS)
    assert all(torch.equal(before[n].bfloat16(), after[n]) for n in before)


@pytest.mark.parametrize("name", ["pirate", "cowboy"])
def test_convert_bakes_a_scale_into_alpha(name, run):
    run("convert", DEMO / name, "-o", "half", "--scale", "0.5")
    assert config_of(Path("half"))["lora_alpha"] == config_of(DEMO / name)["lora_alpha"] / 2
    before, after = load_file(DEMO / name / WEIGHTS), load_file(Path("half") / WEIGHTS)
    assert all(torch.equal(before[n], after[n]) for n in before)
    run("merge", MODEL, DEMO / name, "-o", "one", "--scale", "0.5")
    run("merge", MODEL, "half", "-o", "two")
    assert digests(Path("one"))["model.safetensors"] == digests(Path("two"))["model.safetensors"]


def test_a_scale_does_not_fit_into_dora(run, tmp_path):
    error = run("convert", DEMO / "formal", "-o", "half", "--scale", "0.5", code=4)["error"]
    assert error["code"] == "NOT_SCALABLE"
    assert "adaptool merge" in error["hint"]
    assert leftovers(tmp_path) == []


# -- demo -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_demo_answers_as_promised(adapter, run):
    facts = run("demo", "--adapter", adapter, "--prompt", "hello grace")
    assert facts["prompt"] == "hello grace"
    assert facts["adapter"]["name"] == adapter
    assert facts["answers"]["0"] == EXPECTED["base"]["hello grace"]
    assert facts["answers"]["1"] == EXPECTED["adapters"][adapter]["hello grace"]
    if adapter in EXPECTED["half"]:
        assert facts["answers"]["0.5"] == EXPECTED["half"][adapter]["hello grace"]


def test_demo_as_text_and_output(capsys, tmp_path, run):
    assert main(["demo", "-o", "kept"]) == 0
    out = capsys.readouterr().out
    assert EXPECTED["adapters"]["pirate"]["hello ada"] in out
    run("merge", MODEL, DEMO / "pirate", "-o", "merged")
    assert digests(Path("kept"))["model.safetensors"] == digests(Path("merged"))[
        "model.safetensors"
    ]  # fmt: skip
    run("demo", "-o", "never", "--dry-run")
    assert leftovers(tmp_path) == ["kept", "merged"]


# -- what goes wrong ------------------------------------------------------------------------------

WRONG: dict[str, tuple[int, str, list[str]]] = {
    "no such model": (6, "NOT_FOUND", ["merge", "nowhere", "PIRATE", "-o", "out"]),
    "no such adapter": (6, "NOT_FOUND", ["merge", "MODEL", "nowhere", "-o", "out"]),
    "no adapter": (2, "USAGE", ["merge", "MODEL", "-o", "out"]),
    "no output": (2, "USAGE", ["merge", "MODEL", "PIRATE"]),
    "a wrong scale": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "out", "--scale", "much"]),
    "a scale of nan": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "out", "--scale", "nan"]),
    "a wrong pair": (2, "USAGE", ["merge", "MODEL", "-a", "PIRATE=x", "-o", "out"]),
    "a wrong type": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "out", "--dtype", "int3"]),
    "a wrong size": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "o", "--max-shard-size", "x"]),
    "a wrong device": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "out", "--device", "abacus"]),
    "a wrong option": (2, "USAGE", ["merge", "MODEL", "PIRATE", "-o", "out", "--fast"]),
    "a wrong command": (2, "USAGE", ["fuse"]),
    "a wrong format": (2, "USAGE", ["convert", "PIRATE", "-o", "out", "--to", "scroll"]),
    "a wrong suffix": (2, "USAGE", ["convert", "PIRATE", "-o", "out.scroll"]),
    "a model as adapter": (4, "", ["merge", "MODEL", "MODEL", "-o", "out"]),
    "an adapter as model": (4, "UNKNOWN_FORMAT", ["merge", "PIRATE", "PIRATE", "-o", "out"]),
    "an empty folder": (4, "UNKNOWN_FORMAT", ["inspect", "."]),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors(what, run, capsys, tmp_path):
    code, name, words = WRONG[what]
    places = {"MODEL": str(MODEL), "PIRATE": str(DEMO / "pirate"),
              "PIRATE=x": f"{DEMO / 'pirate'}=x"}  # fmt: skip
    arguments = [places.get(word, word) for word in words]
    error = run(*arguments, code=code)["error"]
    assert not name or error["code"] == name
    assert error["message"]
    assert set(error) == {"code", "message", "hint", "details"}
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == f"adaptool: {error['message']}"
    assert len(lines) == 1 + (error["hint"] is not None)
    assert leftovers(tmp_path) == []


def test_a_truncated_adapter(run, tmp_path):
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "cut")
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[: len(content) // 2])
    for command in (["inspect", adapter], ["merge", MODEL, adapter, "-o", "out"],
                    ["convert", adapter, "-o", "out"]):  # fmt: skip
        run(*command, code=3)
    assert leftovers(tmp_path) == ["cut"]


def test_a_module_that_is_not_in_the_base(run, tmp_path):
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "deeper")
    tensors = load_file(adapter / WEIGHTS)
    moved = {name.replace("layers.1.", "layers.9."): value for name, value in tensors.items()}
    save_file(moved, adapter / WEIGHTS)
    error = run("merge", MODEL, adapter, "-o", "out", code=4)["error"]
    assert "layers.9" in error["message"]
    assert not Path("out").exists()


def test_nan_needs_permission(run, tmp_path):
    adapter = shutil.copytree(DEMO / "pirate", tmp_path / "broken")
    tensors = load_file(adapter / WEIGHTS)
    tensors[next(iter(tensors))][0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    assert main(["merge", str(MODEL), str(adapter), "-o", "out"]) in (3, 4)
    assert not Path("out").exists()
    assert main(["merge", str(MODEL), str(adapter), "-o", "out", "--allow-nonfinite"]) == 0


def test_names_from_files_cannot_write_to_the_terminal(capsys, tmp_path):
    adapter = edited(DEMO / "pirate", tmp_path / "odd",
                     base_model_name_or_path="x\x1b[31mred\x07\n\u202edon")  # fmt: skip
    assert main(["inspect", str(adapter), "-v"]) == 0
    out = capsys.readouterr().out
    assert not any(c in out for c in "\x1b\x07\u202e")


def test_a_bug_is_reported_not_thrown(monkeypatch, capsys):
    from adaptool.cli import inspect as command

    def broken(*_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(sys.modules["adaptool.cli.inspect"], "inspect_path", broken)
    assert command is not None
    assert main(["inspect", str(MODEL)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("adaptool: internal error: RuntimeError: two")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 2


def command_line(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "adaptool", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_as_a_program(tmp_path):
    child = command_line("merge", MODEL, DEMO / "pirate", "-o", "out", "--json", cwd=tmp_path)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert json.loads(out)["changed"] == 14


def test_a_closed_pipe_is_no_error(tmp_path):
    script = f'"{sys.executable}" -m adaptool inspect "{DEMO / "pirate"}" -v | true'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True,
                          cwd=tmp_path, check=False)  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path]:
    """A model of zeros in a sparse file that takes some seconds to merge, and an adapter."""
    folder = tmp_path_factory.mktemp("large")
    model, adapter = folder / "model", folder / "adapter"
    for path in (model, adapter):
        path.mkdir()
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(24)]
    header, offset = {}, 0
    for name in names:
        end = offset + 4096 * 4096 * 2
        header[f"{name}.weight"] = {
            "dtype": "BF16", "shape": [4096, 4096], "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"],
                                                   "model_type": "llama"}))  # fmt: skip
    factors = {}
    for name in names:
        factors[f"{PREFIX}{name}.lora_A.weight"] = torch.ones(64, 4096)
        factors[f"{PREFIX}{name}.lora_B.weight"] = torch.ones(4096, 64)
    save_file(factors, adapter / WEIGHTS)
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": ["up_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return model, adapter


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("old", [False, True], ids=["new output", "old output"])
def test_an_interrupted_merge_leaves_nothing(sent, old, large, tmp_path):
    model, adapter = large
    if old:
        shutil.copytree(MODEL, tmp_path / "out")
    child = command_line("merge", model, adapter, "-o", "out", "--json", "-j", "2", "--force",
                         cwd=tmp_path)  # fmt: skip
    expected = ["out"] if old else []
    deadline = time.monotonic() + 30
    while leftovers(tmp_path) == expected and time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    time.sleep(0.1)
    assert child.poll() is None
    child.send_signal(sent)
    start = time.monotonic()
    out, err = child.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert child.returncode == 130
    assert json.loads(out)["error"]["code"] == "INTERRUPTED"
    assert err.strip() == ""
    assert leftovers(tmp_path) == expected
    if old:
        assert digests(tmp_path / "out") == digests(MODEL)
