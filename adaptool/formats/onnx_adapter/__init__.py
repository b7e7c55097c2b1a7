"""ONNX Runtime's adapter files: factors under the names of a graph's inputs.

`onnxruntime.LoraAdapter` loads them and `RunOptions.add_active_adapter` feeds them, as
onnxruntime-genai does. Names and shapes are the graph's: A is [in, rank] and B [rank, out], with
the strength in it. The file states no alpha and no module; adaptool notes both behind its end.
"""

from adaptool.formats.onnx_adapter.files import (
    plan,
    plan_filling,
    read,
    read_filling,
    read_for,
    recognises,
    write,
    write_filling,
)

suffixes = (".onnx_adapter",)
naming = "huggingface"

__all__ = [
    "naming",
    "plan",
    "plan_filling",
    "read",
    "read_filling",
    "read_for",
    "recognises",
    "suffixes",
    "write",
    "write_filling",
]
