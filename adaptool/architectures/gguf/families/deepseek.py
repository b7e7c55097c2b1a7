"""DeepSeek: experts with a shared one; from V2 on, latent attention (MLA).

GGUF keeps `kv_b_proj` as two stacks with one matrix per head: attn_k_b, whose heads are
transposed so that the runtime can absorb them into the query, and attn_v_b. Files made before
2025-04 keep it whole.
"""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.qwen import sparse
from adaptool.architectures.gguf.table import (
    Family,
    Row,
    attention,
    bare,
    feed_forward,
    head_norms,
    lay,
    norms,
)


def _mixture(d: Dimensions) -> Iterator[Row]:
    yield from feed_forward()
    yield from sparse(d)
    yield bare("mlp.gate.e_score_correction_bias", "exp_probs_b.bias")
    yield from feed_forward(module="mlp.shared_experts")


def _deepseek(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention(d)
    yield from feed_forward()
    yield from sparse(d)
    yield from feed_forward(module="mlp.shared_experts")


def _latent() -> Iterator[Row]:
    """Latent attention but for the projection out of the latent."""
    yield from norms()
    yield from norms("self_attn.q_a_layernorm", "self_attn.kv_a_layernorm")
    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"):
        yield Row(f"self_attn.{name}")


def _deepseek2(d: Dimensions) -> Iterator[Row]:
    yield from _latent()
    yield Row("self_attn.q_proj")  # without q_lora_rank
    nope, value = d.nope_dim, d.latent_value_dim
    for h in range(d.heads):
        first = h * (nope + value)
        key, end = (first, first + nope), first + nope + value
        yield Row("self_attn.kv_b_proj", "attn_k_b", lay(slot=h, part=key, transposed=True))
        yield Row("self_attn.kv_b_proj", "attn_v_b", lay(slot=h, part=(key[1], end)))
    yield Row("self_attn.kv_b_proj", instead=True)
    yield from _mixture(d)


def _minicpm3(_: Dimensions) -> Iterator[Row]:
    yield from _latent()
    yield Row("self_attn.kv_b_proj")
    yield from feed_forward()


def _normed(d: Dimensions) -> Iterator[Row]:
    """DeepSeek's experts behind plain attention with normalised heads."""
    yield from norms()
    yield from attention()
    yield from head_norms()
    yield from _mixture(d)


FAMILIES = (
    Family("deepseek", ("deepseek",), _deepseek),
    Family("deepseek2", ("deepseek_v3", "deepseek_v2"), _deepseek2),
    Family("glm4moe", ("glm4_moe",), _normed),
    Family("dots1", ("dots1",), _normed),
    Family("minicpm3", ("minicpm3",), _minicpm3),
)
