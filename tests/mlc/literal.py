"""MLC's arithmetic in numpy, formula by formula, value by value: what the tests compare with.

Nothing here is fast, and nothing is shared with the package.
"""

from __future__ import annotations

import numpy as np

BITS = {"q4f16_1": 4, "q4f32_1": 4, "q3f16_1": 3}
GROUP = {"q4f16_1": 32, "q4f32_1": 32, "q3f16_1": 40}
MODEL = {"q4f16_1": np.float16, "q3f16_1": np.float16, "q0f16": np.float16,
         "q4f32_1": np.float32, "q0f32": np.float32}  # fmt: skip


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16 as uint16: nearest even, large values clipped."""
    out = np.empty(values.shape, np.uint16)
    limit = np.array(0x7F7F0000, np.uint32).view(np.float32)
    for index, value in np.ndenumerate(values.astype(np.float32)):
        bits = int(value.view(np.uint32))
        if -limit < value < limit:
            bits += 0x7FFF + (bits >> 16 & 1)
        out[index] = bits >> 16 & 0xFFFF
    return out


def widened(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def stored(scheme: str, values: np.ndarray) -> np.ndarray:
    """Plain values as they are stored: float16, or the bits of bfloat16."""
    single = values.astype(np.float32)
    return single.astype(np.float16) if MODEL[scheme] is np.float16 else bfloat16(single)


def quantised(scheme: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrix [n, k] of any type -> words [n, w] uint32 and scales [n, g], stored as above."""
    kind, bits, group = MODEL[scheme], BITS[scheme], GROUP[scheme]
    top, per = 2 ** (bits - 1) - 1, 32 // bits
    weight = values.astype(np.float32).astype(kind)
    n, k = weight.shape
    groups = -(-k // group)
    words = np.zeros((n, groups * group // per), np.uint32)
    scales = np.zeros((n, groups), kind)
    with np.errstate(all="ignore"):
        for i in range(n):
            for g in range(groups):
                part = weight[i, g * group : (g + 1) * group]
                scale = scales[i, g] = np.abs(part).max() / kind(top)
                for r, value in enumerate(part):
                    t = value / scale
                    t = np.rint(t + kind(top))
                    assert t.dtype == kind
                    code = 0 if np.isnan(t) or t < 0 else int(min(t, 2 * top))
                    position = g * group + r
                    words[i, position // per] |= np.uint32(code << position % per * bits)
    return words, scales if kind is np.float16 else bfloat16(scales)


def decoded(scheme: str, words: np.ndarray, scales: np.ndarray, width: int) -> np.ndarray:
    """The same back to float32 [n, k]; products in the model's type."""
    kind, bits, group = MODEL[scheme], BITS[scheme], GROUP[scheme]
    top, per = 2 ** (bits - 1) - 1, 32 // bits
    number = scales if kind is np.float16 else widened(scales)
    out = np.empty((len(words), width), kind)
    for i in range(len(words)):
        for k in range(width):
            code = int(words[i, k // per]) >> k % per * bits & (2**bits - 1)
            out[i, k] = kind(code - top) * number[i, k // group]
    return out.astype(np.float32)


def squared_errors(scheme: str, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Sums of squared differences over each group, float64 [n, groups]."""
    group = GROUP[scheme]
    difference = found.astype(np.float64) - wanted.astype(np.float64)
    padded = np.pad(difference, ((0, 0), (0, -difference.shape[1] % group)))
    return (padded.reshape(len(padded), -1, group) ** 2).sum(-1)
