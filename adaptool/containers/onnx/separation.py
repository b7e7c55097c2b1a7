"""Scales and zero points that several weights share, when one of these weights is packed anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from adaptool.canonical import Checkpoint
from adaptool.containers.onnx.editing import consumers, rewired
from adaptool.containers.onnx.model import Model
from adaptool.containers.onnx.weights import part_names


def separated(checkpoint: Checkpoint, model: Model) -> tuple[Checkpoint, Model]:
    """The same, in which a weight that is packed anew has scales and zero points of its own.

    Raises IncompatibleError where it cannot be told which node takes them for which weight.
    """
    count = Counter(part for weight in model.quantised.values() for part in weight.parts if part)
    quantised = dict(model.quantised)
    graph = checkpoint.graph or model.graph
    for key, weight in model.quantised.items():
        tensor = checkpoint.tensors.get(key)
        if tensor is weight.tensor or tensor is None or tensor.encoding is None:
            continue
        fresh = {old: new for old, new in zip(weight.parts[1:], part_names(key)[1:], strict=True)
                 if count[old] > 1}  # fmt: skip
        if fresh:
            _, scales, zeros = weight.parts
            parts = key, fresh.get(scales, scales), fresh.get(zeros, zeros)
            quantised[key] = replace(weight, parts=parts)
            graph = rewired(graph, consumers(graph, key), key, fresh)
    return replace(checkpoint, graph=graph), replace(model, quantised=quantised)
