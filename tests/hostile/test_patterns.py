"""Expressions of adapter_config.json: as `re` matches them, but in bounded time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adaptool.errors import ResourceLimitError
from adaptool.formats.peft import settings
from adaptool.formats.peft.patterns import Pattern, PatternError

NAMES = [
    "model.layers.0.self_attn.q_proj", "model.layers.11.mlp.down_proj", "a.b", "q_proj",
    "xq_proj", "model.layers.1.self_attn.q_proj\n", "a\nb.q_proj", "été.q_proj", "", ".", "a.",
]  # fmt: skip
SOUND = [
    r"q_proj", r".*\.q_proj", r"layers\.\d+\.self_attn\.(q|k)_proj", r"model.layers.(0|1|11).*",
    r"(?!.*mlp).*proj", r"[^.]+\.b", r"\bq_proj", r"\Bq_proj", r"x?q_proj$", r"self_attn.*",
    r"^q_proj", r"layers\.[0-9]{1,2}\..*?_proj", r"(?=self)self_attn\.q_proj", r"\w+", r"[^\d]*j",
    r"", r"a|b|q_proj", r"\Aq_proj\Z", r"(?:a|b)+\.?", r"[\w\s]{2,}", r"\S\D\W", r"(?P<x>a)\.b",
]  # fmt: skip
REFUSED = [r"(", r"*", "a" * 3000, "(" * 1500, r"a{99999999999}", r"[b-a]", r"(?P<x>a)(?P<x>"]
SLOW = [
    r"(a+)+$", r"((ab*)*c)*", r"(a|a)*$", r"(a|ab|b)+c", ".*" * 400 + "x",
    "a?" * 400 + "a" * 400, "(a|aa)" * 200 + "c", r"(?!(a|aa)*b)" * 100, r"(.|a|aa|aaa)*!",
    r"((a{1,100}){1,100}){1,100}b", r"(?R)",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SOUND)
def test_as_peft_matches(pattern: str) -> None:
    own = Pattern(pattern)
    for name in NAMES:
        assert own.matches(name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


@pytest.mark.parametrize("pattern", REFUSED)
def test_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        Pattern(pattern)


@pytest.mark.parametrize("pattern", SLOW)
def test_bounded(pattern: str) -> None:
    """Without a bound, some of these would take longer than anybody waits for a test."""
    try:
        Pattern(pattern).matches("a" * 1000)
    except PatternError as error:
        assert "too long" in str(error)


def test_patterns_times_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many patterns are fine, and many modules, but not any number of both."""
    monkeypatch.setattr(settings, "_MAX_MATCHES", 10_000)
    read = settings.Settings({"alpha_pattern": {f"x.{i}": 4 for i in range(100)}}, Path("config"))
    for number in range(100):
        assert read.scaling(f"y.{number}", 1) == settings.DEFAULT_ALPHA
    with pytest.raises(ResourceLimitError, match="alpha_pattern"):
        read.scaling("y.100", 1)
