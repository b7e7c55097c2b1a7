"""LyCORIS' GLoRA: W + scaling * (W a1 a2 + b1 b2), a product with W and one beside it.

It shares the name only with the method that PEFT calls so.  Of a convolution, a1 a2 mixes the input
channels at each place of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Window
from adaptool.canonical.verbs import Span
from adaptool.tuners._forms import Change, Transform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Shifted(Transform):
    """W + scaling * (W a1 a2 + b1 b2): `a1` [in, r], `a2` [r, in], `b1` [out, r], `b2` [r, in]."""

    kind: ClassVar[str] = "shifted"
    span: ClassVar[Span] = Span.ROWS

    scaling: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether b1 b2 has this shape."""
        return shape == (self.tensors["b1.weight"].shape[0], *self.tensors["b2.weight"].shape[1:])

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Each row by itself."""
        import torch

        a1, a2, b1, b2 = (t.values().to(device, dtype).flatten(1) for t in self.tensors.values())
        channels, kernel = self.shape[1], prod(self.shape[2:])

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            grid = weight.reshape(-1, channels, kernel)
            mixed = torch.einsum("rik,ij->rjk", grid, a1)
            mixed = torch.einsum("rjk,ji->rik", mixed, a2).flatten(1)
            return weight + self.scaling * (mixed + b1[window.rows] @ b2)

        return change
