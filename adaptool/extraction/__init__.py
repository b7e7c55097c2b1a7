"""Checkpoint - Checkpoint -> Adapter: what a fine-tune changed, as low-rank updates.

Both models are streamed: the difference of two weights exists in blocks of rows only.

    pairing      which tensors belong together, and what becomes of each pair
    differences  the difference of a pair as matrices that stream by
    factoring    that difference as a low-rank update
    surveying    all pairs in a few threads; ranks chosen
    assembly     the adapter
    outcome      what came out, for people and programs
"""

from adaptool.extraction.assembly import extract
from adaptool.extraction.outcome import Extraction, Row

__all__ = ["Extraction", "Row", "extract"]
