"""Adapters from one world's names to the other's, as far as their base allows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adaptool.architectures.gguf import Layout, layout_of, layout_of_model
from adaptool.architectures.gguf.translation import GGUF, to_gguf, to_huggingface
from adaptool.canonical import Adapter, Checkpoint, Rebased
from adaptool.errors import JSON, IncompatibleError
from adaptool.merging.tying import is_embedding, is_head


@dataclass(frozen=True)
class Base:
    """What is known of an adapter's base.

    Attributes:
        layout: where its parameters lie in GGUF.
        shapes: a GGUF model's tensors, or None.
        tied: embedding and head are one weight.
        rows: entries of the vocabulary, or None if it is not stated.
    """

    layout: Layout
    shapes: Mapping[str, tuple[int, ...]] | None
    tied: bool
    rows: int | None


def describe_config(config: Mapping[str, JSON]) -> Base:
    """What a config.json says of a base; of a multimodal model the text part counts.

    Raises IncompatibleError for a kind of model that is not known.
    """
    stated = config.get("text_config")
    text = {**config, **stated} if isinstance(stated, dict) else config
    entries = text.get("vocab_size")
    tied = text.get("tie_word_embeddings") is True
    return Base(layout_of(config), None, tied, entries if isinstance(entries, int) else None)


def describe_model(model: Checkpoint) -> Base:
    """What a GGUF model says of itself as a base.

    Raises IncompatibleError for an architecture that is not known.
    """
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    rows = shapes.get("token_embd.weight", (None,))[0]
    return Base(layout_of_model(model.config), shapes, "output.weight" not in shapes, rows)


def translate(adapter: Adapter, naming: str, base: Base) -> Adapter:
    """The adapter under the other world's names.

    Args:
        adapter: with Hugging Face's or GGUF's names.
        naming: "gguf" or "huggingface", the other one.
        base: of the model that it is for.

    Raises IncompatibleError for what the other world cannot say, or the layout does not know.
    """
    if naming != GGUF:
        return to_huggingface(adapter, base.layout)
    if base.tied:
        _refuse_tied(adapter)
    return to_gguf(_without_copies(adapter, base), base.layout, base.shapes)


def _refuse_tied(adapter: Adapter) -> None:
    """Refuse what llama.cpp aborts on, or does not find: factors of a weight with two uses."""
    for site in adapter.updates:
        if is_embedding(site) or is_head(site):
            raise IncompatibleError(
                f"{site}: embedding and head are one weight in this base, which llama.cpp cannot "
                "adapt separately",
                hint="merge it into the model: adaptool merge",
                code="NOT_EXPRESSIBLE",
            )


def _without_copies(adapter: Adapter, base: Base) -> Adapter:
    """The adapter without the copies of its base's embeddings, which PEFT saves along."""
    copies = {s: u for s, u in adapter.updates.items() if isinstance(u, Rebased)}
    for site, update in copies.items():
        if base.rows != update.shape[0]:
            raise IncompatibleError(
                f"{site}: the adapter's vocabulary has {update.shape[0]} entries, the base's "
                f"{base.rows}, and a GGUF adapter cannot resize it",
                hint="merge it into the Hugging Face checkpoint, and convert that",
                code="NOT_EXPRESSIBLE",
            )
    updates = {s: u.update if isinstance(u, Rebased) else u for s, u in adapter.updates.items()}
    notes = tuple(
        f"{site}: the base's own weights are taken for the copy that the adapter carries"
        for site in copies
    )
    provenance = replace(adapter.provenance, notes=(*adapter.provenance.notes, *notes))
    return replace(adapter, updates=updates, provenance=provenance)
