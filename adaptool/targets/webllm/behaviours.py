"""What MLC's implementation of each architecture can do, and which fields describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
_WINDOWS = ("context_window_size", "prefill_chunk_size")
_GEMMA = (
    "hidden_size", "intermediate_size", "attention_bias", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_hidden_layers", "rms_norm_eps", "vocab_size",
    "hidden_activation", "position_embedding_base", *_WINDOWS, "tensor_parallel_shards",
    "max_batch_size",
)  # fmt: skip

_SILU = frozenset({"silu", "swish"})
_TANH = frozenset({"gelu", "gelu_pytorch_tanh"})
_ANY = frozenset({"silu", "swish", "gelu", "relu", "gelu_new"})


@dataclass(frozen=True)
class Behaviour:
    """One architecture in MLC.

    Attributes:
        fields: of its configuration, in MLC's order.
        activations: hidden_act values that it computes.
        ropes: kinds of rotary scaling that it computes.
        chunk: tokens per step of reading a prompt, by default.
        biases: settings for biases that it heeds.
        square: its heads must be as wide as the model, together.
        divides: its heads must divide the width of the model.
        window: whether transformers limits attention to a window, which MLC does not: not at all,
            wherever one is stated, or where use_sliding_window says so as well.
    """

    fields: tuple[str, ...]
    activations: frozenset[str]
    ropes: frozenset[str] = frozenset({"default"})
    chunk: int = 8192
    biases: frozenset[str] = frozenset()
    square: bool = False
    divides: bool = False
    window: Literal["", "stated", "flagged"] = ""


BEHAVIOURS: Mapping[str, Behaviour] = {
    "llama": Behaviour(
        (
            *_SIZES, "rms_norm_eps", "vocab_size", "tie_word_embeddings",
            "position_embedding_base", "rope_scaling", *_WINDOWS, "num_key_value_heads",
            "head_dim", "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size",
            "disaggregation",
        ),
        _SILU,
        frozenset({"default", "llama3"}),
        divides=True,
    ),
    "mistral": Behaviour(
        (
            *_SIZES, "rms_norm_eps", "vocab_size", "position_embedding_base",
            "num_key_value_heads", "head_dim", "context_window_size", "sliding_window_size",
            "prefill_chunk_size", "attention_sink_size", "tensor_parallel_shards",
            "max_batch_size",
        ),
        _SILU,
        divides=True,
        window="stated",
    ),
    "qwen2": Behaviour(
        (
            "hidden_act", *_SIZES, "num_key_value_heads", "rms_norm_eps", "rope_theta",
            "vocab_size", "tie_word_embeddings", *_WINDOWS, "tensor_parallel_shards", "head_dim",
            "dtype", "max_batch_size",
        ),
        _ANY,
        chunk=2048,
        square=True,
        window="flagged",
    ),
    "qwen3": Behaviour(
        (
            "hidden_act", "hidden_size", "intermediate_size", "attention_bias",
            "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps",
            "rope_theta", "vocab_size", "tie_word_embeddings", *_WINDOWS,
            "tensor_parallel_shards", "head_dim", "dtype", "max_batch_size", "weight_block_size",
        ),
        _ANY,
        chunk=2048,
        biases=frozenset({"attention_bias"}),
        window="flagged",
    ),
    "gemma": Behaviour(_GEMMA, _TANH, divides=True),
    "gemma2": Behaviour(
        (
            *_GEMMA, "attn_logit_softcapping", "final_logit_softcapping",
            "query_pre_attn_scalar", "sliding_window",
        ),
        _TANH,
        divides=True,
        window="stated",
    ),
    "phi3": Behaviour(
        (
            "model_type", "hidden_size", "vocab_size", "num_hidden_layers",
            "num_attention_heads", "intermediate_size", "rms_norm_eps", "num_key_value_heads",
            "max_position_embeddings", "position_embedding_base", "rope_scaling",
            "original_max_position_embeddings", *_WINDOWS, "head_dim", "tensor_parallel_shards",
            "max_batch_size", "tie_word_embeddings", "partial_rotary_factor",
        ),
        _SILU,
        frozenset({"default", "longrope"}),
        square=True,
        window="stated",
    ),
}  # fmt: skip
"""model_type -> what MLC makes of it."""
