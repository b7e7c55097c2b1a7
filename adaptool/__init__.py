"""adaptool moves LoRA-style adapters between formats and merges them into models.

    import adaptool

    base = adaptool.open_checkpoint("model/")
    adapter = adaptool.read_adapter("adapter/")
    merged = adaptool.merge(base, [(adapter, 0.75)])
    adaptool.save(merged, "merged/")

One call does the same: `adaptool.merge_files("model/", {"adapter/": 0.75}, "merged/")`.
Names are imported when they are used: `import adaptool` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from adaptool.version import VERSION

if TYPE_CHECKING:
    from adaptool.canonical import Adapter, Checkpoint, LazyTensor, LowRank
    from adaptool.containers import open_checkpoint
    from adaptool.errors import AdaptoolError
    from adaptool.formats import read_adapter
    from adaptool.inspection import inspect
    from adaptool.jobs import convert, merge_files, save
    from adaptool.merging import merge

__version__ = VERSION

_HOMES = {
    "Adapter": "canonical",
    "AdaptoolError": "errors",
    "Checkpoint": "canonical",
    "LazyTensor": "canonical",
    "LowRank": "canonical",
    "convert": "jobs",
    "inspect": "inspection",
    "merge": "merging",
    "merge_files": "jobs",
    "open_checkpoint": "containers",
    "read_adapter": "formats",
    "save": "jobs",
}

__all__ = [
    "Adapter",
    "AdaptoolError",
    "Checkpoint",
    "LazyTensor",
    "LowRank",
    "__version__",
    "convert",
    "inspect",
    "merge",
    "merge_files",
    "open_checkpoint",
    "read_adapter",
    "save",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'adaptool' has no attribute {name!r}")
    return getattr(import_module(f"adaptool.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
