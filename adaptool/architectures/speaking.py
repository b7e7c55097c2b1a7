"""Which names a model and an adapter bear, and how the one is asked about the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adaptool.architectures.fitting import fit
from adaptool.architectures.placing import Plan
from adaptool.architectures.underscored import UNDERSCORED, named
from adaptool.canonical import Adapter, Checkpoint
from adaptool.errors import JSON, IncompatibleError

GGUF, ONNX = "gguf", "onnx"
ARCHITECTURE = "general.architecture"


def plan_of(checkpoint: Checkpoint, hints: Mapping[str, JSON]) -> Plan:
    """What tells where a site lies in this checkpoint."""
    if checkpoint.container == GGUF:
        from adaptool.architectures.gguf.placing import GgufPlan

        return GgufPlan(checkpoint, hints)
    if checkpoint.container == ONNX:
        from adaptool.architectures.onnx.placing import OnnxPlan

        return OnnxPlan(checkpoint, hints)
    return Plan(checkpoint, hints)


def spoken_by(checkpoint: Checkpoint, adapter: Adapter) -> Adapter:
    """The adapter under names that the checkpoint can be asked about, in the shape of its weights.

    Raises IncompatibleError if a GGUF adapter's architecture is not the base's, or is not known;
    if a name that lost its dots means no module of the base, or several; or if an update cannot
    be one of the base's weight.
    """
    if adapter.naming == UNDERSCORED:
        adapter = named(adapter, parameters_of(checkpoint), checkpoint.provenance.name)
    if adapter.naming != GGUF:
        return fit(plan_of(checkpoint, adapter.config), adapter)
    stated = adapter.config.get(ARCHITECTURE)
    if checkpoint.container == GGUF:
        _check(stated, checkpoint.config.get(ARCHITECTURE), checkpoint)
        return adapter
    from adaptool.architectures.gguf import layout_of
    from adaptool.architectures.gguf.translation import to_huggingface

    layout = layout_of(checkpoint.config)
    _check(stated, layout.architecture, checkpoint)
    return to_huggingface(adapter, layout)


def parameters_of(checkpoint: Checkpoint) -> Iterable[str]:
    """Names of a checkpoint's parameters as Hugging Face has them, whatever it is stored in.

    Raises IncompatibleError for a GGUF model whose architecture is not known.
    """
    if checkpoint.container == GGUF:
        from adaptool.architectures.gguf import layout_of_model

        layout = layout_of_model(checkpoint.config)
        return [source.parameter for name in checkpoint.tensors for source in layout.sources(name)]
    if checkpoint.container == ONNX:
        from adaptool.architectures.onnx.placing import OnnxPlan

        uses = OnnxPlan(checkpoint, {}).uses
        return {*checkpoint.placements, *(use.name for use in uses), *(use.kept for use in uses)}
    return checkpoint.tensors


def _check(stated: JSON, expected: JSON, checkpoint: Checkpoint) -> None:
    if stated != expected:
        raise IncompatibleError(
            f"the adapter is for {stated} models, {checkpoint.provenance.name} is {expected}",
            hint="is this the base that the adapter was made for?",
            code="ARCHITECTURE_MISMATCH",
        )
