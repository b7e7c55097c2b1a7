"""The list of parameters that a compiled model library embeds, read without running it.

A library (.wasm) of mlc_llm holds a JSON text among its data, `_metadata`: model_type,
quantization, and `params`, each with name, shape and dtype, where a size may be a word such as
"vocab_size".  WebLLM compares it with nothing: the first forward pass just dies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptool.errors import JSON, CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile, shown

LIMIT = 512 << 20
"""Bytes; published libraries have four to ten million."""
TEXT_LIMIT = 16 << 20
"""Bytes of the JSON text; one with 1,000 parameters has 200,000."""

_MAGIC = b"\0asm"
_KEY = b'"params"'
_REACH = 1 << 16
"""Bytes before `params` in which the text begins."""
_BEGINNINGS = 64
_PLACES = 32
_BUDGET = 4 * TEXT_LIMIT
"""Bytes of candidates that are parsed, altogether: a file may be built to keep readers busy."""


@dataclass(frozen=True)
class Wanted:
    """A parameter that a library asks for; sizes that it leaves open are words."""

    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Library:
    """What a library says of itself.

    Attributes:
        model_type, quantization: "" where it does not say.
        params: by name.
        active: tokens that it samples, None where it does not say.
        chunk: tokens of a prompt that it reads in one step, None where it does not say.
    """

    model_type: str
    quantization: str
    params: Mapping[str, Wanted]
    active: int | None
    chunk: int | None


def read_library(path: Path) -> Library:
    """What a compiled library embeds.

    Raises:
        CorruptInputError: no WebAssembly, or none that has such a list.
        ResourceLimitError: larger than any library.
        StorageError: not found, not readable.
    """
    with SourceFile.open(path) as source:
        if source.size > LIMIT:
            raise ResourceLimitError(f"{shown(path)}: {source.size} bytes; the limit is {LIMIT}")
        content = source.read(0, source.size)
    if not content.startswith(_MAGIC):
        raise CorruptInputError(f"{shown(path)}: not WebAssembly: it does not begin with \\0asm")
    for text in _candidates(content):
        params = _params(text.get("params"))
        if params:
            return Library(
                _word(text.get("model_type")), _word(text.get("quantization")), params,
                _number(text.get("active_vocab_size")), _number(text.get("prefill_chunk_size")),
            )  # fmt: skip
    raise CorruptInputError(
        f"{shown(path)}: no list of parameters is embedded here",
        hint="is it a model library, as mlc_llm compile makes it?",
    )


def _candidates(content: bytes) -> Iterator[dict[str, JSON]]:
    """JSON objects with a key `params`; of a few places, and a few beginnings before each."""
    place = content.find(_KEY)
    budget = _BUDGET
    for _ in range(_PLACES):
        if place < 0:
            return
        end = content.find(b"\0", place, place + TEXT_LIMIT)
        end = end if end >= 0 else place + TEXT_LIMIT
        begin = place
        for _ in range(_BEGINNINGS):
            begin = content.rfind(b'{"', max(place - _REACH, 0), begin)
            budget -= end - begin
            if begin < 0 or budget < 0:
                break
            found = _decoded(content[begin:end])
            if found is not None:
                yield found
                break
        place = content.find(_KEY, place + len(_KEY))


def _decoded(text: bytes) -> dict[str, JSON] | None:
    """The object at the beginning of a text, if it has the key itself."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text.decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "params" in found else None


def _params(stated: JSON) -> dict[str, Wanted]:
    found: dict[str, Wanted] = {}
    for entry in stated if isinstance(stated, list) else ():
        match entry:
            case {"name": str(name), "shape": list(shape), "dtype": str(dtype)}:
                sizes = [size for size in shape if isinstance(size, str | int)]
                found[name] = Wanted(tuple(sizes), dtype)
            case _:
                return {}
    return found


def _word(value: JSON) -> str:
    return value if isinstance(value, str) else ""


def _number(value: JSON) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
