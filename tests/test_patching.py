"""The arithmetic of a merge against float64, over shapes, layouts, block sizes and scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.canonical import (
    Addition,
    Dora,
    DType,
    ExpertLowRank,
    LowRank,
    Placement,
    Replacement,
    TokenRows,
)
from adaptool.canonical.forms import Form
from adaptool.canonical.tensors import from_values
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.merging.patching import Arithmetic, Patch, patch_tensor


def values(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def low_rank(out: int, inputs: int, rank: int, *, seed: int = 1, strength: float = 0.7) -> LowRank:
    a, b = values(rank, inputs, seed=seed), values(out, rank, seed=seed + 1)
    return LowRank(from_values(a), from_values(b), strength)


def dense(update: LowRank) -> torch.Tensor:
    return update.scaling * update.b.values().double() @ update.a.values().double()


def merged(weight: torch.Tensor, *patches: Patch, block: int = 64, dtype: DType | None = None,
           how: Arithmetic | None = None) -> torch.Tensor:  # fmt: skip
    base = from_values(weight)
    form = Form(dtype or base.dtype)
    result = patch_tensor("w", base, patches, form, how or Arithmetic())
    pieces = [piece.clone() for piece in result.stream(block=block)]
    return torch.cat(pieces).reshape(weight.shape)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found.double() - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


sizes = st.integers(1, 24)
scales = st.sampled_from([-1.5, -1.0, 0.0, 0.25, 1.0, 3.0])


@settings(max_examples=60, deadline=None)
@given(out=sizes, inputs=sizes, rank=st.integers(1, 6), scale=scales, block=st.integers(1, 200),
       transposed=st.booleans())  # fmt: skip
def test_low_rank(out, inputs, rank, scale, block, transposed) -> None:
    weight, update = values(out, inputs), low_rank(out, inputs, rank)
    stored = weight.T.contiguous() if transposed else weight
    found = merged(stored, Patch(update, scale, Placement("w", transposed=transposed)), block=block)
    wanted = weight.double() + scale * dense(update)
    close(found.T if transposed else found, wanted)


@settings(max_examples=60, deadline=None)
@given(out=sizes, inputs=sizes, scale=scales, block=st.integers(1, 200), transposed=st.booleans())
def test_dora(out, inputs, scale, block, transposed) -> None:
    weight, direction = values(out, inputs), low_rank(out, inputs, 2)
    magnitude = values(out, seed=9).abs() + 0.5
    update = Dora(direction, from_values(magnitude))
    stored = weight.T.contiguous() if transposed else weight
    found = merged(stored, Patch(update, scale, Placement("w", transposed=transposed)), block=block)
    moved = weight.double() + dense(direction)
    whole = moved * (magnitude.double() / moved.norm(dim=1))[:, None]
    wanted = weight.double() + scale * (whole - weight.double())
    assert float(((found.T if transposed else found) - wanted).abs().max()) < 1e-5 * float(
        wanted.abs().max()
    )


@settings(max_examples=30, deadline=None)
@given(first=scales, second=scales, third=scales, block=st.integers(1, 100))
def test_updates_of_one_weight_see_the_same_base(first, second, third, block) -> None:
    weight, one = values(6, 5), low_rank(6, 5, 2)
    trained, rows = values(6, 5, seed=4), values(2, 5, seed=5)
    found = merged(
        weight,
        Patch(one, first, Placement("w")),
        Patch(Replacement(from_values(trained)), second, Placement("w")),
        Patch(TokenRows((4, 1), from_values(rows)), third, Placement("w")),
        block=block,
    )
    base = weight.double()
    with_rows = base.clone()
    with_rows[[4, 1]] = rows.double()
    wanted = base + first * dense(one) + second * (trained.double() - base)
    close(found, wanted + third * (with_rows - base))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [1, 7, 50, 10_000])
def test_stacked_experts(transposed: bool, block: int) -> None:
    a, b = values(3, 2, 5), values(3, 4, 2, seed=3)
    update = ExpertLowRank(from_values(a), from_values(b), 0.5)
    weight = values(3, 4, 5)
    stored = weight.transpose(1, 2).contiguous() if transposed else weight
    patches = [
        Patch(update, 2.0, Placement("w", slot=e, transposed=transposed, expert=e))
        for e in range(3)
    ]
    found = merged(stored, *patches, block=block)
    wanted = weight.double() + 2.0 * 0.5 * b.double() @ a.double()
    close(found.transpose(1, 2) if transposed else found, wanted)


def test_a_part_of_an_update_lies_on_its_own_tensor() -> None:
    update, weight = low_rank(8, 5, 2), values(4, 5)
    found = merged(weight, Patch(update, 1.0, Placement("w", part=(4, 8))))
    close(found, weight.double() + dense(update)[4:])


def test_convolution_and_bias() -> None:
    a, b = values(2, 3, 3, 3), values(4, 2, seed=2)
    weight = values(4, 3, 3, 3)
    update = LowRank(from_values(a), from_values(b), 1.5)
    wanted = weight.double().reshape(4, -1) + 1.5 * b.double() @ a.double().reshape(2, -1)
    close(merged(weight, Patch(update, 1.0, Placement("w"))), wanted.reshape(4, 3, 3, 3))
    bias, moved = values(7), values(7, seed=3)
    patch = Patch(Addition(from_values(moved), 2.0), 0.5, Placement("w"))
    close(merged(bias, patch, block=3), bias.double() + moved.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_rounds_once(dtype: torch.dtype) -> None:
    weight, update = values(16, 16, scale=0.1).to(dtype), low_rank(16, 16, 4, strength=0.01)
    found = merged(weight, Patch(update, 1.0, Placement("w")))
    exact = weight.double() + dense(update)
    wrong = found.double() != exact.to(torch.float32).to(dtype).double()
    assert int(wrong.sum()) <= 1  # a float32 rounding beside a tie
    assert found.dtype == dtype


def test_float64_base_is_computed_in_float64() -> None:
    weight, update = values(8, 8).double(), low_rank(8, 8, 2)
    found = merged(weight, Patch(update, 1.0, Placement("w")))
    assert float((found - weight - dense(update)).abs().max()) < 1e-14


def test_survival_is_measured() -> None:
    weight = values(64, 64).to(torch.bfloat16)
    update = low_rank(64, 64, 2, strength=1e-3)
    how = Arithmetic()
    found = merged(weight, Patch(update, 1.0, Placement("w")), how=how, block=10_000)
    measured = how.tally.tensors()["w"]
    assert measured.meant == pytest.approx(float(dense(update).norm()), rel=1e-5)
    assert measured.stored == pytest.approx(
        float((found.double() - weight.double()).norm()), rel=1e-3
    )
    change = found.double() - weight.double()
    along = float((change * dense(update)).sum())
    assert measured.along == pytest.approx(along, rel=1e-3)
    assert measured.ratio == pytest.approx(along / float(dense(update).square().sum()), rel=1e-3)


def test_survival_of_many_blocks_is_told_from_some() -> None:
    weight = values(512, 64).to(torch.bfloat16)
    update = low_rank(512, 64, 2, strength=1e-3)
    how = Arithmetic()
    found = merged(weight, Patch(update, 1.0, Placement("w")), how=how, block=64)
    measured = how.tally.tensors()["w"]
    stored = float((found.double() - weight.double()).norm())
    assert measured.meant == pytest.approx(float(dense(update).norm()), rel=1e-5)
    assert measured.stored == pytest.approx(stored, rel=0.05)


def test_a_change_in_the_last_row_alone_is_seen() -> None:
    b = torch.zeros(512, 1)
    b[511] = 1.0
    update = LowRank(from_values(torch.ones(1, 8)), from_values(b), 1.0)
    for transposed in (False, True):
        weight = torch.ones((8, 512) if transposed else (512, 8), dtype=torch.bfloat16)
        how = Arithmetic()
        patch = Patch(update, 1.0, Placement("w", transposed=transposed))
        merged(weight, patch, how=how, block=8)
        assert how.tally.tensors()["w"].stored > 0


def test_an_overflow_outside_the_compared_blocks_is_seen() -> None:
    weight = torch.zeros(64, 8, dtype=torch.float16)
    b = torch.ones(64, 1)
    b[50] = 1e6
    update = LowRank(from_values(torch.ones(1, 8)), from_values(b), 1.0)
    with pytest.raises(IncompatibleError, match="element 400"):
        merged(weight, Patch(update, 1.0, Placement("w")), block=8)


def test_an_update_below_half_a_step_does_not_survive() -> None:
    weight = torch.ones(8, 8, dtype=torch.bfloat16)
    how = Arithmetic()
    merged(weight, Patch(low_rank(8, 8, 1, strength=1e-6), 1.0, Placement("w")), how=how)
    assert how.tally.total().stored == 0.0
    assert how.tally.total().meant > 0.0


def test_refuses_overflow_and_nonfinite_values() -> None:
    update = low_rank(4, 4, 1, strength=1e6)
    with pytest.raises(IncompatibleError, match="beyond the range of float16"):
        merged(values(4, 4).half(), Patch(update, 1.0, Placement("w")))
    weight = values(4, 4)
    weight[2, 1] = float("nan")
    with pytest.raises(CorruptInputError, match="element 9"):
        merged(weight, Patch(low_rank(4, 4, 1), 1.0, Placement("w")))
    found = merged(weight, Patch(low_rank(4, 4, 1), 1.0, Placement("w")),
                   how=Arithmetic(allow_nonfinite=True))  # fmt: skip
    assert bool(found[2, 1].isnan())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_computes_the_same(dtype: torch.dtype) -> None:
    weight, update = values(300, 200, scale=0.1).to(dtype), low_rank(300, 200, 8, strength=0.05)
    patch = Patch(update, 0.75, Placement("w"))
    one = merged(weight, patch, block=20_000)
    other = merged(weight, patch, block=20_000, how=Arithmetic("cuda"))
    step = torch.finfo(dtype).eps
    assert float((one.double() - other.double()).abs().max()) <= 2 * step * float(one.abs().max())
