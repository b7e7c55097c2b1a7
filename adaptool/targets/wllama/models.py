"""The model as GGUF, in the types that were asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.errors import IncompatibleError, UsageError
from adaptool.targets import AS_STORED

if TYPE_CHECKING:
    import torch

ENCODERS = frozenset({"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "t5encoder"})
"""Architectures of llama.cpp that write no text."""


def as_gguf(
    checkpoint: Checkpoint,
    dtype: str,
    pre: str | None,
    importance: Mapping[str, torch.Tensor] | None = None,
) -> Checkpoint:
    """The model as llama.cpp reads it; nothing is computed yet.

    Args:
        checkpoint: a Hugging Face or a GGUF model.
        dtype: an outtype, or AS_STORED for a GGUF model.
        pre: llama.cpp's name of the pre-tokenizer, for a Hugging Face model.
        importance: of columns, by tensor; for a model that is quantised here.

    Raises:
        UsageError: `pre` for a GGUF model, or an importance matrix for one that stays as it is.
        IncompatibleError: see `adaptool.conversion.to_gguf`; or a model that writes no text.
    """
    if checkpoint.container != "gguf":
        from adaptool.conversion import to_gguf

        return _writer(to_gguf(checkpoint, outtype=dtype, importance=importance, pre=pre))
    if pre is not None:
        raise UsageError(
            f"--pre is for Hugging Face models, {checkpoint.provenance.name} has its tokenizer"
        )
    if dtype != AS_STORED:
        return _writer(_retyped(checkpoint, dtype, importance))
    if importance is not None:
        raise UsageError("--imatrix is for a model that is quantised here", hint="--dtype q4_k_m")
    return _writer(checkpoint)


def _retyped(
    model: Checkpoint, outtype: str, importance: Mapping[str, torch.Tensor] | None
) -> Checkpoint:
    """A GGUF model in another mixture of types; what is no real number stays as it is."""
    from adaptool.merging.retyping import Retyping

    forms = Retyping(model, outtype, importance)

    def written(name: str, tensor: LazyTensor) -> LazyTensor:
        if not tensor.dtype.is_floating:
            return tensor
        return tensor.written(forms.form_of(name, tensor, touched=True))

    return replace(
        model,
        tensors={name: written(name, tensor) for name, tensor in model.tensors.items()},
        metadata={**model.metadata, **forms.stated},
    )


def _writer(model: Checkpoint) -> Checkpoint:
    """The model, if it writes text from text."""
    name, architecture = model.provenance.name, model.config.get("general.architecture")
    if architecture in ENCODERS:
        raise IncompatibleError(
            f"{name}: a model of architecture {architecture} writes no text, which is what an "
            "export for wllama is for",
            hint="--target transformersjs or ortweb",
            code="UNSUPPORTED_TASK",
        )
    if "tokenizer.ggml.tokens" not in model.metadata:
        raise IncompatibleError(
            f"{name}: has no vocabulary, and wllama asks a model in words",
            code="NO_TOKENIZER",
        )
    return model


def type_notes(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """What a reader should know of the types."""
    if before.container != "gguf":
        from adaptool.conversion import left_out

        yield from (f"left out, llama.cpp has no use for it: {name}" for name in left_out(before))
        yield from after.provenance.notes[len(before.provenance.notes) :]
    else:
        again = Counter(
            tensor.kind
            for name, tensor in before.tensors.items()
            if tensor.encoding is not None and after.tensors[name].kind != tensor.kind
        )
        if again:
            kinds = ", ".join(sorted(again))
            yield (
                f"tensors that were quantised already ({again.total()}: {kinds}) are decoded and "
                "written in other types, which adds a second error; a model in f16 or f32 gives a "
                "better one"
            )
    slow = sorted({t.kind for t in after.tensors.values() if t.kind.startswith("IQ")})
    if slow:
        yield (
            f"{' and '.join(slow)} are slow in WebAssembly, and the runtime's authors advise "
            "against them: q4_k_m, q5_k_m and q6_k are not"
        )
