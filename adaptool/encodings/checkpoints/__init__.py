"""Weights that a Hugging Face checkpoint stores quantised, in tensors that belong together.

A quantised weight is a tensor of codes and, beside it, tensors that say what the codes mean:
scales, zero points, tables. Opened here, it is one tensor under its plain name whose values are
decoded when they are read, a few rows at a time; the tensors beside it are part of it.

    opening   a checkpoint -> the same with plain weights
    weights   one stored weight: its value, its parts, its way back
    stock     the stored tensors of a checkpoint, each taken once or refused by name
    grids     one scale for each block of rows and columns
    words     integers of a few bits in 32-bit words
    e2m1      4-bit floating-point numbers
    schemes/  a scheme is a file, named as quantization_config's quant_method
"""

from adaptool.encodings.checkpoints.opening import (
    Opened,
    dequantised,
    is_quantised,
    open_quantised,
)
from adaptool.encodings.checkpoints.weights import StoredWeight

__all__ = ["Opened", "StoredWeight", "dequantised", "is_quantised", "open_quantised"]
