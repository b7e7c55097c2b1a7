"""(IA)^3: rows or columns times trained factors (arXiv:2205.05638, section 3.3).

A feed-forward module scales its inputs: W' = W diag(l).  Any other module scales its outputs:
W' = diag(l) W, and its bias b' = l * b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.verbs import Applier
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

if TYPE_CHECKING:
    import torch

suffixes = ("ia3_l",)
shared = ()


@dataclass(frozen=True, kw_only=True)
class InputScaling(Transform):
    """W diag(l), l of one value per input channel: of all groups, for a grouped convolution."""

    kind: ClassVar[str] = "input-scaling"
    peft_type: ClassVar[str] = "IA3"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is a factor for each channel of each group."""
        if len(shape) < 2:
            return False
        groups, rest = divmod(self.tensors["ia3_l"].count, shape[1])
        return rest == 0 and groups > 0 and shape[0] % groups == 0

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Element by element."""
        channels, kernel = self.shape[1], prod(self.shape[2:])
        factors = self.tensors["ia3_l"].values().to(device, dtype).reshape(-1, channels)
        factors = factors.repeat_interleave(kernel, dim=1)
        height = self.shape[0] // factors.shape[0]

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            import torch

            rows = torch.arange(window.rows.start, window.rows.stop, device=device)
            return weight * factors[rows // height][:, window.cols]

        return change


@dataclass(frozen=True, kw_only=True)
class OutputScaling(Transform):
    """diag(l) W, l of one value per row."""

    kind: ClassVar[str] = "output-scaling"
    peft_type: ClassVar[str] = "IA3"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether there is a factor for each row."""
        return len(shape) > 1 and shape[0] == self.tensors["ia3_l"].count

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Row by row."""
        factors = self.tensors["ia3_l"].values().to(device, dtype).reshape(-1, 1)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return weight * factors[window.rows]

        return change


@dataclass(frozen=True)
class BiasScaling:
    """l * b, where the module has a bias."""

    kind: ClassVar[str] = "output-scaling"
    additive: ClassVar[bool] = False
    companion: ClassVar[bool] = True

    factors: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[out]."""
        return (self.factors.count,)

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The factors, which are the weight's as well."""
        return {"ia3_l": self.factors}

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Element by element."""
        factors = self.factors.values().to(device, dtype).reshape(-1, 1)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            return weight.lerp_(weight * factors[window.rows], scale)

        return apply


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`ia3_l` [1, in] or [out, 1]; of a convolution [1, channels, 1, ...] on either side.

    Where the shape does not tell the side, `feedforward_modules` does, as for PEFT.
    """
    factors = parts.need("ia3_l")
    first, *rest = factors.shape or (0,)
    if len(rest) == 0 or factors.count not in (first, *rest):
        raise parts.corrupt(f"ia3_l is {list(factors.shape)}, no row and no column")
    inputs = options.names("feedforward_modules", parts.module)
    if len(rest) == 1 and factors.count > 1:
        inputs = first == 1
    tensors = {"ia3_l": factors}
    if inputs:
        return {"weight": InputScaling(tensors=tensors)}
    return {"weight": OutputScaling(tensors=tensors), "bias": BiasScaling(factors)}
