"""The instrument itself: llama.cpp's logits of files made by hand are those of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .handmade import factors, write, write_model
from .llama import LlamaError, logits, logits_in_child
from .models import EXACT
from .zoo import CASES, TOKENS, Built


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return CASES["llama"].build(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(built: Built, tmp_path_factory) -> Path:
    return write_model(built.base, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="module")
def adapter(built: Built, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "adapter.gguf"
    return write(path, "adapter", factors(built.adapter), adapter__lora__alpha=6.0)


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest logit."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def test_model(built: Built, model: Path) -> None:
    assert error(logits(model, TOKENS), built.expected(0)) < EXACT


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_adapter(built: Built, model: Path, adapter: Path, scale: float) -> None:
    actual = logits(model, TOKENS, [(adapter, scale)])
    assert error(actual, built.expected(scale)) < EXACT
    assert error(actual, built.expected(0)) > 0.1  # it matters


def test_two_adapters_add(built: Built, model: Path, adapter: Path) -> None:
    actual = logits(model, TOKENS, [(adapter, 0.75), (adapter, -0.25)])
    assert error(actual, built.expected(0.5)) < EXACT


def test_refusals_say_why(built: Built, model: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(LlamaError, match=r"model: .*nowhere"):
        logits(tmp_path / "nowhere.gguf", TOKENS)
    lonely = {n: v for n, v in factors(built.adapter).items() if n.endswith("_a")}
    path = write(tmp_path / "half.gguf", "adapter", lonely, adapter__lora__alpha=6.0)
    with pytest.raises(LlamaError, match=r"adapter: .*missing"):
        logits(model, TOKENS, [(path, 1.0)])


def test_a_child_may_die(built: Built, model: Path, adapter: Path, tmp_path: Path) -> None:
    outcome = logits_in_child(model, TOKENS, [(adapter, 0.5)])
    assert outcome.code == 0
    assert np.array_equal(outcome.values, logits(model, TOKENS, [(adapter, 0.5)]))
    wrong_type = write(
        tmp_path / "w.gguf", "adapter", factors(built.adapter), adapter__lora__alpha=6
    )
    outcome = logits_in_child(model, TOKENS, [(wrong_type, 1.0)])
    assert outcome.code == -6
    assert "GGML_ASSERT" in outcome.output
