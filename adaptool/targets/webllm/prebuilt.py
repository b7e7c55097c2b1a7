"""Compiled model libraries that the makers of WebLLM publish, and which model fits which.

A library has shapes, rotary angles and the epsilon of the norms compiled into it, and nothing else
of the model it was made for: every model that agrees in these runs with it.  Names and memory are
those of `prebuiltAppConfig` in @mlc-ai/web-llm 0.2.86; of its families those are listed whose
published sizes are certain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adaptool.architectures.mlc import Shape, family_of
from adaptool.architectures.mlc.families import Head
from adaptool.errors import JSON
from adaptool.targets.webllm.hyperparameters import Hyperparameters

RELEASE = "0.2.86"
VERSION = "v0_2_86/base"
"""What that release of @mlc-ai/web-llm runs; a library of another version does not link."""

_PREFIX = "https://raw.githubusercontent.com/mlc-ai/binary-mlc-llm-libs/main/web-llm-models/"

CONTEXT = 4096
"""Tokens that the published records give a conversation."""

_COMPILED = {"hidden_act": "silu", "partial_rotary_factor": 1.0, "final_logit_softcapping": 30.0}
"""Further fields that are compiled in, with the values of all the models below."""

_LITERAL = frozenset({"qwen2", "qwen3", "phi3"})
"""Whose libraries know the rows of the embedding; the others take any."""


@dataclass(frozen=True)
class Library:
    """One model's libraries.

    Attributes:
        base: how their names begin.
        model_type, shape, theta: of the model that they were made for.
        active: tokens of that model's tokenizer: what lies beyond is never sampled.
        memory: scheme -> megabytes of a graphics card at a context of `context` tokens.
        epsilon: of the norms.
        scaling: `factor` of a Llama 3 rotary scaling.
        context: see `memory`.
    """

    base: str
    model_type: str
    shape: Shape
    theta: float
    active: int
    memory: Mapping[str, float]
    epsilon: float = 1e-5
    scaling: float | None = None
    context: int = CONTEXT

    @property
    def rotary(self) -> dict[str, JSON] | None:
        """The rotary scaling that is compiled in: Llama 3.1's, and its followers', but a factor."""
        if self.scaling is None:
            return None
        return {
            "factor": self.scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        }  # fmt: skip

    def url(self, scheme: str) -> str:
        """Where the library for a scheme is published."""
        return f"{_PREFIX}{VERSION}/{self.base}-{scheme}_cs1k-webgpu.wasm"


@dataclass(frozen=True)
class Match:
    """The published library for a model, or the nearest one and what speaks against it."""

    library: Library | None = None
    near: Library | None = None
    differences: tuple[str, ...] = field(default=())


def library_for(model: Hyperparameters, scheme: str) -> Match:
    """The library that runs a model of this shape in this scheme, if one is published."""
    for library in LIBRARIES:
        if library.model_type != model.model_type or _sizes(library) != _sizes(model):
            continue
        differences = _differences(library, model)
        if not differences and scheme in library.memory:
            return Match(library)
        if not differences:
            published = ", ".join(library.memory)
            differences = (f"it is published for {published} only",)
        return Match(near=library, differences=differences)
    return Match()


def _sizes(owner: Library | Hyperparameters) -> tuple[object, ...]:
    """What a library is looked up by: all sizes but the rows of the embedding, and how it turns."""
    shape = owner.shape
    return (
        shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers,
        shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim,
        owner.scaling is None,
    )  # fmt: skip


def _differences(library: Library, model: Hyperparameters) -> tuple[str, ...]:
    """What else is compiled in, and is another in the model."""
    ours, theirs = model.shape, library.shape
    pairs: dict[str, tuple[object, object]] = {
        "rope_theta": (library.theta, model.theta),
        "the rotary scaling": (library.rotary, model.scaling),
        "rms_norm_eps": (library.epsilon, model.fields["rms_norm_eps"]),
        "attention_bias": (theirs.attention_bias, ours.attention_bias),
    }
    if family_of(model.model_type).head is Head.STATED:
        tied = "tie_word_embeddings"
        pairs[tied] = (theirs.tie_word_embeddings, ours.tie_word_embeddings)
    if model.model_type in _LITERAL:
        pairs["vocab_size"] = (theirs.vocab_size, ours.vocab_size)
    for name, value in _COMPILED.items():
        if name in model.fields:
            pairs[name] = (value, model.fields[name])
    return tuple(
        f"{what} is {one} there and {other} here"
        for what, (one, other) in pairs.items()
        if one != other
    )


def _q4(f16: float, f32: float, **more: float) -> dict[str, float]:
    return {"q4f16_1": f16, "q4f32_1": f32, **more}


_QWEN = 1_000_000.0
LIBRARIES = (
    Library(
        "Llama-3.2-1B-Instruct", "llama", Shape(2048, 8192, 16, 32, 8, 64, 128256, True),
        500_000.0, 128256, _q4(879.04, 1128.82, q0f32=5106.26, q0f16=2573.13), scaling=32.0,
    ),
    Library(
        "Llama-3.2-3B-Instruct", "llama", Shape(3072, 8192, 28, 24, 8, 128, 128256, True),
        500_000.0, 128256, _q4(2263.69, 2951.51), scaling=32.0,
    ),
    Library(
        "Llama-3_1-8B-Instruct", "llama", Shape(4096, 14336, 32, 32, 8, 128, 128256),
        500_000.0, 128256, _q4(5001.0, 6101.01), scaling=8.0,
    ),
    Library(
        "Llama-3-8B-Instruct", "llama", Shape(4096, 14336, 32, 32, 8, 128, 128256),
        500_000.0, 128256, _q4(5001.0, 6101.01),
    ),
    Library(
        "Llama-3_1-70B-Instruct", "llama", Shape(8192, 28672, 80, 64, 8, 128, 128256),
        500_000.0, 128256, {"q3f16_1": 31153.13}, scaling=8.0,
    ),
    Library(
        "Llama-3-70B-Instruct", "llama", Shape(8192, 28672, 80, 64, 8, 128, 128256),
        500_000.0, 128256, {"q3f16_1": 31153.13},
    ),
    Library(
        "Llama-2-7b-chat-hf", "llama", Shape(4096, 11008, 32, 32, 32, 128, 32000),
        10_000.0, 32000, _q4(6749.02, 9109.03),
    ),
    Library(
        "Llama-2-13b-chat-hf", "llama", Shape(5120, 13824, 40, 40, 40, 128, 32000),
        10_000.0, 32000, {"q4f16_1": 11814.09},
    ),
    Library(
        "TinyLlama-1.1B-Chat-v1.0", "llama", Shape(2048, 5632, 22, 32, 4, 64, 32000),
        10_000.0, 32000, _q4(697.24, 839.98), context=2048,
    ),
    Library(
        "SmolLM2-1.7B-Instruct", "llama", Shape(2048, 8192, 24, 32, 32, 64, 49152, True),
        130_000.0, 49152, _q4(1774.19, 2692.38),
    ),
    Library(
        "SmolLM2-360M-Instruct", "llama", Shape(960, 2560, 32, 15, 5, 64, 49152, True),
        100_000.0, 49152, _q4(376.06, 579.61, q0f16=871.99, q0f32=1743.99),
    ),
    Library(
        "SmolLM2-135M-Instruct", "llama", Shape(576, 1536, 30, 9, 3, 64, 49152, True),
        100_000.0, 49152, {"q0f16": 359.69, "q0f32": 719.38},
    ),
    Library(
        "Mistral-7B-Instruct-v0.3", "mistral", Shape(4096, 14336, 32, 32, 8, 128, 32768),
        1_000_000.0, 32768, _q4(4573.39, 5619.27),
    ),
    Library(
        "Qwen2-0.5B-Instruct", "qwen2", Shape(896, 4864, 24, 14, 2, 64, 151936, True),
        _QWEN, 151646, _q4(944.62, 1060.2, q0f16=1624.12, q0f32=2654.75), 1e-6,
    ),
    Library(
        "Qwen2-1.5B-Instruct", "qwen2", Shape(1536, 8960, 28, 12, 2, 128, 151936, True),
        _QWEN, 151646, _q4(1629.75, 1888.97), 1e-6,
    ),
    Library(
        "Qwen2.5-3B-Instruct", "qwen2", Shape(2048, 11008, 36, 16, 2, 128, 151936, True),
        _QWEN, 151665, _q4(2504.76, 2893.64), 1e-6,
    ),
    Library(
        "Qwen2-7B-Instruct", "qwen2", Shape(3584, 18944, 28, 28, 4, 128, 152064),
        _QWEN, 151646, _q4(5106.67, 5900.09), 1e-6,
    ),
    Library(
        "Qwen3-0.6B", "qwen3", Shape(1024, 3072, 28, 16, 8, 128, 151936, True),
        _QWEN, 151669, _q4(1403.34, 1924.98, q0f16=2220.38, q0f32=3843.25), 1e-6,
    ),
    Library(
        "Qwen3-1.7B", "qwen3", Shape(2048, 6144, 28, 16, 8, 128, 151936, True),
        _QWEN, 151669, _q4(2036.66, 2635.44), 1e-6,
    ),
    Library(
        "Qwen3-4B", "qwen3", Shape(2560, 9728, 36, 32, 8, 128, 151936, True),
        _QWEN, 151669, _q4(3431.59, 4327.71), 1e-6,
    ),
    Library(
        "Qwen3-8B", "qwen3", Shape(4096, 12288, 36, 32, 8, 128, 151936),
        _QWEN, 151669, _q4(5695.78, 6852.55), 1e-6,
    ),
    Library(
        "gemma-2b-it", "gemma", Shape(2048, 16384, 18, 8, 1, 256, 256000, True),
        10_000.0, 256000, _q4(1476.52, 1750.66), 1e-6,
    ),
    Library(
        "gemma-2-2b-it", "gemma2", Shape(2304, 9216, 26, 8, 4, 256, 256000, True),
        10_000.0, 256000, _q4(1895.3, 2508.75), 1e-6,
    ),
    Library(
        "gemma-2-9b-it", "gemma2", Shape(3584, 14336, 42, 16, 8, 256, 256000, True),
        10_000.0, 256000, _q4(6422.01, 8383.33), 1e-6,
    ),
    Library(
        "Phi-3-mini-4k-instruct", "phi3", Shape(3072, 8192, 32, 32, 32, 96, 32064),
        10_000.0, 32011, _q4(3672.07, 5483.12),
    ),
)  # fmt: skip
"""Those of @mlc-ai/web-llm 0.2.86 whose models' published sizes are certain."""
