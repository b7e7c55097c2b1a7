"""Small integers into bytes and back.

Standing levels are float32 or uint8 [levels, n]; packed blocks are uint8 [n, bytes].
"""

from __future__ import annotations

import torch

# -- six-bit scales and minima of Q4_K and Q5_K ----------------------------------------------------


def pack_scale_pairs(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minima below 64, float32 [8, n] each -> uint8 [12, n].

    Bytes 0..3 and 4..7 hold the first four of each in their low six bits; bytes 8..11 the low
    nibbles of the last four, whose high two bits top the first eight bytes.
    """
    s, m = scales.to(torch.uint8), minima.to(torch.uint8)
    return torch.cat((
        s[:4] | (s[4:] >> 4 << 6),
        m[:4] | (m[4:] >> 4 << 6),
        (s[4:] & 15) | (m[4:] << 4),
    ))  # fmt: skip


def unpack_scale_pairs(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 12] -> scales and minima, float32 [n, 8] each."""
    b = packed.t().contiguous()
    first, second, third = b[:4], b[4:8], b[8:]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)))
    minima = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)))
    return scales.t().to(torch.float32), minima.t().to(torch.float32)


# -- nibbles ---------------------------------------------------------------------------------------


def pack_nibbles(levels: torch.Tensor, span: int) -> torch.Tensor:
    """Levels below 16, float32 [count, n] -> uint8 [count / 2, n].

    Of every 2 * span levels the first half lies in the low nibbles, the second in the high ones.
    """
    pairs = levels.view(-1, 2, span, levels.shape[-1])
    joined = torch.add(pairs[:, 0], pairs[:, 1], alpha=16)
    return joined.to(torch.uint8).view(-1, levels.shape[-1])


def unpack_nibbles(packed: torch.Tensor, span: int) -> torch.Tensor:
    """uint8 [n, bytes] -> uint8 [n, 2 * bytes]: the reverse, lying."""
    count, width = packed.shape
    spans = packed.reshape(count, width // span, span)
    levels = torch.empty((count, width // span, 2, span), dtype=torch.uint8, device=packed.device)
    torch.bitwise_and(spans, 15, out=levels[:, :, 0])
    torch.bitwise_right_shift(spans, 4, out=levels[:, :, 1])
    return levels.view(count, 2 * width)


# -- single bits -----------------------------------------------------------------------------------


def pack_planes(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers below 2**bits, uint8 [fields, ...] -> one uint8 [...], the first lowest."""
    joined = fields[0].clone()
    for place in range(1, fields.shape[0]):
        joined |= fields[place] << (bits * place)
    return joined


def unpack_planes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, bytes] -> uint8 [n, 8 / bits, bytes]: field k of every byte in plane k."""
    count, width = packed.shape
    planes = torch.empty((count, 8 // bits, width), dtype=torch.uint8, device=packed.device)
    for place in range(8 // bits):
        plane = planes[:, place]
        torch.bitwise_right_shift(packed, bits * place, out=plane)
        plane &= (1 << bits) - 1
    return planes
