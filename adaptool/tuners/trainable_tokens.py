"""Trainable tokens: rows of an embedding, replaced (PEFT's TrainableTokensConfig).

The file calls them a delta; they are the rows as they are to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adaptool.canonical import LazyTensor, TokenRows, Update
from adaptool.tuners._options import Options
from adaptool.tuners._parts import Parts

_ROWS = "trainable_tokens_delta"

suffixes = (_ROWS, f"token_adapter.{_ROWS}")
shared = ()


@dataclass(frozen=True)
class TunedRows(TokenRows):
    """Token rows that know their name in the file."""

    peft_type: ClassVar[str] = "TRAINABLE_TOKENS"

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The trained rows."""
        return {_ROWS: self.values}


def read(parts: Parts, options: Options) -> Mapping[str, Update]:
    """`trainable_tokens_delta` [tokens, dimension]; `token_indices` says which they are."""
    rows = parts.need(next(iter(parts.tensors)), None, None)
    stated = options.raw.get("token_indices")
    whole = [i for i in stated if type(i) is int and i >= 0] if isinstance(stated, list) else []
    if len(whole) != rows.shape[0] or stated != whole or len(set(whole)) != len(whole):
        raise parts.corrupt(f"{rows.shape[0]} token rows, token_indices do not name as many tokens")
    return {"weight": TunedRows(tuple(whole), rows)}
