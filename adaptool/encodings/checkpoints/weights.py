"""One quantised weight as a scheme stores it, and tensors that are computed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import BLOCK

if TYPE_CHECKING:
    import torch

Make = Callable[[int, int], "torch.Tensor"]
"""`make(first, last)`: the flattened elements first..last, which are whole units."""

Observe = Callable[[int, "torch.Tensor", "torch.Tensor"], None]
"""`observe(first, wanted, stored)`: values from element `first` on, as meant and as they will be
read; float32, flat, whole rows or blocks, each element once."""

Encode = Callable[[LazyTensor, Observe], Mapping[str, LazyTensor]]
"""`encode(values, observe)`: the parts that change when a weight takes other values."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight and the stored tensors that it is made of.

    Attributes:
        name: of the weight, as an unquantised checkpoint has it.
        kind: how it is stored, for messages: "nf4".
        value: float32, exactly what the codes mean, before any rounding.
        dtype: what the library that owns the scheme rounds the values to.
        parts: names of all tensors that are stored for it; the first holds the codes.
        encode: its way back, or None if this scheme is only read here.
    """

    name: str
    kind: str
    value: LazyTensor
    dtype: DType
    parts: tuple[str, ...]
    encode: Encode | None = None

    @property
    def decoded(self) -> LazyTensor:
        """The values as the owning library gives them."""
        return self.value.cast(self.dtype)


def computed(
    shape: tuple[int, ...],
    dtype: DType,
    unit: int,
    begin: Callable[[], Make],
    block: int = BLOCK,
) -> LazyTensor:
    """A tensor that is computed unit by unit while it is streamed.

    Args:
        shape, dtype: of the tensor.
        unit: elements that are computed together; the last unit may be shorter.
        begin: called once for each stream; what it returns computes runs of whole units, and
            may keep what several of them need.
        block: elements to compute at a time, about.
    """
    count = prod(shape)
    return LazyTensor(shape, dtype, partial(_stream, count, max(unit, 1), begin), block=block)


def _stream(count: int, unit: int, begin: Callable[[], Make], start: int, stop: int,
            block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    make = begin()
    step = max(block // unit, 1) * unit
    for first in range(start // unit * unit, stop, step):
        last = min(first + step, count)
        values = make(first, last)[max(start - first, 0) : min(stop, last) - first]
        for position in range(0, values.numel(), block):
            yield values[position : position + block]


def alike(tensor: LazyTensor, unit: int, begin: Callable[[], Make], block: int) -> LazyTensor:
    """A computed tensor that takes the place of a stored one."""
    return replace(computed(tensor.shape, tensor.dtype, unit, begin), block=max(block, 1))
