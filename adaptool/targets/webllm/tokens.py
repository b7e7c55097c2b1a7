"""The tokenizer as WebLLM takes it: which files, which settings, how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adaptool.conversion.vocabulary import TokenizerFiles
from adaptool.conversion.vocabulary.files import steps
from adaptool.errors import JSON, CorruptInputError, IncompatibleError

FILES = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "tokenizer_config.json",
)  # fmt: skip
"""Those that mlc_llm copies, in its order; WebLLM reads tokenizer.json, else tokenizer.model."""


@dataclass(frozen=True)
class Tokens:
    """A model's tokenizer.

    Attributes:
        files: name -> path or content, of what travels along.
    """

    files: Mapping[str, Path | bytes]

    @cached_property
    def read(self) -> TokenizerFiles:
        """The files, parsed when they are asked for."""
        return TokenizerFiles(self.files)

    @property
    def copied(self) -> dict[str, Path | bytes]:
        """The files that belong into an export.

        Raises IncompatibleError if WebLLM could read none of them.
        """
        found = {name: self.files[name] for name in FILES if name in self.files}
        if not {"tokenizer.json", "tokenizer.model"} & set(found):
            raise IncompatibleError(
                "no tokenizer.json and no tokenizer.model beside the model",
                hint="put the tokenizer's files there: tokenizer.save_pretrained(folder)",
                code="TOKENIZER_MISSING",
            )
        return found

    @property
    def info(self) -> dict[str, JSON]:
        """How tokens become text, as mlc_llm finds it in tokenizer.json."""
        decoders = steps(self.read.tokenizer.get("decoder"), "decoders")
        normalizers = steps(self.read.tokenizer.get("normalizer"), "normalizers")
        known = {"ByteLevel": "byte_level", "ByteFallback": "byte_fallback"}
        kinds = [known[str(step.get("type"))] for step in decoders if step.get("type") in known]
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        return {
            "token_postproc_method": kinds[0] if kinds else "byte_fallback",
            "prepend_space_in_encode": any(
                step.get("type") == "Prepend" and step.get("prepend") == "▁" for step in normalizers
            ),
            "strip_space_in_decode": any(
                all(step.get(key) == value for key, value in strip.items()) for step in decoders
            ),
        }

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Token -> id, as far as JSON files tell; added tokens over those of the model.

        Raises CorruptInputError for a token that was added twice, which WebLLM's tokenizer, and
        everybody's, would take for either.
        """
        vocabulary = self.read.model.get("vocab")
        found: dict[str, int] = {}
        if isinstance(vocabulary, dict):
            found = {text: i for text, i in vocabulary.items() if isinstance(i, int)}
        elif isinstance(vocabulary, list):
            found = {str(entry[0]): i for i, entry in enumerate(vocabulary)
                     if isinstance(entry, list) and entry}  # fmt: skip
        added = {token.text: number for number, token in self.read.added.items()}
        if len(added) != len(self.read.added):
            texts = [token.text for token in self.read.added.values()]
            twice = next(text for text in texts if texts.count(text) > 1)
            raise CorruptInputError(
                f"tokenizer.json: {twice[:40]!r} is added twice, under different ids",
                hint="remove one of the two entries of added_tokens",
            )
        return found | added

    def count(self, rows: int) -> int:
        """Tokens that may be sampled: up to the highest id; all `rows` if no file says.

        mlc_llm takes the number of tokens; that is the same unless ids are left out, where it
        would lose the last ones.
        """
        return max(self.ids.values()) + 1 if self.ids else rows

    @property
    def template(self) -> str | None:
        """The chat template, in Jinja; of several the default one; or None."""
        if self.read.template is not None:
            return self.read.template
        stated = self.read.config.get("chat_template")
        if isinstance(stated, list):
            named = {e.get("name"): e.get("template") for e in stated if isinstance(e, dict)}
            stated = named.get("default")
        return stated if isinstance(stated, str) else None

    @property
    def first(self) -> int | None:
        """The token that the tokenizer itself puts before a text, or None."""
        for step in steps(self.read.tokenizer.get("post_processor"), "processors"):
            parts = step.get("single")
            if step.get("type") == "TemplateProcessing" and isinstance(parts, list) and parts:
                match parts[0]:
                    case {"SpecialToken": {"id": str(text)}}:
                        return self.ids.get(text)
        return None

    @property
    def beginning(self) -> int | None:
        """The token that tokenizer_config.json calls the beginning of a text, or None."""
        stated = self.read.config.get("bos_token")
        text = stated.get("content") if isinstance(stated, dict) else stated
        return self.ids.get(text) if isinstance(text, str) else None
