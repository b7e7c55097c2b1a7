"""Any update, with trained norms of the rows or of the columns of its result.

W' = m * V / |V|, V = U(W): DoRA (arXiv:2402.09353, eq. 5) on LoHa, on LoKr, or with one norm for
each input channel (LyCORIS' `wd_on_output=False`).  The norm is that of the changed weight.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, ClassVar

from adaptool.canonical import Applicable, LazyTensor, Site, Update, Window
from adaptool.canonical.verbs import Fittable, Span
from adaptool.tuners._forms import Change, Transform

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class _Decomposed(Transform):
    """m * V / |V|.

    Attributes:
        tensors: `dora_scale` and the inner update's own.
        inner: V = inner(W).
    """

    inner: Applicable

    @property
    def magnitude(self) -> LazyTensor:
        """m, one value for each row or input channel."""
        return self.tensors["dora_scale"]

    @abstractmethod
    def _counts(self, shape: tuple[int, ...]) -> int:
        """How many norms a weight of that shape has."""

    @abstractmethod
    def _normalised(self, moved: torch.Tensor, m: torch.Tensor, window: Window) -> torch.Tensor:
        """The result in a window, given V."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the inner update fits, and each norm has its row or channel."""
        if len(shape) < 2 or self.magnitude.count != self._counts(shape):
            return False
        inner = self.inner
        return inner.fits(shape) if isinstance(inner, Fittable) else inner.shape == shape

    def fitted(self, shape: tuple[int, ...], shapes: Mapping[Site, tuple[int, ...]]) -> Update:
        """With the inner update fitted as well."""
        inner = self.inner
        if isinstance(inner, Fittable):
            made = inner.fitted(shape, shapes)
            inner = made if isinstance(made, Applicable) else inner
        return replace(self, shape=shape, inner=inner)

    def change(self, dtype: torch.dtype, device: torch.device) -> Change:
        """The inner change, then the norms."""
        move = self.inner.applier(dtype, device)
        m = self.magnitude.values().reshape(-1).to(device, dtype)

        def change(weight: torch.Tensor, window: Window) -> torch.Tensor:
            return self._normalised(move(weight.clone(), window, 1.0), m, window)

        return change


@dataclass(frozen=True, kw_only=True)
class OutputDecomposed(_Decomposed):
    """One norm for each row."""

    kind: ClassVar[str] = "decomposed"
    span: ClassVar[Span] = Span.ROWS

    def _counts(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def _normalised(self, moved: torch.Tensor, m: torch.Tensor, window: Window) -> torch.Tensor:
        moved *= (m[window.rows] / moved.norm(dim=1))[:, None]
        return moved


@dataclass(frozen=True, kw_only=True)
class InputDecomposed(_Decomposed):
    """One norm for each input channel, of all its rows and places in the kernel."""

    kind: ClassVar[str] = "input-decomposed"
    span: ClassVar[Span] = Span.ALL

    def _counts(self, shape: tuple[int, ...]) -> int:
        return shape[1]

    def _normalised(self, moved: torch.Tensor, m: torch.Tensor, window: Window) -> torch.Tensor:
        grid = moved.reshape(window.shape[0], self.shape[1], prod(self.shape[2:]))
        grid *= (m / grid.norm(dim=(0, 2)))[:, None]
        return grid.flatten(1)
