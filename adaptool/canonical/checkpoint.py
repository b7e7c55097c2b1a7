"""A model as named tensors, and where a module's weight sits in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adaptool.canonical.arrangement import Chain, Order, Run
from adaptool.canonical.graph import Graph
from adaptool.canonical.provenance import Provenance
from adaptool.canonical.tensors import LazyTensor
from adaptool.errors import JSON


@dataclass(frozen=True, slots=True)
class Placement:
    """Where (a part of) a site's weight lies in a checkpoint, and how it is laid out there.

    The stored tensor is seen as a matrix of `prod(shape[:-1])` or, for a convolution,
    `shape[0]` rows. An update of shape [out, in] lands in the band `rows` of it.

    Attributes:
        tensor: name of the stored tensor.
        slot: index in the first dimension of a stored stack [slots, rows, cols].
        rows: stored rows (of the slot) that hold it, or None for all of them.
        cols: stored columns that hold it, or None for all: a band of a packed [in, out].
        transposed: the band holds the transpose, [in, out] (GPT-2, embeddings, ONNX).
        part: rows [start, stop) of the update that lie here, or None for all.
        expert: index of the expert whose update lies here, for stacked experts.
        row_order, col_order: which of the update's rows (of `part`) and columns lie here, and in
            which order; None for all as they are. The transpose comes after.
        shift: what was added to the weight when it was stored (norm + 1).
        unit: the model multiplies what is stored by this.
    """

    tensor: str
    slot: int | None = None
    rows: tuple[int, int] | None = None
    transposed: bool = False
    part: tuple[int, int] | None = None
    expert: int | None = None
    row_order: Order | None = None
    col_order: Order | None = None
    shift: float = 0.0
    unit: float = 1.0
    cols: tuple[int, int] | None = None

    @property
    def taken(self) -> Order | None:
        """Which of the update's rows lie here, in order; None for all as they are."""
        if self.part is None:
            return self.row_order
        run = Run(*self.part)
        return run if self.row_order is None else Chain(run, self.row_order)


@dataclass(frozen=True)
class Checkpoint:
    """A model: named tensors, wherever and however they are stored.

    Attributes:
        tensors: name -> tensor, in the order in which they are written.
        container: name of the container it was opened with.
        provenance: where it came from.
        config: the model's config.json, or what else the file states as plain values.
        metadata: what the container itself carries, in its own types: strings, typed values.
        shards: tensor name -> file name, as it was stored.
        graph: the computation, where the file holds one (ONNX).
        placements: where parameters lie, by the names of the model that it was made from, as far
            as that was found out by comparing values.
        side_files: name -> path (or content) of what travels along: tokenizer, templates.
    """

    tensors: Mapping[str, LazyTensor]
    container: str
    provenance: Provenance
    config: Mapping[str, JSON] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    shards: Mapping[str, str] = field(default_factory=dict)
    graph: Graph | None = None
    placements: Mapping[str, Placement] = field(default_factory=dict)
    side_files: Mapping[str, Path | bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
