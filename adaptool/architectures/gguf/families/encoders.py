"""BERT and its kin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.table import Family, Row, lay


def _bert(_: Dimensions) -> Iterator[Row]:
    for name in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"):
        yield Row(f"attention.{name}")
    yield from (Row("intermediate.dense"), Row("output.dense"), Row("output.LayerNorm"))


def _bert_outer(_: Dimensions) -> Iterator[Row]:
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"):
        yield Row(f"embeddings.{name}")


def _roberta_outer(d: Dimensions) -> Iterator[Row]:
    """Positions are counted from pad_token_id + 1; GGUF leaves out those before."""
    skipped = 1 + d.padding
    for row in _bert_outer(d):
        if row.name == "embeddings.position_embeddings" and d.architecture is None:
            yield replace(row, layout=lay(part=(skipped, d.positions)))
        else:
            yield row
    yield from (Row("classifier.dense"), Row("classifier.out_proj"))


def _nomic(_: Dimensions) -> Iterator[Row]:
    yield from (Row("attn.Wqkv"), Row("attn.out_proj"), Row("norm1"), Row("norm2"))
    yield from (Row("mlp.fc11"), Row("mlp.fc12"), Row("mlp.fc2"))


def _nomic_outer(_: Dimensions) -> Iterator[Row]:
    yield from (Row("embeddings.word_embeddings"), Row("embeddings.token_type_embeddings"))
    yield Row("emb_ln")


WORDS = "embeddings.word_embeddings.weight"
LAYER = "encoder.layer.{}."
FAMILIES = (
    Family("bert", ("bert",), _bert, _bert_outer, LAYER, WORDS),
    Family("bert", ("roberta", "xlm-roberta"), _bert, _roberta_outer, LAYER, WORDS),
    Family("nomic-bert", ("nomic_bert",), _nomic, _nomic_outer, "encoder.layers.{}.", WORDS),
)
