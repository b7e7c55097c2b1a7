"""MLC's weight folders, which WebLLM loads: shards of raw tensors, and a JSON file that lists them.

A browser finds them below `resolve/main/`, as on a model hub, so a folder that holds them there is
recognised too. Opening reads the list only; saving streams. An unmodified model is written byte
for byte.
"""

from adaptool.containers.mlc.reading import open, recognises  # noqa: A004
from adaptool.containers.mlc.writing import lay_out, plan, save

suffixes = ()

__all__ = ["lay_out", "open", "plan", "recognises", "save", "suffixes"]
