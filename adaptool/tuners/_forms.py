"""The two forms that an update of a weight has: something is added, or the weight is changed.

A tuner's file derives from one of them and gives the formula; windows, scale and the fit to a base
are here.  `shape` is [out, in, *kernel] and stays empty until a base has told it, since most files
state one side of a weight at the most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from adaptool.canonical import LazyTensor, Site, Update, Window
from adaptool.canonical.verbs import Applier, Span

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Tuned(Update, Protocol):
    """An update whose `tensors` are those of a file of this PEFT type, by suffix."""

    peft_type: ClassVar[str]


Change = Callable[["torch.Tensor", Window], "torch.Tensor"]
"""`change(weight, window)`: U(W) of a window, as a new tensor; the weight stays as it is."""


@dataclass(frozen=True, kw_only=True)
class _Fitting:
    """What both forms have.

    Attributes:
        tensors: the file's tensors by suffix: what is written back.
        shape: [out, in, *kernel], or empty until the update was fitted to a base.
    """

    tensors: Mapping[str, LazyTensor]
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix: out, in * kernel."""
        return self.shape[0], prod(self.shape[1:])

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the tensors can belong to a weight [out, in, *kernel] of this shape."""
        raise NotImplementedError

    def fitted(
        self,
        shape: tuple[int, ...],
        shapes: Mapping[Site, tuple[int, ...]],  # noqa: ARG002 - for tuners that share tensors
    ) -> Update:
        """This update for a weight of that shape.

        Args:
            shape: one that it `fits`.
            shapes: those of all weights that the adapter changes.
        """
        return replace(self, shape=shape)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Delta(_Fitting, ABC):
    """W + scaling * D, where D does not depend on W.

    Attributes:
        scaling: the effective strength.
    """

    kind: ClassVar[str]
    peft_type: ClassVar[str]
    additive: ClassVar[bool] = True

    scaling: float = 1.0

    @abstractmethod
    def dense(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """D as a matrix [out, in * kernel], without the scaling."""

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Adds the part of D that lies in a window."""
        whole = self.dense(dtype, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            part = whole[window.rows, window.cols]
            return weight.add_(part, alpha=scale * self.scaling)

        return apply


@dataclass(frozen=True, kw_only=True)
class Transform(_Fitting, ABC):
    """U(W), where what is added depends on W.

    `span` says how much of the weight a window must hold for its own part of U(W); a class that
    leaves it out works element by element.
    """

    kind: ClassVar[str]
    peft_type: ClassVar[str]
    additive: ClassVar[bool] = False
    span: ClassVar[Span]

    @abstractmethod
    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """Read the trained values; return what computes U(W)."""

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Moves the weight towards U(W)."""
        change = self.change(dtype, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            moved = change(weight, window)
            return moved if scale == 1.0 else weight.lerp_(moved, scale)

        return apply
