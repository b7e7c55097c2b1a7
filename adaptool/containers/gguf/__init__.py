"""GGUF: the files of llama.cpp, with a model's tensors, settings and vocabulary in one.

Opening reads headers only and needs neither torch nor numpy; saving streams, and an unmodified
model is written byte for byte as it was.
"""

from adaptool.containers.gguf.reading import general_type, open, recognises  # noqa: A004
from adaptool.containers.gguf.values import Kind, Value
from adaptool.containers.gguf.writing import lay_out, plan, save, save_file, size_of_file

suffixes = (".gguf",)

__all__ = [
    "Kind",
    "Value",
    "general_type",
    "lay_out",
    "open",
    "plan",
    "recognises",
    "save",
    "save_file",
    "size_of_file",
    "suffixes",
]
