"""How values are written: a plain type, or blocks of an encoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from adaptool.canonical.dtypes import DType
from adaptool.canonical.noise import uniform
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class Encoding(Protocol):
    """How values are packed into bytes: in blocks of values that follow each other in a row."""

    @property
    def name(self) -> str:
        """What its own world calls it: "Q4_K"."""
        ...

    @property
    def block(self) -> int:
        """Values of one block."""
        ...

    @property
    def size(self) -> int:
        """Bytes of one block."""
        ...

    def decode(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [n * size] -> float32 [n * block], on the same device."""
        ...

    def encode(self, values: torch.Tensor, importance: torch.Tensor | None = None,
               noise: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
        """Float32 [rows, width] -> uint8 [rows * width / block * size], on the same device.

        Args:
            values: whole rows; `width` is a multiple of `block`.
            importance: [width], how much an error in each column matters (mean square of the
                activations that meet it); None lets every scheme choose by the values alone.
            noise: [rows, width] in [0, 1), for stochastic rounding: a value between two steps
                goes up with the probability that keeps it right on average. None rounds to
                the nearest step.
        """
        ...


class Values(Protocol):
    """A tensor, as far as the choice of scales needs to know it."""

    def stream(self, *, align: int = 1) -> Iterator[torch.Tensor]:
        """All values in flat pieces of a multiple of `align`, each valid until the next."""
        ...


@runtime_checkable
class Fitting(Protocol):
    """An encoding whose scales are chosen by all of a tensor, not by each block's own values."""

    def fitted(self, values: Values) -> Encoding:
        """The encoding for these values, which are read when the first block is packed."""
        ...


@dataclass(frozen=True, eq=False)
class Form:
    """How a tensor's values are written.

    Attributes:
        dtype: type of the values; of an encoding, the type that it decodes to.
        encoding: how they are packed, or None for plain values.
        importance: [columns] or [slots, columns], see `Encoding.encode`.
        seed: round stochastically, by positions; None rounds to the nearest.
    """

    dtype: DType
    encoding: Encoding | None = None
    importance: torch.Tensor | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The encoding's name, else the dtype's."""
        return self.dtype.value if self.encoding is None else self.encoding.name

    def fitted(self, values: Values) -> Form:
        """The form for these values, of an encoding that depends on all of them."""
        if not isinstance(self.encoding, Fitting):
            return self
        return replace(self, encoding=self.encoding.fitted(values))

    def pack(self, values: torch.Tensor, position: int, height: int = 0) -> torch.Tensor:
        """The bytes of whole rows, uint8 in one dimension.

        Args:
            values: float32 [rows, width].
            position: of the first value in the tensor.
            height: rows of one slot of a stack, where importance is stated by slot.

        Raises ValueError without an encoding.
        """
        import torch

        if self.encoding is None:
            raise ValueError("plain values are not packed")
        noise = None
        if self.seed is not None:
            noise = uniform(self.seed, position, values.numel(), values.device).view_as(values)
        if self.importance is None or self.importance.dim() == 1:
            return self.encoding.encode(values, self.importance, noise)
        first = position // values.shape[1]
        parts, row = [], 0
        while row < values.shape[0]:
            slot = (first + row) // height
            end = min((slot + 1) * height - first, values.shape[0])
            part = None if noise is None else noise[row:end]
            parts.append(self.encoding.encode(values[row:end], self.importance[slot], part))
            row = end
        return torch.cat(parts)


def importance_for(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Measured importance in the shape that a tensor's form takes: [columns] or [slots, columns].

    Raises IncompatibleError if it is of a tensor with other columns.
    """
    slots = prod(shape[:-2]) if len(shape) > 2 else 1
    if values.numel() != slots * shape[-1]:
        raise IncompatibleError(
            f"{name}: the importance matrix has {values.numel()} values, {slots} x {shape[-1]} are "
            "needed",
            hint="was it measured on this model?",
            code="SHAPE_MISMATCH",
        )
    return values.reshape(-1) if slots == 1 else values.reshape(slots, -1)
