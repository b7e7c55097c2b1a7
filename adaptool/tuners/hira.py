"""HiRA: a low-rank matrix multiplied into the weight (openreview TwJrTz9cRS, eq. 4).

W' = W + W o (B A), o the Hadamard product.  An embedding [vocabulary, dimension] is changed by the
transpose of B A.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.tensors import transposed
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_EMBEDDING = "hira_embedding_"

suffixes = ("hira_A", "hira_B", f"{_EMBEDDING}A", f"{_EMBEDDING}B")
shared = ()


@dataclass(frozen=True, kw_only=True)
class Hadamard(Transform):
    """W o (1 + B A); of an embedding W o (1 + A' B')."""

    kind: ClassVar[str] = "hadamard-low-rank"
    peft_type: ClassVar[str] = "HIRA"

    def _sides(self) -> tuple[LazyTensor, LazyTensor]:
        """B and A."""
        (first, a), (_, b) = self.tensors.items()
        if first != _EMBEDDING + "A":
            return b, a
        return transposed(a), transposed(b)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the factors are those of a weight [out, in, *kernel] of this shape."""
        b, a = self._sides()
        return shape == (b.shape[0], *a.shape[1:])

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each value by itself."""
        b, a = (side.values().to(device, dtype).flatten(1) for side in self._sides())

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return weight + weight * (b[window.rows] @ a[:, window.cols])

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`hira_A` [r, in, *kernel] and `hira_B` [out, r, *ones], or those of an embedding."""
    stem = _EMBEDDING if parts.has(_EMBEDDING + "A") else "hira_"
    a, b = parts.need(f"{stem}A"), parts.need(f"{stem}B")
    if min(len(a.shape), len(b.shape)) < 2 or b.shape[1] != a.shape[0] or prod(b.shape[2:]) != 1:
        raise parts.corrupt(f"{stem}A {list(a.shape)}, {stem}B {list(b.shape)}: ranks disagree")
    if stem == _EMBEDDING and len(a.shape) != 2:
        raise parts.corrupt(f"{stem}A {list(a.shape)} is no matrix")
    return {"weight": Hadamard(tensors={f"{stem}A": a, f"{stem}B": b})}
