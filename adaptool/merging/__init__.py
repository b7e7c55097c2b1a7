"""Checkpoint + adapters -> Checkpoint. Nothing is computed here: what comes back is lazy.

    W' = W + sum_i scale_i * (U_i(W) - W)

in float32 (float64 for a float64 base), rounded once to the output's type. While the result is
written, every touched tensor measures how much of its update survived that rounding.

    assembly       which update goes where
    patching       the arithmetic, block by block
    survival       what was meant, and what was stored
    tying          embeddings that share a weight with the head
    configuration  config.json, following the tensors
"""

from adaptool.merging.assembly import Merge, merge
from adaptool.merging.survival import Survival, Tally

__all__ = ["Merge", "Survival", "Tally", "merge"]
