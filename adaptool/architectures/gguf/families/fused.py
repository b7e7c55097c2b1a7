"""Decoders whose files fuse projections, which GGUF keeps apart or fused in another order."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families.qwen import sparse
from adaptool.architectures.gguf.table import (
    PRE_NORMS,
    Family,
    Row,
    attention,
    bare,
    feed_forward,
    lay,
    norms,
    rotary,
    stretch,
)
from adaptool.canonical.arrangement import Chain, Order


def _internlm2(d: Dimensions) -> Iterator[Row]:
    """Each group of query heads is followed by its key and its value head."""
    yield from norms("attention_norm", "ffn_norm")
    dim, groups, group = d.head_dim, d.kv_heads, d.heads // d.kv_heads
    shape = (groups, group + 2, dim)
    query, key = stretch(shape, 0, group), stretch(shape, group, group + 1)
    yield Row("attention.wqkv", "attn_q", lay(row_order=_rotated(query, d.heads, dim)))
    yield Row("attention.wqkv", "attn_k", lay(row_order=_rotated(key, groups, dim)))
    yield Row("attention.wqkv", "attn_v", lay(row_order=stretch(shape, group + 1, group + 2)))
    yield Row("attention.wo")
    yield from feed_forward("w1", "w2", "w3", module="feed_forward")


def _rotated(first: Order, heads: int, dim: int) -> Order:
    then = rotary(heads, dim).row_order
    return Chain(first, then) if then is not None else first


def _internlm2_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("model.tok_embeddings"), Row("model.norm"), Row("output"))


def _baichuan(d: Dimensions) -> Iterator[Row]:
    yield from norms()
    turned = rotary(d.heads, d.head_dim).row_order
    for number, (to, order) in enumerate((("q", turned), ("k", turned), ("v", None))):
        part = (number * d.hidden, (number + 1) * d.hidden)
        yield Row("self_attn.W_pack", f"attn_{to}", lay(part=part, row_order=order))
    yield Row("self_attn.o_proj")
    yield from feed_forward()


def _glm(_: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from attention()
    yield from feed_forward("gate_up_proj", "down_proj")


def _glm4(d: Dimensions) -> Iterator[Row]:
    yield from _glm(d)
    yield from norms("post_self_attn_layernorm", "post_mlp_layernorm")


def _chatglm(_: Dimensions) -> Iterator[Row]:
    yield from norms()
    yield from (Row("self_attention.query_key_value"), Row("self_attention.dense"))
    yield from feed_forward("dense_h_to_4h", "dense_4h_to_h")


def _chatglm_outer(_: Dimensions) -> Iterator[Row]:
    yield Row("transformer.embedding.word_embeddings")
    yield Row("transformer.encoder.final_layernorm")
    yield Row("transformer.output_layer")


def _ernie(d: Dimensions) -> Iterator[Row]:
    """Two libraries, two spellings: the fused one has q, k, v and gate, up one after the other."""
    yield from norms(*PRE_NORMS)
    yield from attention()
    yield from feed_forward()
    query, kv = d.heads * d.head_dim, d.kv_heads * d.head_dim
    start = 0
    for to, size in (("attn_q", query), ("attn_k", kv), ("attn_v", kv)):
        part = (start, start + size)
        yield Row("self_attn.qkv_proj", to, lay(part=part), alias=True)
        start += size
    half = d.feed_forward
    yield Row("mlp.up_gate_proj", "ffn_gate", lay(part=(0, half)), alias=True)
    yield Row("mlp.up_gate_proj", "ffn_up", lay(part=(half, 2 * half)), alias=True)


def _ernie_moe(d: Dimensions) -> Iterator[Row]:
    yield from _ernie(d)
    yield from sparse(d)
    name = "moe_statics.e_score_correction_bias"
    yield bare(f"mlp.{name}", "exp_probs_b.bias")
    yield bare(f"mlp.gate.{name}", "exp_probs_b.bias", alias=True)
    yield from feed_forward(module="mlp.shared_experts")


FAMILIES = (
    Family("internlm2", ("internlm2",), _internlm2, _internlm2_outer,
           embedding="model.tok_embeddings.weight", head="output.weight"),
    Family("baichuan", ("baichuan",), _baichuan),
    Family("chatglm", ("glm",), _glm),
    Family("chatglm", ("chatglm",), _chatglm, _chatglm_outer, "transformer.encoder.layers.{}.",
           "transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"),
    Family("glm4", ("glm4",), _glm4),
    Family("ernie4_5", ("ernie4_5",), _ernie),
    Family("ernie4_5-moe", ("ernie4_5_moe",), _ernie_moe),
)  # fmt: skip
