"""FBGEMM's 8-bit floating point: `weight` times `weight_scale` of its row."""

from adaptool.encodings.checkpoints.schemes.fp8 import SIDES, find

__all__ = ["SIDES", "find"]
