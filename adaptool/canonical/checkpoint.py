"""A model as named tensors, and where a module's weight sits in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
        rows: stored rows that hold it, or None for all of them.
        transposed: the band holds the transpose, [in, out] (GPT-2, embeddings, ONNX).
        part: rows [start, stop) of the update that lie here, or None for all.
        expert: index of the expert whose update lies here, for stacked experts.
    """

    tensor: str
    rows: tuple[int, int] | None = None
    transposed: bool = False
    part: tuple[int, int] | None = None
    expert: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model: named tensors, wherever and however they are stored.

    Attributes:
        tensors: name -> tensor, in the order in which they are written.
        container: name of the container it was opened with.
        provenance: where it came from.
        config: the model's config.json, or empty.
        metadata: free strings that the container carries.
        shards: tensor name -> file name, as it was stored.
        side_files: name -> path (or content) of what travels along: tokenizer, templates.
    """

    tensors: Mapping[str, LazyTensor]
    container: str
    provenance: Provenance
    config: Mapping[str, JSON] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, str] = field(default_factory=dict)
    side_files: Mapping[str, Path | bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())
