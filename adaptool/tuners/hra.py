"""HRA: the weight times a chain of Householder reflections (arXiv:2405.17484, eq. 3 and 4).

W' = W H_1 ... H_r with H_i = I - 2 u_i u_i', |u_i| = 1.  The product of the reflections is
I - U T U', T upper triangular with inverse I/2 + the strict upper triangle of U'U, so no matrix
[in, in] is formed.  With `apply_GS` the u_i are made orthogonal first, and T is 2 I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update, Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("hra_u",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class Reflected(Transform):
    """W (I - U T U').

    Attributes:
        orthogonal: the columns of `hra_u` [in * kernel, r] are made orthogonal, in their order.
    """

    kind: ClassVar[str] = "reflection"
    peft_type: ClassVar[str] = "HRA"
    span: ClassVar[Span] = Span.ROWS

    orthogonal: bool

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a row has as many values as a u_i."""
        return len(shape) > 1 and prod(shape[1:]) == self.tensors["hra_u"].shape[0]

    @property
    def most_rank(self) -> int:
        """One for each reflection."""
        return self.tensors["hra_u"].shape[1]

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each row of the weight by itself."""
        import torch

        u = self.tensors["hra_u"].values().to(device, torch.float64)
        u = u / u.norm(dim=0)
        if self.orthogonal:
            q, _ = torch.linalg.qr(u)  # a reflection does not see the sign of its direction
            left, right = (2 * q).to(dtype), q.T.to(dtype)
        else:
            inverse = (u.T @ u).triu(1) + 0.5 * torch.eye(u.shape[1], dtype=u.dtype, device=device)
            left = torch.linalg.solve_triangular(inverse, u, upper=True, left=False).to(dtype)
            right = u.T.to(dtype)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            return torch.addmm(weight, weight @ left, right, alpha=-1.0)

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`hra_u` [in * kernel, r]."""
    u = parts.need("hra_u", None, None)
    if u.shape[1] > u.shape[0]:
        raise parts.corrupt(f"hra_u {list(u.shape)} has more reflections than dimensions")
    orthogonal = options.flag("apply_GS")
    return {"weight": Reflected(tensors={"hra_u": u}, orthogonal=orthogonal)}
