"""Tiny random models of the architectures that llama.cpp and transformers both know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf  # noqa: TID251
from zoo.models import randomise

VOCABULARY = 96
EXACT = 1e-5
GELU = 2e-3
"""Largest error of a logit over the largest logit; ggml looks GELU up in a table of float16."""


@dataclass(frozen=True)
class Model:
    """A model class with its configuration, and how near llama.cpp comes to it.

    Matrices are multiplied by `gain`: large random ones let small errors grow from layer to layer.
    """

    kind: Any
    config: Any
    options: dict[str, Any]
    tolerance: float = EXACT
    gain: float = 1.0

    def write(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Store it with random weights, large enough for every one of them to matter."""
        torch.manual_seed(0)
        model = self.kind(self.config(**self.options)).float()
        randomise(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(self.gain if parameter.ndim > 1 else 1.0)
        model.to(dtype).save_pretrained(folder)


def decoder(**more: Any) -> dict[str, Any]:
    """The options that most configurations share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        **more,
    }


def stretched(kind: str, **more: Any) -> dict[str, Any]:
    """A rotary embedding for prompts longer than the model was trained on."""
    return {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 16, **more}


_WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
_GEMMA = decoder(tie_word_embeddings=True, query_pre_attn_scalar=16, sliding_window=8)
_EXPERTS = {"num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 32}
_LLAMA3 = stretched("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LONG = stretched(
    "longrope",
    factor=4.0,
    short_factor=[1.0 + i / 32 for i in range(8)],
    long_factor=[1.0 + i / 2 for i in range(8)],
)
_NEOX = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_SCALES = {
    "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
}  # fmt: skip
_FALCON = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "alibi": False,
    "bias": False, "tie_word_embeddings": True,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_BLOOM = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_DEEPSEEK = decoder(
    num_key_value_heads=4,
    q_lora_rank=24,
    kv_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
    head_dim=16,
    n_routed_experts=4,
    n_shared_experts=1,
    first_k_dense_replace=1,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    topk_method="greedy",
    n_group=1,
    topk_group=1,
)

MODELS: dict[str, Model] = {
    "llama": Model(tf.LlamaForCausalLM, tf.LlamaConfig, decoder()),
    "llama-tied": Model(tf.LlamaForCausalLM, tf.LlamaConfig, decoder(tie_word_embeddings=True)),
    "llama-wide": Model(tf.LlamaForCausalLM, tf.LlamaConfig, decoder(**_WIDE), gain=0.4),
    "mistral": Model(tf.MistralForCausalLM, tf.MistralConfig, decoder(sliding_window=None)),
    "qwen2": Model(tf.Qwen2ForCausalLM, tf.Qwen2Config, decoder()),
    "qwen3": Model(tf.Qwen3ForCausalLM, tf.Qwen3Config, decoder()),
    "gemma2": Model(tf.Gemma2ForCausalLM, tf.Gemma2Config, _GEMMA, GELU),
    "gemma3": Model(
        tf.Gemma3ForCausalLM, tf.Gemma3TextConfig, {**_GEMMA, "num_hidden_layers": 6}, GELU
    ),
    "phi3": Model(tf.Phi3ForCausalLM, tf.Phi3Config, decoder()),
    "gpt2": Model(tf.GPT2LMHeadModel, tf.GPT2Config, _GPT2, GELU),
    "falcon": Model(
        tf.FalconForCausalLM,
        tf.FalconConfig,
        {**_FALCON, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False},
        GELU,
    ),
    "falcon-new": Model(
        tf.FalconForCausalLM,
        tf.FalconConfig,
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        GELU,
    ),
    "bloom": Model(tf.BloomForCausalLM, tf.BloomConfig, _BLOOM, GELU),
    "mixtral": Model(
        tf.MixtralForCausalLM,
        tf.MixtralConfig,
        decoder(num_local_experts=3, num_experts_per_tok=2, sliding_window=None),
    ),
    "qwen3-moe": Model(
        tf.Qwen3MoeForCausalLM, tf.Qwen3MoeConfig, decoder(num_experts=4, **_EXPERTS)
    ),
    "cohere": Model(
        tf.CohereForCausalLM, tf.CohereConfig, decoder(tie_word_embeddings=True, logit_scale=0.25)
    ),
    "olmo2": Model(tf.Olmo2ForCausalLM, tf.Olmo2Config, decoder()),
    "starcoder2": Model(
        tf.Starcoder2ForCausalLM,
        tf.Starcoder2Config,
        decoder(tie_word_embeddings=True, sliding_window=None, use_bias=True),
        GELU,
    ),
    "gemma": Model(tf.GemmaForCausalLM, tf.GemmaConfig, decoder(tie_word_embeddings=True), GELU),
    "smollm3": Model(
        tf.SmolLM3ForCausalLM, tf.SmolLM3Config, decoder(num_hidden_layers=4, use_cache=True)
    ),
    "granite": Model(tf.GraniteForCausalLM, tf.GraniteConfig, decoder(**_SCALES)),
    "stablelm": Model(
        tf.StableLmForCausalLM, tf.StableLmConfig, decoder(use_qkv_bias=True, hidden_act="silu")
    ),
    "neox": Model(tf.GPTNeoXForCausalLM, tf.GPTNeoXConfig, _NEOX, GELU),
    "olmo": Model(tf.OlmoForCausalLM, tf.OlmoConfig, decoder()),
    "olmoe": Model(
        tf.OlmoeForCausalLM,
        tf.OlmoeConfig,
        decoder(num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False),
    ),
    "qwen2-moe": Model(
        tf.Qwen2MoeForCausalLM,
        tf.Qwen2MoeConfig,
        decoder(
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            shared_expert_intermediate_size=48,
        ),
    ),
    "cohere2": Model(
        tf.Cohere2ForCausalLM,
        tf.Cohere2Config,
        decoder(tie_word_embeddings=True, sliding_window=8, num_hidden_layers=4, logit_scale=0.25),
    ),
    "llama3": Model(tf.LlamaForCausalLM, tf.LlamaConfig, decoder(rope_parameters=_LLAMA3)),
    "qwen2-yarn": Model(
        tf.Qwen2ForCausalLM,
        tf.Qwen2Config,
        decoder(rope_parameters=stretched("yarn", factor=4.0)),
    ),
    "phi3-long": Model(
        tf.Phi3ForCausalLM,
        tf.Phi3Config,
        decoder(rope_parameters=_LONG, original_max_position_embeddings=16),
    ),
    "deepseek2": Model(tf.DeepseekV2ForCausalLM, tf.DeepseekV2Config, _DEEPSEEK),
}
