"""Two tensors as one: by their values, whatever they are stored in."""

from __future__ import annotations

import torch

from adaptool.canonical import DType, LazyTensor
from adaptool.canonical.tensors import BLOCK, from_values, same_values

WIDTH = 600
ROWS = 2 * BLOCK // WIDTH + 5
VALUES = torch.arange(ROWS * WIDTH, dtype=torch.float32).view(ROWS, WIDTH) % 1021


def by_rows(values: torch.Tensor) -> LazyTensor:
    """A tensor that is made by whole rows, as a merged one is."""

    def pieces(start, stop, block):
        assert start % WIDTH == stop % WIDTH == 0
        step = max(block // WIDTH, 1)
        for row in range(start // WIDTH, stop // WIDTH, step):
            yield values[row : min(row + step, stop // WIDTH)].reshape(-1)

    return LazyTensor(tuple(values.shape), DType.FLOAT32, pieces)


def test_values_count_and_not_how_they_are_made():
    assert same_values(by_rows(VALUES), from_values(VALUES))
    assert same_values(from_values(VALUES), from_values(VALUES.to(torch.float64)))


def test_one_other_value_is_seen_wherever_it_is():
    for place in (0, BLOCK - 1, BLOCK, ROWS * WIDTH - 1):
        other = VALUES.clone()
        other.view(-1)[place] += 1
        assert not same_values(by_rows(VALUES), by_rows(other))


def test_shapes_and_no_numbers_differ():
    assert not same_values(from_values(VALUES), from_values(VALUES.T.contiguous()))
    nothing = from_values(torch.tensor([float("nan")]))
    assert not same_values(nothing, nothing)
