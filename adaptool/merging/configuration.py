"""config.json, following what a merge did to the tensors. Each function returns a new table."""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.errors import JSON

_TASKS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""PEFT's task types -> the suffix of transformers' model classes."""

Config = dict[str, JSON]


def untied(config: Mapping[str, JSON]) -> Config:
    """Input embedding and output head are two tensors now."""
    return {**_nested(config, "tie_word_embeddings", False), "tie_word_embeddings": False}


def with_vocabulary(config: Mapping[str, JSON], rows: int) -> Config:
    """The vocabulary has `rows` entries."""
    changed = _nested(config, "vocab_size", rows)
    if "vocab_size" in config or "text_config" not in config:
        changed["vocab_size"] = rows
    return changed


def with_task(config: Mapping[str, JSON], task: str, labels: int) -> Config:
    """The model has a task's head now, with this many classes; unknown tasks change nothing."""
    changed: Config = dict(config)
    architectures = config.get("architectures")
    if task not in _TASKS or not isinstance(architectures, list) or len(architectures) != 1:
        return changed
    body = str(architectures[0]).partition("For")[0]
    body = body.removesuffix("LMHeadModel").removesuffix("Model")
    changed["architectures"] = [body + _TASKS[task]]
    stated = config.get("id2label")
    if labels and (not isinstance(stated, dict) or len(stated) != labels):
        changed["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        changed["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    return changed


def _nested(config: Mapping[str, JSON], key: str, value: JSON) -> Config:
    """With `key` changed in the text model's own table, where a multimodal config states it."""
    text = config.get("text_config")
    if isinstance(text, dict) and key in text:
        return {**config, "text_config": {**text, key: value}}
    return dict(config)
