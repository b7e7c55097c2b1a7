"""An adapter: what a fine-tune does to a model, as `site -> update`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from adaptool.canonical.provenance import Provenance
from adaptool.canonical.tensors import LazyTensor
from adaptool.canonical.updates import Scalable, Update
from adaptool.errors import JSON, IncompatibleError


@dataclass(frozen=True, order=True, slots=True)
class Site:
    """One parameter of a model: `Site("model.layers.0.self_attn.q_proj", "weight")`."""

    module: str
    parameter: str = "weight"

    def __str__(self) -> str:
        return f"{self.module}.{self.parameter}" if self.module else self.parameter


@dataclass(frozen=True)
class Adapter:
    """What a fine-tune does to a model.

    Attributes:
        updates: parameter -> its update; every tensor of the file is in exactly one.
        method: the tuner's name in lower case: "lora", "dora", ...
        base: name of the base model as the file states it; never opened because of that.
        provenance: where the adapter came from.
        config: the configuration as read, for inspection and lossless rewriting.
        extras: tensors that are no weight update (prompt embeddings), by their own names.
        unmergeable: why this adapter has no fixed weight update, or None.
        task: PEFT's task type ("SEQ_CLS" ...) when the file states one.
        ties_embeddings: the input embedding's update holds for a tied output head as well.
    """

    updates: Mapping[Site, Update]
    method: str
    base: str | None
    provenance: Provenance
    config: Mapping[str, JSON] = field(default_factory=dict)
    extras: Mapping[str, LazyTensor] = field(default_factory=dict)
    unmergeable: str | None = None
    ties_embeddings: bool = False
    task: str | None = None

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        tensors = [t for update in self.updates.values() for t in update.tensors.values()]
        return sum(t.count for t in (*tensors, *self.extras.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the trained values as stored."""
        tensors = [t for update in self.updates.values() for t in update.tensors.values()]
        return sum(t.nbytes for t in (*tensors, *self.extras.values()))

    def scaled(self, scale: float) -> Adapter:
        """This adapter `scale` times as strong; its factors stay bit for bit.

        Raises IncompatibleError for an update that has no strength to change (DoRA, a head).
        """
        updates: dict[Site, Update] = {}
        for site, update in self.updates.items():
            if not isinstance(update, Scalable):
                raise IncompatibleError(
                    f"{site}: a {update.kind} update cannot be scaled inside an adapter",
                    hint="keep it at 1 and give the scale to `adaptool merge`",
                    code="NOT_SCALABLE",
                )
            updates[site] = update.scaled(scale)
        return replace(self, updates=updates)
