"""What llama.cpp's runtime cannot do with an adapter: why such files are refused, or merged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .commands import model_file
from .handmade import write, write_model
from .llama import LlamaError, logits, logits_in_child
from .models import VOCABULARY
from .zoo import CASES, TOKENS


def pair(tensor: str, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Random factors of rank 4."""
    values = np.random.default_rng(0)
    return {
        f"{tensor}.lora_a": values.standard_normal((4, columns), np.float32),
        f"{tensor}.lora_b": values.standard_normal((rows, 4), np.float32),
    }


def adapter(path: Path, tensors: dict[str, np.ndarray], architecture: str = "llama") -> Path:
    return write(path, "adapter", tensors, architecture, adapter__lora__alpha=4.0)


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    return write_model(CASES["llama-tied"].build(folder).base, folder / "model.gguf")


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    return write_model(CASES["llama"].build(folder).base, folder / "model.gguf")


def test_a_tied_head_has_no_tensor(tied: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "a.gguf", pair("output.weight", VOCABULARY, 64))
    with pytest.raises(LlamaError, match="does not exist in base model"):
        logits(tied, TOKENS, [(path, 1.0)])


def test_a_tied_embedding_aborts(tied: Path, tmp_path: Path) -> None:
    tensors = pair("token_embd.weight", 64, VOCABULARY)
    tensors["token_embd.weight.lora_a"] = tensors["token_embd.weight.lora_a"].T.copy()
    outcome = logits_in_child(tied, TOKENS, [(adapter(tmp_path / "a.gguf", tensors), 1.0)])
    assert outcome.code == -6
    assert "ggml_can_mul_mat" in outcome.output


def test_norms_are_ignored(untied: Path, tmp_path: Path) -> None:
    norm = {"output_norm.weight": np.zeros(64, np.float32)}
    tensors = pair("blk.0.attn_q.weight", 64, 64)
    without = adapter(tmp_path / "without.gguf", tensors)
    beside = adapter(tmp_path / "with.gguf", tensors | norm)
    assert np.array_equal(*(logits(untied, TOKENS, [(p, 1.0)]) for p in (without, beside)))


def test_biases_are_refused(untied: Path, tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    path = adapter(tmp_path / "a.gguf", pair("blk.0.attn_q.weight", 64, 64) | bias)
    with pytest.raises(LlamaError, match="unexpected suffix"):
        logits(untied, TOKENS, [(path, 1.0)])


def test_alpha_belongs_to_the_whole_file(untied: Path, tmp_path: Path) -> None:
    # One alpha, each tensor's own rank: what is scaled module by module has to be in the factors.
    small, large = pair("blk.0.attn_q.weight", 64, 64), pair("blk.1.attn_q.weight", 64, 64)
    doubled = {n: np.concatenate([v, 0 * v], int(n.endswith("b"))) for n, v in large.items()}
    halved = {n: v / 2 if n.endswith("b") else v for n, v in large.items()}
    wide = adapter(tmp_path / "wide.gguf", small | doubled)
    folded = adapter(tmp_path / "folded.gguf", small | halved)
    first, second = (logits(untied, TOKENS, [(p, 1.0)]) for p in (wide, folded))
    assert np.abs(first - second).max() < 1e-5 * np.abs(first).max()


def test_latent_attention_ignores_factors(tmp_path: Path) -> None:
    built = CASES["deepseek2-latent"].build(tmp_path)
    model = model_file(built.base, tmp_path / "model.gguf")
    path = adapter(tmp_path / "a.gguf", pair("blk.0.attn_q_a.weight", 24, 64), "deepseek2")
    assert np.array_equal(logits(model, TOKENS, [(path, 1.0)]), logits(model, TOKENS))
