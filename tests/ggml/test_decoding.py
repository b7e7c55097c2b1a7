"""What blocks are read as: exactly the values that ggml reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from adaptool.encodings.ggml import TYPES, encoding

from . import ggml_library

READABLE = sorted(one.name for one in TYPES.values() if one.home)
BLOCKS = 700


def blocks_of(name: str) -> np.ndarray:
    """Blocks of random bytes, but for halves that are not finite."""
    generator = np.random.default_rng(sorted(READABLE).index(name))
    packed = generator.integers(0, 256, (BLOCKS, encoding(name).size), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(dequantize(packed, GGMLQuantizationType[name])).all(1)
    return packed[finite]


@pytest.mark.parametrize("name", READABLE)
def test_values_are_those_of_the_gguf_package(name):
    packed = blocks_of(name)
    assert len(packed) > BLOCKS / 3
    decoded = encoding(name).decode(torch.from_numpy(packed.reshape(-1)))
    expected = dequantize(packed, GGMLQuantizationType[name]).reshape(-1)
    assert decoded.dtype == torch.float32
    np.testing.assert_array_equal(decoded.numpy(), expected)


@pytest.mark.parametrize("name", READABLE)
def test_values_are_those_of_ggml(name):
    packed, scheme = blocks_of(name), encoding(name)
    spelled = name.lower().replace("_k", "_K")
    expected = ggml_library.dequantize(spelled, packed, len(packed) * scheme.block)
    decoded = scheme.decode(torch.from_numpy(packed.reshape(-1))).numpy()
    np.testing.assert_array_equal(decoded, expected)


def test_a_block_of_q4_k_by_hand():
    """One value after the other, by the description of the format, in float64."""
    packed = blocks_of("Q4_K")[:5]
    decoded = encoding("Q4_K").decode(torch.from_numpy(packed.reshape(-1))).view(5, 8, 32)
    for block, values in zip(packed, decoded.double(), strict=True):
        d, dmin = (float(half) for half in block[:4].view(np.float16))
        six = [int(byte) for byte in block[4:16]]
        for group in range(8):
            if group < 4:
                scale, minimum = six[group] & 63, six[group + 4] & 63
            else:
                scale = six[group + 4] & 15 | (six[group - 4] >> 6) << 4
                minimum = six[group + 4] >> 4 | (six[group] >> 6) << 4
            for i in range(32):
                level = int(block[16 + group // 2 * 32 + i]) >> group % 2 * 4 & 15
                expected = d * scale * level - dmin * minimum
                assert abs(float(values[group, i]) - expected) <= 1e-6 * (
                    abs(d * scale * level) + abs(dmin * minimum)
                )


def test_a_part_of_a_larger_buffer_is_read():
    packed = torch.from_numpy(blocks_of("Q6_K").reshape(-1))
    whole = encoding("Q6_K").decode(packed)
    assert torch.equal(encoding("Q6_K").decode(packed[210 * 3 : 210 * 9]), whole[768 : 256 * 9])


def test_no_bytes_give_no_values():
    assert encoding("Q4_K").decode(torch.empty(0, dtype=torch.uint8)).shape == (0,)
