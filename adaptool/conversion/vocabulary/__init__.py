"""A tokenizer's files as llama.cpp's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.containers.gguf.values import Value
from adaptool.conversion.vocabulary.bytelevel import read_byte_level
from adaptool.conversion.vocabulary.files import TokenizerFiles
from adaptool.conversion.vocabulary.sentencepiece import read_sentencepiece
from adaptool.conversion.vocabulary.special import describe_special
from adaptool.conversion.vocabulary.words import Vocabulary
from adaptool.errors import JSON, IncompatibleError

__all__ = ["TokenizerFiles", "describe_vocabulary", "read_vocabulary"]


def describe_vocabulary(
    files: TokenizerFiles, config: Mapping[str, JSON], size: int, pre: str | None = None
) -> dict[str, Value]:
    """All tokenizer.* key-values.

    Args:
        files: tokenizer.json or tokenizer.model, and what lies beside it.
        config: config.json.
        size: rows of the input embedding; the vocabulary is filled up to it.
        pre: llama.cpp's name of the pre-tokenizer, where it is not recognised.

    Raises:
        IncompatibleError: no tokenizer, or one that llama.cpp would not follow.
        CorruptInputError: broken files.
    """
    vocabulary = read_vocabulary(files, size, pre)
    return vocabulary.values() | describe_special(files, config, vocabulary)


def read_vocabulary(files: TokenizerFiles, size: int, pre: str | None = None) -> Vocabulary:
    """The tokens; arguments and errors as `describe_vocabulary`."""
    model = files.model
    if not model:
        if files.sentencepiece is not None:
            return read_sentencepiece(files, size, pre)
        raise IncompatibleError(
            "no tokenizer.json and no tokenizer.model beside the model",
            hint="put the tokenizer's files there: tokenizer.save_pretrained(folder)",
            code="TOKENIZER_MISSING",
        )
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise IncompatibleError(
            f"tokenizer.json is of the kind {kind}: only byte-pair encoding can be written",
            code="UNSUPPORTED_TOKENIZER",
        )
    if model.get("byte_fallback"):
        return read_sentencepiece(files, size, pre)
    return read_byte_level(files, size, pre)
