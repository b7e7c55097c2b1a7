"""What of a browser's memory a model takes, and which browsers do not have it."""

from __future__ import annotations

from collections.abc import Iterator

from adaptool.canonical import Checkpoint
from adaptool.containers.gguf import Value
from adaptool.errors import JSON
from adaptool.targets._limits import WASM_MEMORY, memory_notes

CONTEXT = 4096
"""Tokens that a model gets if it was trained on more."""
_HALF = 2
"""Bytes of a value in llama.cpp's cache."""


def context_of(model: Checkpoint) -> int:
    """Tokens of prompt and answer together that the model is loaded for."""
    trained = _stated(model, "context_length")
    return min(trained, CONTEXT) if isinstance(trained, int) and trained > 0 else CONTEXT


def cache_size(model: Checkpoint, context: int) -> int:
    """Bytes of keys and values of `context` tokens; an estimate.

    Models whose layers keep less (a window, a state, a compressed key) take less.
    """
    layers = _numbers(model, "block_count", 0)[0]
    heads = _numbers(model, "attention.head_count", 1)
    grouped = _numbers(model, "attention.head_count_kv", *heads)
    width = _numbers(model, "embedding_length", 0)[0] // max(*heads, 1)
    pair = sum(_numbers(model, f"attention.{one}_length", width)[0] for one in ("key", "value"))
    return _HALF * context * pair * (sum(grouped) if len(grouped) > 1 else grouped[0] * layers)


def _numbers(model: Checkpoint, key: str, *default: int) -> list[int]:
    """One number for all layers, or one for each."""
    stated = _stated(model, key)
    found = stated if isinstance(stated, list) else [stated]
    return [number for number in found if isinstance(number, int)] or [*default]


def _stated(model: Checkpoint, key: str) -> JSON:
    value = model.metadata.get(f"{model.config.get('general.architecture')}.{key}")
    return value.plain() if isinstance(value, Value) else None


def describe_memory(nbytes: int, cache: int, context: int) -> Iterator[str]:
    """What the export needs, and where it does not run or runs slowly.

    Args:
        nbytes: of the files of model and adapters.
        cache: bytes, see `cache_size`.
        context: tokens that the cache is for.
    """
    total = nbytes + cache
    yield (
        f"takes about {total / 1e6:,.1f} MB of a browser's memory, {cache / 1e6:,.1f} of them for "
        f"{context} tokens of context"
    )
    yield from memory_notes(total, "the model with its context")
    compatible = (
        "do not load it" if total > WASM_MEMORY // 2
        else "need @wllama/wllama-compat, which the page does not load"
    )  # fmt: skip
    yield f"browsers without 64-bit WebAssembly memory (Safari) {compatible}"
    yield (
        "runs in one thread unless the server sends Cross-Origin-Opener-Policy: same-origin and "
        "Cross-Origin-Embedder-Policy: require-corp (`adaptool serve` does)"
    )
