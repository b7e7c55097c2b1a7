"""What adapter_config.json says, asked key by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

from adaptool.errors import JSON, CorruptInputError, IncompatibleError

_LARGEST = 1e30


@dataclass(frozen=True)
class Options:
    """A configuration, read tolerantly where a key is absent and strictly where it is there.

    Attributes:
        raw: the whole file.
        where: its path, for messages.
        pattern: `pattern(key, module)` is the value that a table of pattern -> number
            (alpha_pattern, rank_pattern ...) holds for a module, or None.
        names: `names(key, module)`: whether a list of modules' endings, or one expression, names
            a module.
    """

    raw: Mapping[str, JSON]
    where: str
    pattern: Callable[[str, str], float | None]
    names: Callable[[str, str], bool]

    def number(self, key: str, default: float) -> float:
        """A finite number.

        Raises CorruptInputError for anything else.
        """
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, "a number")
        if not (isfinite(value) and abs(value) <= _LARGEST):
            raise self.refusal(key, "a sensible number")
        return float(value)

    def whole(self, key: str, default: int, least: int = 0) -> int:
        """A whole number from `least` to 2**31.

        Raises CorruptInputError for anything else.
        """
        value = self.number(key, default)
        if value != int(value) or not least <= value < 2**31:
            raise self.refusal(key, f"a whole number, at least {least}")
        return int(value)

    def strength(self, key: str, module: str, rank: int, default: float = 8.0) -> float:
        """The stated alpha over `rank`: that of the first pattern that matches, else of `key`."""
        stated = self.pattern("alpha_pattern", module)
        return (self.number(key, default) if stated is None else stated) / rank

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false.

        Raises CorruptInputError for anything else.
        """
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return default if value is None else value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """One of the names in `known`, the first by default.

        Raises IncompatibleError for another one, which is a variant that is not known here.
        """
        value = self.raw.get(key)
        if value is None:
            return known[0]
        if not isinstance(value, str) or value not in known:
            raise IncompatibleError(
                f"{self.where}: {key} is {str(value)[:40]!r}, known are {', '.join(known)}",
                hint="merge it with the PEFT version that made it",
                code="UNSUPPORTED_VARIANT",
            )
        return value

    def refusal(self, key: str, wanted: str) -> CorruptInputError:
        """What to raise for a key whose value is none that PEFT would have written."""
        return CorruptInputError(
            f"{self.where}: {key} is {str(self.raw.get(key))[:60]!r}, expected {wanted}"
        )
