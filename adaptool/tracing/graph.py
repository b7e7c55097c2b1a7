"""A PyTorch model as an ONNX graph, by torch's own exporter."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import DType
from adaptool.errors import IncompatibleError, VerificationError
from adaptool.tracing.masks import seeing_masks
from adaptool.tracing.naming import forget_tracing, name_by_modules
from adaptool.tracing.ports import Port, Ports, caching, kept_in
from adaptool.tracing.trimming import COUNT, KEPT, count_rows

if TYPE_CHECKING:
    import onnx_ir
    import torch
    from transformers import PreTrainedModel

OPSET = 18
"""The oldest that torch writes without converting; every kernel of ONNX Runtime Web knows it."""

_SAMPLE = {
    "batch_size": 2,
    "sequence_length": 3,
    "past_sequence_length": 5,
    "total_sequence_length": 8,
    KEPT: 2,
}
"""Sizes to trace with: none is 0 or 1, which the tracer would take for constants."""

_ROWS = Port(COUNT, (KEPT,), DType.INT64)
"""What is traced in place of a count: the rows themselves, whose number may then change."""

_ONNX_NAMES = {DType.FLOAT32: "FLOAT", DType.FLOAT16: "FLOAT16", DType.INT64: "INT64"}

DATA = "_data"
"""What transformers.js appends to the name of a graph's file for the file of its weights."""

INLINE_LIMIT = 1_900_000_000
"""Bytes of weights that a graph's own file may hold; protobuf ends at 2 GiB."""


def export_graph(model: PreTrainedModel, ports: Ports, path: Path) -> None:
    """Write the graph of `model` to `path`, its weights beside it if they are many.

    Raises:
        IncompatibleError: torch cannot trace the model.
        VerificationError: the graph is not what was asked for.
    """
    import torch

    inputs, outputs = ports
    traced = [_ROWS if port.name == COUNT else port for port in inputs]
    sample = [_sample(port) for port in traced]
    moving = tuple(dict.fromkeys(port.moving, torch.export.Dim.DYNAMIC) for port in traced)
    try:
        with torch.no_grad(), seeing_masks():
            program = torch.onnx.export(
                _wrap(model, ports), tuple(sample), dynamo=True, verbose=False,
                opset_version=OPSET, dynamic_shapes={"values": moving},
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in outputs],
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise IncompatibleError(
            f"torch {torch.__version__} cannot trace {type(model).__name__}:"
            f" {str(cause).strip().partition(chr(10))[0]}",
            code="NOT_TRACED",
        ) from None
    if program is None:
        raise TypeError("torch.onnx.export gives a program when it is not given a file")
    graph = program.model
    if _ROWS in traced:
        count_rows(graph.graph)
    _state(graph.graph.inputs, inputs)
    _state(graph.graph.outputs, outputs)
    name_by_modules(graph.graph)
    forget_tracing(graph)
    save_graph(graph, path)


def save_graph(model: onnx_ir.Model, path: Path) -> None:
    """Write a graph; weights beyond `INLINE_LIMIT` go into a file beside it, `_data` appended."""
    import onnx_ir

    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    onnx_ir.save(model, path, external_data=path.name + DATA if size > INLINE_LIMIT else None)


def _sample(port: Port) -> torch.Tensor:
    """Values to trace with; a mask with a gap, since a full one may be optimised away."""
    values = port.empty(_SAMPLE)
    if port.name == "attention_mask":
        values[:] = 1
        values[0, 0] = 0
    return values


def _wrap(model: PreTrainedModel, ports: Ports) -> torch.nn.Module:
    """The model as a function of tensors to tensors, in the order of the ports."""
    import torch
    from transformers import DynamicCache

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            plain = len(ports.plain)
            given = dict(zip((port.name for port in ports.plain), values[:plain], strict=True))
            # Without the config every layer keeps all tokens, those with a sliding window too:
            # the mask then says what a window shows, and all caches grow alike.
            cache = DynamicCache()
            for layer in range(len(ports.past) // 2):
                key, value = values[plain + 2 * layer : plain + 2 * layer + 2]
                cache.update(key, value, layer)
            options = caching(model, cache) if ports.past else _uncached(model)
            if COUNT in given:
                options["logits_to_keep"] = given.pop(COUNT)
            answer = self.model(**given, **options)
            return (*(answer[port.name].float() for port in ports.outputs), *kept_in(cache))

    return Wrapper().eval()


def _uncached(model: PreTrainedModel) -> dict[str, object]:
    """What a decoder must be told when it is used as an encoder."""
    return (
        {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    )


def _state(values: Sequence[onnx_ir.Value], ports: tuple[Port, ...]) -> None:
    """Write dims as the ports say; refuse what is not so."""
    import onnx_ir

    names, wanted = [value.name for value in values], [port.name for port in ports]
    if names != wanted:
        raise VerificationError(f"the traced graph has {names}, expected {wanted}")
    for value, port in zip(values, ports, strict=True):
        found = [dim if isinstance(dim, int) else None for dim in value.shape or ()]
        stated = [dim if isinstance(dim, int) else None for dim in port.dims]
        if found != stated or value.dtype is None or value.dtype.name != _ONNX_NAMES[port.dtype]:
            raise VerificationError(
                f"{port.name} of the traced graph is {value.dtype} {value.shape}, expected"
                f" {port.dtype} {list(port.dims)}"
            )
        value.shape = onnx_ir.Shape(port.dims)
