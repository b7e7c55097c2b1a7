"""DEFT: a subspace of the outputs is taken out of the weight and put in anew.

W' = W + Q (s R - L' W), P [out, r] trained: L = relu(P) and Q = P, or with "qr" both the
orthonormal basis of P's columns; s = alpha / r, 1 without alpha.  PaRa takes out only: R = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("deft_P", "deft_R")
shared = ()


@dataclass(frozen=True, kw_only=True)
class Injected(Transform):
    """W + Q (strength R - L' W).

    Attributes:
        orthonormal: Q and L are the basis that QR finds; else P and its positive part.
        strength: of what is put in.
    """

    kind: ClassVar[str] = "subspace"
    peft_type: ClassVar[str] = "DEFT"
    span: ClassVar[Span] = Span.COLUMNS

    orthonormal: bool
    strength: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a matrix has as many outputs, and inputs where R tells."""
        injected = self.tensors.get("deft_R")
        return (
            len(shape) == 2
            and shape[0] == self.tensors["deft_P"].shape[0]
            and (injected is None or shape[1] == injected.shape[1])
        )

    @property
    def most_rank(self) -> int:
        """Of the subspace."""
        return self.tensors["deft_P"].shape[1]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each column of the weight by itself."""
        import torch

        p = self.tensors["deft_P"].values()
        if self.orthonormal:  # R was trained with the signs that this decomposition gives
            q = torch.linalg.qr(p.float())[0].to(device, dtype)
            left = q
        else:
            q = p.to(device, dtype)
            left = q.relu()
        stored = self.tensors.get("deft_R")
        r = None if stored is None else stored.values().to(device, dtype) * self.strength

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            taken = left.T @ weight
            return weight.addmm(q, -taken if r is None else r[:, window.cols] - taken)

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`deft_P` [out, r], and `deft_R` [r, in] unless `para`."""
    p = parts.need("deft_P", None, None)
    rank = p.shape[1]
    tensors = {"deft_P": p}
    if not options.flag("para"):
        tensors["deft_R"] = parts.need("deft_R", rank, None)
    alpha = options.number("alpha", 0)
    method = options.choice("decomposition_method", ("relu", "qr"))
    strength = alpha / rank if alpha else 1.0
    return {"weight": Injected(tensors=tensors, orthonormal=method == "qr", strength=strength)}
