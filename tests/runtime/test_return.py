"""GGUF adapters back in PEFT, and the demo on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel  # noqa: TID251
from tokenizers import Tokenizer

from adaptool.demonstration import TEMPLATE, demo_folder

from .commands import adapter_file, merged_file, model_file, run
from .llama import logits
from .zoo import CASES, forward, load

RETURNED = [
    "llama", "llama-patterns", "llama-rslora", "llama-embedding-head", "qwen3", "gemma3", "phi3",
    "gpt2", "falcon-new", "bloom", "mixtral", "mixtral-modules", "qwen3-moe", "deepseek2",
]  # fmt: skip


@pytest.mark.parametrize("name", RETURNED)
def test_peft_to_gguf_to_peft(name: str, tmp_path: Path) -> None:
    built = CASES[name].build(tmp_path / "case")
    there = adapter_file(built.adapter, built.base, tmp_path / "adapter.gguf")
    back = tmp_path / "back"
    assert run("convert", there, "--to", "peft", "--base", built.base, "-o", back) == 0
    actual = with_adapter(built.base, back)
    expected = built.expected(1)
    assert np.abs(actual - expected).max() < 1e-5 * np.abs(expected).max()


def with_adapter(base: Path, adapter: Path) -> np.ndarray:
    """PEFT's logits."""
    model = PeftModel.from_pretrained(load(base), adapter)
    return forward(model.eval())


DEMO = demo_folder()
PROMPT = TEMPLATE.format(prompt="hello ada")


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return Tokenizer.from_file(str(DEMO / "model" / "tokenizer.json")).encode(PROMPT).ids


@pytest.fixture(scope="module")
def expected(tokens: list[int]) -> np.ndarray:
    """PEFT's logits for the demo's question to the pirate, float32."""
    model = PeftModel.from_pretrained(load(DEMO / "model"), DEMO / "pirate").eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize(("outtype", "tolerance"), [("f32", 1e-5), ("f16", 5e-3), ("q8_0", 5e-2)])
def test_demo(
    outtype: str, tolerance: float, tokens: list[int], expected: np.ndarray, tmp_path: Path
) -> None:
    model = model_file(DEMO / "model", tmp_path / "model.gguf", outtype)
    beside = adapter_file(DEMO / "pirate", DEMO / "model", tmp_path / "pirate.gguf")
    merged = merged_file(model, DEMO / "pirate", tmp_path / "merged.gguf")
    size = np.abs(expected).max()
    for actual in (logits(model, tokens, [(beside, 1.0)]), logits(merged, tokens)):
        assert np.abs(actual - expected).max() < tolerance * size
        assert np.array_equal(actual.argmax(1), expected.argmax(1))
