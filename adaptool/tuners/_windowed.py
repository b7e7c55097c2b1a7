"""Differences of which any window can be computed by itself; never made dense."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.verbs import Applier
from adaptool.tuners._forms import Delta

if TYPE_CHECKING:
    import torch

Part = Callable[[Window], "torch.Tensor"]
"""`part(window)`: D in a window, [rows, cols], in float32 or float64."""


@dataclass(frozen=True, kw_only=True)
class Windowed(Delta):
    """W + scaling * D."""

    @abstractmethod
    def part(self, dtype: torch.dtype, device: torch.device) -> Part:
        """Read the trained values; return what computes D."""

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """D as one window."""
        rows, cols = self.size
        return self.part(dtype, device)(Window(slice(0, rows), slice(0, cols), (rows, cols)))

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Adds D in the window."""
        part = self.part(dtype, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            return weight.add_(part(window), alpha=scale * self.scaling)

        return apply
