"""DeLoRA: directions of unit length and one strength (arXiv:2503.18225, eq. 8).

W' = W + B diag(lambda / (r |a_i| |b_i|)) A diag(w), a_i rows of A, b_i columns of B, w the norms
of the base's columns.  With these in the file it is a plain low-rank update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._factored import double, factored
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

_NORMS = "delora_w_norm"

suffixes = ("delora_A", "delora_B", "delora_lambda", _NORMS)
shared = ()

_LEAST = 1e-4
"""Shorter directions count as this long."""


def _factors(tensors: Mapping[str, LazyTensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in], with the norms if there are any; B [out, r] with the strength."""
    a, b = double(tensors["delora_A"]), double(tensors["delora_B"])
    lengths = a.norm(dim=1).clamp(min=_LEAST) * b.norm(dim=0).clamp(min=_LEAST)
    strength = double(tensors["delora_lambda"]) / (a.shape[0] * lengths)
    return a * double(tensors[_NORMS]) if _NORMS in tensors else a, b * strength


@dataclass(frozen=True, kw_only=True)
class Norming(Transform):
    """With the norms of the base's own columns."""

    kind: ClassVar[str] = "normed-low-rank"
    peft_type: ClassVar[str] = "DELORA"
    span: ClassVar[Span] = Span.COLUMNS

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix of the factors' size."""
        return shape == (self.tensors["delora_B"].shape[0], self.tensors["delora_A"].shape[1])

    @property
    def most_rank(self) -> int:
        """Of the factors."""
        return self.tensors["delora_A"].shape[0]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each column of the weight by itself."""
        a, b = (factor.to(device, dtype) for factor in _factors(self.tensors))

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return weight.addmm(b, a[:, window.cols] * weight.norm(dim=0))

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`delora_A` [r, in], `delora_B` [out, r], `delora_lambda` [1], `delora_w_norm` [in]."""
    a = parts.need("delora_A", None, None)
    rank, into = a.shape
    b = parts.need("delora_B", None, rank)
    tensors = {"delora_A": a, "delora_B": b, "delora_lambda": parts.need("delora_lambda", 1)}
    norms = parts.take(_NORMS, into)
    if norms is None:
        return {"weight": Norming(tensors=tensors)}
    tensors[_NORMS] = norms
    make = partial(_factors, tensors)
    return {"weight": factored(tensors.values(), (b.shape[0], into), rank, make)}
