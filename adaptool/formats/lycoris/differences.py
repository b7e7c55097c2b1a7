"""A dense difference of a weight, which full training gives.

Not an `Addition`: that one is the trained bias of a module with factors, which PEFT can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Addition, LazyTensor
from adaptool.canonical.verbs import Applier

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Difference:
    """W + scaling * d.

    Attributes:
        value: d, in the parameter's own shape.
    """

    kind: ClassVar[str] = "difference"
    additive: ClassVar[bool] = True

    value: LazyTensor
    scaling: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.value.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The difference."""
        return {"value": self.value}

    def scaled(self, scale: float) -> Difference:
        """The same difference `scale` times as strong."""
        return replace(self, scaling=self.scaling * scale)

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Adds the window's part."""
        return Addition(self.value, self.scaling).applier(dtype, device)
