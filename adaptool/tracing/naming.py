"""Names in a traced graph: the checkpoint's own, so that people and tools find a module in it.

    nodes      /model/layers/0/self_attn/q_proj/MatMul
    weights    model.layers.0.self_attn.q_proj.weight_t     where they are turned to [in, out]

Quantisers drop the metadata of the nodes that they replace, and keep names.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch writes down the modules that a node was traced in, the operation last."""

_WRAPPER = "model."
"""What the wrapper around the model puts before every path."""

_NAMELESS = "val_"
"""How the exporter names a value that it computed, such as a weight that it turned."""

_TURNED = "_t"


def name_by_modules(graph: onnx_ir.Graph) -> None:
    """Give nodes and weights the names of the modules that they come from."""
    for value in [*graph.initializers.values()]:
        value.name = str(value.name).removeprefix(_WRAPPER)
    count: Counter[str] = Counter()
    for node in graph:
        module = _module_of(node)
        name = "/".join(["", *module.split("."), node.op_type] if module else ["", node.op_type])
        count[name] += 1
        node.name = name if count[name] == 1 else f"{name}_{count[name] - 1}"
        if node.op_type == "MatMul" and (weight := _matrix(node.inputs[1])):
            turned = f"{module}.weight{_TURNED}"
            if str(weight.name).startswith(_NAMELESS) and turned not in graph.initializers:
                weight.name = turned
        elif node.op_type == "Transpose" and (weight := _matrix(node.inputs[0])):
            node.outputs[0].name = f"{weight.name}{_TURNED}"


def _matrix(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """The same, if it is a matrix that the graph holds."""
    held = value is not None and value.is_initializer() and len(value.shape or ()) == 2
    return value if held else None


def _module_of(node: onnx_ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return f"{scopes[-2]}.".removeprefix(_WRAPPER).rstrip(".") if len(scopes) > 1 else ""


def forget_tracing(model: onnx_ir.Model) -> None:
    """Leave out what the tracer wrote down: sizes under its own symbols, source lines, paths."""
    graph = model.graph
    stated = {*graph.inputs, *graph.outputs}
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in stated:
                value.shape = value.type = None
