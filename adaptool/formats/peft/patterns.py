"""Regular expressions from a file, matched in bounded time.

A backtracking matcher can be kept busy for years by thirty characters; `regex` backtracks less than
`re`, and stops when it is told to.
"""

from __future__ import annotations

import regex

MAX_LENGTH = 2000
_BEFORE = r"(.*\.)?"

PATIENCE = 0.25
"""Seconds for one match; a sound expression needs microseconds."""


class PatternError(ValueError):
    """An expression that is broken, too long, or takes too long."""


class Pattern:
    r"""An expression that is matched as PEFT matches: `(.*\.)?(pattern)$` from the start.

    Args:
        text: the expression.
        whole: it must match a path from its first letter on, as `target_modules` must.

    Raises:
        PatternError: broken or too long.
    """

    def __init__(self, text: str, *, whole: bool = False) -> None:
        if len(text) > MAX_LENGTH:
            raise PatternError(f"an expression of {len(text)} characters")
        try:
            self._compiled = regex.compile(rf"{'' if whole else _BEFORE}({text})$")
        except (regex.error, RecursionError, OverflowError, ValueError, KeyError) as error:
            raise PatternError(f"no valid expression ({str(error)[:60]})") from None

    def matches(self, text: str) -> bool:
        """Whether the expression matches. Raises PatternError if that takes too long."""
        try:
            return self._compiled.match(text, timeout=PATIENCE) is not None
        except TimeoutError:
            raise PatternError("an expression that takes too long") from None
