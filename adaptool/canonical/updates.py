"""The kinds of updates that most adapters consist of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

from adaptool.canonical.tensors import LazyTensor
from adaptool.canonical.verbs import Applier, Update, Window

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LowRank:
    """W + scaling * B A   (LoRA, arXiv:2106.09685, eq. 3).

    Attributes:
        a: [rank, in, *kernel].
        b: [out, rank].
        scaling: the effective strength, whatever alpha, rank pattern or rsLoRA it came from.
        embedding: the module looks rows up: `a` is [rank, vocabulary], `b` [dimension, rank],
            and the weight is stored as [vocabulary, dimension].
    """

    kind: ClassVar[str] = "low-rank"
    additive: ClassVar[bool] = True

    a: LazyTensor
    b: LazyTensor
    scaling: float
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, *kernel]."""
        return (self.b.shape[0], *self.a.shape[1:])

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Both factors."""
        return {"a": self.a, "b": self.b}

    def scaled(self, scale: float) -> LowRank:
        """The same update `scale` times as strong; the factors stay bit for bit."""
        return replace(self, scaling=self.scaling * scale)

    def factors(
        self, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A as [rank, in * kernel] and B as [out, rank], in memory, in `dtype`."""
        a = self.a.values().reshape(self.rank, -1).to(device, dtype)
        b = self.b.values().reshape(-1, self.rank).to(device, dtype)
        return a, b

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """One fused multiply-add per window; B A is never formed."""
        a, b = self.factors(dtype, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            factor = scale * self.scaling
            return weight.addmm_(b[window.rows], a[:, window.cols], alpha=factor)

        return apply


@dataclass(frozen=True)
class Dora:
    """m * V / |V| by row, V = W + scaling * B A   (DoRA, arXiv:2402.09353, eq. 5).

    Attributes:
        direction: the low-rank part.
        magnitude: [out].
        norms: [out], |V| by row where a caller measured it (a weight stored transposed
            is streamed by columns, so that no window holds whole rows); else None.
    """

    kind: ClassVar[str] = "dora"
    additive: ClassVar[bool] = False

    direction: LowRank
    magnitude: LazyTensor
    norms: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, *kernel]."""
        return self.direction.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Both factors and the magnitude."""
        return {**self.direction.tensors, "magnitude": self.magnitude}

    def measured(self, windows: Iterable[tuple[torch.Tensor, Window]], dtype: torch.dtype,
                 device: torch.device) -> Dora:  # fmt: skip
        """This update with |V| accumulated over windows that together cover the weight."""
        import torch

        move = self.direction.applier(dtype, device)
        squares = torch.zeros(self.shape[0], dtype=torch.float64, device=device)
        for weight, window in windows:
            squares[window.rows] += move(weight, window, 1.0).double().square().sum(dim=1)
        return replace(self, norms=squares.sqrt().to(dtype))

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Normalises by the row norm of the window, or by the measured norms."""
        move = self.direction.applier(dtype, device)
        magnitude = self.magnitude.values().reshape(-1).to(device, dtype)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            moved = move(weight.clone(), window, 1.0)
            if self.norms is not None:
                norm = self.norms[window.rows]
            elif window.has_whole_rows:
                norm = moved.norm(dim=1)
            else:
                raise ValueError("DoRA needs whole rows or measured norms")
            moved *= (magnitude[window.rows] / norm)[:, None]
            return moved if scale == 1.0 else weight.lerp_(moved, scale)

        return apply


@dataclass(frozen=True)
class Replacement:
    """U(W) = V: a trained copy of the whole parameter (modules_to_save, biases, heads)."""

    kind: ClassVar[str] = "replacement"
    additive: ClassVar[bool] = False

    value: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's own shape."""
        return self.value.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The trained copy."""
        return {"value": self.value}

    @cached_property
    def _width(self) -> int:
        return prod(self.shape[1:])

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Streams the trained copy next to the weight."""
        cols = self._width

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            first, last = window.rows.start * cols, window.rows.stop * cols
            parts = [part.to(device, dtype, copy=True) for part in self.value.stream(first, last)]
            value = _joined(parts).reshape(-1, cols)[:, window.cols]
            return value if scale == 1.0 else weight.lerp_(value, scale)

        return apply


@dataclass(frozen=True)
class Dense:
    """W + scaling * d, d with the parameter's own shape; what it is in a file, its kinds say."""

    kind: ClassVar[str]
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

    def scaled(self, scale: float) -> Self:
        """The same difference `scale` times as strong."""
        return replace(self, scaling=self.scaling * scale)

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Adds the rows of the window."""
        value = self.value.values().to(device, dtype)
        value = value.reshape(value.shape[0] if value.dim() else 1, -1)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            part = value[window.rows, window.cols]
            return weight.add_(part, alpha=scale * self.scaling)

        return apply


@dataclass(frozen=True)
class Addition(Dense):
    """A dense difference that PEFT can hold: the trained bias of `lora_bias`."""

    kind: ClassVar[str] = "addition"


@dataclass(frozen=True)
class TokenRows:
    """Rows of an embedding, replaced: U(W)[indices] = values (PEFT's trainable tokens).

    Attributes:
        indices: token ids, one per row of `values`.
        values: [len(indices), dimension].
    """

    kind: ClassVar[str] = "token-rows"
    additive: ClassVar[bool] = False

    indices: tuple[int, ...]
    values: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """[at least the largest index + 1, dimension]: the vocabulary is the base's."""
        return (max(self.indices, default=-1) + 1, *self.values.shape[1:])

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The trained rows."""
        return {"rows": self.values}

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Touches only the rows of the window."""
        values = self.values.values().to(device, dtype)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            for position, index in enumerate(self.indices):
                if window.rows.start <= index < window.rows.stop:
                    row = weight[index - window.rows.start]
                    value = values[position, window.cols]
                    row.copy_(value) if scale == 1.0 else row.lerp_(value, scale)
            return weight

        return apply


@dataclass(frozen=True)
class Rebased:
    """An update that was trained on its own copy of the weight (a resized embedding).

    U(W) = update(value); the copy is the base, so it is taken in full at every scale.
    """

    kind: ClassVar[str] = "rebased"

    value: LazyTensor
    update: Update

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the copy."""
        return self.value.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The copy and the update's tensors."""
        return {"value": self.value, **self.update.tensors}


@runtime_checkable
class LowRankable(Update, Protocol):
    """An update that is a plain low-rank one, written down in another way."""

    tells_shape: ClassVar[bool]
    """Its tensors tell the shape of its weight, so that no base has to."""

    def low_rank(self) -> LowRank | None:
        """The same update as A and B, exactly; None if it has no such form.

        Nor has it one before a base has told the shape, unless it `tells_shape`.
        """
        ...


@runtime_checkable
class RankBounded(Update, Protocol):
    """An update that looks at the weight and adds a matrix of low rank to it."""

    @property
    def most_rank(self) -> int:
        """U(W) - W has at most this rank, whatever W is."""
        ...


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(parts)
