"""Younger types against the formulas of their papers; any windows give the same."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from adaptool.canonical import LowRank, Site, Update, Window
from adaptool.canonical.verbs import Applicable, Fittable, Span, Spanning
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, ResourceLimitError
from adaptool.tuners._forms import Delta
from adaptool.tuners.psoft import Decomposition

from .formulas import (
    CPU,
    FORMULAS,
    IN,
    MODULE,
    OUT,
    WEIGHT,
    Formula,
    fitted,
    rand,
    random_bases,
    read,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than such small weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def windows(update: Update) -> list[Window]:
    """Odd pieces that together cover the weight, as large as the update needs them."""
    span = update.span if isinstance(update, Spanning) else None
    rows = [(0, OUT)] if span in (Span.COLUMNS, Span.ALL) else [(0, 1), (1, 5), (5, 6)]
    cols = [(0, IN)] if span in (Span.ROWS, Span.ALL) else [(0, 3), (3, 8)]
    return [Window(slice(*r), slice(*c), (OUT, IN)) for r in rows for c in cols]


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    formula = FORMULAS[name]
    wanted = formula.expected(WEIGHT, formula.tensors)
    assert (wanted - WEIGHT).abs().max() > 0.1
    update = fitted(read(formula)["weight"])
    apply = update.applier(torch.float64, CPU)
    for scale in (1.0, 0.5, -1.0):
        moved = WEIGHT.clone()
        for window in windows(update):
            piece = WEIGHT[window.rows, window.cols].clone()
            moved[window.rows, window.cols] = apply(piece, window, scale)
        torch.testing.assert_close(moved, torch.lerp(WEIGHT, wanted, scale), atol=1e-6, rtol=1e-6)


DIFFERENCES = [name for name in FORMULAS if isinstance(read(FORMULAS[name])["weight"], Delta)]


@pytest.mark.parametrize("name", DIFFERENCES)
def test_the_dense_difference(name: str) -> None:
    """What is added to any weight, as one matrix."""
    update = fitted(read(FORMULAS[name])["weight"])
    assert isinstance(update, Delta)
    added = update.scaling * update.dense(torch.float64, CPU)
    wanted = FORMULAS[name].expected(WEIGHT, FORMULAS[name].tensors) - WEIGHT
    torch.testing.assert_close(added, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", FORMULAS)
def test_another_weight_is_refused(name: str) -> None:
    """None of these fits a weight of one value: sizes are looked at before anything is made."""
    update = read(FORMULAS[name])["weight"]
    fits = update.fits((1, 1)) if isinstance(update, Fittable) else update.shape == (1, 1)
    assert not fits


@pytest.mark.parametrize("name", FORMULAS)
def test_a_missing_tensor_is_refused(name: str) -> None:
    optional = {
        "psoft_R.vector_a",
        "psoft_R.vector_b",
        "tinylora_P",
        "delora_w_norm",
        "supertuning_indices",
        "glora_A.Xd",
        "supertuning_lora_A.weight",
    }
    for tensor in FORMULAS[name].tensors:
        if tensor not in optional:
            with pytest.raises(CorruptInputError):
                read(FORMULAS[name], **{tensor: None})


@pytest.mark.parametrize("name", FORMULAS)
def test_a_tensor_of_another_kind_is_refused(name: str) -> None:
    """Scalars, and numbers that are not real, are no tensors of these types."""
    for tensor in FORMULAS[name].tensors:
        for wrong in (torch.tensor(1.0), torch.ones(3, dtype=torch.complex64)):
            with pytest.raises(CorruptInputError):
                read(FORMULAS[name], **{tensor: wrong})


WRONG: dict[str, tuple[str, dict[str, Any], type[AdaptoolError]]] = {
    "position outside": ("shira", {"shira_indices": torch.tensor([[6, 0, 0, 0], [0, 0, 0, 0]])},
                         CorruptInputError),
    "column outside": ("shira", {"shira_indices": torch.tensor([[0, 0, 0, 0], [8, 0, 0, 0]])},
                       CorruptInputError),
    "position below zero": ("shira", {"shira_indices": torch.tensor([[-1, 0, 0, 0]] * 2)},
                            CorruptInputError),
    "half a position": ("shira", {"shira_indices": torch.full((2, 4), 0.5)}, CorruptInputError),
    "flat position outside": ("supertuning", {"supertuning_indices": torch.tensor([48, 0, 1])},
                              CorruptInputError),
    "group": ("road-1", {"group_size": 4}, CorruptInputError),
    "odd group": ("road-1", {"group_size": 3}, CorruptInputError),
    "variant": ("road-1", {"variant": "road_3"}, IncompatibleError),
    "method": ("deft", {"decomposition_method": "svd"}, IncompatibleError),
    "wavelet": ("waveft", {"wavelet_family": "sym4"}, IncompatibleError),
    "wavelet order": ("waveft", {"wavelet_family": "db99"}, IncompatibleError),
    "activation": ("peanut", {"act_fn": "__class__"}, IncompatibleError),
    "depth": ("peanut", {"depth": 2}, CorruptInputError),
    "topk": ("vblora", {"topk": 6}, CorruptInputError),
    "topk 0": ("vblora", {"topk": 0}, CorruptInputError),
    "seed": ("waveft", {"random_loc_seed": "x"}, CorruptInputError),
    "alpha": ("gralora", {"alpha": float("nan")}, CorruptInputError),
    "miss": ("miss", {"init_weights": "fly"}, IncompatibleError),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused(name: str) -> None:
    of, changes, error = WRONG[name]
    with pytest.raises(error):
        fitted(read(FORMULAS[of], **changes)["weight"]).applier(torch.float64, CPU)


def test_unreasonable_bases_are_not_drawn() -> None:
    update = read(
        Formula("RANDLORA", {"randlora_lambda": rand(2, 3), "randlora_gamma": rand(3, OUT)},
                random_bases)
    )["weight"]  # fmt: skip
    assert isinstance(update, Fittable)
    huge = {Site(MODULE): (1 << 20, 1 << 20)}
    with pytest.raises(ResourceLimitError):
        update.fitted((OUT, IN), huge)


def test_a_bias_that_waits_for_its_weight_says_so() -> None:
    formula = Formula(
        "GLORA",
        {"glora_A.X": rand(1), "glora_B.X": rand(1), "glora_C.X": rand(IN, 1)},
        lambda weight, _: weight,
    )
    bias = read(formula)["bias"]
    assert isinstance(bias, Fittable)
    waiting = bias.fitted((OUT,), {})
    assert isinstance(waiting, Applicable)
    with pytest.raises(ValueError, match="waits"):
        waiting.applier(torch.float64, CPU)


def test_a_bias_is_rotated_with_its_weight() -> None:
    formula = FORMULAS["road-2"]
    bias = read(formula)["bias"]
    assert isinstance(bias, Applicable)
    assert not bias.tensors  # they are the weight's
    column = WEIGHT[:, :1]
    moved = bias.applier(torch.float64, CPU)(
        column.clone(), Window(slice(0, OUT), slice(0, 1), (OUT, 1)), 1.0
    )
    torch.testing.assert_close(moved, formula.expected(WEIGHT, formula.tensors)[:, :1])


@pytest.mark.parametrize("name", ["vblora", "gralora", "delora-norms", "tinylora", "unilora"])
def test_low_rank_in_disguise(name: str) -> None:
    assert isinstance(read(FORMULAS[name])["weight"], LowRank)


KEYS = (
    "r", "alpha", "lora_alpha", "randlora_alpha", "topk", "init_weights", "group_size", "variant",
    "apply_GS", "depth", "act_fn", "scaling", "para", "decomposition_method", "random_loc_seed",
    "wavelet_family", "use_idwt", "sparse", "projection_prng_key", "select_top", "psoft_svd",
    "psoft_orth", "use_cayley_neumann", "num_cayley_neumann_terms", "cayley_neumann_eps",
    "ab_svd_init", "projection_seed",
)  # fmt: skip
VALUES: tuple[Any, ...] = (None, True, -1, 2.5, 10**9, float("nan"), "x", [1])


def mutations(formula: Formula) -> list[dict[str, Any]]:
    """One tensor in another shape, or one key with another value."""
    shapes: list[dict[str, Any]] = []
    for name, tensor in formula.tensors.items():
        sizes = list(tensor.shape)
        wider = [[*sizes[:i], size + 1, *sizes[i + 1 :]] for i, size in enumerate(sizes)]
        empty = [[*sizes[:i], 0, *sizes[i + 1 :]] for i in range(len(sizes))]
        for shape in [[], [1], [2, 3], [1, 1, 1], [*sizes, 1], *wider, *empty]:
            shapes.append({name: torch.ones(shape, dtype=tensor.dtype)})
    return shapes + [{key: value} for key in KEYS for value in VALUES]


@pytest.mark.parametrize("name", FORMULAS)
def test_mutations_are_understood_or_refused(name: str) -> None:
    """Whatever is wrong with a file, it is said in our words, and before a weight is touched."""
    formula, refused = FORMULAS[name], 0
    for mutation in mutations(formula):
        try:
            update = read(formula, **mutation)["weight"]
        except AdaptoolError as error:
            refused += 1
            assert "up" in str(error) or "adapter_config.json" in str(error), mutation
            continue
        if isinstance(update, Fittable):
            if not update.fits((OUT, IN)):
                refused += 1
                continue
            update = update.fitted((OUT, IN), {Site(MODULE): (OUT, IN)})
        if not isinstance(update, Applicable) or update.shape != (OUT, IN):
            refused += 1
            continue
        whole = Window(slice(0, OUT), slice(0, IN), (OUT, IN))
        try:
            moved = update.applier(torch.float64, CPU)(WEIGHT.clone(), whole, 1.0)
        except AdaptoolError:
            refused += 1
        else:
            assert moved.shape == WEIGHT.shape, mutation
    assert refused


def test_a_sketch_is_the_same_whatever_other_threads_draw():
    find = Decomposition(sketched=True, rounds=2, seed=3).find
    weights = [torch.randn(48, 40, generator=torch.Generator().manual_seed(n)) for n in range(40)]
    alone = [find(weight, 4)[0] for weight in weights]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda weight: find(weight, 4)[0], weights))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
