"""What MLC's implementation of a model computes from, out of its config.json; refusals included.

MLC reads `rope_theta` and `rope_scaling`, which transformers 5 no longer writes; it silently takes
10000 instead.  So both spellings are read here, and what MLC's model would leave out is refused.
Fields and their defaults are those of mlc_llm (python/mlc_llm/model/*/*_model.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.architectures.mlc import Shape, family_of
from adaptool.conversion.rotary import Rope, read_rope
from adaptool.conversion.settings import Settings, settings
from adaptool.errors import JSON, IncompatibleError, ResourceLimitError
from adaptool.targets.webllm.behaviours import BEHAVIOURS, Behaviour

LAYERS_LIMIT = 1024
SIZE_LIMIT = 1 << 24
_SILENT: Mapping[str, Mapping[str, JSON]] = {
    "mistral": {"sliding_window": 4096},
    "gemma2": {
        "sliding_window": 4096, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}  # fmt: skip
"""What transformers takes where a configuration does not speak; null says that there is none."""

BATCH = 128
"""max_batch_size, as mlc_llm writes it; a browser runs one conversation."""


@dataclass(frozen=True)
class Hyperparameters:
    """A model as MLC sees it.

    Attributes:
        model_type: MLC's name of the architecture.
        shape: sizes.
        context: tokens that the runtime computes as the model does.
        chunk: tokens per step of reading a prompt.
        sink: first tokens that a sliding window keeps, -1 where there is no such thing.
        theta: base of the rotary angles.
        scaling: how long contexts are reached, in MLC's words, or None.
        fields: `model_config` of mlc-chat-config.json.
        notes: where MLC's model differs from the one it was trained as.
    """

    model_type: str
    shape: Shape
    context: int
    chunk: int
    sink: int
    theta: float
    scaling: dict[str, JSON] | None
    fields: Mapping[str, JSON]
    notes: tuple[str, ...]


def read_hyperparameters(config: Mapping[str, JSON]) -> Hyperparameters:
    """What a Hugging Face config.json says, in MLC's words.

    Raises:
        IncompatibleError: MLC has no such model, or one that would compute something else.
        CorruptInputError: a setting of a wrong type.
        ResourceLimitError: absurd sizes.
    """
    model = settings({**_SILENT.get(str(config.get("model_type")), {}), **config})
    family_of(model.model_type)
    behaviour = BEHAVIOURS[model.model_type]
    shape = _read_shape(model)
    rope = read_rope(model)
    _check(model, behaviour, shape, rope)
    context, notes = _context(model, behaviour, rope)
    notes += _deviations(model)
    sink = 4 if "attention_sink_size" in behaviour.fields else -1
    chunk = min(context, behaviour.chunk)
    scaling = _scaling(model, rope)
    values: dict[str, JSON] = {
        **vars(shape),
        "model_type": model.model_type,
        "hidden_act": model.find("hidden_act"),
        "hidden_activation": model.find("hidden_activation", "hidden_act"),
        "rms_norm_eps": model.number("rms_norm_eps"),
        "rope_theta": _whole(rope.theta),
        "position_embedding_base": _whole(rope.theta),
        "rope_scaling": dict(scaling) if scaling else None,
        "partial_rotary_factor": rope.part,
        "max_position_embeddings": model.count("max_position_embeddings"),
        "original_max_position_embeddings": rope.scaling.count(
            "original_max_position_embeddings", default=0
        ),
        "attn_logit_softcapping": model.find("attn_logit_softcapping"),
        "final_logit_softcapping": model.find("final_logit_softcapping"),
        "query_pre_attn_scalar": model.find("query_pre_attn_scalar"),
        "sliding_window": context,
        "context_window_size": context,
        "sliding_window_size": -1,
        "prefill_chunk_size": chunk,
        "attention_sink_size": sink,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "max_batch_size": BATCH,
        "disaggregation": False,
        "dtype": "float32",
        "weight_block_size": None,
    }
    return Hyperparameters(
        model_type=model.model_type,
        shape=shape,
        context=context,
        chunk=chunk,
        sink=sink,
        theta=rope.theta,
        scaling=scaling,
        fields={name: values[name] for name in behaviour.fields},
        notes=notes,
    )


def _read_shape(model: Settings) -> Shape:
    hidden = model.count("hidden_size")
    heads = model.count("num_attention_heads")
    shape = Shape(
        hidden_size=hidden,
        intermediate_size=model.count("intermediate_size"),
        num_hidden_layers=model.count("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=model.count("num_key_value_heads", default=heads),
        head_dim=model.count("head_dim", default=hidden // max(heads, 1)),
        vocab_size=model.count("vocab_size"),
        tie_word_embeddings=model.flag("tie_word_embeddings"),
        attention_bias=model.flag("attention_bias"),
    )
    return checked(shape)


def checked(shape: Shape) -> Shape:
    """The shape itself.

    Raises:
        IncompatibleError: a size is nothing, or heads do not divide.
        ResourceLimitError: no model is that large.
    """
    sizes = [value for value in vars(shape).values() if not isinstance(value, bool)]
    if min(sizes) < 1 or shape.num_attention_heads % shape.num_key_value_heads:
        raise IncompatibleError(
            "a model needs layers, a width, and query heads that its key-value heads divide",
            code="CONFIG_INCOMPLETE",
        )
    if shape.num_hidden_layers > LAYERS_LIMIT or max(sizes) > SIZE_LIMIT:
        raise ResourceLimitError(
            f"{shape.num_hidden_layers} layers and sizes up to {max(sizes)}: "
            f"the limits are {LAYERS_LIMIT} and {SIZE_LIMIT}"
        )
    return shape


def _check(model: Settings, behaviour: Behaviour, shape: Shape, rope: Rope) -> None:
    """Refuse what MLC's model would leave out in silence."""
    kind = model.model_type
    activation = model.find("hidden_activation", "hidden_act")
    if activation not in behaviour.activations:
        raise _unlike(f"MLC's {kind} has no activation {activation!r}")
    if rope.kind not in behaviour.ropes:
        raise IncompatibleError(
            f"MLC's {kind} knows no rotary scaling of the kind {rope.kind!r}",
            hint=f"known: {', '.join(sorted(behaviour.ropes))}",
            code="UNSUPPORTED_ROPE",
        )
    if rope.part != 1.0 and "partial_rotary_factor" not in behaviour.fields:
        raise _unlike(f"MLC's {kind} rotates whole heads, not {rope.part:g} of them")
    biased = [name for name in ("attention_bias", "mlp_bias") if model.flag(name)]
    if biased and not (biased == ["attention_bias"] and "attention_bias" in behaviour.biases):
        raise _unlike(f"MLC's {kind} has no biases, but config.json states {biased[0]}")
    if behaviour.square and shape.head_dim * shape.num_attention_heads != shape.hidden_size:
        raise _unlike(
            f"MLC's {kind} needs heads that are as wide as the model together: "
            f"{shape.num_attention_heads} of {shape.head_dim} are not {shape.hidden_size}"
        )
    if shape.hidden_size % shape.num_attention_heads and behaviour.divides:
        raise _unlike(f"MLC's {kind} needs a width that its heads divide")
    if kind == "gemma2":
        scalar = model.number("query_pre_attn_scalar")
        if scalar != shape.head_dim:
            raise _unlike(
                f"MLC's gemma2 scales attention by the width of a head, {shape.head_dim}, "
                f"not by query_pre_attn_scalar, {scalar:g}"
            )


def _unlike(message: str) -> IncompatibleError:
    return IncompatibleError(
        message,
        hint="the runtime would compute something else; --target wllama runs more kinds of models",
        code="UNSUPPORTED_MODEL",
    )


def _context(model: Settings, behaviour: Behaviour, rope: Rope) -> tuple[int, tuple[str, ...]]:
    """Tokens up to which MLC's attention is the model's own, and why these are not all."""
    longest = model.count("max_position_embeddings")
    window = model.find("sliding_window")
    if behaviour.window == "flagged" and not model.flag("use_sliding_window"):
        window = None
    kinds = model.find("layer_types")
    if isinstance(kinds, list) and "sliding_attention" not in kinds:
        window = None
    if behaviour.window and window is not None:
        width = model.count("sliding_window")
        if 0 < width < longest:
            note = f"contexts end at {width} tokens: MLC has no sliding window as this model has"
            return width, (note,)
    if rope.kind == "longrope":
        width = rope.scaling.count("original_max_position_embeddings")
        if 1 < width < longest:
            note = f"contexts end at {width} tokens: beyond, MLC mixes the two rotary scalings"
            return width, (note,)
    return longest, ()


def _deviations(model: Settings) -> tuple[str, ...]:
    if model.model_type == "gemma2" and model.find("attn_logit_softcapping") is not None:
        return ("MLC's gemma2 leaves out attn_logit_softcapping: answers may differ slightly",)
    return ()


def _scaling(model: Settings, rope: Rope) -> dict[str, JSON] | None:
    if rope.kind == "llama3":
        return {
            "factor": rope.scaling.positive("factor"),
            "low_freq_factor": rope.scaling.positive("low_freq_factor"),
            "high_freq_factor": rope.scaling.positive("high_freq_factor"),
            "original_max_position_embeddings": rope.scaling.count(
                "original_max_position_embeddings"
            ),
            "rope_type": "llama3",
        }
    if rope.kind == "longrope":
        return _longrope(model, rope)
    return None


def _longrope(model: Settings, rope: Rope) -> dict[str, JSON]:
    """TVM computes the attention factor itself (Ding et al. 2024, arXiv 2402.13753)."""
    longest = model.count("max_position_embeddings")
    original = rope.scaling.count("original_max_position_embeddings")
    turning = int(rope.part * (model.count("hidden_size") // model.count("num_attention_heads")))
    found: dict[str, JSON] = {"type": "longrope", "rope_type": "longrope"}
    for name in ("long_factor", "short_factor"):
        factors = rope.scaling.numbers(name)
        if factors is None or len(factors) != turning // 2:
            raise IncompatibleError(
                f"config.json: {name} has {len(factors or ())} numbers, "
                f"but {turning // 2} frequencies rotate",
                code="CONFIG_INCOMPLETE",
            )
        found[name] = list(factors)
    grown = longest / max(original, 1)
    computed = math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 < original else 1.0
    stated = rope.scaling.number("attention_factor", default=computed)
    if not math.isclose(stated, computed, rel_tol=1e-6):
        raise _unlike(f"MLC computes the attention factor {computed:.6g}, not {stated:.6g}")
    return {
        **found,
        "max_position_embeddings": longest,
        "original_max_position_embeddings": original,
    }


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() else number
