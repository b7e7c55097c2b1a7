"""What an adapter does to one weight.

The verb is `apply`, not `delta`: DoRA, a replaced head or a rotation are not deltas. Every
update moves a weight from W (scale 0) towards U(W) (scale 1):

    apply(W, scale) = W + scale * (U(W) - W)

so scale 0 is the base, a negative scale un-applies, and for a low-rank update this is the
familiar W + scale * scaling * B A.  Weights are seen in PEFT's orientation: one row per
output, [out, in]; how a checkpoint stores them is a Placement's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from adaptool.canonical.tensors import LazyTensor

if TYPE_CHECKING:
    import torch

    from adaptool.canonical.site import Site


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a weight [out, in] that is in hand: `rows` and `cols`, both [start, stop)."""

    rows: slice
    cols: slice
    shape: tuple[int, int]

    @property
    def has_whole_rows(self) -> bool:
        """Whether every row is complete."""
        return (self.cols.start, self.cols.stop) == (0, self.shape[1])


Applier = Callable[["torch.Tensor", Window, float], "torch.Tensor"]
"""`apply(weight, window, scale)`: weight is a float32 or float64 view [rows, cols] of the
window, which may be changed in place; the result has the same shape."""


class Update(Protocol):
    """What an adapter does to one parameter."""

    kind: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it fits."""
        ...

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The trained tensors by role."""
        ...


@runtime_checkable
class Applicable(Update, Protocol):
    """An update that is applied to a weight as it is; others first become such ones."""

    additive: ClassVar[bool]
    """U(W) - W does not depend on W, so that several simply add up."""

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Read the trained values; return what applies them."""
        ...


class Span(StrEnum):
    """How much of a weight a window must hold so that its part of U(W) can be computed."""

    ROWS = "rows"
    COLUMNS = "columns"
    ALL = "all"


@runtime_checkable
class Spanning(Applicable, Protocol):
    """An update whose result at one place depends on other places; all others are element-wise.

    A merge hands it windows of whole rows or columns where the stored layout has such; else, and
    for ALL, the weight is computed as a whole: two copies of it are in memory then.
    """

    span: ClassVar[Span]


@runtime_checkable
class Fittable(Update, Protocol):
    """An update of a weight whose shape only the base knows: `shape` is empty until then."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be one of a weight [out, in, *kernel] of this shape."""
        ...

    def fitted(self, shape: tuple[int, ...], shapes: Mapping[Site, tuple[int, ...]]) -> Update:
        """The update for a weight of that shape; `shapes` are of all the adapter's weights."""
        ...


@runtime_checkable
class Coupled(Update, Protocol):
    """An update that also looks at the weight of its module, as the base has it."""

    sees_weight: bool
    """Whether it does; else it is as good as any other."""

    def coupled(self, weight: LazyTensor) -> Update:
        """The update with that weight, [out, in]."""
        ...


@runtime_checkable
class Companion(Update, Protocol):
    """An update that goes along with its module's weight: nothing where a base lacks its place."""

    companion: ClassVar[bool]


@runtime_checkable
class Scalable(Update, Protocol):
    """An update with a strength of its own, so that it can be made stronger without a base."""

    def scaled(self, scale: float) -> Update:
        """The same update `scale` times as strong."""
        ...
