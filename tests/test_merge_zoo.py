"""Merges of tiny models against PEFT's own merges."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from zoo import CASES, RECIPES, Built, Case
from zoo.models import BASES, Tensors, read_tensors
from zoo.oddities import SAME, WRONG
from zoo.recipes import forward

from adaptool.cli import main

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = [torch.float32, torch.bfloat16]
# For embeddings, attention's in_proj and expert parameters PEFT rounds the delta to the base's
# type and then rounds the sum; a merge here rounds once, which is nearer to the float64 result.
ONE_ROUNDING_ACCEPTED = True
# bfloat16 elements of one case that may be a step off, however few elements it has: the order of
# the float32 operations differs from PEFT's, and 0.2 in 10,000 elements lie that near to a tie.
FEW = 4
LOADED = [
    "llama",
    "llama-sharded",
    "gpt2",
    "bert",
    "vit",
    "mixtral",
    "mixtral-experts",
    "qwen2-moe-experts",
    "gpt-oss-experts",
    "tied-embedding",
    "tied-head",
    "tied-ensured",
    "tied-tokens",
    "gpt2-tied-embedding",
    "llama-resized",
    "llama-head-saved",
    "llama-replicated",
    "neox-head",
]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Built:
    """A plain adapter on a plain base, to copy from."""
    folder = tmp_path_factory.mktemp("llama")
    return RECIPES["llama"].build(folder, torch.float32)


def merge(base: Path, adapter: Path, out: Path, *options: str) -> int:
    """Run the command and return its exit code."""
    try:
        return main(["merge", str(base), str(adapter), *options, "-o", str(out)])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def merged_tensors(folder: Path) -> Tensors:
    """The tensors of a model folder, through its index where it has one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return load_file(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    tensors = read_tensors(folder)
    assert set(tensors) == set(weight_map)
    for file in set(weight_map.values()):
        names = {name for name, where in weight_map.items() if where == file}
        assert set(load_file(folder / file)) == names
    return tensors


def steps(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 values lie between, element by element."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(actual) - ordered(expected)).abs()


def distance(got: torch.Tensor, want: torch.Tensor) -> tuple[int, int, float]:
    """How many elements are wrong, how many bfloat16 ones differ at all, and the largest error."""
    error = (got.double() - want.double()).abs()
    bad = ~(error <= 1e-6 * want.abs().max().item())
    off = 0
    if want.dtype == torch.bfloat16:
        apart = steps(got, want)
        off = int((apart > 0).sum())
        bad &= apart > 1
    return int(bad.sum()), off, error.max().item()


def check(actual: Tensors, built: Built) -> None:
    """Names, shapes, dtypes and values."""
    expected = built.expected
    missing = sorted(set(expected) - set(actual))
    extra = sorted(set(actual) - set(expected) - built.optional)
    assert not missing, f"missing {missing}"
    assert not extra, f"extra {extra}"
    base = read_tensors(built.base)
    wrong: list[str] = []
    touched = differing = 0
    by_hand = built.oracle != "merge"
    for name, want in expected.items():
        got = actual[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            wrong.append(f"{name}: {got.dtype} {list(got.shape)}, not {list(want.shape)}")
            continue
        if name in base and torch.equal(base[name], want):
            if not torch.equal(got, want):
                wrong.append(f"{name}: changed, but no adapter touches it")
            continue
        touched += want.numel()
        bad, off, error = distance(got, want)
        if bad + off and name in built.other and (by_hand or ONE_ROUNDING_ACCEPTED):
            bad, off, error = min((bad, off, error), distance(got, built.other[name]))
        differing += off
        if bad:
            wrong.append(f"{name}: {bad} of {want.numel()} off by up to {error:.3g}")
    assert not wrong, "\n".join(wrong)
    assert differing <= max(FEW, touched / 10000), f"{differing} of {touched} elements differ"


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merge_equals_reference(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    built = case.build(tmp_path, dtype)
    out = tmp_path / "out"
    assert merge(built.base, built.adapter, out) == 0
    check(merged_tensors(out), built)


@pytest.mark.parametrize("name", LOADED)
def test_merged_folder_loads(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    built = recipe.build(tmp_path, torch.float32)
    out = tmp_path / "out"
    assert merge(built.base, built.adapter, out) == 0
    kind = BASES[recipe.base]
    model, loading = kind.loader.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    config = json.loads((out / "config.json").read_text())
    untied = "lm_head.weight" in built.expected and "lm_head.weight" not in built.optional
    if untied and recipe.base.split("-")[0] in {"llama", "gpt2", "gemma"}:
        assert config["tie_word_embeddings"] is False
    actual = forward(model.eval(), kind)
    torch.testing.assert_close(
        actual, forward(recipe.adapted(tmp_path, torch.float32), kind), atol=1e-4, rtol=1e-4
    )


def test_scale(llama: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert merge(llama.base, llama.adapter, out, "--scale", "0.5") == 0
    base = read_tensors(llama.base)
    actual = merged_tensors(out)
    for name, full in llama.expected.items():
        torch.testing.assert_close(
            actual[name].double(), (base[name].double() + full.double()) / 2, atol=1e-6, rtol=1e-6
        )


@pytest.mark.parametrize("name", SAME)
def test_odd_files_mean_the_same(name: str, llama: Built, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(llama.adapter, adapter)
    SAME[name](adapter)
    options = ["--allow-pickle"] if name == "pickled" else []
    assert merge(llama.base, adapter, tmp_path / "out", *options) == 0
    check(merged_tensors(tmp_path / "out"), llama)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused(name: str, llama: Built, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(llama.adapter, adapter)
    WRONG[name](adapter)
    assert merge(llama.base, adapter, tmp_path / "out") != 0
    assert not (tmp_path / "out").exists()


def test_pickle_needs_consent(llama: Built, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(llama.adapter, adapter)
    SAME["pickled"](adapter)
    assert merge(llama.base, adapter, tmp_path / "out") != 0
    assert not (tmp_path / "out").exists()
