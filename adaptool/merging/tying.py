"""Input embedding and output head that share one weight.

A tied model has one tensor for both. An adapter that changes one side only makes them two, since
that is what the trained model computed; so the other side is written as a tensor of its own and
config.json says that they are no longer tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adaptool.architectures.naming import INPUT_EMBEDDINGS, OUTPUT_HEADS, normal
from adaptool.canonical import Adapter, Checkpoint, Site, TokenRows, Update
from adaptool.canonical.tensors import same_bytes

GGUF_EMBEDDING, GGUF_HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Embeddings:
    """The two ends of a model.

    Attributes:
        embedding: stored name of the input embedding, or None.
        head: stored name of the output head, or None if the file has none.
        tied: both are one weight.
        missing: what the head is called in a file that has none.
    """

    embedding: str | None
    head: str | None
    tied: bool
    missing: str = "lm_head.weight"

    @property
    def head_name(self) -> str:
        """Name of the head's tensor, when it has to be written as one."""
        return self.head or self.missing


def embeddings_of(checkpoint: Checkpoint) -> Embeddings:
    """Find both ends of a model, and whether they are tied."""
    if checkpoint.container == "gguf":  # llama.cpp ties where there is no head
        head = GGUF_HEAD if GGUF_HEAD in checkpoint.tensors else None
        embedding = GGUF_EMBEDDING if GGUF_EMBEDDING in checkpoint.tensors else None
        return Embeddings(embedding, head, head is None and embedding is not None, GGUF_HEAD)
    embedding = _first(checkpoint, INPUT_EMBEDDINGS)
    head = _first(checkpoint, OUTPUT_HEADS)
    stated = _stated(checkpoint)
    # transformers' default is True; a body saved without a head has nothing to tie
    generative = any(_has_head(str(a)) for a in _list(checkpoint.config.get("architectures")))
    tied = stated is True or (stated is None and head is None and generative)
    return Embeddings(embedding, head, tied and embedding is not None)


def _first(checkpoint: Checkpoint, names: frozenset[str]) -> str | None:
    return next((name for name in checkpoint.tensors if normal(name) in names), None)


def _stated(checkpoint: Checkpoint) -> bool | None:
    for table in (checkpoint.config, checkpoint.config.get("text_config")):
        if isinstance(table, Mapping) and isinstance(table.get("tie_word_embeddings"), bool):
            return bool(table["tie_word_embeddings"])
    return None


def _has_head(architecture: str) -> bool:
    return architecture.endswith(("LMHeadModel", "ForCausalLM", "ForMaskedLM", "ForPreTraining",
                                  "ForConditionalGeneration"))  # fmt: skip


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def is_head(site: Site) -> bool:
    """Whether a site is the output head."""
    return str(site) == GGUF_HEAD or normal(str(site)) in OUTPUT_HEADS


def is_embedding(site: Site) -> bool:
    """Whether a site is the input embedding."""
    return str(site) == GGUF_EMBEDDING or normal(str(site)) in INPUT_EMBEDDINGS


def stays_tied(adapter: Adapter, embedding: Update | None, head: Update | None) -> bool:
    """Whether both ends of a tied model still share one weight under this adapter.

    They do if neither changes, if the adapter says that its update is for both
    (`ensure_weight_tying`), or if single token rows were trained, which the tied head follows
    (a file may state them for both).
    """
    if embedding is None and head is None:
        return True
    if adapter.ties_embeddings and embedding is not None:
        return True
    return isinstance(embedding, TokenRows) and (head is None or _same_rows(embedding, head))


def _same_rows(rows: TokenRows, other: Update) -> bool:
    return (
        isinstance(other, TokenRows)
        and other.indices == rows.indices
        and same_bytes(other.values, rows.values)
    )
