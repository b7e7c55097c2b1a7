"""An adapter: what a fine-tune does to a model, as `site -> update`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from adaptool.canonical.provenance import Provenance
from adaptool.canonical.site import Site
from adaptool.canonical.tensors import LazyTensor
from adaptool.canonical.verbs import Scalable, Update
from adaptool.errors import JSON, IncompatibleError


@dataclass(frozen=True)
class Adapter:
    """What a fine-tune does to a model.

    Attributes:
        updates: parameter -> its update; every tensor of the file is in exactly one.
        method: the tuner's name in lower case: "lora", "dora", ...
        base: name of the base model as the file states it; never opened because of that.
        provenance: where the adapter came from.
        config: the configuration as read, for inspection and lossless rewriting.
        unread: keys of the configuration that no version of the format is known to have.
        extras: tensors that are no weight update (prompt embeddings), by their own names.
        unmergeable: why this adapter has no fixed weight update, or None.
        task: PEFT's task type ("SEQ_CLS" ...) when the file states one.
        naming: whose names the sites bear: "huggingface", or "gguf" (llama.cpp's tensors, in
            whose row order the factors then are).
        ties_embeddings: the input embedding's update holds for a tied output head as well.
    """

    updates: Mapping[Site, Update]
    method: str
    base: str | None
    provenance: Provenance
    config: Mapping[str, JSON] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    extras: Mapping[str, LazyTensor] = field(default_factory=dict)
    unmergeable: str | None = None
    ties_embeddings: bool = False
    task: str | None = None
    naming: str = "huggingface"

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.count for tensor in self._distinct())

    @property
    def nbytes(self) -> int:
        """Bytes of the trained values as stored."""
        return sum(tensor.nbytes for tensor in self._distinct())

    def _distinct(self) -> Iterable[LazyTensor]:
        """Every tensor once: several updates may be made of the same one."""
        tensors = [t for update in self.updates.values() for t in update.tensors.values()]
        return {id(tensor): tensor for tensor in (*tensors, *self.extras.values())}.values()

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
