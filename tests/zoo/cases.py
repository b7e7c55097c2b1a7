"""The list of cases: every LoRA variant on at least one architecture."""

from __future__ import annotations

from functools import partial
from typing import Any

from .recipes import (
    Case,
    Recipe,
    attention,
    change_config,
    legacy_names,
    old_expert_names,
    one_side,
    replicated,
    still_tied,
    swapped_expert_factors,
)

LLAMA_EMBEDDING = "model.embed_tokens.weight"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def lora(*targets: str, **extra: Any) -> dict[str, Any]:
    """LoraConfig arguments: rank 4, scaling 1.5."""
    return {"r": 4, "lora_alpha": 6, "target_modules": list(targets), **extra}


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BERT = ("query", "key", "value", "dense")

RECIPES: dict[str, Recipe] = {
    # Plain LoRA on every architecture.
    "llama": Recipe("llama", lora(*ATTENTION, *MLP)),
    "llama-sharded": Recipe("llama", lora(*ATTENTION, *MLP), save={"max_shard_size": "30KB"}),
    "qwen2": Recipe("qwen2", lora(*ATTENTION)),
    "gemma": Recipe("gemma", lora(*ATTENTION, *MLP)),
    "gpt2": Recipe("gpt2", lora("c_attn", "c_proj", "c_fc", fan_in_fan_out=True)),
    "gpt2-flag-wrong": Recipe("gpt2", lora("c_attn", "attn.c_proj", fan_in_fan_out=False)),
    "neox": Recipe("neox", lora("query_key_value", "dense_4h_to_h")),
    "neox-head": Recipe("neox", lora("query_key_value", "lm_head")),
    "neox-head-saved": Recipe("neox", lora("query_key_value", modules_to_save=["lm_head"])),
    "mixtral": Recipe("mixtral", lora(*ATTENTION)),
    "qwen2-moe": Recipe("qwen2-moe", lora(*ATTENTION, *MLP)),
    "gpt-oss": Recipe("gpt-oss", lora(*ATTENTION)),
    "bert": Recipe("bert", lora(*BERT, task_type="SEQ_CLS")),
    "vit": Recipe("vit", lora("q_proj", "v_proj", "fc1", modules_to_save=["classifier"])),
    "vit-v5-names": Recipe(
        "vit", lora("q_proj", "v_proj", "fc1"), save={"save_original_format": False}
    ),
    "vit-patches": Recipe("vit", lora("projection", "q_proj")),
    "conv": Recipe("conv", lora("line", "plane", "point", "space", "head")),
    "mha": Recipe("mha", lora("attn"), hand=attention(1), check=attention(2), oracle="hand"),
    # Adapters older than the names that their model class has now, on bases as old.
    "vit-v4-adapter": Recipe(
        "vit",
        lora("q_proj", "o_proj", "fc1", "fc2", modules_to_save=["classifier"]),
        later=legacy_names(
            ("vit.layers.", "vit.encoder.layer."),
            ("attention.q_proj", "attention.attention.query"),
            ("attention.o_proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ),
    ),
    "neox-v4-head": Recipe("neox", lora("lm_head"), later=legacy_names(("lm_head", "embed_out"))),
    "neox-v4-head-saved": Recipe(
        "neox",
        lora("query_key_value", modules_to_save=["lm_head"]),
        later=legacy_names(("lm_head", "embed_out")),
    ),
    # Scaling and patterns.
    "llama-rslora": Recipe("llama", lora(*ATTENTION, use_rslora=True)),
    "llama-patterns": Recipe(
        "llama",
        lora(
            *ATTENTION,
            *MLP,
            rank_pattern={"q_proj": 2, r"layers\.1\.mlp\..*": 6, "^model.layers.0.mlp.up_proj": 3},
            alpha_pattern={"k_proj": 9, r"layers\.0\..*": 3, r"layers\.1\.mlp\.down_proj": 5},
        ),
    ),
    "llama-patterns-rslora": Recipe(
        "llama",
        lora(
            *ATTENTION,
            use_rslora=True,
            rank_pattern={"q_proj": 2},
            alpha_pattern={"q_proj": 9, "v_proj": 1},
        ),
    ),
    "llama-all-linear": Recipe("llama", lora() | {"target_modules": "all-linear"}),
    "llama-regex": Recipe("llama", lora() | {"target_modules": r".*\.1\..*(q|up)_proj"}),
    "bert-all-linear": Recipe("bert", lora(task_type="SEQ_CLS") | {"target_modules": "all-linear"}),
    # DoRA.
    "llama-dora": Recipe("llama", lora(*ATTENTION, *MLP, use_dora=True)),
    "llama-dora-rslora": Recipe("llama", lora(*MLP, use_dora=True, use_rslora=True)),
    "gpt2-dora": Recipe("gpt2", lora("c_attn", "c_fc", use_dora=True, fan_in_fan_out=True)),
    "conv-dora": Recipe("conv", lora("line", "plane", "point", "space", "head", use_dora=True)),
    "llama-embedding-dora": Recipe("llama", lora("embed_tokens", "q_proj", use_dora=True)),
    # Embeddings and heads.
    "llama-embedding": Recipe("llama", lora("embed_tokens", "q_proj")),
    "llama-embedding-head": Recipe("llama", lora("embed_tokens", "lm_head", "q_proj")),
    "tied-embedding": Recipe(
        "llama-tied",
        lora("embed_tokens"),
        hand=one_side(LLAMA_EMBEDDING, "model.embed_tokens"),
    ),
    "tied-head": Recipe("llama-tied", lora("lm_head"), hand=one_side(LLAMA_EMBEDDING, "lm_head")),
    "tied-both": Recipe(
        "llama-tied",
        lora("embed_tokens", "lm_head"),
        hand=one_side(LLAMA_EMBEDDING, "model.embed_tokens", "lm_head"),
    ),
    "tied-ensured": Recipe(
        "llama-tied",
        lora("embed_tokens", "lm_head", ensure_weight_tying=True),
        hand=still_tied(LLAMA_EMBEDDING),
    ),
    "tied-head-saved": Recipe("llama-tied", lora("q_proj", modules_to_save=["lm_head"])),
    "tied-embedding-saved": Recipe("llama-tied", lora("q_proj", modules_to_save=["embed_tokens"])),
    "tied-both-saved": Recipe(
        "llama-tied", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"])
    ),
    "tied-saved-ensured": Recipe(
        "llama-tied",
        lora("q_proj", modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "gpt2-tied-embedding": Recipe(
        "gpt2",
        lora("wte"),
        hand=one_side("transformer.wte.weight", "transformer.wte"),
    ),
    "gemma-tied-head": Recipe("gemma", lora("lm_head"), hand=one_side(LLAMA_EMBEDDING, "lm_head")),
    "llama-tokens": Recipe("llama", lora("q_proj", trainable_token_indices=[3, 90, 17])),
    "llama-tokens-both": Recipe(
        "llama",
        lora("q_proj", trainable_token_indices={"embed_tokens": [5, 3], "lm_head": [3, 60]}),
    ),
    "tied-tokens": Recipe("llama-tied", lora("q_proj", trainable_token_indices=[3, 90, 17])),
    "llama-resized": Recipe("llama", lora("embed_tokens", "lm_head", "q_proj"), resize=8),
    "llama-resized-saved": Recipe(
        "llama", lora("q_proj", modules_to_save=["embed_tokens", "lm_head"]), resize=8
    ),
    "llama-resized-plain": Recipe("llama", lora("q_proj"), resize=8),
    # Biases.
    "llama-lora-bias": Recipe("llama-biases", lora(*ATTENTION, "down_proj", lora_bias=True)),
    "qwen2-bias-all": Recipe("qwen2", lora("q_proj", "o_proj", bias="all")),
    "bert-bias-all": Recipe("bert", lora("query", "value", bias="all", task_type="SEQ_CLS")),
    "bert-bias-lora-only": Recipe(
        "bert", lora("query", "output.dense", bias="lora_only", task_type="SEQ_CLS")
    ),
    "gpt2-bias-all": Recipe("gpt2", lora("c_attn", bias="all", fan_in_fan_out=True)),
    "vit-bias-all": Recipe("vit", lora("q_proj", bias="all", modules_to_save=["classifier"])),
    # Trained heads.
    "llama-head-saved": Recipe("llama", lora(*ATTENTION, modules_to_save=["lm_head"])),
    "llama-score": Recipe("llama-score", lora("q_proj", task_type="SEQ_CLS")),
    "llama-new-score": Recipe("llama-new-score", lora("q_proj", task_type="SEQ_CLS")),
    "bert-new-head": Recipe("bert-new-head", lora("query", "value", task_type="SEQ_CLS")),
    "llama-norms-saved": Recipe("llama", lora("q_proj", modules_to_save=["input_layernorm"])),
    # A model without the head.
    "llama-body": Recipe("llama-body", lora(*ATTENTION)),
    "llama-headless": Recipe("llama-headless", lora(*ATTENTION), names="model.{}".format),
    # Experts.
    "mixtral-experts": Recipe("mixtral", lora("q_proj", target_parameters=EXPERTS)),
    "mixtral-experts-first": Recipe("mixtral", lora(target_parameters=EXPERTS[:1])),
    "mixtral-experts-second": Recipe("mixtral", lora(target_parameters=EXPERTS[1:])),
    "mixtral-experts-reversed": Recipe("mixtral", lora(target_parameters=EXPERTS[::-1])),
    "mixtral-experts-v5-names": Recipe(
        "mixtral",
        lora("q_proj", target_parameters=EXPERTS),
        save={"save_original_format": False},
    ),
    "mixtral-experts-patterns": Recipe(
        "mixtral",
        lora(
            target_parameters=EXPERTS,
            rank_pattern={"experts.down_proj": 2},
            alpha_pattern={"experts.gate_up_proj": 9},
        ),
    ),
    "mixtral-router": Recipe("mixtral", lora(target_parameters=["mlp.gate.weight"])),
    "mixtral-experts-swapped": Recipe(
        "mixtral", lora("q_proj", target_parameters=EXPERTS), later=swapped_expert_factors
    ),
    "mixtral-v4-adapter": Recipe("mixtral", lora("q_proj"), after=old_expert_names),
    "qwen2-moe-experts": Recipe("qwen2-moe", lora("q_proj", target_parameters=EXPERTS)),
    "gpt-oss-experts": Recipe("gpt-oss", lora("q_proj", target_parameters=EXPERTS)),
    # Stored (expert, in, out), whose factors PEFT has always written this way.
    "gpt-oss-experts-old": Recipe(
        "gpt-oss",
        lora(target_parameters=EXPERTS),
        later=partial(change_config, peft_version="0.18.1"),
    ),
    "gpt-oss-experts-first": Recipe("gpt-oss", lora(target_parameters=EXPERTS[:1])),
    "gpt-oss-experts-second": Recipe("gpt-oss", lora(target_parameters=EXPERTS[1:])),
    "gpt-oss-bias-all": Recipe("gpt-oss", lora("q_proj", bias="all")),
    # Copied layers.
    "llama-replicated": Recipe(
        "llama",
        lora("q_proj", layer_replication=[[0, 2], [1, 2]]),
        hand=replicated,
        changed={"num_hidden_layers": 3, "layer_types": None},
    ),
}

CASES: list[Case] = [Case(name, recipe.build) for name, recipe in RECIPES.items()]
