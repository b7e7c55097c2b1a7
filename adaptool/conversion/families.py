"""What llama.cpp's graphs take for granted of each architecture, as data.

A key that it does not read, or an activation that its graph does not have, is not an error there:
the model answers, differently. So every architecture states what is expressible, and `Family`
refuses the rest before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adaptool.containers.gguf.values import Value
from adaptool.conversion.settings import Settings
from adaptool.errors import JSON, IncompatibleError

_SILU = frozenset({"silu", "swish"})
_GELU = frozenset({
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_10",
})  # fmt: skip
"""ggml has one GELU, the tanh approximation; models trained with erf differ by 1e-3 at most."""

_SCALED = frozenset({"default", "dynamic", "linear", "yarn"})


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        activations: values of the configuration's activation that its graph computes.
        norm: "rms" or "layer".
        scalings: kinds of rotary scaling that it follows; empty where nothing rotates.
        tied: its head is always the input embedding.
        grouped: several heads may share a key and a value.
        describe: further key-values, without prefix.
        requires: (setting, value when silent, expected): what the graph takes for granted.
    """

    activations: frozenset[str] = _SILU
    norm: str = "rms"
    scalings: frozenset[str] = _SCALED
    tied: bool = False
    grouped: bool = True
    describe: Callable[[Settings], Mapping[str, Value]] = lambda _: {}
    requires: tuple[tuple[str, JSON, JSON], ...] = ()


def check(family: Family, model: Settings, rope_kind: str) -> None:
    """Raise IncompatibleError if llama.cpp would compute something else than the model."""
    activation = model.text(
        "hidden_activation", "hidden_act", "activation_function", "activation",
        default=min(family.activations),
    )  # fmt: skip
    if activation not in family.activations:
        raise _inexpressible(model, f"the activation {activation}")
    if family.scalings and rope_kind not in family.scalings:
        raise _inexpressible(model, f"rotary scaling of the kind {rope_kind}")
    for name, silent, expected in family.requires:
        found = model.find(name)
        found = silent if found is None else found
        if found != expected:
            raise _inexpressible(model, f"{name} = {found} (only {expected})")


def _inexpressible(model: Settings, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"llama.cpp's {model.model_type} does not have {what}: it would answer differently",
        hint="keep this model as a Hugging Face checkpoint",
        code="UNSUPPORTED_CONFIG",
    )


# -- what some architectures say besides --------------------------------------------------------


def _window(model: Settings, period: int) -> dict[str, Value]:
    """Sliding windows, and in which layers if not in all but every `period`-th."""
    if model.find("sliding_window") is None:
        return {}
    values = {"attention.sliding_window": Value.u32(model.count("sliding_window"))}
    layers = model.count("num_hidden_layers")
    usual = [(i + 1) % period != 0 for i in range(layers)]
    kinds = model.find("layer_types")
    stated = model.find("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(kinds, list):
        pattern = [kind == "sliding_attention" for kind in kinds]
    elif isinstance(stated, int) and stated > 0:
        pattern = [(i + 1) % stated != 0 for i in range(layers)]
    else:
        pattern = usual
    if pattern != usual:
        values["attention.sliding_window_pattern"] = Value.booleans(pattern)
    return values


def _query_scale(model: Settings, exception: int) -> None:
    """llama.cpp scales by the head's size, and by hidden / heads at `exception` layers (27B)."""
    size = model.count("head_dim")
    if model.count("num_hidden_layers") == exception:
        size = model.count("hidden_size") // model.count("num_attention_heads")
    scalar = model.number("query_pre_attn_scalar", default=float(size))
    if scalar != size:
        raise _inexpressible(model, f"query_pre_attn_scalar = {scalar:g} (only {size})")


def _gemma2(model: Settings) -> dict[str, Value]:
    _query_scale(model, 46)
    return {
        **_window(model, 2),
        "attn_logit_softcapping": Value.f32(model.number("attn_logit_softcapping")),
        "final_logit_softcapping": Value.f32(model.number("final_logit_softcapping")),
    }


def _gemma3(model: Settings) -> dict[str, Value]:
    _query_scale(model, 62)
    values = _window(model, 6)
    if model.find("final_logit_softcapping") is not None:
        cap = model.number("final_logit_softcapping")
        values["final_logit_softcapping"] = Value.f32(cap)
    return values


def _phi3(model: Settings) -> dict[str, Value]:
    """A window of 0 tells llama.cpp that there is none (Phi-4)."""
    values = {"attention.sliding_window": Value.u32(model.count("sliding_window", default=0))}
    longest = model.count("max_position_embeddings")
    scaling = model.table("rope_parameters", "rope_scaling")
    length = scaling.find("original_max_position_embeddings")
    if length is None:
        length = model.count("original_max_position_embeddings", default=longest)
    value = Settings({"original_max_position_embeddings": length})
    key = "rope.scaling.original_context_length"
    values[key] = Value.u32(value.count("original_max_position_embeddings"))
    return values


def _experts(model: Settings) -> dict[str, Value]:
    values = {}
    for key, name in (
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ):
        if model.find(name) is not None:
            values[key] = Value.u32(model.count(name))
    return values


def _smollm3(model: Settings) -> dict[str, Value]:
    layers = model.count("num_hidden_layers")
    stated = model.find("no_rope_layers")
    usual = [int((i + 1) % 4 != 0) for i in range(layers)]
    if stated is not None and stated != usual:
        raise _inexpressible(model, "other no_rope_layers than every fourth")
    return {}


def _cohere(model: Settings) -> dict[str, Value]:
    if model.flag("use_qk_norm") != (model.count("num_hidden_layers") >= 64):
        raise _inexpressible(model, "use_qk_norm in a model of this depth")
    return {"logit_scale": _scale(model, "logit_scale"), "rope.scaling.type": Value.string("none")}


def _cohere2(model: Settings) -> dict[str, Value]:
    return {
        **_window(model, 4),
        "logit_scale": _scale(model, "logit_scale"),
        "rope.scaling.type": Value.string("none"),
    }


def _scale(model: Settings, name: str) -> Value:
    return Value.f32(model.number(name))


def _olmo(model: Settings) -> dict[str, Value]:
    """The first OLMo norms without weights, and its epsilon is a constant of its code."""
    values = {"attention.layer_norm_epsilon": Value.f32(1e-5)}
    if model.find("clip_qkv") is not None:
        values["attention.clamp_kqv"] = _scale(model, "clip_qkv")
    return values


def _olmo2(model: Settings) -> dict[str, Value]:
    values = _window(model, 4)
    if values:  # OLMo 3; OLMo 2 has no window
        layers = model.count("num_hidden_layers")
        pattern = [(i + 1) % 4 != 0 for i in range(layers)]
        values.setdefault("attention.sliding_window_pattern", Value.booleans(pattern))
    return values


def _olmoe(model: Settings) -> dict[str, Value]:
    heads = model.count("num_attention_heads")
    shared = model.count("num_key_value_heads", default=heads)
    if shared != heads:
        raise _inexpressible(model, f"num_key_value_heads = {shared} (only {heads})")
    return {}


def _parallel(model: Settings) -> dict[str, Value]:
    silent = model.model_type == "gpt_neox"
    return {
        "use_parallel_residual": Value.boolean(model.flag("use_parallel_residual", default=silent))
    }


def _granite(model: Settings) -> dict[str, Value]:
    pairs = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return {key: _scale(model, name) for key, name in pairs.items()}


def _falcon(model: Settings) -> dict[str, Value]:
    heads = model.count("num_attention_heads", "n_head")
    if model.flag("new_decoder_architecture"):
        shared = model.count("num_kv_heads", "n_head_kv", default=heads)
    else:
        shared = 1 if model.flag("multi_query", default=True) else heads
    return {
        "attention.head_count_kv": Value.u32(shared),
        "tensor_data_layout": Value.string("jploski"),
    }


def _deepseek2(model: Settings) -> dict[str, Value]:
    """Multi-head latent attention, which llama.cpp computes as one key-value head."""
    rank, turning = model.count("kv_lora_rank"), model.count("qk_rope_head_dim")
    experts = model.find("n_routed_experts") is not None
    layers = model.count("num_hidden_layers")
    values = {
        "attention.head_count_kv": Value.u32(1),
        "attention.kv_lora_rank": Value.u32(rank),
        "attention.key_length": Value.u32(rank + turning),
        "attention.value_length": Value.u32(rank),
        "attention.key_length_mla": Value.u32(model.count("qk_nope_head_dim") + turning),
        "attention.value_length_mla": Value.u32(model.count("v_head_dim")),
        "rope.dimension_count": Value.u32(turning),
        "leading_dense_block_count": Value.u32(
            model.count("first_k_dense_replace", default=0 if experts else layers)
        ),
        "expert_feed_forward_length": Value.u32(
            model.count("moe_intermediate_size", "intermediate_size")
        ),
        "expert_shared_count": Value.u32(model.count("n_shared_experts", default=0)),
    }
    if model.find("q_lora_rank") is not None:
        values["attention.q_lora_rank"] = Value.u32(model.count("q_lora_rank"))
    elif layers not in (26, 27):
        raise _inexpressible(model, "q_lora_rank = null with other than 26 or 27 layers")
    if model.find("routed_scaling_factor") is not None:
        values["expert_weights_scale"] = _scale(model, "routed_scaling_factor")
    if model.flag("norm_topk_prob"):
        values["expert_weights_norm"] = Value.boolean(True)
    scaling = model.table("rope_parameters", "rope_scaling")
    if scaling.find("mscale_all_dim") is not None:
        share = 0.1 * scaling.number("mscale_all_dim")
        values["rope.scaling.yarn_log_multiplier"] = Value.f32(share)
    return values


_EVERY_LAYER: tuple[tuple[str, JSON, JSON], ...] = (
    ("decoder_sparse_step", 1, 1),
    ("mlp_only_layers", [], []),
)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(scalings=_SCALED | {"llama3", "longrope"}),
    "qwen2": Family(requires=(("use_sliding_window", False, False),)),
    "qwen2moe": Family(
        describe=_experts, requires=(*_EVERY_LAYER, ("norm_topk_prob", False, False))
    ),
    "qwen3": Family(requires=(("use_sliding_window", False, False),)),
    "qwen3moe": Family(
        describe=_experts, requires=(*_EVERY_LAYER, ("norm_topk_prob", False, True))
    ),
    "gemma": Family(activations=_GELU, tied=True),
    "gemma2": Family(activations=_GELU, tied=True, describe=_gemma2),
    "gemma3": Family(
        activations=_GELU, describe=_gemma3, requires=(("attn_logit_softcapping", None, None),)
    ),
    "phi3": Family(scalings=_SCALED | {"longrope"}, describe=_phi3),
    "smollm3": Family(describe=_smollm3, requires=(("use_sliding_window", False, False),)),
    "gpt2": Family(
        activations=_GELU, norm="layer", scalings=frozenset(), grouped=False,
        requires=(("scale_attn_by_inverse_layer_idx", False, False),
                  ("scale_attn_weights", True, True)),
    ),
    "falcon": Family(
        activations=_GELU, norm="layer", describe=_falcon,
        requires=(("alibi", False, False), ("parallel_attn", True, True), ("bias", False, False)),
    ),
    "bloom": Family(
        activations=_GELU, norm="layer", scalings=frozenset(), grouped=False,
        requires=(("apply_residual_connection_post_layernorm", False, False),),
    ),
    "starcoder2": Family(activations=_GELU, norm="layer", requires=(("use_bias", True, True),)),
    "command-r": Family(
        norm="layer", scalings=frozenset({"default", "dynamic"}), tied=True, describe=_cohere
    ),
    "cohere2": Family(
        norm="layer", scalings=frozenset({"default", "dynamic"}), tied=True, describe=_cohere2
    ),
    "olmo": Family(norm="none", describe=_olmo),
    "olmo2": Family(describe=_olmo2),
    "olmoe": Family(
        describe=_olmoe, requires=(("clip_qkv", None, None), ("norm_topk_prob", False, False))
    ),
    "stablelm": Family(norm="layer", describe=_parallel),
    "gptneox": Family(activations=_GELU, norm="layer", grouped=False, describe=_parallel),
    "granite": Family(scalings=_SCALED | {"llama3", "longrope"}, describe=_granite),
    "deepseek2": Family(describe=_deepseek2),
}  # fmt: skip
"""By general.architecture."""
