"""A tokenizer.model, written field by field."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: float | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def model_proto(
    pieces: Iterable[tuple[str, float, int]], kind: int = 2, charsmap: bytes = b"",
    merge_spaces: bool = False, prefix: bool = True,
) -> bytes:  # fmt: skip
    """A ModelProto of SentencePiece."""
    out = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, sort))
        for text, score, sort in pieces
    )
    trainer = field(3, kind) + field(4, 32000)
    normalizer = field(1, b"identity") + field(2, charsmap) + field(3, int(prefix))
    return out + field(2, trainer) + field(3, normalizer + field(4, int(merge_spaces)))


def pieces_of(tokenizer: Tokenizer) -> list[tuple[str, float, int]]:
    """The pieces from which Hugging Face would have made this tokenizer.json."""
    definition = json.loads(tokenizer.to_str())
    model = definition["model"]
    ranks: dict[str, int] = {}
    for left, right in model["merges"]:
        ranks.setdefault(left + right, len(ranks))
    found = []
    for text in sorted(model["vocab"], key=model["vocab"].__getitem__):
        if text.startswith("<0x") and len(text) == 6:
            found.append((text, 0.0, BYTE))
        elif text in ("<unk>", "<s>", "</s>"):
            found.append((text, 0.0, UNKNOWN if text == "<unk>" else CONTROL))
        else:
            found.append((text, -float(ranks.get(text, len(ranks))), NORMAL))
    return found
