"""The key-values by which llama.cpp builds a model's graph, from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.containers.gguf.values import Value
from adaptool.conversion.families import FAMILIES, Family, check
from adaptool.conversion.rotary import describe_rope, frequency_tensors, read_rope
from adaptool.conversion.settings import Settings, settings
from adaptool.errors import JSON, IncompatibleError, ResourceLimitError

if TYPE_CHECKING:
    import torch


LAYERS_LIMIT = 10_000
HEAD_LIMIT = 65_536


@dataclass(frozen=True)
class Hyperparameters:
    """A model's shape and constants.

    Attributes:
        architecture: general.architecture.
        values: key-values with their prefix, without general.* and tokenizer.*.
        tensors: small tensors that llama.cpp wants besides the weights, float32.
        heads, kv_heads, layers, experts: counts; experts is 0 for a dense model.
        tied: the architecture has no head of its own.
    """

    architecture: str
    values: Mapping[str, Value]
    tensors: Mapping[str, torch.Tensor]
    heads: int
    kv_heads: int
    layers: int
    experts: int
    tied: bool


def read_hyperparameters(
    config: Mapping[str, JSON], architecture: str, vocabulary: int
) -> Hyperparameters:
    """What config.json says, in llama.cpp's words.

    Args:
        config: a Hugging Face configuration of transformers 4 or 5.
        architecture: general.architecture, as the layout of the tensors states it.
        vocabulary: rows of the input embedding.

    Raises:
        IncompatibleError: the architecture is not known here, a setting is missing, or llama.cpp
            would compute something else than the model does.
        CorruptInputError: a setting of a wrong type.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        raise IncompatibleError(
            f"models of the architecture {architecture} cannot be written as GGUF yet",
            hint=f"possible: {', '.join(FAMILIES)}",
            code="UNSUPPORTED_ARCHITECTURE",
        )
    model = settings(config)
    rope = read_rope(model)
    check(family, model, rope.kind)
    hidden = model.count("hidden_size", "n_embd", "n_embed")
    layers = model.count("num_hidden_layers", "n_layer")
    heads = model.count("num_attention_heads", "n_head")
    kv_heads = model.count("num_key_value_heads", default=heads) if family.grouped else heads
    if not heads or not kv_heads or not layers or not hidden:
        raise IncompatibleError(
            "config.json: a model needs layers, heads and a width", code="CONFIG_INCOMPLETE"
        )
    size = model.count("head_dim", default=hidden // heads)
    if layers > LAYERS_LIMIT or size > HEAD_LIMIT:
        raise ResourceLimitError(
            f"config.json: {layers} layers with heads of {size}; "
            f"the limits are {LAYERS_LIMIT} and {HEAD_LIMIT}"
        )
    turning = int(rope.part * size)
    experts = model.count("num_local_experts", "num_experts", "n_routed_experts", default=0)
    values: dict[str, Value] = {
        "block_count": Value.u32(layers),
        "context_length": Value.u32(_context(model)),
        "embedding_length": Value.u32(hidden),
        "feed_forward_length": Value.u32(
            model.count("intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden)
        ),
        "attention.head_count": Value.u32(heads),
        "attention.head_count_kv": Value.u32(kv_heads),
        "attention.key_length": Value.u32(size),
        "attention.value_length": Value.u32(size),
        "vocab_size": Value.u32(vocabulary),
        **_epsilon(family, model),
    }
    if experts:
        values["expert_count"] = Value.u32(experts)
        values["expert_used_count"] = Value.u32(model.count("num_experts_per_tok"))
        for key, name in (
            ("expert_group_count", "n_group"), ("expert_group_used_count", "topk_group"),
        ):  # fmt: skip
            if model.find(name) is not None:
                values[key] = Value.u32(model.count(name))
    if family.scalings:
        values["rope.dimension_count"] = Value.u32(turning)
        values |= describe_rope(rope, model)
    values |= family.describe(model)
    return Hyperparameters(
        architecture=architecture,
        values={f"{architecture}.{key}": value for key, value in values.items()},
        tensors=frequency_tensors(rope, turning) if family.scalings else {},
        heads=heads,
        kv_heads=int(str(values["attention.head_count_kv"].plain())),
        layers=layers,
        experts=experts,
        tied=family.tied,
    )


def _context(model: Settings) -> int:
    """Tokens that the model was made for.

    Falcon and BLOOM kept it out of their configurations; both were trained with 2048.  Command R
    states the length of the first training stage, and the real one aside.
    """
    if model.model_type == "cohere":
        return model.count("model_max_length", "max_position_embeddings")
    silent = 2048 if model.model_type in {"falcon", "bloom"} else None
    return model.count(
        "max_position_embeddings", "n_positions", "n_ctx", "seq_length", default=silent
    )


def _epsilon(family: Family, model: Settings) -> dict[str, Value]:
    if family.norm == "rms":
        return {"attention.layer_norm_rms_epsilon": Value.f32(model.number("rms_norm_eps"))}
    if family.norm == "layer":
        names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
        return {"attention.layer_norm_epsilon": Value.f32(model.number(*names))}
    return {}
