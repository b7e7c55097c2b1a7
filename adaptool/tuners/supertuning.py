"""Super-Tuning: the largest (or smallest) values of a weight are trained (arXiv:2607.09287).

W' = W + v at the positions of the values with the largest magnitude, numbered row by row; "Supra"
adds alpha / r B A.  A file that does not hold the positions has them found again in the base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import LazyTensor, Update, Window
from adaptool.canonical.verbs import Applier, Span
from adaptool.tuners._forms import Change, Transform
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._positions import read_positions, take_positions
from adaptool.tuners._sparse import Sparse

if TYPE_CHECKING:
    import torch

_VALUES, _POSITIONS = "supertuning_values", "supertuning_indices"
_A, _B = "supertuning_lora_A.weight", "supertuning_lora_B.weight"

suffixes = (_VALUES, _POSITIONS, _A, _B)
shared = ()


def _fits(tensors: Mapping[str, LazyTensor], shape: tuple[int, ...]) -> bool:
    if len(shape) != 2 or tensors[_VALUES].count > shape[0] * shape[1]:
        return False
    return _A not in tensors or shape == (tensors[_B].shape[0], tensors[_A].shape[1])


def _factors(
    tensors: Mapping[str, LazyTensor], dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """B and A, if there are any."""
    if _A not in tensors:
        return None
    b, a = (tensors[name].values().to(device, dtype) for name in (_B, _A))
    return b, a


@dataclass(frozen=True, kw_only=True)
class Located(Sparse):
    """W + v at positions that the file holds, + strength B A.

    Attributes:
        strength: of B A.
    """

    kind: ClassVar[str] = "sparse"
    peft_type: ClassVar[str] = "SUPERTUNING"

    strength: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix with room for the values; positions are checked when read."""
        return _fits(self.tensors, shape)

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The file numbers them row by row."""
        rows, cols = self.size
        flat = read_positions(self.tensors[_POSITIONS], rows * cols, f"{self.where}: {_POSITIONS}")
        return flat // cols, flat % cols

    def entries(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """As the file has them."""
        return self.tensors[_VALUES].values().to(device, dtype)

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The values at their positions, and B A."""
        whole = super().dense(dtype, device)
        factors = _factors(self.tensors, dtype, device)
        return whole if factors is None else whole.addmm_(*factors, alpha=self.strength)

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """The values in the window, and its part of B A."""
        scatter = super().applier(dtype, device)
        factors = _factors(self.tensors, dtype, device)
        if factors is None:
            return scatter
        b, a = factors
        strength = self.strength * self.scaling

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            moved = scatter(weight, window, scale)
            return moved.addmm_(b[window.rows], a[:, window.cols], alpha=scale * strength)

        return apply


@dataclass(frozen=True, kw_only=True)
class Searched(Transform):
    """The same at positions that are found in the weight.

    Attributes:
        largest: the values of the largest magnitude; else of the smallest.
        strength: of B A.
    """

    kind: ClassVar[str] = "sparse"
    peft_type: ClassVar[str] = "SUPERTUNING"
    span: ClassVar[Span] = Span.ALL

    largest: bool
    strength: float

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it is a matrix with room for the values."""
        return _fits(self.tensors, shape)

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Needs the magnitudes of the whole weight."""
        values = self.tensors[_VALUES].values().to(device, dtype)
        factors = _factors(self.tensors, dtype, device)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:  # noqa: ARG001
            flat = weight.abs().flatten()
            _, positions = flat.topk(values.numel(), largest=self.largest)
            moved = weight.flatten().scatter_add(0, positions, values).view_as(weight)
            if factors is not None:
                moved.addmm_(*factors, alpha=self.strength)
            return moved

        return change


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`supertuning_values` [n], `supertuning_indices` [n]; `supertuning_lora_A` [r, in], `_B`."""
    values = parts.need(_VALUES, None)
    tensors = {_VALUES: values}
    strength = 0.0
    if parts.has(_A):
        tensors[_A] = parts.need(_A, None, None)
        rank = tensors[_A].shape[0]
        tensors[_B] = parts.need(_B, None, rank)
        if options.raw.get("lora_alpha") is None:
            raise options.refusal("lora_alpha", "a number")
        strength = options.number("lora_alpha", 0) / rank
    if _POSITIONS in parts.tensors:
        tensors[_POSITIONS] = take_positions(parts, _POSITIONS, values.count)
        return {"weight": Located(tensors=tensors, strength=strength, where=parts.where)}
    largest = options.flag("select_top", default=True)
    return {"weight": Searched(tensors=tensors, strength=strength, largest=largest)}
