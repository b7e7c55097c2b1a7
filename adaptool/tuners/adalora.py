"""AdaLoRA: factors with trained singular values between them (arXiv:2303.10512, eq. 3).

W + alpha / (init_r + 1e-5) * B diag(E) A.  Training prunes to different ranks; the divisor stays
the rank that it began with.  E is folded into A, which makes it a plain low-rank update.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.canonical import DType, LazyTensor, LowRank, Update
from adaptool.canonical.tensors import from_recipe
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

suffixes = ("lora_A", "lora_B", "lora_E")
shared = ()

_TINY = 1e-5
"""What PEFT adds to the divisor."""


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`lora_A` [rank, in], `lora_E` [rank, 1], `lora_B` [out, rank]."""
    if _is_pruned_away(parts):
        return {}
    a = parts.need("lora_A", None, None)
    e = parts.need("lora_E", a.shape[0], 1)
    b = parts.need("lora_B", None, a.shape[0])
    begun = options.whole("init_r", 12, least=1)
    alpha = options.number("lora_alpha", 8.0)
    scaling = (alpha if alpha > 0 else begun) / (begun + _TINY)
    return {"weight": LowRank(_folded(a, e), b, scaling)}


def _folded(a: LazyTensor, e: LazyTensor) -> LazyTensor:
    dtype = DType.FLOAT64 if DType.FLOAT64 in (a.dtype, e.dtype) else DType.FLOAT32
    return from_recipe(
        a.shape, dtype, lambda: a.values().to(dtype.torch) * e.values().to(dtype.torch)
    )


def _is_pruned_away(parts: Parts) -> bool:
    """Whether nothing is left of this module: then its tensors are taken, and mean nothing."""
    shapes = {suffix: tensor.shape for suffix, tensor in parts.tensors.items()}
    if set(shapes) != set(suffixes):
        return False
    pruned = (shapes["lora_A"][:1], shapes["lora_E"], shapes["lora_B"][1:]) == ((0,), (0, 1), (0,))
    if pruned:
        parts.tensors.clear()
    return pruned
