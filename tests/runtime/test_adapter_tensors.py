"""Adapters are, tensor by tensor, what llama.cpp's own converter makes where that is right.

Its results were compared once with `expected` below for each of these cases, bit by bit; the
converter is no part of these tests. What it leaves out of a file's alpha, or turns the wrong way,
is compared as the product that the runtime sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file

from .commands import adapter_file
from .handmade import paired
from .zoo import CASES, Built

Rows = Callable[[np.ndarray], np.ndarray]
Factors = dict[str, np.ndarray]

SEPARATE = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
STACKS = {
    "w1": "ffn_gate_exps",
    "w2": "ffn_down_exps",
    "w3": "ffn_up_exps",
    "gate_proj": "ffn_gate_exps",
    "down_proj": "ffn_down_exps",
    "up_proj": "ffn_up_exps",
}
EXPERT = re.compile(r"(block_sparse_moe|mlp)\.experts\.(?P<expert>\d+)\.(?P<part>\w+)")


def by_head(heads: int, parts: int) -> Rows:
    """From q, k, v of each head (or group of heads) to all q, all k, all v."""

    def regroup(b: np.ndarray) -> np.ndarray:
        grid = b.reshape(heads, parts, -1, b.shape[1])
        taken = grid[:, :-2], grid[:, -2:-1], grid[:, -1:]
        return np.concatenate([part.reshape(-1, b.shape[1]) for part in taken])

    return regroup


NAMES: dict[str, dict[str, str]] = {
    "llama": SEPARATE,
    "qwen2": SEPARATE,
    "qwen3": SEPARATE,
    "gemma2": SEPARATE,
    "gemma3": SEPARATE,
    "cohere": SEPARATE,
    "olmo2": SEPARATE,
    "mixtral-modules": SEPARATE,
    "qwen3-moe-modules": SEPARATE,
    "phi3": {
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    "starcoder2": {**SEPARATE, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    "falcon-new": {
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    },
}
NAMES["falcon"] = NAMES["bloom"] = NAMES["falcon-new"]
ROWS: dict[str, dict[str, Rows]] = {
    "falcon": {"attn_qkv": by_head(1, 6)},
    "falcon-new": {"attn_qkv": by_head(2, 4)},
    "bloom": {"attn_qkv": by_head(4, 3)},
}
ROTARY = {"llama", "mixtral-modules"}


def expected(built: Built, name: str) -> Factors:
    """The factors as llama.cpp stores them, from PEFT's file."""
    found: Factors = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for key, values in load_file(built.adapter / "adapter_model.safetensors").items():
        matched = re.fullmatch(r".*\.(?:layers|h)\.(\d+)\.(.*)\.lora_([AB])\.weight", key)
        assert matched, key
        layer, module, side = matched.groups()
        suffix = f"weight.lora_{side.lower()}"
        if expert := EXPERT.fullmatch(module):
            stack = f"blk.{layer}.{STACKS[expert['part']]}.{suffix}"
            stacks.setdefault(stack, {})[int(expert["expert"])] = values
            continue
        tensor = NAMES[name][module]
        moved = values
        if side == "B":
            moved = ROWS.get(name, {}).get(tensor, np.asarray)(values)
            moved = paired(moved, module) if name in ROTARY else moved
        found[f"blk.{layer}.{tensor}.{suffix}"] = moved
    for stack, members in stacks.items():
        found[stack] = np.stack([members[i] for i in range(len(members))])
    return found


def read(path: Path) -> tuple[float, Factors]:
    """Alpha and factors of a GGUF adapter, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    assert reader.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    return alpha, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def products(alpha: float, factors: Factors) -> Iterator[tuple[str, np.ndarray]]:
    """What the runtime adds to each weight: alpha / r * B A, in float64."""
    for name, a in factors.items():
        if name.endswith(".lora_a"):
            b = factors[f"{name.removesuffix('a')}b"].astype(np.float64)
            yield name.removesuffix(".lora_a"), alpha / b.shape[-1] * (b @ a.astype(np.float64))


@pytest.mark.parametrize("name", NAMES)
def test_factors(name: str, tmp_path: Path) -> None:
    built = CASES[name].build(tmp_path / "case")
    alpha, actual = read(adapter_file(built.adapter, built.base, tmp_path / "a.gguf"))
    want = expected(built, name)
    assert set(actual) == set(want)
    assert alpha == 6.0
    for tensor, values in want.items():
        assert actual[tensor].dtype == np.float32
        np.testing.assert_array_equal(actual[tensor], values, tensor)


def test_what_one_alpha_cannot_say_is_in_the_factors(tmp_path: Path) -> None:
    # rank_pattern and alpha_pattern of the case: the first pattern that matches counts.
    built = CASES["llama-patterns"].build(tmp_path / "case")
    actual = dict(products(*read(adapter_file(built.adapter, built.base, tmp_path / "a.gguf"))))
    want = dict(products(1.0, expected(built, "llama")))
    alphas = {r"blk\.\d\.attn_k": 9, r"blk\.0\..*": 3, r"blk\.1\.ffn_down": 5, "": 6}
    assert set(actual) == set(want)
    for tensor, product in want.items():
        alpha = next(a for pattern, a in alphas.items() if re.match(pattern, tensor))
        np.testing.assert_allclose(actual[tensor], alpha * product, rtol=1e-5, atol=1e-6)


def test_rank_stabilised(tmp_path: Path) -> None:
    built = CASES["llama-rslora"].build(tmp_path / "case")
    actual = dict(products(*read(adapter_file(built.adapter, built.base, tmp_path / "a.gguf"))))
    for tensor, product in products(6 * np.sqrt(4), expected(built, "llama")):
        np.testing.assert_allclose(actual[tensor], product, rtol=1e-5, atol=1e-6)


def test_conv1d_is_not_transposed(tmp_path: Path) -> None:
    built = CASES["gpt2"].build(tmp_path / "case")
    actual = dict(products(*read(adapter_file(built.adapter, built.base, tmp_path / "a.gguf"))))
    names = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
             "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}  # fmt: skip
    factors = load_file(built.adapter / "adapter_model.safetensors")
    for layer in range(2):
        for module, tensor in names.items():
            key = f"base_model.model.transformer.h.{layer}.{module}.lora_"
            a, b = (factors[f"{key}{side}.weight"].astype(np.float64) for side in "AB")
            got = actual.pop(f"blk.{layer}.{tensor}.weight")
            np.testing.assert_allclose(got, 1.5 * b @ a, rtol=1e-5, atol=1e-6)
    assert not actual
