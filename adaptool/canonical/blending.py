"""Several low-rank updates of one weight, blended value by value: a rule decides, not a sum.

Such a blend (signs elected, small values trimmed) is of full rank in general. It is never stored:
what the rule has to know of a whole matrix is found once, and then each window of the weight is
computed from the rows and columns of the factors that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, Protocol

from adaptool.canonical.tensors import BLOCK, LazyTensor
from adaptool.canonical.updates import LowRank
from adaptool.canonical.verbs import Applier, Window

if TYPE_CHECKING:
    import torch

Blocks = Callable[[], Iterator["torch.Tensor"]]
"""Consecutive blocks of rows of a matrix; each call starts anew."""

Blend = Callable[[Sequence["torch.Tensor"], Window], "torch.Tensor"]
"""`blend(values, window)`: of each operand the values [rows, cols] of the window, in order, not
to be changed; the result is of the same shape, and new."""


@dataclass(frozen=True, slots=True)
class Operand:
    """One matrix that goes into a blend.

    Attributes:
        blocks: its values, unweighted.
        shape: (rows, columns).
        weight: how strong it is.
        key: names its random numbers; no other operand has it.
    """

    blocks: Blocks
    shape: tuple[int, int]
    weight: float
    key: int


class Rule(Protocol):
    """How the values of several matrices at one place become one value."""

    @property
    def whole_rows(self) -> bool:
        """Whether `blend` must see every row from end to end."""
        ...

    def prepare(self, operands: Sequence[Operand]) -> Blend:
        """Find what must be known of the whole matrices (thresholds); return what blends."""
        ...


@dataclass(frozen=True)
class Blended:
    """W + scale * rule(D_1, ..., D_n), D_i = scaling_i * B_i A_i, weights known to the rule.

    Attributes:
        parts: updates of one weight, all of one shape.
        weights: one for each part.
        rule: what becomes of their values.
        keys: one for each part, see `Operand.key`.
    """

    kind: ClassVar[str] = "blended"
    additive: ClassVar[bool] = True

    parts: tuple[LowRank, ...]
    weights: tuple[float, ...]
    rule: Rule
    keys: tuple[int, ...]
    _prepared: list[Blend] = field(default_factory=list, compare=False, repr=False)
    _lock: Lock = field(default_factory=Lock, compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in, *kernel]."""
        return self.parts[0].shape

    @property
    def embedding(self) -> bool:
        """Whether the weight is stored as [vocabulary, dimension]; see `LowRank`."""
        return self.parts[0].embedding

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The factors of all parts, numbered."""
        return {
            f"{role}{number}": tensor
            for number, part in enumerate(self.parts)
            for role, tensor in part.tensors.items()
        }

    @property
    def matrix(self) -> tuple[int, int]:
        """(out, in * kernel)."""
        return self.shape[0], prod(self.shape[1:])

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Reads the factors; the rule looks at whole matrices the first time only."""
        factors = [_strong_factors(part, dtype, device) for part in self.parts]
        blend = self._blend(factors)
        whole = slice(0, self.matrix[1])

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            cols = whole if self.rule.whole_rows else window.cols
            values = [b[window.rows] @ a[:, cols] for a, b in factors]
            result = blend(values, Window(window.rows, cols, window.shape))
            return weight.add_(result[:, window.cols] if cols != window.cols else result,
                               alpha=scale)  # fmt: skip

        return apply

    def blocks(self) -> Iterator[torch.Tensor]:
        """The blend itself in float32, in blocks of rows."""
        import torch

        rows, cols = self.matrix
        apply = self.applier(torch.float32, torch.device("cpu"))
        for band in _bands(rows, cols):
            block = torch.zeros(band.stop - band.start, cols)
            yield apply(block, Window(band, slice(0, cols), (rows, cols)), 1.0)

    def _blend(self, factors: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Blend:
        with self._lock:
            if not self._prepared:
                operands = [
                    Operand(partial(_products, a, b), self.matrix, weight, key)
                    for (a, b), weight, key in zip(factors, self.weights, self.keys, strict=True)
                ]
                self._prepared.append(self.rule.prepare(operands))
            return self._prepared[0]


def blend_matrices(rule: Rule, matrices: Sequence[torch.Tensor], weights: Sequence[float],
                   keys: Sequence[int]) -> torch.Tensor:  # fmt: skip
    """The blend of matrices that are in memory, all of one shape [rows, cols].

    Raises ValueError if there are none, or their shapes differ.
    """
    if len({matrix.shape for matrix in matrices}) != 1:
        raise ValueError("matrices of one shape blend")
    rows, cols = matrices[0].shape
    operands = [
        Operand(lambda matrix=matrix: iter((matrix,)), (rows, cols), weight, key)  # type: ignore[misc]
        for matrix, weight, key in zip(matrices, weights, keys, strict=True)
    ]
    blend = rule.prepare(operands)
    return blend(matrices, Window(slice(0, rows), slice(0, cols), (rows, cols)))


def _strong_factors(part: LowRank, dtype: torch.dtype,
                    device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A and scaling * B."""
    a, b = part.factors(dtype, device)
    return a, b * part.scaling


def _products(a: torch.Tensor, b: torch.Tensor) -> Iterator[torch.Tensor]:
    for band in _bands(b.shape[0], a.shape[1]):
        yield b[band] @ a


def _bands(rows: int, cols: int) -> Iterator[slice]:
    """Runs of rows that make blocks of about BLOCK values."""
    step = max(BLOCK // cols, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
