"""A graph in ONNX Runtime as a function of named tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.errors import VerificationError

if TYPE_CHECKING:
    import torch

    Run = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def run_of(path: Path) -> Run:
    """Load a graph; the function that comes back gives all outputs for all inputs.

    Raises:
        VerificationError: ONNX Runtime does not load it; the function: does not run it.
    """
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with _refusing(path):
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    names = [one.name for one in session.get_outputs()]

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with _refusing(path):
            found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """ONNX Runtime's errors, which share no class, as VerificationError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        yield
    except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
            state.NotImplemented, state.RuntimeException) as error:  # fmt: skip
        reason = str(error).strip().partition("\n")[0]
        raise VerificationError(f"{path.name}: ONNX Runtime does not run the graph: {reason}",
                                code="GRAPH_BROKEN") from None  # fmt: skip
