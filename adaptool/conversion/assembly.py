"""A Hugging Face checkpoint as a GGUF model: lazily, everything in it or nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from adaptool.architectures.gguf import Layout, layout_of
from adaptool.architectures.naming import OUTPUT_HEADS, normal
from adaptool.canonical import Checkpoint, LazyTensor, Provenance
from adaptool.canonical.tensors import from_values, same_values
from adaptool.containers.gguf.values import Kind, Value
from adaptool.conversion.hyperparameters import Hyperparameters, read_hyperparameters
from adaptool.conversion.tensors import in_order, lay_out, write_as
from adaptool.conversion.vocabulary import TokenizerFiles, describe_vocabulary
from adaptool.encodings.ggml.mixtures import choose_types, file_type
from adaptool.encodings.ggml.types import QUANTIZATION_VERSION
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch


EMBEDDING = "token_embd.weight"

_BUFFERS = re.compile(
    r"\.(?:rotary_emb\.inv_freq|attn\.(?:masked_)?bias|attention\.(?:masked_)?bias)$"
)
"""What old checkpoints stored of what follows from the configuration: angles, causal masks."""

_SENSES = re.compile(
    r"^(?:model\.)?(?:vision_tower|vision_model|visual|multi_modal_projector|audio_tower)\."
)
"""Eyes and ears of a multimodal model, which llama.cpp keeps in a file of their own (mmproj)."""


def to_gguf(
    checkpoint: Checkpoint,
    *,
    outtype: str = "f16",
    importance: Mapping[str, torch.Tensor] | None = None,
    vocabulary: Literal["own"] | None = "own",
    pre: str | None = None,
) -> Checkpoint:
    """The model as llama.cpp reads it, with hyperparameters, tokenizer and chat template.

    Nothing is computed yet: every tensor is streamed when it is saved.

    Args:
        checkpoint: with Hugging Face names, its config.json and the tokenizer's files.
        outtype: one of `adaptool.encodings.ggml.mixtures.OUTTYPES`.
        importance: GGUF tensor -> [columns] or [slots, columns], see `Encoding.encode`.
        vocabulary: "own", of the tokenizer beside the model; None for one that takes ids only.
        pre: llama.cpp's name of the pre-tokenizer, where it is not recognised.

    Returns:
        A checkpoint of the container "gguf"; `left_out` names what of the input is not in it.

    Raises:
        IncompatibleError: an architecture, setting, tokenizer or tensor that GGUF or llama.cpp
            cannot express.
        CorruptInputError: broken configuration or tokenizer files.
    """
    if checkpoint.config.get("quantization_config"):
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: is quantised already",
            hint="convert the model that it was made from",
            code="QUANTIZED_BASE",
        )
    layout = layout_of(checkpoint.config)
    unused = set(left_out(checkpoint))
    parameters = {n: t for n, t in checkpoint.tensors.items() if n not in unused}
    rows = _embedding(parameters, layout).shape[0]
    shape = read_hyperparameters(checkpoint.config, layout.architecture, rows)
    tensors = lay_out(_without_tied_head(parameters, checkpoint, layout, shape), layout)
    tensors |= {name: from_values(values) for name, values in shape.tensors.items()}
    types = choose_types(
        {name: tensor.shape for name, tensor in tensors.items()},
        outtype,
        architecture=shape.architecture,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        experts=shape.experts,
        layers=shape.layers,
        has_importance=importance is not None,
    )
    types |= dict.fromkeys(shape.tensors, "F32")
    values = {**_general(checkpoint, shape.architecture), **shape.values}
    if vocabulary is None:
        values["tokenizer.ggml.model"] = Value.string("none")
    else:
        files = TokenizerFiles(checkpoint.side_files)
        values |= describe_vocabulary(files, checkpoint.config, rows, pre)
    values["general.quantization_version"] = Value.u32(QUANTIZATION_VERSION)
    values["general.file_type"] = Value.u32(file_type(outtype))
    written = write_as({name: tensors[name] for name in in_order(tensors)}, types, importance)
    return Checkpoint(
        tensors=written,
        container="gguf",
        provenance=_noted(checkpoint.provenance, unused),
        config={k: v.plain() for k, v in values.items() if v.kind is not Kind.ARRAY},
        metadata=values,
    )


def _noted(provenance: Provenance, unused: set[str]) -> Provenance:
    senses = sum(bool(_SENSES.search(name)) for name in unused)
    if not senses:
        return provenance
    note = f"{senses} tensors of other senses than text are left to an mmproj file"
    return replace(provenance, notes=(*provenance.notes, note))


def left_out(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Tensors that a GGUF model of this checkpoint does not have: buffers, and other senses."""
    has_senses = any(f"{sense}_config" in checkpoint.config for sense in ("vision", "audio"))
    return tuple(
        name
        for name in checkpoint.tensors
        if _BUFFERS.search(name) or (has_senses and _SENSES.search(name))
    )


def _embedding(parameters: Mapping[str, LazyTensor], layout: Layout) -> LazyTensor:
    for name, tensor in parameters.items():
        if any(place.tensor == EMBEDDING for place in layout.place(name)):
            return tensor
    raise IncompatibleError("the model has no input embedding", code="INCOMPLETE_MODEL")


def _without_tied_head(
    parameters: Mapping[str, LazyTensor],
    checkpoint: Checkpoint,
    layout: Layout,
    shape: Hyperparameters,
) -> Mapping[str, LazyTensor]:
    """A head that is the embedding is not written twice; one of its own must be expressible."""
    head = next((name for name in parameters if normal(name) in OUTPUT_HEADS), None)
    tied = shape.tied or checkpoint.config.get("tie_word_embeddings") is True
    if head is None or not tied:
        return parameters
    one, other = parameters[head], _embedding(parameters, layout)
    if one.dtype is other.dtype and same_values(one, other):
        return {name: tensor for name, tensor in parameters.items() if name != head}
    if shape.tied:
        raise IncompatibleError(
            f"{head} is not the embedding, but llama.cpp's {shape.architecture} "
            "has no head of its own",
            hint="an adapter of the head or the embedding alone cannot be merged for llama.cpp",
            code="UNTIED_HEAD",
        )
    return parameters


def _general(checkpoint: Checkpoint, architecture: str) -> dict[str, Value]:
    values = {
        "general.architecture": Value.string(architecture),
        "general.type": Value.string("model"),
        "general.name": Value.string(checkpoint.provenance.name),
    }
    if checkpoint.provenance.license:
        values["general.license"] = Value.string(checkpoint.provenance.license)
    return values
