"""Regular expressions from a file, matched in bounded time.

`re` backtracks, so that an expression of thirty characters can keep it busy for years. Here
each part of an expression maps the set of places where it may begin to the set of places where
it may end; a budget of steps ends whatever takes long all the same.
"""

from __future__ import annotations

import re
import re._constants as codes  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Part = Any
"""A node of the tree that `re` makes of an expression; it has no types of its own."""

MAX_LENGTH = 2000
BUDGET = 500_000
"""Places looked at in one match; a real expression takes a few hundred."""


class PatternError(ValueError):
    """An expression that is broken, or that is not matched here."""


class Pattern:
    r"""An expression that is matched as PEFT matches: `(.*\.)?(pattern)$` from the start.

    Raises:
        PatternError: broken, too long, a repeat of a repeat, or an unusual construct.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise PatternError(f"an expression of {len(text)} characters")
        try:
            self._parsed = parser.parse(text)
        except (re.error, RecursionError, OverflowError, ValueError) as error:
            raise PatternError(f"no valid expression ({str(error)[:60]})") from None
        if self._parsed.state.flags != int(re.UNICODE):
            raise PatternError("an expression with flags")
        _check(self._parsed)
        plain = all(code in _SINGLE for code, _ in self._parsed)
        self._quick = re.compile(rf"(?:.*\.)?(?:{text})$") if plain else None

    @property
    def cost(self) -> int:
        """About how long one match takes; 1 is the fastest."""
        return 100 if self._quick is None else 1

    def matches(self, text: str) -> bool:
        """Whether the expression matches. Raises PatternError if that takes too long."""
        if self._quick is not None:
            return self._quick.match(text) is not None
        line = text.partition("\n")[0]
        starts = frozenset({0, *(i + 1 for i, c in enumerate(line) if c == ".")})
        match = _Match(text)
        return bool(match.at(codes.AT_END, match.sequence(self._parsed, starts)))


def _check(parsed: Iterable[tuple[Part, Part]], *, repeated: bool = False) -> None:
    for code, argument in parsed:
        if code not in _HANDLERS:
            raise PatternError(f"an expression with {str(code).lower()}")
        again = code in _REPEATS and argument[1] > 1
        if again and repeated:
            raise PatternError("an expression with nested repeats")
        for part in _parts(code, argument):
            _check(part, repeated=repeated or again)


def _parts(code: Part, argument: Part) -> list[Part]:
    if code in _REPEATS:
        return [argument[2]]
    if code is codes.BRANCH:
        return list(argument[1])
    if code is codes.SUBPATTERN:
        if argument[1] or argument[2]:
            raise PatternError("an expression with flags")
        return [argument[3]]
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        if argument[0] < 0:
            raise PatternError("an expression that looks back")
        return [argument[1]]
    return []


Places = frozenset[int]


class _Match:
    """One text, and the steps that are left."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._left = BUDGET

    def sequence(self, parsed: Iterable[tuple[Part, Part]], places: Places) -> Places:
        """Where a sequence may end that begins at one of `places`."""
        for code, argument in parsed:
            self._left -= len(places) + 1
            if self._left < 0:
                raise PatternError("an expression that takes too long")
            places = _HANDLERS[code](self, argument, places)
            if not places:
                break
        return places

    def repeat(self, argument: Part, places: Places) -> Places:
        """Between argument[0] and argument[1] times argument[2]."""
        least, most, body = argument
        for _ in range(least):
            before, places = places, self.sequence(body, places)
            if not places or places == before:
                break
        found = fresh = places
        count = least
        while fresh and count < most:
            fresh = self.sequence(body, fresh) - found
            found |= fresh
            count += 1
        return found

    def branch(self, argument: Part, places: Places) -> Places:
        """Any of the alternatives."""
        ends = [self.sequence(part, places) for part in argument[1]]
        return frozenset().union(*ends)

    def group(self, argument: Part, places: Places) -> Places:
        """What is in the group."""
        return self.sequence(argument[3], places)

    def ahead(self, argument: Part, places: Places) -> Places:
        """The places from which argument[1] goes on."""
        return frozenset(p for p in places if self.sequence(argument[1], frozenset({p})))

    def not_ahead(self, argument: Part, places: Places) -> Places:
        """The places from which argument[1] does not go on."""
        return places - self.ahead(argument, places)

    def at(self, argument: Part, places: Places) -> Places:
        """Start, end and word borders."""
        return frozenset(p for p in places if self._is_at(argument, p))

    def _is_at(self, where: Part, place: int) -> bool:
        size = len(self.text)
        if where in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            return place == 0
        if where is codes.AT_END:
            return place == size or (place == size - 1 and self.text[place] == "\n")
        if where is codes.AT_END_STRING:
            return place == size
        border = self._is_word(place - 1) != self._is_word(place)
        return border == (where is codes.AT_BOUNDARY)

    def _is_word(self, place: int) -> bool:
        inside = 0 <= place < len(self.text)
        return inside and _in_category(self.text[place], codes.CATEGORY_WORD)

    def one(self, accepts: Callable[[str], bool], places: Places) -> Places:
        """One character that is accepted."""
        text = self.text
        return frozenset(p + 1 for p in places if p < len(text) and accepts(text[p]))


def _in_category(character: str, category: Part) -> bool:
    kind, wanted = _CATEGORIES[category]
    found = {
        "d": character.isdecimal(),
        "s": character.isspace(),
        "w": character.isalnum() or character == "_",
    }
    return found[kind] is wanted


def _in_set(character: str, items: list[tuple[Part, Part]]) -> bool:
    negated = items[0][0] is codes.NEGATE
    number = ord(character)
    found = False
    for code, argument in items[negated:]:
        if code is codes.LITERAL:
            found = number == argument
        elif code is codes.RANGE:
            found = argument[0] <= number <= argument[1]
        else:
            found = _in_category(character, argument)
        if found:
            break
    return found is not negated


_CATEGORIES = {
    codes.CATEGORY_DIGIT: ("d", True), codes.CATEGORY_NOT_DIGIT: ("d", False),
    codes.CATEGORY_SPACE: ("s", True), codes.CATEGORY_NOT_SPACE: ("s", False),
    codes.CATEGORY_WORD: ("w", True), codes.CATEGORY_NOT_WORD: ("w", False),
}  # fmt: skip
_SINGLE = (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN, codes.AT)
_REPEATS = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_HANDLERS: Mapping[Part, Callable[[_Match, Part, Places], Places]] = {
    codes.LITERAL: lambda m, a, p: m.one(lambda c: ord(c) == a, p),
    codes.NOT_LITERAL: lambda m, a, p: m.one(lambda c: ord(c) != a, p),
    codes.ANY: lambda m, _, p: m.one(lambda c: c != "\n", p),
    codes.IN: lambda m, a, p: m.one(lambda c: _in_set(c, a), p),
    codes.AT: _Match.at,
    codes.MAX_REPEAT: _Match.repeat,
    codes.MIN_REPEAT: _Match.repeat,
    codes.BRANCH: _Match.branch,
    codes.SUBPATTERN: _Match.group,
    codes.ASSERT: _Match.ahead,
    codes.ASSERT_NOT: _Match.not_ahead,
}
