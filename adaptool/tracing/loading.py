"""A Hugging Face folder as a PyTorch model; nothing is fetched, nothing in the folder is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.canonical import DType
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.tracing.tasks import Task, architecture_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NEEDED = ("transformers", "onnxscript")

_UNUSED = "pooler."
"""Weights that a bare encoder has, and that none of the outputs depends on."""


def require_libraries() -> None:
    """Raise UsageError if what the extra installs is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"tracing a checkpoint needs {' and '.join(missing)}",
            hint="pip install 'adaptool[export]'",
            code="EXTRA_MISSING",
        )


def read_config(folder: Path) -> Mapping[str, object]:
    """The config.json of a folder.

    Raises:
        CorruptInputError: it is missing or is no JSON object.
        IncompatibleError: it asks for code of its own, or its weights are stored quantised.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptInputError(f"{path}: no config that can be read: {error}") from None
    if not isinstance(config, dict):
        raise CorruptInputError(f"{path}: not a JSON object")
    if config.get("auto_map"):
        raise IncompatibleError(
            f"{path}: the model is run by code of its own (auto_map), which adaptool does not run",
            hint="export it with its own tools, and give the ONNX model to adaptool",
            code="REMOTE_CODE",
        )
    if config.get("quantization_config"):
        raise IncompatibleError(
            f"{path}: the weights are stored quantised, and tracing needs plain ones",
            hint="give the checkpoint that it was quantised from",
            code="QUANTISED",
        )
    return config


def load(folder: Path, task: Task, dtype: DType) -> PreTrainedModel:
    """The model, for evaluation, with all its weights from the folder.

    Attention is "eager": its softmax is computed in float32 whatever the weights are, and so are
    the norms, with casts that the trace keeps. This is why float16 graphs are traced in float16;
    converting a float32 graph afterwards would take those casts away.

    Raises:
        IncompatibleError: transformers does not know the model or not for this task, or weights
            that the task needs are not in the folder and would be random.
    """
    import transformers

    loader = getattr(transformers, task.loader)
    try:
        model, facts = loader.from_pretrained(
            folder, dtype=dtype.torch, attn_implementation="eager", local_files_only=True,
            trust_remote_code=False, use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise IncompatibleError(
            f"{folder}: {task.loader} of transformers {transformers.__version__} cannot load it:"
            f" {reason}",
            code="NOT_LOADED",
        ) from None
    missing = sorted(
        str(name)
        for name in (*facts["missing_keys"], *facts["mismatched_keys"])
        if not (task.loader == "AutoModel" and _UNUSED in str(name))
    )
    if missing:
        raise IncompatibleError(
            f"{folder}: {type(model).__name__} needs {missing[0]}, which the checkpoint of"
            f" {architecture_of(read_config(folder))} does not have ({len(missing)} missing)",
            hint="choose the task that the model was trained for (--task)",
            code="WEIGHTS_MISSING",
        )
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found
