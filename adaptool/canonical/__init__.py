"""The nouns: tensors, updates, adapters, checkpoints. They know no file format.

Importing them costs nothing heavy: torch is imported where values are computed.
"""

from adaptool.canonical.adapter import Adapter
from adaptool.canonical.checkpoint import Checkpoint, Placement
from adaptool.canonical.dtypes import DType
from adaptool.canonical.experts import ExpertLowRank
from adaptool.canonical.provenance import Provenance
from adaptool.canonical.site import Site
from adaptool.canonical.tensors import ByteSource, LazyTensor, Stored
from adaptool.canonical.updates import Addition, Dora, LowRank, Rebased, Replacement, TokenRows
from adaptool.canonical.verbs import Applicable, Update, Window

__all__ = [
    "Adapter",
    "Addition",
    "Applicable",
    "ByteSource",
    "Checkpoint",
    "DType",
    "Dora",
    "ExpertLowRank",
    "LazyTensor",
    "LowRank",
    "Placement",
    "Provenance",
    "Rebased",
    "Replacement",
    "Site",
    "Stored",
    "TokenRows",
    "Update",
    "Window",
]
