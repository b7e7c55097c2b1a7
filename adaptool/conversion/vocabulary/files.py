"""The small files that travel with a model and say how its text becomes tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from adaptool.errors import JSON, CorruptInputError, ResourceLimitError
from adaptool.storage import SourceFile, read_json, read_text

TOKENIZER_LIMIT = 128 << 20
"""Bytes; the largest tokenizer.json published has 37 million."""
_DIGITS = 10


class Added(NamedTuple):
    """A token that was added to a vocabulary and is found in text before anything else."""

    text: str
    special: bool


def steps(node: JSON, parts: str) -> list[dict[str, JSON]]:
    """The steps of a tokenizer.json's stage in their order; sequences may lie in sequences.

    Args:
        node: the stage: a step, a sequence of steps, or None.
        parts: where a sequence keeps its steps: "normalizers", "pretokenizers", "processors".
    """
    found: list[dict[str, JSON]] = []
    waiting = [node]
    while waiting:
        step = waiting.pop()
        if not isinstance(step, dict):
            continue
        inner = step.get(parts)
        if step.get("type") == "Sequence" and isinstance(inner, list):
            waiting += reversed(inner)
        else:
            found.append(step)
    return found


def _is_id(number: JSON) -> bool:
    return str(number).isdecimal() and len(str(number)) <= _DIGITS


@dataclass(frozen=True)
class TokenizerFiles:
    """The files by name, as a path or as content."""

    files: Mapping[str, Path | bytes]

    @cached_property
    def tokenizer(self) -> Mapping[str, JSON]:
        """tokenizer.json, or empty."""
        return self._table("tokenizer.json", TOKENIZER_LIMIT)

    @property
    def model(self) -> Mapping[str, JSON]:
        """The table of tokenizer.json that has the tokens, or empty."""
        model = self.tokenizer.get("model")
        return model if isinstance(model, dict) else {}

    @cached_property
    def config(self) -> Mapping[str, JSON]:
        """tokenizer_config.json, or empty."""
        return self._table("tokenizer_config.json", TOKENIZER_LIMIT)

    @cached_property
    def generation(self) -> Mapping[str, JSON]:
        """generation_config.json, or empty."""
        return self._table("generation_config.json", TOKENIZER_LIMIT)

    @cached_property
    def sentencepiece(self) -> bytes | None:
        """tokenizer.model, or None."""
        content = self.files.get("tokenizer.model")
        if not isinstance(content, Path):
            return content
        with SourceFile.open(content) as source:
            if source.size > TOKENIZER_LIMIT:
                raise ResourceLimitError(f"{content}: {source.size} bytes of a vocabulary")
            return source.read(0, source.size)

    @cached_property
    def template(self) -> str | None:
        """chat_template.jinja, which stands over what tokenizer_config.json says; or None."""
        content = self.files.get("chat_template.jinja")
        if isinstance(content, Path):
            return read_text(content)
        return None if content is None else content.decode("utf-8-sig")

    @cached_property
    def added(self) -> Mapping[int, Added]:
        """Added tokens by id, from whichever files list them."""
        found: dict[int, Added] = {}
        for text, number in self._table("added_tokens.json", TOKENIZER_LIMIT).items():
            if isinstance(number, int):
                found[number] = Added(text, special=False)
        decoder = self.config.get("added_tokens_decoder")
        entries: list[tuple[JSON, JSON]] = list(decoder.items()) if isinstance(
            decoder, dict) else []  # fmt: skip
        listed = self.tokenizer.get("added_tokens")
        if isinstance(listed, list):
            entries += [(e.get("id"), e) for e in listed if isinstance(e, dict)]
        for number, entry in entries:
            match entry:
                case {"content": str(content), **rest} if _is_id(number):
                    found[int(str(number))] = Added(content, rest.get("special") is True)
                case _:
                    raise CorruptInputError(f"tokenizer: an added token is {str(entry)[:80]}")
        return found

    def _table(self, name: str, limit: int) -> Mapping[str, JSON]:
        content = self.files.get(name)
        if content is None:
            return {}
        if isinstance(content, Path):
            value = read_json(content, limit)
        else:
            try:
                value = json.loads(content)
            except ValueError as error:
                raise CorruptInputError(f"{name}: not JSON: {error}") from error
        if not isinstance(value, dict):
            raise CorruptInputError(f"{name}: not a JSON object")
        return value
