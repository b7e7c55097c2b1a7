"""What goes into a traced graph and what comes out, under the names of transformers.js."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adaptool.canonical import DType
from adaptool.errors import IncompatibleError
from adaptool.tracing.tasks import Task
from adaptool.tracing.trimming import COUNT, KEPT

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel

_TOKENS = ("batch_size", "sequence_length")
PAST, PRESENT = "past_key_values", "present"
"""What the names of a cache begin with, where it comes in and where it goes out."""

_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: in the graph.
        dims: sizes that are fixed, and symbols of those that are not. transformers.js makes the
            first, empty cache from the dims of the inputs: it knows the symbol `batch_size`, and
            every other one counts 0, so heads and head size are numbers.
        dtype: of its values.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: DType

    @property
    def moving(self) -> tuple[int, ...]:
        """Axes whose size is not fixed."""
        return tuple(axis for axis, dim in enumerate(self.dims) if isinstance(dim, str))

    def empty(self, sizes: Mapping[str, int]) -> torch.Tensor:
        """Zeros of these sizes."""
        import torch

        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in self.dims]
        return torch.zeros(shape, dtype=self.dtype.torch)


@dataclass(frozen=True)
class Ports:
    """All of a graph's.

    Attributes:
        plain: inputs that say what the text is.
        past: the cache that comes in: key and value of each layer, in turn.
        outputs: what the task asks for.
        present: the cache that goes out.
    """

    plain: tuple[Port, ...]
    outputs: tuple[Port, ...]
    past: tuple[Port, ...] = ()
    present: tuple[Port, ...] = ()

    def __iter__(self) -> Iterator[tuple[Port, ...]]:
        """Inputs, then outputs, in the graph's order."""
        yield (*self.plain, *self.past)
        yield (*self.outputs, *self.present)


def ports_of(model: PreTrainedModel, task: Task, dtype: DType, *, trimmed: bool = False) -> Ports:
    """What a graph of this model has; with an input for the rows to keep if it is `trimmed`.

    Raises:
        IncompatibleError: the model takes no tokens, or what it keeps of earlier ones is not a
            key and a value for each.
    """
    from transformers import DynamicCache

    known = inspect.signature(model.forward).parameters
    if model.main_input_name != "input_ids" or "attention_mask" not in known:
        raise IncompatibleError(
            f"{type(model).__name__} takes {model.main_input_name}, not tokens with a mask",
            code="TASK_UNSUPPORTED",
        )
    tokens = ["input_ids", "attention_mask"]
    if task.cached:
        tokens += ["position_ids"] if "position_ids" in known else []
    elif "token_type_ids" in known and getattr(model.config, "type_vocab_size", 0) > 1:
        tokens += ["token_type_ids"]
    trimmed = trimmed and task.cached and "logits_to_keep" in known
    if task.cached:
        _require_plain_layers(model)
    cache = DynamicCache() if task.cached else None
    answer = _trial(model, cache)
    sizes = [] if cache is None else _cache_sizes(model, cache)
    width = "total_sequence_length" if sizes else "sequence_length"
    plain = [
        Port(name, ("batch_size", width) if name == "attention_mask" else _TOKENS, DType.INT64)
        for name in tokens
    ]
    outputs = [
        Port(name, (*dims, *answer[name].shape[len(dims) :]), DType.FLOAT32)
        for name, dims in task.outputs.items()
    ]
    if trimmed:
        plain.append(Port(COUNT, (), DType.INT64))
        outputs = [replace(one, dims=("batch_size", KEPT, *one.dims[2:])) for one in outputs]
    return Ports(
        plain=tuple(plain),
        outputs=tuple(outputs),
        past=tuple(_cache(PAST, "past_sequence_length", sizes, dtype)),
        present=tuple(_cache(PRESENT, "total_sequence_length", sizes, dtype)),
    )


def _cache(
    stem: str, length: str, sizes: list[tuple[int, int, int]], dtype: DType
) -> Iterator[Port]:
    for layer, (heads, key, value) in enumerate(sizes):
        yield Port(f"{stem}.{layer}.key", ("batch_size", heads, length, key), dtype)
        yield Port(f"{stem}.{layer}.value", ("batch_size", heads, length, value), dtype)


def _require_plain_layers(model: PreTrainedModel) -> None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    strange = sorted(kinds - _PLAIN_LAYERS)
    if strange:
        raise _other_state(model, strange)


def _trial(model: PreTrainedModel, cache: DynamicCache | None) -> Mapping[str, torch.Tensor]:
    """What the model answers to a single token."""
    import torch

    one = torch.ones((1, 1), dtype=torch.int64)
    options = {} if cache is None else caching(model, cache)
    with torch.inference_mode():
        answer: Mapping[str, torch.Tensor] = model(input_ids=one, attention_mask=one, **options)
    return answer


def _cache_sizes(model: PreTrainedModel, cache: DynamicCache) -> list[tuple[int, int, int]]:
    """Heads, size of a key and size of a value in each layer of a filled cache."""
    found = kept_in(cache)
    if not found or any(tensor is None or tensor.dim() != 4 for tensor in found):
        raise _other_state(model, [])
    return [
        (key.shape[1], key.shape[3], value.shape[3])
        for key, value in zip(found[::2], found[1::2], strict=True)
    ]


def kept_in(cache: DynamicCache) -> list[Any]:
    """Key and value of each layer, in turn; what a layer lacks is None."""
    return [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]


def caching(model: PreTrainedModel, cache: DynamicCache) -> dict[str, object]:
    """The arguments that make a decoder read and fill a cache.

    Raises IncompatibleError if it takes none.
    """
    known = inspect.signature(model.forward).parameters
    for name in ("cache", "past_key_values"):  # the newer name first
        if name in known:
            return {name: cache, "use_cache": True}
    raise _other_state(model, [])


def _other_state(model: PreTrainedModel, kinds: list[str]) -> IncompatibleError:
    named = f" ({', '.join(kinds)})" if kinds else ""
    return IncompatibleError(
        f"{type(model).__name__} keeps something other than a key and a value for each token and"
        f" layer{named}, which the traced cache cannot hold",
        hint="use a target that runs GGUF models, where llama.cpp knows the model",
        code="CACHE_UNSUPPORTED",
    )
