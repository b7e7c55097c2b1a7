"""Narrower types: rounded to the nearest, and nothing finite becomes infinite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptool.canonical import DType
from adaptool.canonical.narrowing import narrowed, rounded_to
from adaptool.canonical.tensors import from_values

SPECIAL = (
    0.0,
    -0.0,
    65504.0,
    -65504.0,
    65519.0,
    65520.0,
    1e-8,
    6e-8,
    math.inf,
    -math.inf,
    math.nan,
)


class BeyondError(Exception):
    """What the tests raise."""


@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.floats(width=32)), max_size=9))
def test_float16_is_numpys_or_nothing(values):
    wide = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        wanted = wide.astype(np.float16)
    found = rounded_to(torch.from_numpy(wide), DType.FLOAT16)
    if (np.isfinite(wide) & ~np.isfinite(wanted)).any():
        assert found is None
    else:
        assert np.array_equal(found.numpy(), wanted, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_each_source_type(dtype):
    values = (torch.arange(1000) / 7 - 60).to(dtype)
    tensor = narrowed(from_values(values), DType.FLOAT16, BeyondError)
    assert torch.equal(tensor.values(), values.to(torch.float16))


def test_a_value_beyond_is_raised_while_streaming():
    tensor = narrowed(from_values(torch.tensor([1.0, 70000.0])), DType.FLOAT16, BeyondError)
    with pytest.raises(BeyondError):
        tensor.values()


def test_the_same_type_is_left_alone():
    tensor = from_values(torch.tensor([1.0], dtype=torch.float16))
    assert narrowed(tensor, DType.FLOAT16, BeyondError) is tensor
