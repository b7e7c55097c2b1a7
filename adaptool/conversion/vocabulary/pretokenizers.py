r"""Which of llama.cpp's pre-tokenizers cuts a text as a tokenizer.json says.

llama.cpp has no interpreter for tokenizer.json: `tokenizer.ggml.pre` names one of its own cuts, and
a wrong name gives other tokens without a word.  A tokenizer is therefore recognised by what it
does - the patterns it cuts with, one after another, and whether a word that is a token is taken
whole - and never by the name of a model.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.conversion.vocabulary.files import TokenizerFiles, steps
from adaptool.errors import JSON, IncompatibleError

BYTES = "bytes"
"""The step that only writes bytes as printable characters."""
GPT2 = "gpt2"
"""The step that does so and cuts with the pattern of GPT-2."""
DIGITS = "digits"
"""The step that sets every digit apart."""
NUMBERS = "numbers"
"""The step that sets every run of digits apart."""
PUNCTUATION = "punctuation"
"""The step that sets every run of punctuation apart."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELT_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{end}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{end}"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"

LLAMA3 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
)  # fmt: skip
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
)  # fmt: skip
TEKKEN = _CASED.replace("{end}", "") + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
GPT4O = (
    _CASED.replace("{end}", _CONTRACTIONS + "?")
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)  # fmt: skip
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 - the pattern's own punctuation

Steps = tuple[str, ...]

_KNOWN: Mapping[Steps, tuple[str | None, str | None]] = {
    (GPT2,): ("gpt-2", None),
    (DIGITS, GPT2): ("smollm", None),
    (LLAMA3, BYTES): ("dbrx", "llama-bpe"),
    (QWEN2, BYTES): ("qwen2", None),
    (QWEN35, BYTES): ("qwen35", None),
    (TEKKEN, BYTES): (None, "tekken"),
    (GPT4O, BYTES): ("gpt-4o", None),
    (*DEEPSEEK3, BYTES): ("deepseek-v3", None),
    (*DEEPSEEK_CODER, DIGITS, BYTES): ("deepseek-coder", None),
    (BLOOM, BYTES): ("bloom", None),
    (PUNCTUATION, GPT2, NUMBERS, "[0-9][0-9][0-9]"): ("falcon", None),
}
"""Steps -> (name when merges always apply, name when a word that is a token is taken whole)."""

_COMPOSING = "NFC"
"""The one change of text before it is cut that llama.cpp leaves out for every model: accents."""

NAMES = tuple(name for pair in _KNOWN.values() for name in pair if name)
"""What can be recognised."""


def recognise(files: TokenizerFiles) -> str:
    """The name of llama.cpp's pre-tokenizer that does what this byte-level tokenizer does.

    Args:
        files: with a tokenizer.json.

    Raises:
        IncompatibleError: it cuts in a way that is not known here (UNKNOWN_PRETOKENIZER).
    """
    whole = files.model.get("ignore_merges") is True
    tokenizer = files.tokenizer
    cuts = tuple(_cut(step) for step in steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    name = _KNOWN.get(cuts, (None, None))[whole]
    if name is None:
        shown = ", ".join(cut[:60] for cut in cuts) or "nothing"
        raise _unknown(f"cuts text with {shown}{' (ignoring merges)' if whole else ''}")
    for change in steps(tokenizer.get("normalizer"), "normalizers"):
        if change.get("type") != _COMPOSING:
            raise IncompatibleError(
                f"tokenizer.json changes text ({change.get('type')}) before it cuts it: "
                "llama.cpp does not",
                hint=f"--pre {name} accepts that texts which it would change are read differently",
                code="UNKNOWN_PRETOKENIZER",
            )
    return name


def _cut(cut: Mapping[str, JSON]) -> str:
    """What one step does, by a name or by its pattern."""
    match cut.get("type"):
        case "ByteLevel":
            if cut.get("add_prefix_space"):
                raise _unknown("puts a space before every text")
            return GPT2 if cut.get("use_regex", True) else BYTES
        case "Digits":
            return DIGITS if cut.get("individual_digits") else NUMBERS
        case "Punctuation" if cut.get("behavior") == "Contiguous":
            return PUNCTUATION
        case "Split":
            return _pattern(cut)
        case kind:
            raise _unknown(f"cuts text with {kind}")


def _pattern(cut: Mapping[str, JSON]) -> str:
    """A regular expression in one spelling.

    Matches are set apart; removing what lies between them is the same if they leave nothing there.
    """
    stated = cut.get("pattern")
    regex = stated.get("Regex") if isinstance(stated, dict) else None
    way = (cut.get("behavior"), bool(cut.get("invert")))
    if not isinstance(regex, str):
        raise _unknown(f"cuts text with {str(stated)[:60]}")
    regex = regex.replace(_SPELT_OUT, _CONTRACTIONS).replace("\r", r"\r").replace("\n", r"\n")
    if way != ("Isolated", False) and (way != ("Removed", True) or not regex.endswith(_SPACES)):
        raise _unknown(f"cuts text with {regex[:60]} ({cut.get('behavior')})")
    return regex


def _unknown(what: str) -> IncompatibleError:
    return IncompatibleError(
        f"tokenizer.json {what}: llama.cpp is not known to do the same, "
        "and would read other tokens without a word",
        hint=f"if you know its name for this tokenizer, state it with --pre "
        f"(recognised by themselves: {', '.join(NAMES)})",
        code="UNKNOWN_PRETOKENIZER",
    )
