"""Integers of a few bits that follow each other in 32-bit words, the lowest bits first."""

from __future__ import annotations

import torch


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The first `count` integers of each row, without a gap between words.

    Args:
        words: int32 [rows, at least ceil(count * bits / 32)], contiguous.
        bits: of one integer, 1 to 8.
        count: integers of a row.

    Returns: uint8 [rows, count].
    """
    rows = words.shape[0]
    if 8 % bits == 0:
        octets = words.reshape(-1).view(torch.uint8).view(rows, -1)
        if bits == 8:
            return octets[:, :count]
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        fields = (octets.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
        return fields.view(rows, -1)[:, :count]
    starts = torch.arange(count) * bits
    wide = torch.nn.functional.pad(words, (0, 1)).to(torch.int64) & 0xFFFFFFFF
    index, shift = starts // 32, starts % 32
    low = wide[:, index] >> shift
    high = wide[:, index + 1] << (32 - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.uint8)


def words_for(count: int, bits: int) -> int:
    """Words that `count` integers need."""
    return -(-count * bits // 32)
