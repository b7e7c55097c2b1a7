"""Tokenizers of every kind that is recognised, trained here on a page of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ["<|begin|>", "<|end|>", "<|turn|>"]

MARKS = "ไทย हिन्दी កាន់តែ"
"""Letters with marks that combine."""

NASTY = (
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces  and   three",
    "tabs\tand\t\ttabs",
    "line\nbreaks\n\n\nand\r\nreturns\r",
    "trailing   ",
    "\n \n  \n   x\n",
    "I've they'LL we'd it's DON'T y'all'S 'tis",
    "3 33 333 3333 33333 3.14 1,000,000 0x1F 2²",
    "snake_case CamelCase kebab-case path/to/file.py ::= => !=",
    "!!!??...---===###(((nested)))[]{}<>",
    "Größe naïve façade Ünïcödé ŁÓDŹ",
    "привет мир НЕЩО на Български",
    "你好世界, 今天天气很好。 日本語テキスト 한국어 텍스트",
    "مرحبا بالعالم",
    MARKS,
    "🚀 emoji 😶‍🌫️ family 👨‍👩‍👧‍👦 flags 🇩🇪🇫🇷",
    "nbsp\u00a0thin\u2009ideographic\u3000zero\u200bwidth",
    "e\u0301 decomposed, o\u0308",
    "\u0000\u0001\u001b[31mred\u007f",
    "<|begin|>user: hi<|end|>\n<|turn|> bot <|end|>",
    "almost <|begin |> or <|en",
    "the the the the theory of thermodynamics",
    "a" * 70,
    "x" + " " * 40 + "y",
)
"""Texts at which two tokenizers that only look alike come apart."""

_CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the theory of the thermodynamics of it.\n",
    "The other things that they're thinking of aren't there. I've said that we'll see it.\n",
    "def function(self, value):\n    return self.value + value  # a comment\n\tif x == 10:\n",
    "In 1984 there were 1,234,567 people; 3.14159 is not 22/7. 2024-11-05 12:30:59\n",
    "Größe und Übermut, naïve façade, привет мир, нещо на български, 你好世界 今天天气, 日本語\n",
    "🚀🚀 😶‍🌫️ 한국어 텍스트 مرحبا بالعالم हिन्दी ไทย    spaces    and  more   spaces\n\n\n",
) * 8

Steps = Callable[[], Any]


def _split(*patterns: str, digits: bool = False) -> Steps:
    def build() -> Any:
        steps: list[Any] = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
        if digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)

    return build


def _gpt2(*before: Any, after: tuple[Any, ...] = ()) -> Steps:
    def build() -> Any:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([*before, level, *after]) if before or after else level

    return build


_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUM| ?[^\s\p{L}\p{N}]+[\r\n]*"
_END = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_CASED = rf"{_HEAD}{_UPPER}*{_LOWER}+TAIL|{_HEAD}{_UPPER}+{_LOWER}*TAIL"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LLAMA3 = _WORD.replace("NUM", "{1,3}") + _END

KINDS: dict[str, tuple[Steps, bool]] = {
    "gpt-2": (_gpt2(), False),
    "smollm": (_gpt2(pre_tokenizers.Digits(individual_digits=True)), False),
    "llama-bpe": (_split(_LLAMA3), True),
    "dbrx": (_split(_LLAMA3), False),
    "qwen2": (_split(_WORD.replace("NUM", "") + _END), False),
    "qwen35": (
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _END
        ),
        False,
    ),
    "tekken": (_split(_CASED.replace("TAIL", "") + r"|\p{N}" + _SYMBOLS + _END), True),
    "gpt-4o": (
        _split(
            _CASED.replace("TAIL", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?")
            + r"|\p{N}{1,3}" + _SYMBOLS + _END
        ),
        False,
    ),
    "deepseek-v3": (
        _split(
            r"\p{N}{1,3}",
            "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
            r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _END,
        ),
        False,
    ),
    "deepseek-coder": (
        _split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", digits=True),
        False,
    ),
    "bloom": (_split(r" ?[^(\s|[.,!?…。，、।۔،])]+"), False),  # noqa: RUF001
    "falcon": (
        _gpt2(
            pre_tokenizers.Punctuation("contiguous"),
            after=(
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ),
        ),
        False,
    ),
}  # fmt: skip
"""llama.cpp's name -> how a tokenizer.json of that kind cuts, and whether words go over merges."""


@cache
def byte_level(name: str, size: int = 500) -> Tokenizer:
    """A tokenizer like GPT-2's, Llama 3's, Qwen's ..."""
    steps, whole = KINDS[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = steps()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


@cache
def sentencepiece(prefix: bool = True, size: int = 700) -> Tokenizer:
    """A tokenizer like that of Llama 2 or Gemma: every way to a token is among its merges."""
    tokenizer = _trained_pieces(prefix, size)
    definition = json.loads(tokenizer.to_str())
    table, learnt = definition["model"]["vocab"], definition["model"]["merges"]
    ranks = {left + right: rank for rank, (left, right) in enumerate(learnt)}
    reachable = {text for text in table if len(text) == 1} | ranks.keys()
    definition["model"]["merges"] = [
        [text[:cut], text[cut:]]
        for text in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(text))
        if text[:cut] in reachable and text[cut:] in reachable
    ]
    return Tokenizer.from_str(json.dumps(definition))


def incomplete(size: int = 700) -> Tokenizer:
    """The same as a trainer leaves it: with one way to every token."""
    return _trained_pieces(True, size)


def _trained_pieces(prefix: bool, size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    single = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *single], show_progress=False,
        limit_alphabet=90, max_token_length=12,
    )  # fmt: skip
    words = [word for text in _CORPUS for word in _pieces_of(text)]
    tokenizer.train_from_iterator(words, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if not token["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _pieces_of(text: str) -> list[str]:
    return [" " * (i > 0) + word for i, word in enumerate(text.split(" ")) if word]
