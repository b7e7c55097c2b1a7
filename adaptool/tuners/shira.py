"""SHiRA: a few single values of the weight are trained (arXiv:2406.13175, section 3).

W'[i, j] = W[i, j] + v for the positions (i, j) that the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Update
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts
from adaptool.tuners._positions import read_positions, take_positions, within
from adaptool.tuners._sparse import Sparse

if TYPE_CHECKING:
    import torch

_POSITIONS, _VALUES = suffixes = ("shira_indices", "shira_weight")
shared = ()


@dataclass(frozen=True, kw_only=True)
class Scattered(Sparse):
    """W plus `shira_weight` [n] at `shira_indices` [2, n] (rows, columns)."""

    kind: ClassVar[str] = "sparse"
    peft_type: ClassVar[str] = "SHIRA"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Any matrix with room for so many values; positions are checked when they are read."""
        return len(shape) == 2 and self.tensors[_VALUES].count <= shape[0] * shape[1]

    def positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As the file has them."""
        what = f"{self.where}: {_POSITIONS}"
        rows, cols = read_positions(self.tensors[_POSITIONS], max(self.size), what)
        return within(rows, self.size[0], what), within(cols, self.size[1], what)

    def entries(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """As the file has them."""
        return self.tensors[_VALUES].values().to(device, dtype)


def read(parts: Parts, options: Options) -> Mapping[str, Update]:  # noqa: ARG001
    """`shira_indices` [2, n] and `shira_weight` [n]."""
    values = parts.need(_VALUES, None)
    positions = take_positions(parts, _POSITIONS, 2, values.count)
    tensors = {_POSITIONS: positions, _VALUES: values}
    return {"weight": Scattered(tensors=tensors, where=parts.where)}
