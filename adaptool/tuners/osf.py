"""OSF: the weak directions of a weight are trained, the strong ones kept (arXiv:2504.07097).

W = U S V' is split after its `effective_rank` largest singular values; the file holds the rest as
trained: W' = the strong part of W + U_low S_low V_low.
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

_U, _S, _V = suffixes = tuple(f"osf_svd_params.{side}_low" for side in "USV")
shared = ()


@dataclass(frozen=True, kw_only=True)
class Kept(Transform):
    """The best approximation of W of rank min(out, in) - k, plus a trained matrix of rank k."""

    kind: ClassVar[str] = "weak-subspace"
    peft_type: ClassVar[str] = "OSF"
    span: ClassVar[Span] = Span.ALL

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix of the factors' size."""
        u, v = self.tensors[_U].shape, self.tensors[_V].shape
        return shape == (u[0], v[1]) and u[1] <= min(shape)

    @property
    def most_rank(self) -> int:
        """Of what is taken out and of what is put in."""
        return 2 * self.tensors[_S].count

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Needs the whole weight's singular vectors."""
        import torch

        u, s, v = (self.tensors[name].values().to(device, dtype) for name in suffixes)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            strong = min(weight.shape) - s.numel()
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            kept: torch.Tensor = (left[:, :strong] * values[:strong]) @ right[:strong]
            return kept.addmm_(u * s, v)

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`U_low` [out, k], `S_low` [k], `V_low` [k, in]."""
    values = parts.need(_S, None)
    tensors = {
        _U: parts.need(_U, None, values.count),
        _S: values,
        _V: parts.need(_V, values.count, None),
    }
    return {"weight": Kept(tensors=tensors)}
