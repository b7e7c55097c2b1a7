"""Module paths as exporters spell them, and the parameter names that they stand for.

torch dynamo           metadata   ["", "m", "m.model.layers.0.self_attn.q_proj", "linear"]
TorchScript, optimum   node       /model/layers.0/self_attn/q_proj/MatMul
onnxruntime-genai      node       /model/layers.0/attn/q_proj/MatMul_Q4
mobius                 tensor     model.layers.0.self_attn.q_proj.weight_t
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from adaptool.architectures.naming import normal
from adaptool.canonical.graph import Node

_MARKS = re.compile(
    r"(?:_transposed|_t|_Q\d|_Bnb4|_quantized|_quant|_fp16|_merged_\d+|_DequantizeLinear)+$"
)
"""What exporters and quantisers append to the name of a weight that they changed."""

_PARAMETER = re.compile(r"^(?P<module>.+)\.(?P<parameter>\w*(?:weight|bias|gamma|beta))$")

_RENAMED = (
    (re.compile(r"\.attn\.(?=(?:[qkvo]|qkv)_proj\.|[qk]_norm\.)"), ".self_attn."),
    (re.compile(r"\.attn\.(?=sinks$)"), ".self_attn."),
    (re.compile(r"\blayers\.\d+\.final_norm_layernorm\."), "norm."),
)
"""What onnxruntime-genai's builder calls otherwise than every checkpoint does."""

_TOWERS = re.compile(r"encoder|decoder|vision|visual|audio|text|image|speech|tower|talker|draft")
"""Words that tell one part of a model from another, so that they are no mere wrapper."""

WRAPPING = 2
"""Outermost components of a path that may come from the module an export was wrapped in."""


def module_of(node: Node) -> str:
    """The path of the module that a node belongs to; "" if nothing tells."""
    if len(node.scopes) > 1:
        return node.scopes[-2]
    return node.name.strip("/").replace("/", ".").rpartition(".")[0]


def parameter_of(tensor: str) -> tuple[str, str] | None:
    """Module and parameter, where an initializer kept a checkpoint's name; else None."""
    if "::" in tensor or "__" in tensor:
        return None
    found = _PARAMETER.match(_MARKS.sub("", tensor).replace(".MatMul.", ".").replace(".Add.", "."))
    return None if found is None else (found["module"], found["parameter"])


def joined_in(tensor: str) -> tuple[str, ...]:
    """Parameters whose names an exporter joined with those of their neighbours, in order."""
    found = [part for part in tensor.split("__") if _PARAMETER.match(part)]
    return tuple(found) if len(found) > 1 else ()


def spellings(name: str) -> Iterator[tuple[int, str]]:
    """Normal forms of a parameter's path in a graph, each with the wrappers taken off for it."""
    parts = name.split(".")
    for depth in range(WRAPPING + 1):
        rest = ".".join(parts[depth:])
        yield depth, normal(rest)
        for pattern, replacement in _RENAMED:
            renamed = pattern.sub(replacement, rest)
            if renamed != rest:
                yield depth, normal(renamed)
        if len(parts) <= depth + 2 or _TOWERS.search(parts[depth]) or parts[depth + 1].isdigit():
            return
