"""A vocabulary as GGUF keeps it: texts, what each is, and how they are put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from adaptool.containers.gguf.values import Value
from adaptool.conversion.vocabulary.files import Added
from adaptool.errors import IncompatibleError, ResourceLimitError
from adaptool.storage import shown


class Kind(IntEnum):
    """What a token is (llama.h, `llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Word:
    """One token: its text, its kind, and the score by which SentencePiece merges."""

    text: str
    kind: Kind
    score: float = 0.0


@dataclass(frozen=True)
class Vocabulary:
    """All tokens, one for every row of the embedding.

    Attributes:
        model: tokenizer.ggml.model.
        pre: tokenizer.ggml.pre.
        words: by id.
        merges: pairs joined by a space, in the order in which they apply; None where scores rule.
        space_prefix: a text is read as if it began with a space; None where it never is.
    """

    model: str
    pre: str
    words: tuple[Word, ...]
    merges: tuple[str, ...] | None = None
    space_prefix: bool | None = None

    def values(self) -> dict[str, Value]:
        """The key-values that describe it."""
        found = {
            "tokenizer.ggml.model": Value.string(self.model),
            "tokenizer.ggml.pre": Value.string(self.pre),
            "tokenizer.ggml.tokens": Value.strings([word.text for word in self.words]),
            "tokenizer.ggml.token_type": Value.ints([word.kind for word in self.words]),
        }
        if self.merges is None:
            found["tokenizer.ggml.scores"] = Value.floats([word.score for word in self.words])
        else:
            found["tokenizer.ggml.merges"] = Value.strings(self.merges)
        if self.space_prefix is not None:
            found["tokenizer.ggml.add_space_prefix"] = Value.boolean(self.space_prefix)
        return found


TOKENS_LIMIT = 4_000_000
ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0


def number_words(
    base: Mapping[int, Word], added: Mapping[int, Added], size: int
) -> tuple[Word, ...]:
    """Tokens by id for an embedding of `size` rows: base, added ones over them, padding between.

    Added tokens beyond the last row are left out: the model has nothing to read them with.

    Raises:
        ResourceLimitError: more than four million rows.
        IncompatibleError: the base does not fit the embedding, or two tokens have one text.
    """
    if size > TOKENS_LIMIT:
        raise ResourceLimitError(f"an embedding of {size} rows; the limit is {TOKENS_LIMIT}")
    if base and max(base) >= size:
        raise IncompatibleError(
            f"the tokenizer has a token {max(base)}, but the model's embedding only {size} rows",
            hint="this tokenizer belongs to another model, or the embedding must be resized first",
            code="VOCABULARY_MISMATCH",
        )
    words = [Word(f"[PAD{i}]", Kind.UNUSED, UNUSED_SCORE) for i in range(size)]
    for number, word in base.items():
        words[number] = word
    for number, token in added.items():
        if number < size:
            words[number] = _added(token)
    seen: dict[str, int] = {}
    for number, word in enumerate(words):
        other = seen.setdefault(word.text, number)
        if other != number:
            raise IncompatibleError(
                f"tokens {other} and {number} are both {shown(word.text)!r}; "
                "llama.cpp needs every text once",
                code="VOCABULARY_MISMATCH",
            )
    return tuple(words)


def _added(token: Added) -> Word:
    """As llama.cpp finds it in text: user-defined ones always, control ones where it may."""
    if token.special or looks_special(token.text):
        return Word(token.text, Kind.CONTROL, ADDED_SCORE)
    return Word(token.text.replace("▁", " "), Kind.USER_DEFINED, ADDED_SCORE)


def looks_special(text: str) -> bool:
    """Whether an added token is a control token that its tokenizer forgot to call special."""
    if text in {"<pad>", "<mask>", "<2mass>", "[@BOS@]"}:
        return True
    marks = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))  # noqa: RUF001 - DeepSeek's own bars
    return any(text.startswith(first) and text.endswith(last) for first, last in marks)
