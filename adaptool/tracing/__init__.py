"""Tracing: a Hugging Face checkpoint -> the ONNX graph of what it computes.

One exporter serves all: torch's own, around a wrapper that has the inputs and outputs which
transformers.js knows. It gives plain ai.onnx graphs that every execution provider runs, that
ONNX Runtime's tools can shrink, and that are right for padded batches. Each graph is compared with
the model before anybody sees it.

It needs transformers and onnxscript (`pip install 'adaptool[export]'`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adaptool.canonical import DType
from adaptool.errors import UsageError, VerificationError
from adaptool.tracing.graph import DATA, INLINE_LIMIT, export_graph, save_graph
from adaptool.tracing.loading import load, read_config, require_libraries
from adaptool.tracing.ports import Port, ports_of
from adaptool.tracing.probing import disagreement
from adaptool.tracing.running import run_of
from adaptool.tracing.silence import silenced
from adaptool.tracing.tasks import TASKS, known_task, refuse_other_kinds, task_of
from adaptool.tracing.trimming import COUNT

TOLERANCES = {DType.FLOAT32: 1e-4, DType.FLOAT16: 3e-2}
"""Types that are traced, and the largest error of the probe, as a part of the largest output."""


@dataclass(frozen=True)
class Traced:
    """A graph on the disk.

    Attributes:
        model: its file; weights beyond 1.9 GB lie beside it in a file named the same with `_data`.
        task: what it is for.
        dtype: of its weights and its cache; logits and hidden states are float32.
        agreement: largest error of the probe, as a part of the largest output.
        inputs, outputs: in the graph's order.
    """

    model: Path
    task: str
    dtype: DType
    agreement: float
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def trace(
    folder: Path, into: Path, *, dtype: DType, task: str | None = None, trimmed: bool = False
) -> Traced:
    """Write the graph of the model in `folder` to `into/model.onnx`.

    Args:
        folder: a Hugging Face checkpoint with plain weights in safetensors files.
        into: an existing folder.
        dtype: FLOAT32 or FLOAT16, of the weights in the graph.
        task: one of `TASKS`; None for what the architecture was made for.
        trimmed: give a decoder the input `num_logits_to_keep`, a number without dims: how many
            rows of logits come out, from the end, 0 for all. transformers.js feeds it, and long
            prompts need it: else each token of a prompt takes a row of the vocabulary.

    Raises:
        UsageError: a library is missing, or the task or the type is none of those known.
        CorruptInputError: there is no config.json that can be read.
        IncompatibleError: the model is of another kind, runs code of its own, keeps another state
            than keys and values, has no weights for the task, or cannot be traced.
        VerificationError: the graph does not compute what the model does; nothing is left of it.
    """
    if dtype not in TOLERANCES:
        raise UsageError(f"a graph cannot be traced in {dtype}", hint=f"{' or '.join(TOLERANCES)}")
    require_libraries()
    config = read_config(folder)
    refuse_other_kinds(config)
    name = task or task_of(config)
    chosen = known_task(name)
    path = into / "model.onnx"
    with silenced():
        model = load(folder, chosen, dtype)
        ports = ports_of(model, chosen, dtype, trimmed=trimmed)
        try:
            export_graph(model, ports, path)
            error = disagreement(model, path, ports)
            _require_agreement(error, dtype, folder)
        except BaseException:
            for written in (path, path.with_name(path.name + DATA)):
                written.unlink(missing_ok=True)
            raise
    inputs, outputs = ports
    return Traced(path, name, dtype, error, inputs, outputs)


def _require_agreement(error: float, dtype: DType, folder: Path) -> None:
    if not error <= TOLERANCES[dtype]:
        raise VerificationError(
            f"{folder}: the traced graph differs from the model by {error:.2g} of the largest"
            f" output in {dtype}, allowed is {TOLERANCES[dtype]:.0e}",
            code="TRACE_DISAGREES",
        )


__all__ = [
    "COUNT",
    "DATA",
    "INLINE_LIMIT",
    "TASKS",
    "TOLERANCES",
    "Port",
    "Traced",
    "run_of",
    "save_graph",
    "task_of",
    "trace",
]
