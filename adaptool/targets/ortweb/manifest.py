"""manifest.json: everything that a page must know to run the model, and nothing to guess.

model, data, files   names and bytes of the model's files
task, precision      what it is for; `half`: it computes in float16
inputs, outputs      name, type, dims (numbers, symbols) and role, see `_ROLES`
answer               the output that holds the answer
cache                pairs: the input for the past, the output that becomes it
eos                  token ids that end an answer
labels               of classes; `independent`: each has a probability of its own
tokenizer            its files; `templated`: its config has a chat template
adapters             name -> file and bytes; `scale`: their strength to begin with
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from adaptool.canonical import Checkpoint
from adaptool.canonical.graph import Graph
from adaptool.errors import JSON, IncompatibleError
from adaptool.slots import PROPERTY, slots_of
from adaptool.storage import read_json
from adaptool.targets import _beside as names
from adaptool.targets._beside import Beside
from adaptool.targets._onnx import (
    CLASSES,
    FEATURES,
    GENERATION,
    HALVES,
    HIDDEN,
    LOGITS,
    MASKED,
    TOKEN_CLASSES,
    layer_caches,
)
from adaptool.tracing import COUNT

MANIFEST, MODEL, ADAPTERS = "manifest.json", "model.onnx", "adapters"
VERSION = 1
TASKS = (GENERATION, FEATURES, CLASSES, TOKEN_CLASSES, MASKED)
"""What driver.js answers."""

_ROLES = {
    "input_ids": "tokens", "attention_mask": "mask", "position_ids": "positions",
    "token_type_ids": "types", COUNT: "rows",
}  # fmt: skip
"""And "past" for the cache, "factor" and "scale" for adapters."""


def manifest_of(
    checkpoint: Checkpoint,
    task: str,
    precision: str,
    around: Beside,
    *,
    model: str,
    files: Mapping[str, int],
    data: Sequence[str],
    adapters: Mapping[str, tuple[str, int]],
    scale: float,
) -> dict[str, JSON]:
    """The manifest.

    Args:
        checkpoint: the graph with its slots.
        task, precision: as transformers.js calls them.
        around: configuration and tokenizer.
        model: name of the model's file.
        files: name -> bytes of all files of the model.
        data: those of them that hold tensors.
        adapters: name -> file, bytes.
        scale: strength of adapters to begin with.

    Raises IncompatibleError for an input whose role is not known.
    """
    graph = checkpoint.graph or Graph(())
    answer = LOGITS if LOGITS in graph.outputs else HIDDEN
    return {
        "version": VERSION, "model": model, "data": [*data], "files": dict(files),
        "task": task, "precision": precision, "half": precision in HALVES,
        "inputs": _values(graph.inputs, _input_roles(checkpoint, graph)),
        "outputs": _values(graph.outputs, {}), "answer": answer,
        "cache": [{"past": one.past, "present": one.present} for one in layer_caches(graph)],
        "eos": _eos(around), "labels": _labels(around.config),
        "independent": around.config.get("problem_type") == "multi_label_classification",
        "tokenizer": {"vocabulary": names.TOKENIZER, "config": names.TOKENIZER_CONFIG},
        "templated": around.templated,
        "adapters": {name: {"file": file, "bytes": size}
                     for name, (file, size) in adapters.items()},
        "scale": scale,
    }  # fmt: skip


def _values(
    values: Mapping[str, tuple[str, tuple[int | str, ...]]], roles: Mapping[str, str]
) -> list[JSON]:
    return [
        {"name": name, "type": kind, "dims": [*sizes],
         **({"role": roles[name]} if name in roles else {})}
        for name, (kind, sizes) in values.items()
    ]  # fmt: skip


def _input_roles(checkpoint: Checkpoint, graph: Graph) -> dict[str, str]:
    roles = {**_ROLES, **{one.past: "past" for one in layer_caches(graph)}}
    if PROPERTY in checkpoint.metadata:
        slots = slots_of(checkpoint)
        roles |= {name: "factor" for slot in slots.slots for name in (slot.a, slot.b)}
        roles[slots.scale] = "scale"
    strange = [name for name in graph.inputs if name not in roles]
    if strange:
        raise IncompatibleError(
            f"{checkpoint.provenance.name}: nobody could tell what to feed to {strange[0]}",
            hint="export the model without that input, or give the Hugging Face model",
            code="UNKNOWN_INPUT",
        )
    return roles


def _eos(around: Beside) -> list[JSON]:
    """Token ids that end an answer: generation_config.json counts more than config.json."""
    found = around.files.get(names.GENERATION)
    stated = {} if found is None else (
        json.loads(found) if isinstance(found, bytes) else read_json(found)
    )  # fmt: skip
    value = stated.get("eos_token_id") if isinstance(stated, dict) else None
    value = around.config.get("eos_token_id") if value is None else value
    return [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]


def _labels(config: Mapping[str, JSON]) -> list[JSON]:
    stated = config.get("id2label")
    if not isinstance(stated, dict):
        return []
    return [stated[key] for key in sorted(stated, key=int)]
