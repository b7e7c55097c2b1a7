"""Where parameters lie in a graph, found by comparing values with the original checkpoint.

The first and last rows of a weight are looked for among the stored tensors, as rows or as columns,
whole or in a band of a packed one, exact or as the nearest by far (a quantised copy).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import inf, prod
from typing import TYPE_CHECKING

from adaptool.architectures.naming import INPUT_EMBEDDINGS, normal
from adaptool.architectures.onnx.placing import OnnxPlan
from adaptool.architectures.placing import Plan
from adaptool.canonical import Checkpoint, LazyTensor, Placement, Site
from adaptool.errors import IncompatibleError

if TYPE_CHECKING:
    import torch

ROWS = 16
"""Rows that are compared, first and last ones, and columns."""

NEAR = 0.6
"""Largest relative distance of a stored copy: 2-bit blocks are off by 0.5, other weights by 1.4."""

APART = 1.5
"""So many times farther the next candidate must be."""

_SHIFTS = (0.0, 1.0)
"""What an exporter may have added to a norm's weight (Gemma)."""


@dataclass(frozen=True)
class _Wanted:
    """A weight of the original: its shape, and its first and last rows."""

    shape: tuple[int, ...]
    ends: torch.Tensor


@dataclass(frozen=True)
class _Candidate:
    place: Placement
    distance: float


def matched(checkpoint: Checkpoint, original: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The model with the places of parameters, found by their values in the original.

    Args:
        checkpoint: an ONNX model.
        original: what it was exported from; any container with Hugging Face names.
        names: parameters to look for; those that the original lacks are left to names.

    Raises IncompatibleError for a parameter that is nowhere, or in several places.
    """
    search = _Search(checkpoint, OnnxPlan(checkpoint, {}))
    sources = Plan(original, {})
    found: dict[str, Placement] = {}
    for name in names:
        stored = sources.find(name)
        if stored is None or not _is_weight(original.tensors[stored]):
            continue
        place = search.place(name, original.tensors[stored])
        if place is not None:
            found[normal(name)] = place
    return replace(checkpoint, placements={**checkpoint.placements, **found})


def same_values(checkpoint: Checkpoint, one: Placement, other: Placement) -> bool:
    """Whether two matrices of a model are one, as far as a corner of each tells."""
    search = _Search(checkpoint, OnnxPlan(checkpoint, {}))
    first, second = (search.ends(place) for place in (one, other))
    return first.shape == second.shape and bool((first == second).all())


class _Search:
    """The stored tensors of a model, ready to be looked through."""

    def __init__(self, checkpoint: Checkpoint, plan: OnnxPlan) -> None:
        self._tensors = checkpoint.tensors
        self._plan = plan
        self._top = cache(self._read_top)
        self._edge = cache(self._read_edge)
        self._ends = cache(self._read_ends)
        self._matrices = [n for n, t in self._tensors.items()
                          if t.dtype.is_floating and len(t.shape) >= 2 and t.count > 1]  # fmt: skip
        self._vectors = [n for n, t in self._tensors.items()
                         if t.dtype.is_floating and len(t.shape) == 1]  # fmt: skip
        self._looked_up = {use.tensor for use in plan.uses if use.looked_up}

    def place(self, name: str, weight: LazyTensor) -> Placement | None:
        """Where a weight lies: where its name says, if the values agree, else where they are.

        None for a vector that stands in several places and whose name tells nothing.
        """
        told = self._told(name)
        if len(weight.shape) < 2:
            return self._place_vector(weight, told)
        wanted = _Wanted(weight.shape, _ends(weight))
        if told is not None and self._distance(wanted, told) < NEAR:
            return told
        candidates = sorted(self._candidates(wanted), key=lambda one: one.distance)
        near = [one for one in candidates if one.distance < NEAR]
        if not near:
            raise IncompatibleError(
                f"{name}: no tensor of {self._plan.checkpoint.provenance.name} holds this weight",
                hint="was the model exported from this checkpoint?",
                code="NO_MATCH",
                details={"nearest": [c.place.tensor for c in candidates[:3]]},
            )
        best = [one for one in near if one.distance <= max(near[0].distance, 1e-6) * APART]
        if len(best) > 1:  # a tied weight may be stored once as it is looked up, once as a head
            embedding = _is_looked_up(name)
            best = [c for c in best if (c.place.tensor in self._looked_up) == embedding] or best
        if len(best) > 1:
            raise IncompatibleError(
                f"{name} could be {' or '.join(c.place.tensor for c in best[:5])}: their values "
                "are the same",
                code="AMBIGUOUS_NAME",
            )
        return best[0].place

    def _told(self, name: str) -> Placement | None:
        module, _, parameter = name.rpartition(".")
        try:
            places = self._plan.located(Site(module, parameter))
        except IncompatibleError:
            return None
        return places[0] if len(places) == 1 and places[0].part is None else None

    # -- matrices ---------------------------------------------------------------------------------

    def _candidates(self, weight: _Wanted) -> Iterator[_Candidate]:
        out, inputs = weight.shape[0], prod(weight.shape[1:])
        for name in self._matrices:
            tensor = self._tensors[name]
            height, width = tensor.shape[0], tensor.row
            flat = len(tensor.shape) == 2 == len(weight.shape)
            if tensor.shape == weight.shape:
                yield self._measured(weight, Placement(name))
            if flat and (height, width) == (inputs, out):
                yield self._measured(weight, Placement(name, transposed=True))
            elif flat and height == inputs and width > out:
                yield self._band(weight, Placement(name, transposed=True), self._top(name).T)
            if flat and width == inputs and height > out:
                yield self._band(weight, Placement(name), self._edge(name))

    def _measured(self, weight: _Wanted, place: Placement) -> _Candidate:
        return _Candidate(place, self._distance(weight, place))

    def _distance(self, weight: _Wanted, place: Placement) -> float:
        if self._plan.shape_in(place) != weight.shape:
            return inf
        return _apart(self.ends(place), weight.ends)

    def ends(self, place: Placement) -> torch.Tensor:
        """First and last rows of torch's weight as a placement holds it, their first columns."""
        import torch

        tensor = self._tensors[place.tensor]
        if place.transposed:
            columns = self._top(place.tensor)[:, slice(*(place.cols or (None,)))]
            return torch.cat([columns[:, :ROWS], columns[:, -ROWS:]], dim=1).T
        return self._ends(place.tensor, *(place.rows or (0, tensor.shape[0])))

    def _band(self, weight: _Wanted, place: Placement, outputs: torch.Tensor) -> _Candidate:
        """The band of a packed tensor whose first row is nearest to the weight's.

        `outputs` are first columns of all rows that torch would have: [out, ROWS or fewer].
        """
        out = weight.shape[0]
        starts = outputs[: outputs.shape[0] - out + 1]
        first = int((starts - weight.ends[0]).norm(dim=1).argmin())
        band = (first, first + out)
        return self._measured(
            weight, replace(place, cols=band) if place.transposed else replace(place, rows=band)
        )

    def _read_ends(self, name: str, first: int, last: int) -> torch.Tensor:
        return _ends(self._tensors[name], first, last)

    def _read_top(self, name: str) -> torch.Tensor:
        """The first stored rows, whole: [ROWS or fewer, width]."""
        tensor = self._tensors[name]
        return _rows(tensor, 0, min(ROWS, tensor.shape[0]))

    def _read_edge(self, name: str) -> torch.Tensor:
        """The first columns of all stored rows: [height, ROWS or fewer]; reads the whole tensor."""
        import torch

        tensor = self._tensors[name]
        width = tensor.row
        parts = [
            piece.float().view(-1, width)[:, :ROWS].clone() for piece in tensor.stream(align=width)
        ]
        return torch.cat(parts)

    # -- vectors ----------------------------------------------------------------------------------

    def _place_vector(self, weight: LazyTensor, told: Placement | None) -> Placement | None:
        wanted = weight.values().float().reshape(-1)
        if told is not None:
            for shift in _SHIFTS:
                if self._holds(told, wanted + shift):
                    return replace(told, shift=shift)
        found = [
            replace(Placement(tensor), shift=shift)
            for tensor in self._vectors
            for shift in _SHIFTS
            if self._holds(Placement(tensor), wanted + shift)
        ]
        return found[0] if len(found) == 1 else None

    def _holds(self, place: Placement, wanted: torch.Tensor) -> bool:
        tensor = self._tensors[place.tensor]
        if len(tensor.shape) != 1:
            return False
        values = tensor.values().float()[slice(*(place.rows or (None,)))]
        # a 16-bit copy is as near as that type allows
        return values.shape == wanted.shape and _apart(values, wanted) < 1e-2


def _is_weight(tensor: LazyTensor) -> bool:
    return tensor.dtype.is_floating and tensor.count > 1 and bool(tensor.shape)


def _is_looked_up(name: str) -> bool:
    return "embed" in name or normal(name) in INPUT_EMBEDDINGS


def _rows(tensor: LazyTensor, first: int, last: int) -> torch.Tensor:
    """Rows [first, last) of a stored matrix as float32, whole."""
    import torch

    width = tensor.row
    pieces = tensor.stream(first * width, last * width, align=width)
    return torch.cat([piece.float().clone() for piece in pieces]).view(-1, width)


def _ends(tensor: LazyTensor, first: int = 0, last: int | None = None) -> torch.Tensor:
    """Float32 [2 * ROWS or fewer, ROWS or fewer]: first and last of the rows, first columns."""
    import torch

    last = tensor.shape[0] if last is None else last
    count = min(ROWS, last - first)
    ends = [_rows(tensor, first, first + count), _rows(tensor, last - count, last)]
    return torch.cat(ends)[:, :ROWS]


def _apart(one: torch.Tensor, wanted: torch.Tensor) -> float:
    """Distance over the norm of what is wanted; infinite for different shapes."""
    if one.shape != wanted.shape:
        return inf
    norm = float(wanted.norm())
    return float((one - wanted).norm()) / norm if norm else float(one.norm())
