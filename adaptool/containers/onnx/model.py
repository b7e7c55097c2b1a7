"""What the writer must know of the model that a checkpoint was opened from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adaptool.canonical import Checkpoint, LazyTensor
from adaptool.canonical.graph import Graph
from adaptool.containers.onnx.holders import Holder
from adaptool.containers.onnx.weights import QuantisedWeight
from adaptool.errors import IncompatibleError
from adaptool.storage import SourceFile

if TYPE_CHECKING:
    from onnx import ModelProto

MODEL = "onnx:model"
"""The key of a checkpoint's metadata that holds its Model; every other key is a metadata_prop."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model as it was opened. None of it is changed.

    Attributes:
        proto: the parsed file without what is large in it.
        source: the file.
        holders: every tensor, by its key: the value's name, behind its graph's if it is not alone.
        quantised: packed tensor's key -> the weight that it is a part of.
        tensors: what the checkpoint showed at first.
        graph: the same.
        properties: metadata_props.
    """

    proto: ModelProto
    source: SourceFile
    holders: Mapping[str, Holder]
    quantised: Mapping[str, QuantisedWeight] = field(default_factory=dict)
    tensors: Mapping[str, LazyTensor] = field(default_factory=dict)
    graph: Graph = field(default_factory=lambda: Graph(()))
    properties: Mapping[str, str] = field(default_factory=dict)


def model_of(checkpoint: Checkpoint) -> Model:
    """The model that a checkpoint was opened from.

    Raises IncompatibleError for one that did not come out of an ONNX file.
    """
    found = checkpoint.metadata.get(MODEL)
    if isinstance(found, Model):
        return found
    raise IncompatibleError(
        f"{checkpoint.provenance.name}: has no ONNX graph to be written with",
        code="NOT_EXPRESSIBLE",
    )
