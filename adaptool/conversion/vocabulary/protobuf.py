"""SentencePiece's tokenizer.model: just enough of protocol buffers, within bounds.

Spec: sentencepiece_model.proto (ModelProto) and the wire format of protocol buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adaptool.errors import CorruptInputError, ResourceLimitError

PIECES_LIMIT = 4_000_000

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

UNIGRAM, BPE = 1, 2
"""Kinds of a model (TrainerSpec.ModelType) that are met."""


@dataclass(frozen=True)
class Piece:
    """A token: its text, its score, and its kind (ModelProto.SentencePiece.Type)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What is needed of a ModelProto.

    Attributes:
        pieces: tokens by id.
        kind: UNIGRAM, BPE, or another.
        charsmap: a table by which characters are changed before anything else; often empty.
        space_prefix: a text is read as if it began with a space.
        merge_spaces: runs of spaces count as one.
        escape_spaces: a space is read as U+2581.
    """

    pieces: tuple[Piece, ...]
    kind: int
    charsmap: bytes
    space_prefix: bool
    merge_spaces: bool
    escape_spaces: bool


def read_model(data: bytes) -> SentencePieceModel:
    """The content of a tokenizer.model.

    Raises:
        CorruptInputError: not such a file.
        ResourceLimitError: more than four million pieces.
    """
    try:
        return _read_model(data)
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptInputError(
            f"tokenizer.model: not a SentencePiece model: {error}",
            hint="a tokenizer.model of another kind belongs beside a tokenizer.json: remove it",
        ) from error


def _read_model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    tables: dict[int, Mapping[int, int | bytes]] = {}
    for number, value in _fields(data):
        if number == _PIECE:
            pieces.append(_read_piece(_bytes(value)))
            if len(pieces) > PIECES_LIMIT:
                raise ResourceLimitError(f"tokenizer.model: more than {PIECES_LIMIT} tokens")
        elif number in (_TRAINER, _NORMALIZER):
            tables[number] = dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError("no tokens")
    trainer, normalizer = tables.get(_TRAINER, {}), tables.get(_NORMALIZER, {})
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=_int(trainer.get(3, UNIGRAM)),
        charsmap=_bytes(normalizer.get(2, b"")),
        space_prefix=bool(_int(normalizer.get(3, 1))),
        merge_spaces=bool(_int(normalizer.get(4, 1))),
        escape_spaces=bool(_int(normalizer.get(5, 1))),
    )


def _read_piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(fields.get(2, b"\0\0\0\0")))
    return Piece(_bytes(fields.get(1, b"")).decode(), score, _int(fields.get(3, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values: a number, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"a field of {size} bytes ends beyond the file")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError(f"a number of more than ten bytes at byte {at}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")  # noqa: TRY004 - the file is wrong
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number belongs")  # noqa: TRY004 - the file is wrong
    return value
