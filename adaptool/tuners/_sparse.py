"""Differences of a few single values: only these are touched."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptool.canonical import Window
from adaptool.canonical.verbs import Applier
from adaptool.tuners._forms import Delta

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Sparse(Delta):
    """W + scaling * values at their positions.

    Attributes:
        where: file and module, for messages.
    """

    where: str

    @abstractmethod
    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns, int64 [n] on the CPU; one that occurs twice counts twice.

        Raises CorruptInputError for a position outside the weight.
        """

    @abstractmethod
    def entries(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The values, [n]."""

    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Zero but at the positions."""
        import torch

        rows, cols = (axis.to(device) for axis in self.positions())
        zero = torch.zeros(self.size, dtype=dtype, device=device)
        return zero.index_put_((rows, cols), self.entries(dtype, device), accumulate=True)

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Finds the entries of a window by their rows, which are sorted for that."""
        import torch

        rows, cols = (axis.to(device) for axis in self.positions())
        order = rows.argsort(stable=True)
        rows, cols = rows[order].contiguous(), cols[order]
        values = self.entries(dtype, device)[order]

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            edges = rows.new_tensor([window.rows.start, window.rows.stop])
            first, last = (int(edge) for edge in torch.searchsorted(rows, edges))
            row, col = rows[first:last] - window.rows.start, cols[first:last] - window.cols.start
            value = values[first:last]
            if not window.has_whole_rows:
                inside = (col >= 0) & (col < weight.shape[1])
                row, col, value = row[inside], col[inside], value[inside]
            moved = value * (scale * self.scaling)
            return weight.index_put_((row, col), moved, accumulate=True)

        return apply
