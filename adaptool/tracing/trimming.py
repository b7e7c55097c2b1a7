"""Logits of the last tokens alone, where a caller asks for no more.

A head makes a row of the whole vocabulary for each token of a prompt: 600 MB in float32 for 1000
tokens of 150,000 words, more than a browser lets one buffer be. Generation reads the last row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir

COUNT = "num_logits_to_keep"
"""The input that transformers.js feeds: how many rows, from the end; 0 for all of them."""

KEPT = "kept_length"
"""The symbol for the number of rows."""


def count_rows(graph: onnx_ir.Graph) -> None:
    """Make the input `COUNT` of a graph, traced as the indices of the rows, their number."""
    import onnx_ir
    from onnx_ir.tape import Tape

    (place,) = (at for at, value in enumerate(graph.inputs) if value.name == COUNT)
    (tokens,) = (value for value in graph.inputs if value.name == "input_ids")
    rows = graph.inputs[place]
    rows.name = f"{COUNT}_rows"
    count = onnx_ir.Input(COUNT, onnx_ir.Shape([]), onnx_ir.TensorType(onnx_ir.DataType.INT64))
    tape = Tape()
    zero, one = (
        tape.initializer(onnx_ir.tensor(number, onnx_ir.DataType.INT64, name=f"{COUNT}_{number}"))
        for number in (0, 1)
    )
    length = tape.op("Gather", [tape.op("Shape", [tokens]), one])
    rest = tape.op("Max", [tape.op("Sub", [length, count]), zero])
    start = tape.op("Where", [tape.op("Equal", [count, zero]), zero, rest])
    indices = tape.op("Range", [start, length, one])
    onnx_ir.convenience.replace_all_uses_with(rows, indices)
    graph.inputs[place] = count
    for constant in tape.initializers:
        graph.register_initializer(constant)
    graph.insert_before(graph[0], tape.nodes)
