"""From a checkpoint and adapters to the checkpoint that will be: nothing is computed yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import isfinite

from adaptool.architectures.replication import replicate_layers
from adaptool.architectures.speaking import ONNX, spoken_by
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    DType,
    LazyTensor,
)
from adaptool.canonical.forms import Form
from adaptool.errors import IncompatibleError, UsageError
from adaptool.merging.configuration import with_task, with_vocabulary
from adaptool.merging.laying import Ledger, lay
from adaptool.merging.outcome import Merge
from adaptool.merging.patching import Arithmetic, patch_tensor
from adaptool.merging.sharing import ends_of, separated
from adaptool.merging.survival import Tally
from adaptool.merging.tying import (
    Embeddings,
    embeddings_of,
)

FormOf = Callable[[str, LazyTensor, bool], Form]
"""`form_of(name, tensor, touched)`: how a tensor of the result is written."""


def merge(
    base: Checkpoint,
    adapters: Sequence[tuple[Adapter, float]],
    *,
    dtype: DType | None = None,
    form_of: FormOf | None = None,
    originals: Mapping[str, LazyTensor] | None = None,
    device: str = "cpu",
    allow_nonfinite: bool = False,
) -> Merge:
    """Merge adapters into a checkpoint, each with its scale.

    Args:
        base: any checkpoint; its tensors are not read now.
        adapters: (adapter, scale) pairs; their updates are summed before the one rounding.
        dtype: type of floating-point tensors in the result; None keeps each one's own.
        form_of: how each tensor is written, instead of `dtype`.
        originals: full-precision weights under the base's names, taken for tensors that
            updates touch: so that W + dW is quantised once.
        device: where touched tensors are computed: "cpu", "cuda" or "cuda:n".
        allow_nonfinite: do not refuse infinities and NaNs.

    Raises:
        UsageError: no adapter, or a scale that is not finite.
        IncompatibleError: an update that fits nowhere in the base, or twice in one place.
    """
    if not adapters:
        raise UsageError("no adapter to merge")
    base = _prepared(base, adapters)
    adapters = [(spoken_by(base, adapter), scale) for adapter, scale in adapters]
    base, ends, notes = _with_ends(base, [adapter for adapter, _ in adapters])
    ledger = Ledger(base, config=dict(base.config), notes=[*notes])
    for adapter, scale in adapters:
        lay(ledger, ends, adapter, scale)
    _follow(ledger, ends, [adapter for adapter, _ in adapters])
    if originals is not None:
        _take_originals(ledger, originals)
    how = Arithmetic(device, allow_nonfinite, Tally())
    tensors = _compute(ledger, form_of or partial(_own_form, dtype), how)
    if dtype is not None and ledger.speaks_config:
        ledger.config["dtype" if "dtype" in ledger.config else "torch_dtype"] = dtype.value
    touched = tuple(n for n in tensors if n in ledger.patches or n in ledger.sources)
    side = dict(base.side_files)
    if ledger.config != dict(base.config):
        side["config.json"] = (json.dumps(ledger.config, indent=2) + "\n").encode()
    checkpoint = replace(base, tensors=tensors, config=ledger.config, side_files=side)
    moves = any(scale != 0 for _, scale in adapters)
    return Merge(checkpoint, touched, how.tally, moves, tuple(ledger.notes))


def _prepared(base: Checkpoint, adapters: Sequence[tuple[Adapter, float]]) -> Checkpoint:
    """The base with the layers that the adapters were trained on."""
    for adapter, scale in adapters:
        if not isfinite(scale):
            raise UsageError(f"scale {scale} is not a finite number")
        if adapter.unmergeable:
            raise IncompatibleError(
                f"{adapter.provenance.name}: cannot be merged, since {adapter.unmergeable}",
                hint="load it beside the model at run time",
                code="NOT_MERGEABLE",
            )
        if base.container != ONNX:  # a graph repeats its layers itself, or does not
            base = replicate_layers(base, adapter)
    return base


def _with_ends(
    base: Checkpoint, adapters: Sequence[Adapter]
) -> tuple[Checkpoint, Embeddings, tuple[str, ...]]:
    """The base, its two ends, and notes; a graph has no tensor left that must become two."""
    if base.container != ONNX:
        return base, embeddings_of(base), ()
    base, notes = separated(base, adapters)
    return base, ends_of(base), notes


def _own_form(dtype: DType | None, name: str, tensor: LazyTensor, touched: bool) -> Form:  # noqa: ARG001
    """Each tensor's own form, in another floating-point type if one is asked for."""
    changes = dtype is not None and tensor.encoding is None and tensor.dtype.is_floating
    return Form(dtype, None) if changes and dtype is not None else tensor.form


def _take_originals(ledger: Ledger, originals: Mapping[str, LazyTensor]) -> None:
    for name in ledger.patches:
        if name in ledger.sources or name not in ledger.base.tensors:
            continue
        found, stored = originals.get(name), ledger.base.tensors[name]
        if found is None or found.shape != stored.shape:
            what = f"{list(found.shape)}" if found is not None else "no such tensor"
            raise IncompatibleError(
                f"{name}: the original weights have {what}, the base has {list(stored.shape)}",
                hint="is this the model that the base was quantised from?",
                code="SHAPE_MISMATCH",
            )
        ledger.sources[name] = found


def _compute(ledger: Ledger, form_of: FormOf, how: Arithmetic) -> dict[str, LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    names = [*ledger.base.tensors, *(n for n in ledger.sources if n not in ledger.base.tensors)]
    for name in names:
        source = ledger.source(name)
        like = ledger.base.tensors.get(name, source)
        patches = ledger.patches.get(name)
        form = form_of(name, like, bool(patches) or name in ledger.sources)
        if patches:
            _refuse_quantised(ledger.base, name, source)
            tensors[name] = patch_tensor(name, source, patches, form, how)
        elif name in ledger.fresh and source.dtype.is_floating:  # not the base's: looked through
            tensors[name] = patch_tensor(name, source, (), form, how)
        else:
            tensors[name] = source.written(form)
    return tensors


def _refuse_quantised(base: Checkpoint, name: str, source: LazyTensor) -> None:
    """Refuse a weight that means nothing without the scales stored beside it."""
    scales = (f"{name}_scale", f"{name}_scale_inv", f"{name}.absmax", f"{name}_scales")
    if source.dtype.is_floating and not any(scale in base.tensors for scale in scales):
        return
    raise IncompatibleError(
        f"{name} is stored as {source.dtype}, a quantised weight",
        hint="merge into the full-precision model that it was made from",
        code="QUANTISED_BASE",
    )


def _follow(ledger: Ledger, ends: Embeddings, adapters: Sequence[Adapter]) -> None:
    """Make config.json say what the tensors are now: vocabulary, task head."""
    if not ledger.speaks_config:
        return
    embedding = ledger.sources.get(ends.embedding or "")
    if embedding is not None:
        rows = embedding.shape[0]
        if rows != ledger.base.tensors[ends.embedding or ""].shape[0]:
            ledger.config = with_vocabulary(ledger.config, rows)
            ledger.notes.append(f"the vocabulary has {rows} entries now")
    new = {n: t for n, t in ledger.sources.items() if n not in ledger.base.tensors}
    for task in (adapter.task for adapter in adapters):
        if task is not None and new:
            weights = [t for n, t in new.items() if n.endswith("weight") and t.shape]
            labels = weights[0].shape[0] if weights else 0
            ledger.config = with_task(ledger.config, task, labels)
