"""When two names mean the same parameter.

An adapter is saved with the names that a model had in memory; a checkpoint keeps the names of
the library version that wrote it. Two names mean the same parameter if their normal forms are
equal. The rules below are the renames of Hugging Face transformers between its major versions
4 and 5 (`conversion_mapping`), and the wrappers that heads put around a model body.
"""

import re
from functools import lru_cache

_WRAPPERS = (
    "model|language_model|transformer|base_model|gpt_neox|bert|roberta|distilbert|deberta|"
    "electra|albert|xlm_roberta|vit|deit|dinov2"
)

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # a model's body inside a head, and text models inside multimodal ones
        (rf"^(?:(?:{_WRAPPERS})\.)+", ""),
        # ViT and its kin: v4 attention.attention.query, v5 attention.q_proj
        (r"^encoder\.layer\.(\d+)\.", r"layers.\1."),
        (r"\.attention\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"^(layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        # mixture of experts: Mixtral's names, and those of everybody else
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"(\.experts\.\d+)\.w1\.", r"\1.gate_proj."),
        (r"(\.experts\.\d+)\.w3\.", r"\1.up_proj."),
        (r"(\.experts\.\d+)\.w2\.", r"\1.down_proj."),
        # heads and norms
        (r"^embed_out\.", "lm_head."),
        (r"\.gamma$", ".weight"),
        (r"\.beta$", ".bias"),
    )
)  # fmt: skip


@lru_cache(maxsize=1 << 18)
def normal(name: str) -> str:
    """The normal form of a parameter's full name."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


INPUT_EMBEDDINGS = frozenset({
    "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight",
    "embeddings.word_embeddings.weight", "shared.weight", "tok_embeddings.weight",
    "embeddings.weight", "decoder.embed_tokens.weight",
})  # fmt: skip
"""Normal forms of the input embedding's name."""

OUTPUT_HEADS = frozenset({"lm_head.weight", "cls.predictions.decoder.weight", "output.weight"})
"""Normal forms of the name of the head that may share the input embedding's weight."""

CONV1D_MODELS = frozenset({
    "gpt2", "imagegpt", "decision_transformer", "openai-gpt", "gpt-sw3", "clvp", "jais",
})  # fmt: skip
"""Model types whose linear layers are stored as [in, out] (transformers' Conv1D)."""
CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Model types whose stacked experts are stored as [expert, in, out]."""

NEW_HEADS = frozenset({"score", "classifier", "qa_outputs", "v_head", "summary", "pre_classifier"})
"""Modules that a task adds to a model, so that a base does not have them."""
