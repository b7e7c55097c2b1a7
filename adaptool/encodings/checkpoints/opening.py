"""A quantised checkpoint as one of plain weights, which are decoded when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adaptool import plugins
from adaptool.canonical import Checkpoint, DType, LazyTensor
from adaptool.encodings.checkpoints import schemes
from adaptool.encodings.checkpoints.schemes import Scheme
from adaptool.encodings.checkpoints.stock import FLOATS, Stock
from adaptool.encodings.checkpoints.weights import StoredWeight
from adaptool.errors import JSON, IncompatibleError
from adaptool.storage import read_json

_KEYS = ("quantization_config", "compression_config")
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Where the first tools wrote what quantization_config says now."""


@dataclass(frozen=True)
class Opened:
    """A quantised checkpoint, opened.

    Attributes:
        stored: as it lies in its files.
        method: the quant_method it states.
        weights: its quantised weights, by the names that they have in `checkpoint`.
        checkpoint: the same model with plain weights, in the types that the library which owns
            the scheme gives them; nothing in it speaks of quantisation.
        exact: the same, its decoded weights in float32 before that library's rounding.
    """

    stored: Checkpoint
    method: str
    weights: Mapping[str, StoredWeight]
    checkpoint: Checkpoint

    @property
    def exact(self) -> Checkpoint:
        """See above."""
        tensors = {
            name: self.weights[name].value if name in self.weights else tensor
            for name, tensor in self.checkpoint.tensors.items()
        }
        return replace(self.checkpoint, tensors=tensors)


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint states that its weights are quantised."""
    return _settings(checkpoint) is not None


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with plain weights; one that is not quantised is returned as it is.

    Raises: see `open_quantised`.
    """
    return open_quantised(checkpoint).checkpoint if is_quantised(checkpoint) else checkpoint


def open_quantised(checkpoint: Checkpoint) -> Opened:
    """Find the quantised weights of a checkpoint; their values are decoded when they are read.

    Raises:
        IncompatibleError: nothing here reads what it is quantised with, or it is not quantised.
        CorruptInputError: parts of a weight are missing, contradict each other, or are left over.
    """
    settings = _settings(checkpoint)
    method = _method(settings or {})
    where = checkpoint.provenance.name
    name = method.lower().replace("-", "_")
    if settings is None or name not in plugins.names(schemes):
        known = ", ".join(n.replace("_", "-") for n in plugins.names(schemes))
        raise IncompatibleError(
            f"{where} is quantised with {method!r}, which is not read here (known: {known})",
            hint="merge into the model that it was made from",
            code="UNKNOWN_QUANTISATION",
        )
    scheme: Scheme = plugins.load(schemes, name)  # type: ignore[assignment]
    stock = Stock(checkpoint.tensors, where, _compute_dtype(checkpoint), settings)
    weights = {weight.name: weight for weight in scheme.find(stock)}
    _refuse_left_over(stock, scheme)
    return Opened(checkpoint, method, weights, _plain(checkpoint, stock, weights))


def _settings(checkpoint: Checkpoint) -> Mapping[str, JSON] | None:
    """What a checkpoint states of its quantisation; None if it is not quantised."""
    if checkpoint.container != "safetensors":
        return None
    for key in _KEYS:
        found = checkpoint.config.get(key)
        if isinstance(found, dict):
            return found
    for name, method in _OLD_FILES.items():
        content = checkpoint.side_files.get(name)
        if isinstance(content, Path):
            stated = read_json(content)
            return {"quant_method": method, **(stated if isinstance(stated, dict) else {})}
    return None


def _method(settings: Mapping[str, JSON]) -> str:
    stated = settings.get("quant_method")
    if stated is None and not {"load_in_4bit", "load_in_8bit"}.isdisjoint(settings):
        return "bitsandbytes"
    return str(stated)


def _compute_dtype(checkpoint: Checkpoint) -> DType:
    """What the model computes in, where the scheme does not say it."""
    inner = checkpoint.config.get("text_config")
    for config in (checkpoint.config, inner if isinstance(inner, dict) else {}):
        stated = config.get("dtype", config.get("torch_dtype"))
        for dtype in FLOATS:
            if stated == dtype.value:
                return dtype
    return DType.BFLOAT16


def _refuse_left_over(stock: Stock, scheme: Scheme) -> None:
    for name, tensor in stock.tensors.items():
        if name in stock.taken:
            continue
        if name.endswith(scheme.SIDES):
            raise stock.broken(name, "belongs to no quantised weight")
        if name.endswith(".weight") and tensor.dtype not in (*FLOATS, DType.FLOAT64):
            raise stock.broken(name, f"{tensor.dtype} without scales")


def _plain(checkpoint: Checkpoint, stock: Stock, weights: Mapping[str, StoredWeight]) -> Checkpoint:
    """The checkpoint with its weights under their plain names, where their codes stood."""
    by_codes = {weight.parts[0]: weight for weight in weights.values()}
    tensors: dict[str, LazyTensor] = {}
    shards: dict[str, str] = {}
    for name, tensor in checkpoint.tensors.items():
        weight = by_codes.get(name)
        if weight is None and name in stock.taken:
            continue
        plain = name if weight is None else weight.name
        if plain in tensors:
            raise stock.broken(plain, "stored twice, quantised and plain")
        tensors[plain] = tensor if weight is None else weight.decoded
        if name in checkpoint.shards:
            shards[plain] = checkpoint.shards[name]
    config = {key: value for key, value in checkpoint.config.items() if key not in _KEYS}
    side = {n: c for n, c in checkpoint.side_files.items() if n not in _OLD_FILES}
    if "config.json" in side:
        side["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return replace(checkpoint, tensors=tensors, shards=shards, config=config, side_files=side)
