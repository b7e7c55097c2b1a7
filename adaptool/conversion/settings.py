"""What a config.json states about a model, whichever version of transformers wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from adaptool.errors import JSON, CorruptInputError, IncompatibleError

_INNER = ("text_config", "llm_config", "language_config")
"""Where a multimodal model keeps what its language model is."""

_SILENT: Mapping[str, Mapping[str, JSON]] = {
    "gemma3_text": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "sliding_window": 4096,
        "vocab_size": 262208, "hidden_activation": "gelu_pytorch_tanh",
    },
}  # fmt: skip
"""What published configurations of a model type leave unsaid, as transformers fills it in."""


LARGEST = 3.4e38
"""Numbers beyond this are no setting: float32 does not hold them."""


@dataclass(frozen=True)
class Settings:
    """A configuration that is asked by name; several names for one thing are tried in turn.

    Every getter raises CorruptInputError for a value of another type, and IncompatibleError
    for one that is missing and has no default.
    """

    values: Mapping[str, JSON]

    @property
    def model_type(self) -> str:
        """The model's type, or an empty string."""
        return str(self.values.get("model_type") or "")

    def find(self, *names: str) -> JSON:
        """The first of these that is stated, or None."""
        return next((self.values[n] for n in names if self.values.get(n) is not None), None)

    def count(self, *names: str, default: int | None = None) -> int:
        """A whole number that is not negative."""
        value = self._required(names, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise _odd(names[0], value, "a whole number")
        return value

    def number(self, *names: str, default: float | None = None) -> float:
        """A real number."""
        value = self._required(names, default)
        if not _is_number(value):
            raise _odd(names[0], value, "a number")
        return float(value)

    def positive(self, *names: str, default: float | None = None) -> float:
        """A real number above zero."""
        value = self.number(*names, default=default)
        if value <= 0:
            raise _odd(names[0], value, "a number above zero")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Yes or no."""
        value = self._required((name,), default)
        if not isinstance(value, bool):
            raise _odd(name, value, "true or false")
        return value

    def text(self, *names: str, default: str | None = None) -> str:
        """A word."""
        value = self._required(names, default)
        if not isinstance(value, str):
            raise _odd(names[0], value, "a word")
        return value

    def numbers(self, name: str) -> list[float] | None:
        """A list of numbers, or None."""
        found = self.find(name)
        if found is None:
            return None
        numbers = [v for v in found if _is_number(v)] if isinstance(found, list) else []
        if not isinstance(found, list) or len(numbers) != len(found):
            raise _odd(name, found, "a list of numbers")
        return numbers

    def table(self, *names: str) -> Settings:
        """A table inside, empty if it is not stated."""
        found = self.find(*names)
        if found is None:
            return Settings({})
        if not isinstance(found, dict):
            raise _odd(names[0], found, "a table")
        return Settings(found)

    def _required(self, names: tuple[str, ...], default: JSON) -> JSON:
        value = self.find(*names)
        if value is None:
            value = default
        if value is None:
            raise IncompatibleError(
                f"config.json does not state {' or '.join(names)}",
                hint="complete config.json: its transformers class knows the value",
                code="CONFIG_INCOMPLETE",
            )
        return value


def settings(config: Mapping[str, JSON]) -> Settings:
    """The language model's settings: those inside a multimodal model go over the outer ones."""
    merged: dict[str, JSON] = dict(config)
    inner = next((config[key] for key in _INNER if isinstance(config.get(key), dict)), None)
    if isinstance(inner, dict):
        merged |= inner
    silent = _SILENT.get(str(merged.get("model_type")), {})
    return Settings({**silent, **{k: v for k, v in merged.items() if v is not None}})


def _is_number(value: JSON) -> TypeGuard[float]:
    """Whether GGUF's float32 can hold it, too."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (abs(value) <= LARGEST)
    )


def _odd(name: str, value: JSON, expected: str) -> CorruptInputError:
    return CorruptInputError(f"config.json: {name} is {str(value)[:80]!r}, not {expected}")
