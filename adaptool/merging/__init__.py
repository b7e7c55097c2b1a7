"""Checkpoint + adapters -> Checkpoint. Nothing is computed here: what comes back is lazy.

    W' = W + sum_i scale_i * (U_i(W) - W)

in float32 (float64 for a float64 base), rounded once to the output's type. While the result is
written, every touched tensor measures how much of its update survived that rounding.

    assembly       a checkpoint and adapters -> a merge
    laying         which update goes where
    outcome        a merge, and what must be true of it once it is written
    patching       the arithmetic, block by block
    desks          the buffers of one worker, on a CPU or a GPU
    metering       what a worker measures of the update that it writes
    survival       what was meant, and what was stored
    tying          embeddings that share a weight with the head
    sharing        the same in a graph
    configuration  config.json, following the tensors
    retyping       the types in which a GGUF model's tensors are written
    reencoding     a quantised checkpoint's own scheme, written again
    rounding       how an ONNX model's weights are rounded
"""

from adaptool.merging.assembly import merge
from adaptool.merging.outcome import Merge
from adaptool.merging.survival import Survival, Tally

__all__ = ["Merge", "Survival", "Tally", "merge"]
