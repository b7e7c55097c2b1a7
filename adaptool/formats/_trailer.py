"""Notes behind the end of a file whose readers stop earlier: JSON, its length, a mark.

An adapter file of ONNX Runtime holds names and numbers alone. What else is known of an adapter
(its modules, alpha, base) travels behind them in the same file, and no reader minds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from adaptool.errors import JSON, CorruptInputError
from adaptool.storage import SourceFile, shown

_MARK = b"ADAPTOOL"
_LENGTH = 4
LIMIT = 16 << 20
"""Bytes; notes of an adapter with ten thousand modules are a tenth of it."""


def trailer(notes: Mapping[str, JSON]) -> bytes:
    """The bytes to put behind a file's own end."""
    text = json.dumps(notes, separators=(",", ":")).encode()
    return text + len(text).to_bytes(_LENGTH, "little") + _MARK


def read_trailer(source: SourceFile, start: int = 0) -> dict[str, JSON] | None:
    """The notes that stand behind byte `start` of a file; None if there are none.

    Raises CorruptInputError for notes that are cut or no JSON object.
    """
    tail = _LENGTH + len(_MARK)
    if source.size < start + tail or source.read(source.size - len(_MARK), len(_MARK)) != _MARK:
        return None
    length = int.from_bytes(source.read(source.size - tail, _LENGTH), "little")
    if length > min(source.size - tail - start, LIMIT):
        raise _broken(source)
    try:
        notes = json.loads(source.read(source.size - tail - length, length))
    except (ValueError, RecursionError):
        raise _broken(source) from None
    if not isinstance(notes, dict):
        raise _broken(source)
    return notes


def _broken(source: SourceFile) -> CorruptInputError:
    return CorruptInputError(f"{shown(source.path)}: the notes at its end are damaged")
