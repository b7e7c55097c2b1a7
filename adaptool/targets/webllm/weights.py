"""A Hugging Face checkpoint's tensors as MLC's parameters: every one used, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from adaptool.architectures.mlc import Parameter, Shape, parameters
from adaptool.architectures.mlc.families import EMBEDDING, HEAD
from adaptool.architectures.naming import normal
from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.canonical.arrangement import arranged
from adaptool.canonical.tensors import same_values
from adaptool.conversion.tensors import concatenated
from adaptool.encodings.mlc import Ledger, Scheme, plain, quantised
from adaptool.errors import IncompatibleError
from adaptool.targets.webllm.hyperparameters import Hyperparameters

_ANGLES = re.compile(r"\.rotary_emb\.inv_freq$")
"""What old checkpoints stored of what follows from the configuration."""


@dataclass(frozen=True)
class Weights:
    """A model's weights as MLC stores them.

    Attributes:
        checkpoint: of the container "mlc"; nothing is computed yet.
        ledger: what is known of the quantisation when all is written.
        dropped: tensors of the model that MLC's has no use for.
    """

    checkpoint: Checkpoint
    ledger: Ledger
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """What a library asks of a stored tensor: its shape and dtype."""

    shape: tuple[int, ...]
    dtype: DType

    @property
    def nbytes(self) -> int:
        """Bytes on a graphics card."""
        return self.dtype.nbytes(prod(self.shape))


def write_weights(
    checkpoint: Checkpoint, model: Hyperparameters, scheme: Scheme, *, optimize: bool
) -> Weights:
    """The model's tensors in MLC's names, layout and encoding, streamed when they are written.

    Records come in the order in which the checkpoint keeps its tensors; a fused one where its first
    part stands, codes before scales: as mlc_llm writes them.

    Args:
        checkpoint: with Hugging Face names; merged tensors may be float32.
        model: what its config.json says.
        scheme: one of `adaptool.encodings.mlc.SCHEMES`.
        optimize: search for better scales.

    Raises IncompatibleError: a tensor is missing, has no place, or has another shape than
    config.json says.
    """
    wanted = parameters(model.model_type, model.shape)
    found, dropped = _by_normal_name(checkpoint, wanted, model.shape)
    tensors = dict(_filled(checkpoint, wanted, found))
    ledger = Ledger()
    written: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        written |= _written(scheme, name, tensor, ledger, optimize=optimize)
    count = sum(checkpoint.tensors[name].count for name in found.values())
    return Weights(
        Checkpoint(
            tensors=written,
            container="mlc",
            provenance=checkpoint.provenance,
            metadata={"parameters": count},
        ),
        ledger,
        dropped,
    )


def entries(model_type: str, shape: Shape, scheme: Scheme) -> dict[str, Entry]:
    """What a library for such a model asks for, by name."""
    found: dict[str, Entry] = {}
    for parameter in parameters(model_type, shape):
        if not _is_quantised(scheme, parameter.shape):
            found[parameter.name] = Entry(parameter.shape, scheme.dtype)
            continue
        rows, width = parameter.shape
        codes, scales = _quantised_names(parameter.name)
        found[codes] = Entry((rows, scheme.words(width)), DType.UINT32)
        found[scales] = Entry((rows, scheme.groups(width)), scheme.dtype)
    return found


def _is_quantised(scheme: Scheme, shape: tuple[int, ...]) -> bool:
    return bool(scheme.bits) and len(shape) == 2


def _quantised_names(name: str) -> tuple[str, str]:
    stem = name.removesuffix("weight")
    return f"{stem}q_weight", f"{stem}q_scale"


def _by_normal_name(
    checkpoint: Checkpoint, wanted: tuple[Parameter, ...], shape: Shape
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Source -> name in the checkpoint; and the names that MLC's model does not need."""
    sources = {normal(source): source for parameter in wanted for source in parameter.sources}
    found: dict[str, str] = {}
    dropped, strange = [], []
    for name in checkpoint.tensors:
        source = sources.get(normal(name))
        if source is not None:
            if source in found:
                raise IncompatibleError(
                    f"{name} and {found[source]} are the same parameter", code="COLLISION"
                )
            found[source] = name
        elif _ANGLES.search(name):
            dropped.append(name)
        elif normal(name) == f"{HEAD}.weight":
            _refuse_untied(checkpoint, name, shape)
            dropped.append(name)
        else:
            strange.append(name)
    if strange:
        biases = all(name.endswith(".bias") for name in strange)
        raise IncompatibleError(
            f"MLC has no place for {len(strange)} tensors of this model, "
            f"among them {', '.join(strange[:3])}",
            hint="MLC's implementation has no such biases; --target wllama may" if biases else None,
            code="UNPLACED",
        )
    missing = [source for source in sources.values() if source not in found]
    if missing:
        raise IncompatibleError(
            f"the model lacks {len(missing)} tensors that MLC needs, "
            f"among them {', '.join(missing[:3])}",
            hint="a shard may be missing, or config.json belongs to another model",
            code="INCOMPLETE_MODEL",
        )
    return found, tuple(dropped)


def _refuse_untied(checkpoint: Checkpoint, head: str, shape: Shape) -> None:
    """A head is left out only if the embedding says the same."""
    names = {normal(name): name for name in checkpoint.tensors}
    tensors, embedding = checkpoint.tensors, names.get(normal(f"{EMBEDDING}.weight"))
    if embedding is None or not same_values(tensors[head], tensors[embedding]):
        raise IncompatibleError(
            f"{head} is not the embedding, but "
            + ("config.json ties them" if shape.tie_word_embeddings else "MLC's model ties them"),
            hint="an adapter of the head or the embedding alone cannot be merged for this runtime",
            code="UNTIED_HEAD",
        )


def _filled(
    checkpoint: Checkpoint, wanted: tuple[Parameter, ...], found: Mapping[str, str]
) -> Iterator[tuple[str, LazyTensor]]:
    """MLC's parameters with their values, in the order of the checkpoint's tensors."""
    place = {name: index for index, name in enumerate(checkpoint.tensors)}
    first = {
        p.name: min(place[found[source]] for source in p.sources) + (len(place) if p.copied else 0)
        for p in wanted
    }
    for parameter in sorted(wanted, key=lambda p: first[p.name]):
        names = [found[source] for source in parameter.sources]
        parts = [checkpoint.tensors[name] for name in names]
        rows = sum(part.shape[0] if part.shape else 0 for part in parts)
        if any(len(part.shape) != len(parameter.shape) for part in parts) or any(
            (rows, *part.shape[1:]) != parameter.shape for part in parts
        ):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise IncompatibleError(
                f"{', '.join(names)}: {shapes} do not make {parameter.name} "
                f"of {list(parameter.shape)}, which config.json asks for",
                hint="config.json may belong to another model",
                code="SHAPE_MISMATCH",
            )
        joined = parts[0] if len(parts) == 1 else concatenated(parts, parameter.shape)
        if parameter.shift:  # the sum is rounded once, not first to the stored type
            joined = arranged(joined.cast(DType.FLOAT32), None, shift=parameter.shift)
        yield parameter.name, joined


def _written(
    scheme: Scheme, name: str, tensor: LazyTensor, ledger: Ledger, *, optimize: bool
) -> dict[str, LazyTensor]:
    if not _is_quantised(scheme, tensor.shape):
        return {name: plain(scheme, tensor, name=name)}
    codes, scales = _quantised_names(name)
    pair = quantised(scheme, tensor, optimize=optimize, name=name, ledger=ledger)
    return dict(zip((codes, scales), pair, strict=True))
