"""Byte-level byte-pair encoding: GPT-2, Llama 3, Qwen and most others."""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.conversion.vocabulary.files import TokenizerFiles
from adaptool.conversion.vocabulary.pretokenizers import recognise
from adaptool.conversion.vocabulary.words import Kind, Vocabulary, Word, number_words
from adaptool.errors import JSON, CorruptInputError, IncompatibleError


def read_byte_level(files: TokenizerFiles, size: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a tokenizer.json whose tokens are bytes, written as printable characters.

    Args:
        files: with a tokenizer.json of this kind.
        size: rows of the input embedding.
        pre: llama.cpp's name of the pre-tokenizer, or None to recognise it.
    """
    model = files.model
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise IncompatibleError(
                f"tokenizer.json: llama.cpp has no {name} ({model[name]})",
                code="UNSUPPORTED_TOKENIZER",
            )
    base = {i: Word(text, Kind.NORMAL) for text, i in read_vocabulary_table(model).items()}
    merges = [f"{left} {right}" for left, right in read_merges(model)]
    return Vocabulary(
        model="gpt2",
        pre=pre or recognise(files),
        words=number_words(base, files.added, size),
        merges=tuple(merges),
    )


def read_vocabulary_table(model: Mapping[str, JSON]) -> dict[str, int]:
    """Text -> id.

    Raises CorruptInputError if it is something else.
    """
    table = model.get("vocab")
    if not isinstance(table, dict) or not table:
        raise CorruptInputError("tokenizer.json: no table of tokens")
    found: dict[str, int] = {}
    for text, number in table.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise CorruptInputError(f"tokenizer.json: token {text[:60]!r} has the id {number!r}")
        found[text] = number
    if len(set(found.values())) != len(found):
        raise CorruptInputError("tokenizer.json: two tokens have the same id")
    return found


def read_merges(model: Mapping[str, JSON]) -> list[tuple[str, str]]:
    """Pairs in the order in which they apply, from lists or from strings with one space.

    Raises CorruptInputError if it is something else.
    """
    listed = model.get("merges")
    if not isinstance(listed, list):
        raise CorruptInputError("tokenizer.json: no list of merges")
    pairs: list[tuple[str, str]] = []
    for entry in listed:
        parts = entry.split(" ") if isinstance(entry, str) else entry
        match parts:
            case [str(left), str(right)] if left and right and " " not in left + right:
                pairs.append((left, right))
            case _:
                raise CorruptInputError(f"tokenizer.json: a merge is {str(entry)[:60]!r}")
    return pairs
