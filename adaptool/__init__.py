"""adaptool moves LoRA-style adapters between formats, into models, and models to browsers.

    import adaptool

    base = adaptool.open_checkpoint("model/")
    adapter = adaptool.read_adapter("adapter/")
    merged = adaptool.merge(base, [(adapter, 0.75)])
    adaptool.save(merged, "merged/")

One call does the same: `adaptool.merge_files("model/", {"adapter/": 0.75}, "merged/")`.
For a browser: `adaptool.export("model/", {"adapter/": 1.0}, "web/", target="wllama", page=True)`.
Names are imported when they are used: `import adaptool` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from adaptool.version import VERSION

if TYPE_CHECKING:
    from adaptool.canonical import Adapter, Checkpoint, LazyTensor, LowRank
    from adaptool.combination import Recipe, combine
    from adaptool.comparison import compare, compare_files
    from adaptool.containers import open_checkpoint
    from adaptool.errors import AdaptoolError
    from adaptool.extraction import extract
    from adaptool.formats import read_adapter
    from adaptool.inspection import inspect
    from adaptool.jobs.combining import combine_files
    from adaptool.jobs.converting import convert, convert_model
    from adaptool.jobs.exporting import ExportOptions, export
    from adaptool.jobs.extracting import extract_files
    from adaptool.jobs.merging import merge_files, save
    from adaptool.jobs.reducing import reduce_file
    from adaptool.jobs.slotting import make_slots
    from adaptool.jobs.verifying import verify
    from adaptool.lowering import lower
    from adaptool.merging import merge
    from adaptool.ranks import RankRequest
    from adaptool.reduction import reduce
    from adaptool.serving import serve

__version__ = VERSION

_HOMES = {
    "Adapter": "canonical",
    "AdaptoolError": "errors",
    "Checkpoint": "canonical",
    "ExportOptions": "jobs.exporting",
    "LazyTensor": "canonical",
    "LowRank": "canonical",
    "RankRequest": "ranks",
    "Recipe": "combination",
    "combine": "combination",
    "combine_files": "jobs.combining",
    "compare": "comparison",
    "compare_files": "comparison",
    "convert": "jobs.converting",
    "convert_model": "jobs.converting",
    "export": "jobs.exporting",
    "extract": "extraction",
    "extract_files": "jobs.extracting",
    "inspect": "inspection",
    "lower": "lowering",
    "make_slots": "jobs.slotting",
    "merge": "merging",
    "merge_files": "jobs.merging",
    "open_checkpoint": "containers",
    "read_adapter": "formats",
    "reduce": "reduction",
    "reduce_file": "jobs.reducing",
    "save": "jobs.merging",
    "serve": "serving",
    "verify": "jobs.verifying",
}

__all__ = [
    "Adapter",
    "AdaptoolError",
    "Checkpoint",
    "ExportOptions",
    "LazyTensor",
    "LowRank",
    "RankRequest",
    "Recipe",
    "__version__",
    "combine",
    "combine_files",
    "compare",
    "compare_files",
    "convert",
    "convert_model",
    "export",
    "extract",
    "extract_files",
    "inspect",
    "lower",
    "make_slots",
    "merge",
    "merge_files",
    "open_checkpoint",
    "read_adapter",
    "reduce",
    "reduce_file",
    "save",
    "serve",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'adaptool' has no attribute {name!r}")
    return getattr(import_module(f"adaptool.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
