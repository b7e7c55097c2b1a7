"""Merges into block-encoded models, split models, and models with fused tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from .commands import adapter_file, merged_file, model_file, run
from .handmade import SETTINGS, factors, name_of, paired, write, write_model
from .llama import logits
from .models import EXACT
from .zoo import CASES, TOKENS, Built, Case, lora

WIDE = Case("llama-wide", lora("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"))
# Root mean square error of normal values over their own: what the blocks of ggml can do.
ERRORS = {"Q8_0": 0.0056, "Q6_K": 0.0185, "Q5_K": 0.0375, "Q4_K": 0.0735, "Q4_0": 0.089}
# The same of the logits: those errors after two layers, and what llama.cpp adds to them when it
# rounds the activations that meet packed weights to 8 bits.
LOGITS = {"q8_0": 0.03, "q4_k_m": 0.3}
ACTIVATIONS = 0.05
SCALE = 0.25
# One for each kind of block that llama.cpp computes with and no other test uses.
TERNARY = ("tq1_0", "tq2_0")
KINDS = ("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q5_k_m", "iq4_nl",
         "iq4_xs", *TERNARY)  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Built:
    return WIDE.build(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def models(wide: Built, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: model_file(wide.base, folder / f"{kind}.gguf", kind) for kind in LOGITS}


def decoded(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Type and values of every tensor, by gguf's own readers."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = [int(size) for size in reversed(tensor.shape)]
        found[tensor.name] = tensor.tensor_type.name, values.reshape(shape)
    return found


def deltas(adapter: Path) -> dict[str, np.ndarray]:
    """What the adapter adds to each GGUF tensor, in float64."""
    stored = load_file(adapter / "adapter_model.safetensors")
    found = {}
    for key, b in stored.items():
        if key.endswith(".lora_B.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            a = stored[key.replace("lora_B", "lora_A")]
            product = 1.5 * b.astype(np.float64) @ a.astype(np.float64)
            found[name_of(module)] = paired(product, module)
    return found


def exact(base: Path, adapter: Path, scale: float = 1.0) -> dict[str, np.ndarray]:
    """The sums that a merge is to store, in float64."""
    changes = deltas(adapter)
    tensors = {n: v.astype(np.float64) for n, (_, v) in decoded(base).items()}
    assert set(changes) < set(tensors)
    return {name: values + scale * changes.get(name, 0) for name, values in tensors.items()}


@pytest.mark.parametrize("kind", LOGITS)
def test_types_stay_and_values_are_as_near_as_blocks_allow(
    wide: Built, models: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    base = decoded(models[kind])
    merged = decoded(merged_file(models[kind], wide.adapter, tmp_path / "merged.gguf"))
    touched = set(deltas(wide.adapter))
    assert {n: t for n, (t, _) in merged.items()} == {n: t for n, (t, _) in base.items()}
    assert {base[n][0] for n in touched} == {"q8_0": {"Q8_0"}, "q4_k_m": {"Q4_K", "Q6_K"}}[kind]
    for name, want in exact(models[kind], wide.adapter).items():
        type_, values = merged[name]
        if name not in touched:
            assert np.array_equal(values, base[name][1])
            continue
        error = np.sqrt(np.mean((values - want) ** 2) / np.mean(want**2))
        assert error < ERRORS[type_], (name, type_, error)


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def in_float32(path: Path, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """llama.cpp's logits with these weights, unpacked."""
    sizes = {"llama__embedding_length": 256, "llama__feed_forward_length": 512}
    values = {name: values.astype(np.float32) for name, values in tensors.items()}
    return logits(write(path, "model", values, **(SETTINGS | sizes)), TOKENS)


@pytest.mark.parametrize("kind", LOGITS)
def test_logits_of_packed_models(
    wide: Built, models: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    base = models[kind]
    want = in_float32(tmp_path / "exact.gguf", exact(base, wide.adapter, SCALE))
    merged = merged_file(base, wide.adapter, tmp_path / "merged.gguf", "--scale", SCALE)
    stored = in_float32(
        tmp_path / "stored.gguf", {n: values for n, (_, values) in decoded(merged).items()}
    )
    beside = adapter_file(wide.adapter, wide.base, tmp_path / "adapter.gguf")
    assert distance(logits(base, TOKENS), want) > 0.5  # the adapter matters
    assert distance(stored, want) < LOGITS[kind]
    assert distance(logits(merged, TOKENS), stored) < ACTIVATIONS
    assert distance(logits(base, TOKENS, [(beside, SCALE)]), want) < ACTIVATIONS


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_is_read_as_it_was_written(
    wide: Built, kind: str, tmp_path: Path
) -> None:
    base = model_file(wide.base, tmp_path / "base.gguf", kind)
    loss = ["--allow-loss"] if kind in TERNARY else []
    merged = merged_file(base, wide.adapter, tmp_path / "merged.gguf", "--scale", SCALE, *loss)
    before, after = decoded(base), decoded(merged)
    assert {n: t for n, (t, _) in after.items()} == {n: t for n, (t, _) in before.items()}
    stored = in_float32(tmp_path / "stored.gguf", {n: v for n, (_, v) in after.items()})
    assert distance(logits(merged, TOKENS), stored) < ACTIVATIONS


@pytest.mark.parametrize("kind", TERNARY)
def test_an_update_that_would_be_lost_is_refused(wide: Built, kind: str, tmp_path: Path) -> None:
    base = model_file(wide.base, tmp_path / "base.gguf", kind)
    assert run("merge", base, wide.adapter, "-o", tmp_path / "m.gguf", "--scale", SCALE) == 4
    assert not (tmp_path / "m.gguf").exists()


def test_split_models(wide: Built, models: dict[str, Path], tmp_path: Path) -> None:
    whole = merged_file(models["q8_0"], wide.adapter, tmp_path / "merged.gguf")
    parts = tmp_path / "parts"
    merged_file(models["q8_0"], wide.adapter, parts, "--max-shard-size", "300KB")
    first, *others = sorted(parts.glob("*.gguf"))
    assert others
    assert first.name.endswith(f"-00001-of-{1 + len(others):05d}.gguf")
    want = logits(whole, TOKENS)
    assert np.array_equal(logits(first, TOKENS), want)
    # And a split base: un-applying the adapter from either gives the same file.
    back = [merged_file(path, wide.adapter, tmp_path / f"back-{i}.gguf", "--scale", "-1")
            for i, path in enumerate((whole, first))]  # fmt: skip
    assert np.array_equal(*(logits(path, TOKENS) for path in back))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Built:
    return CASES["llama"].build(tmp_path_factory.mktemp("plain"))


def test_fused_base(plain: Built, tmp_path: Path) -> None:
    # llama.cpp's converter can write q, k and v as one tensor; its loader then knows no attn_q.
    fused = write_model(plain.base, tmp_path / "fused.gguf", fused=True)
    merged = merged_file(fused, plain.adapter, tmp_path / "merged.gguf", "--scale", "0.5")
    want = plain.expected(0.5)
    assert np.abs(logits(merged, TOKENS) - want).max() < EXACT * np.abs(want).max()
    beside = adapter_file(plain.adapter, fused, tmp_path / "adapter.gguf")
    actual = logits(fused, TOKENS, [(beside, 0.5)])
    assert np.abs(actual - want).max() < EXACT * np.abs(want).max()


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_narrow_factors(plain: Built, dtype: str, tmp_path: Path) -> None:
    model = write_model(plain.base, tmp_path / "model.gguf")
    path = adapter_file(plain.adapter, plain.base, tmp_path / "a.gguf", "--dtype", dtype)
    want = plain.expected(1)
    difference = np.abs(logits(model, TOKENS, [(path, 1.0)]) - want).max() / np.abs(want).max()
    assert EXACT < difference < {"f16": 5e-3, "bf16": 3e-2, "q8_0": 8e-2}[dtype]


def test_gguf_adapter_merges_into_gguf(plain: Built, tmp_path: Path) -> None:
    model = write_model(plain.base, tmp_path / "model.gguf")
    stored = write(tmp_path / "a.gguf", "adapter", factors(plain.adapter), adapter__lora__alpha=6.0)
    merged = merged_file(model, stored, tmp_path / "merged.gguf", "--scale", "0.5")
    want = plain.expected(0.5)
    assert np.abs(logits(merged, TOKENS) - want).max() < EXACT * np.abs(want).max()
