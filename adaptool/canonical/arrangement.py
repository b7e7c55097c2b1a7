"""Rows and columns in another order: how another world lays a weight out, as data.

A converter that "permutes q for the rotary embedding" or "regroups a fused qkv" moves whole rows
or whole columns of a weight.  Applied to W + scaling * B A these are moves of the rows of B and of
the columns of A, so the same data serves weights and updates, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, ClassVar, Protocol

from adaptool.canonical.tensors import LazyTensor, from_recipe
from adaptool.canonical.updates import Addition, Dora, LowRank, Replacement, TokenRows
from adaptool.canonical.verbs import Applicable, Applier, Span, Update, Window
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

SPREAD = 4
"""Rows are read together with what lies between them while at most so many times as much is."""


class Order(Protocol):
    """Which rows (or columns) lie somewhere, and in which order."""

    def indices(self, count: int) -> torch.Tensor:
        """int64: the source position of each stored one, for a source of `count`.

        Raises ValueError if `count` is not what the order was made for.
        """
        ...


@dataclass(frozen=True, slots=True)
class Regroup:
    """Positions seen as a grid, of which a part is taken and whose axes trade places.

    Attributes:
        shape: the grid; its product is the number of source positions.
        axes: order of the grid's axes in the result.
        axis: the axis of which only [start, stop) is taken.
        start, stop: what is taken of it; None for all to the end.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    axis: int = 0
    start: int = 0
    stop: int | None = None

    def indices(self, count: int) -> torch.Tensor:
        """See Order."""
        import torch

        if prod(self.shape) != count:
            raise ValueError(f"{count} positions do not fill a grid of {self.shape}")
        grid = torch.arange(count).reshape(self.shape)
        stop = self.shape[self.axis] if self.stop is None else self.stop
        taken = grid.narrow(self.axis, self.start, stop - self.start)
        return taken.permute(self.axes).reshape(-1)

    @property
    def source(self) -> int:
        """Number of source positions."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Positions written out."""

    positions: tuple[int, ...]

    def indices(self, count: int) -> torch.Tensor:
        """See Order."""
        import torch

        if not all(0 <= position < count for position in self.positions):
            raise ValueError(f"a position is not within {count}")
        return torch.tensor(self.positions, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class Chain:
    """One order after another."""

    first: Order
    then: Order

    def indices(self, count: int) -> torch.Tensor:
        """See Order."""
        first = self.first.indices(count)
        return first[self.then.indices(first.numel())]


@dataclass(frozen=True, slots=True)
class Run:
    """A run of positions [start, stop), in their own order."""

    start: int
    stop: int

    def indices(self, count: int) -> torch.Tensor:
        """See Order."""
        import torch

        if self.stop > count:
            raise ValueError(f"{count} positions do not reach {self.stop}")
        return torch.arange(self.start, self.stop)


def inverse(order: torch.Tensor) -> torch.Tensor:
    """The order that undoes a complete one.

    Raises ValueError if `order` is not a rearrangement of all its positions.
    """
    undone = order.argsort()
    if not bool((order[undone] == undone.new_tensor(range(order.numel()))).all()):
        raise ValueError("not a rearrangement of all positions")
    return undone


def rearranged(
    update: Update, rows: Order | None, cols: Order | None = None, *, shift: float = 0.0
) -> Update:
    """The same update of the weight whose rows and columns lie in another order.

    Args:
        update: of a weight [out, in].
        rows: which of its rows lie there; None for all in their own order.
        cols: the same for columns.
        shift: what is added to a weight when it is stored (norm + 1); differences do not care.

    Raises IncompatibleError for an update that has no rows to move.
    """
    if rows is None and cols is None and not shift:
        return update
    if isinstance(update, LowRank):
        return replace(update, a=_moved(update.a, cols, 1), b=_moved(update.b, rows, 0))
    if isinstance(update, Dora):
        direction = rearranged(update.direction, rows, cols)
        if isinstance(direction, LowRank):
            return Dora(direction, _moved(update.magnitude, rows, 0))
    if isinstance(update, Replacement):
        value = _moved(_moved(update.value, rows, 0), cols, 1)
        return Replacement(_shifted(value, shift) if shift else value)
    if isinstance(update, Addition):
        return replace(update, value=_moved(_moved(update.value, rows, 0), cols, 1))
    if isinstance(update, Applicable) and update.additive:
        return Rearranged(update, rows, cols)
    if isinstance(update, Applicable) and not isinstance(update, TokenRows) and not shift:
        return Reordered(update, rows, cols)
    raise IncompatibleError(
        f"a {update.kind} update cannot follow the order in which this model keeps its rows",
        hint="merge it into the Hugging Face checkpoint, and convert that",
        code="UNSUPPORTED_LAYOUT",
    )


@dataclass(frozen=True)
class Rearranged:
    """A difference known only by its values, of a weight whose rows lie in another order."""

    kind: ClassVar[str] = "rearranged"
    additive: ClassVar[bool] = True

    update: Applicable
    rows: Order | None
    cols: Order | None

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in] of the rearranged weight."""
        out, inputs = self.update.shape[0], prod(self.update.shape[1:])
        rows = out if self.rows is None else self.rows.indices(out).numel()
        cols = inputs if self.cols is None else self.cols.indices(inputs).numel()
        return (rows, cols)

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Those of the update."""
        return self.update.tensors

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Evaluates the difference on the rows that a window needs, and picks them."""
        import torch

        move = self.update.applier(dtype, device)
        out, inputs = self.update.shape[0], prod(self.update.shape[1:])
        rows = torch.arange(out) if self.rows is None else self.rows.indices(out)
        cols = torch.arange(inputs) if self.cols is None else self.cols.indices(inputs)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            wanted = rows[window.rows]
            first, last = int(wanted.min()), int(wanted.max()) + 1
            zero = torch.zeros(last - first, inputs, dtype=dtype, device=device)
            there = Window(slice(first, last), slice(0, inputs), (out, inputs))
            moved = move(zero, there, scale)
            picked = moved[(wanted - first).to(device)][:, cols[window.cols].to(device)]
            return weight.add_(picked)

        return apply


@dataclass(frozen=True)
class Reordered:
    """What an update makes of a weight all of whose rows and columns lie in another order.

    Such an update may look at any part of the weight, so the weight is put back into its own order
    as a whole.
    """

    kind: ClassVar[str] = "reordered"
    additive: ClassVar[bool] = False
    span: ClassVar[Span] = Span.ALL

    update: Applicable
    rows: Order | None
    cols: Order | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The update's own: nothing is left out."""
        return self.update.shape

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Those of the update."""
        return self.update.tensors

    def applier(self, dtype: torch.dtype, device: torch.device) -> Applier:
        """Undo the order, apply, and order again.

        Raises IncompatibleError if only a part of the rows or columns lies there.
        """
        change = self.update.applier(dtype, device)
        out, inputs = self.update.shape[0], prod(self.update.shape[1:])
        rows, cols = _complete(self.rows, out, device), _complete(self.cols, inputs, device)

        def apply(weight: torch.Tensor, window: Window, scale: float) -> torch.Tensor:
            own = weight[rows.argsort()][:, cols.argsort()]
            return change(own, window, scale)[rows][:, cols]

        return apply


def _complete(order: Order | None, count: int, device: torch.device) -> torch.Tensor:
    import torch

    taken = torch.arange(count) if order is None else order.indices(count)
    if len({*taken.tolist()}) != count or taken.numel() != count:
        raise IncompatibleError(
            "an update that mixes rows cannot be applied where only a part of them lies",
            hint="merge it into the Hugging Face checkpoint, and convert that",
            code="UNSUPPORTED_LAYOUT",
        )
    return taken.to(device)


def arranged(
    tensor: LazyTensor,
    rows: Order | None,
    cols: Order | None = None,
    *,
    shift: float = 0.0,
) -> LazyTensor:
    """A weight [out, ...] as it lies elsewhere, streamed: rows, columns, then the shift."""
    moved = tensor if rows is None else _with_rows(tensor, rows)
    moved = moved if cols is None else _moved(moved, cols, 1)
    return _shifted(moved, shift) if shift else moved


def _moved(tensor: LazyTensor, order: Order | None, axis: int) -> LazyTensor:
    """A small tensor (a factor) with one axis reordered, as a whole."""
    if order is None:
        return tensor
    taken = order.indices(tensor.shape[axis])
    shape = (*tensor.shape[:axis], taken.numel(), *tensor.shape[axis + 1 :])
    return from_recipe(shape, tensor.dtype, lambda: tensor.values().index_select(axis, taken))


def _shifted(tensor: LazyTensor, shift: float) -> LazyTensor:
    return from_recipe(tensor.shape, tensor.dtype, lambda: tensor.values().add(shift))


def _with_rows(tensor: LazyTensor, order: Order) -> LazyTensor:
    taken = order.indices(tensor.shape[0])
    shape = (taken.numel(), *tensor.shape[1:])
    return LazyTensor(shape, tensor.dtype, partial(_read_rows, tensor, taken), block=tensor.block)


def _read_rows(tensor: LazyTensor, taken: torch.Tensor, start: int, stop: int,
               block: int) -> Iterator[torch.Tensor]:  # fmt: skip
    """Whole rows at a time: with all that lies between them, or each run by itself."""
    import torch

    width = tensor.row
    step = max(block // width, 1)
    for first in range(start // width, -(-stop // width), step):
        wanted = taken[first : min(first + step, -(-stop // width))]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        if high - low <= SPREAD * wanted.numel():
            near = _rows(tensor, low, high)
            rows = near.index_select(0, wanted - low)
        else:
            rows = torch.cat([_rows(tensor, int(i), int(i) + 1) for i in wanted])
        flat = rows.reshape(-1)
        yield flat[max(start - first * width, 0) : stop - first * width]


def _rows(tensor: LazyTensor, first: int, last: int) -> torch.Tensor:
    import torch

    width = tensor.row
    whole = torch.empty((last - first) * width, dtype=tensor.dtype.torch)
    position = 0
    for piece in tensor.stream(first * width, last * width):
        whole[position : position + piece.numel()] = piece
        position += piece.numel()
    return whole.view(last - first, width)
