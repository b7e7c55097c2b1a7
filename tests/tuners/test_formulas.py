"""Formulas of the papers, written out in float64 on tiny matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft.tuners.boft.layer import BOFTLayer  # noqa: TID251
from peft.tuners.vera.model import _kaiming_init  # noqa: TID251

from adaptool.canonical import LowRank, Placement, Site, Update, Window
from adaptool.canonical.arrangement import Regroup
from adaptool.canonical.forms import Form
from adaptool.canonical.tensors import from_values
from adaptool.errors import CorruptInputError, IncompatibleError, ResourceLimitError
from adaptool.merging.patching import Arithmetic, Patch, patch_tensor
from adaptool.tuners import Options, Parts, tuner_of

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(peft_type: str, tensors: dict[str, torch.Tensor], shared: dict[str, torch.Tensor] | None
         = None, **config: Any) -> dict[str, Update]:  # fmt: skip
    """What a tuner makes of one module's tensors."""
    tuner = tuner_of(peft_type)
    assert tuner is not None
    lazy = {name: from_values(tensor) for name, tensor in tensors.items()}
    common = {name: from_values(tensor) for name, tensor in (shared or {}).items()}
    parts = Parts("layer", "file: layer", lazy, common, ("layer",))
    named = config.get("feedforward_modules", [])
    options = Options(config, "config", lambda key, module: None,
                      lambda key, module: module in named)  # fmt: skip
    found = tuner.read(parts, options)
    assert not parts.tensors
    return dict(found)


def applied(update: Any, weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """U(W), in float64 and in one window."""
    if not isinstance(update, LowRank) and weight.dim() > 1:
        assert update.fits(tuple(weight.shape))
        update = update.fitted(tuple(weight.shape), {Site("layer"): tuple(weight.shape)})
    grid = weight.reshape(weight.shape[0], -1).clone()
    rows, cols = grid.shape
    window = Window(slice(0, rows), slice(0, cols), (rows, cols))
    return update.applier(torch.float64, CPU)(grid, window, scale).reshape(weight.shape)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_adalora() -> None:
    a, b, e = noise(3, 5), noise(4, 3, seed=1), noise(3, 1, seed=2)
    config = {"init_r": 6, "lora_alpha": 9, "target_r": 2}
    update = read("ADALORA", {"lora_A": a, "lora_B": b, "lora_E": e}, **config)["weight"]
    weight = noise(4, 5, seed=3)
    close(applied(update, weight), weight + 9 / (6 + 1e-5) * b @ torch.diag(e[:, 0]) @ a)


def test_adalora_pruned_to_nothing() -> None:
    empty = {"lora_A": noise(0, 5), "lora_B": noise(4, 0), "lora_E": noise(0, 1)}
    assert read("ADALORA", empty) == {}
    with pytest.raises(CorruptInputError):
        read("ADALORA", empty | {"lora_E": noise(2, 1)})


def test_ia3() -> None:
    weight, bias = noise(4, 3), noise(4, seed=1)
    columns, rows = noise(1, 3, seed=2), noise(4, 1, seed=3)
    close(applied(read("IA3", {"ia3_l": columns})["weight"], weight), weight * columns)
    both = read("IA3", {"ia3_l": rows})
    close(applied(both["weight"], weight), weight * rows)
    close(applied(both["bias"], bias), bias * rows[:, 0])
    close(applied(both["bias"], bias, 0.5), bias * (1 + rows[:, 0]) / 2)


def test_ia3_on_a_grouped_convolution() -> None:
    weight, factors = noise(6, 2, 3, 3), noise(1, 4, 1, 1, seed=1)  # two groups of two channels
    inputs = noise(1, 4, 5, 5, seed=2)
    update = read("IA3", {"ia3_l": factors}, feedforward_modules=["layer"])["weight"]
    conv = torch.nn.functional.conv2d
    close(conv(inputs, applied(update, weight), groups=2), conv(inputs * factors, weight, groups=2))


def test_loha() -> None:
    a, b = noise(4, 2), noise(2, 6, seed=1)
    c, d = noise(4, 2, seed=2), noise(2, 6, seed=3)
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    update = read("LOHA", tensors, r=2, alpha=3)["weight"]
    for shape in ((4, 6), (4, 2, 3)):  # a convolution's kernel counts as inputs
        weight = noise(*shape, seed=4)
        close(applied(update, weight), weight + 1.5 * ((a @ b) * (c @ d)).reshape(shape))


def test_loha_cp() -> None:
    tensors = {"hada_t1": noise(2, 2, 3, 1), "hada_t2": noise(2, 2, 3, 1, seed=1)}
    for seed, name in enumerate(("w1_a", "w2_a", "w1_b", "w2_b"), start=2):
        tensors[f"hada_{name}"] = noise(2, 4 if name.endswith("a") else 5, seed=seed)
    update = read("LOHA", tensors, r=2, alpha=2)["weight"]
    product = torch.ones(4, 5, 3, dtype=torch.float64)
    for n in "12":
        core, a, b = (tensors[f"hada_{p}"] for p in (f"t{n}", f"w{n}_a", f"w{n}_b"))
        sums = [
            core[i, j, :, 0] * a[i, :, None, None] * b[j, None, :, None]
            for i in range(2)
            for j in range(2)
        ]
        product *= sum(sums)
    weight = noise(4, 5, 3, seed=9)
    close(applied(update, weight), weight + product)


def test_lokr() -> None:
    one, a, b = noise(2, 3), noise(4, 2, seed=1), noise(2, 5, seed=2)
    tensors = {"lokr_w1": one, "lokr_w2_a": a, "lokr_w2_b": b}
    update = read("LOKR", tensors, r=2, alpha=3)["weight"]
    weight = noise(8, 15, seed=3)
    close(applied(update, weight), weight + 1.5 * torch.kron(one, a @ b))


def test_lokr_of_a_convolution() -> None:
    one, two, weight = noise(2, 3), noise(2, 2, 3, 3, seed=1), noise(4, 6, 3, 3, seed=2)
    update = read("LOKR", {"lokr_w1": one, "lokr_w2": two}, r=4, alpha=4)["weight"]
    close(applied(update, weight), weight + torch.kron(one[:, :, None, None], two))


def skew(values: torch.Tensor, side: int) -> torch.Tensor:
    """Written out: entry k of the upper triangle by rows."""
    q = torch.zeros(side, side, dtype=torch.float64)
    places = [(i, j) for i in range(side) for j in range(i + 1, side)]
    for (i, j), value in zip(places, values, strict=True):
        q[i, j], q[j, i] = value, -value
    return q


def powers(q: torch.Tensor, *factors: float) -> torch.Tensor:
    return sum(f * torch.linalg.matrix_power(q, n) for n, f in enumerate(factors))


@pytest.mark.parametrize(
    ("terms", "factors"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 2, 1)),
        (4, (1, 2, 2, 1)),
        (5, (1, 2, 2, 2, 1)),
        (7, (1, 2, 2, 2, 2, 2, 1)),
    ],
)
def test_oft_series(terms: int, factors: tuple[int, ...]) -> None:
    triangles, weight = 0.3 * noise(2, 3), noise(4, 6, seed=1)
    update = read("OFT", {"oft_R.weight": triangles}, num_cayley_neumann_terms=terms)["weight"]
    rotation = torch.block_diag(*(powers(skew(t, 3), *factors) for t in triangles))
    close(applied(update, weight), weight @ rotation.T)


def test_oft_exact_shared_and_bounded() -> None:
    triangle, weight = noise(1, 3), noise(4, 6, seed=1)
    config = {"use_cayley_neumann": False, "block_share": True, "coft": True, "eps": 0.7}
    update = read("OFT", {"oft_R.weight": triangle}, **config)["weight"]
    q = skew(triangle[0], 3)
    assert q.norm() > 0.7
    q *= 0.7 / q.norm()
    eye = torch.eye(3, dtype=torch.float64)
    rotation = (eye - q) @ torch.linalg.inv(eye + q)
    found = applied(update, weight)
    close(found, weight @ torch.block_diag(rotation, rotation).T)
    close(found @ found.T, weight @ weight.T)  # nothing but a rotation
    embedding = read("OFT", {"oft_embedding_R.weight": triangle}, **config)["weight"]
    close(applied(embedding, weight), weight @ torch.block_diag(rotation, rotation))


def test_oft_of_a_convolution() -> None:
    """What PEFT computes with a larger kernel is no weight: R = I changes the model."""
    triangles = 0.3 * noise(2, 3)
    update: Any = read("OFT", {"oft_R.weight": triangles})["weight"]
    flat, weight = noise(4, 6, seed=1), noise(4, 6, seed=1).reshape(4, 6, 1, 1)
    close(applied(update, weight).flatten(1), applied(update, flat))
    assert update.fits((4, 2, 1, 3))
    with pytest.raises(IncompatibleError, match="file: layer"):
        update.fitted((4, 2, 1, 3), {})


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_boft_against_permutation_matrices(levels: int) -> None:
    blocks, side, out = 4, 4, 3
    r, s = noise(levels, blocks, side, side), noise(out, 1, seed=1)
    weight = noise(out, blocks * side, seed=2)
    update = read("BOFT", {"boft_R": r, "boft_s": s})["weight"]
    total = torch.eye(blocks * side, dtype=torch.float64)
    eye = torch.eye(side, dtype=torch.float64)
    for level in range(levels):
        perm = BOFTLayer.block_butterfly_perm(
            None, blocks * side, blocks // 2**level, side // 2, levels - 1
        )
        p = BOFTLayer.perm2mat(None, perm).double()
        q = (r[level] - r[level].mT) / 2
        diagonal = torch.block_diag(*((eye - one) @ torch.linalg.inv(eye + one) for one in q))
        total = p @ diagonal @ p.T @ total
    close(applied(update, weight), (total @ weight.T).T * s)


def test_vera_draws_what_peft_draws() -> None:
    b, d = noise(4), noise(3, seed=1)
    config = {"r": 3, "save_projection": False, "projection_prng_key": 11}
    tensors = {"vera_lambda_b": b, "vera_lambda_d": d}
    (update,) = read("VERA", tensors, **config).values()
    shapes = {Site("layer"): (4, 5), Site("other"): (9, 2)}
    wide = type(update)(update.tensors, None, 11, ("layer", "other"))
    generator = torch.Generator().manual_seed(11)
    a_drawn = _kaiming_init((3, 5), generator).double()
    b_drawn = _kaiming_init((9, 3), generator).double()
    low = wide.fitted((4, 5), shapes)
    wanted = (b[:, None] * b_drawn[:4]) @ (d[:, None] * a_drawn)
    close(low.b.values() @ low.a.values(), wanted)


def test_fourierft() -> None:
    spectrum, weight = noise(7), noise(4, 5, seed=1)
    update = read("FOURIERFT", {"fourierft_spectrum": spectrum}, scaling=3.0, random_loc_seed=5)
    places = torch.randperm(20, generator=torch.Generator().manual_seed(5))[:7]
    wanted = torch.zeros(4, 5, dtype=torch.float64)
    for value, place in zip(spectrum, places, strict=True):
        u, v = divmod(int(place), 5)
        for x in range(4):
            for y in range(5):
                wanted[x, y] += value * math.cos(2 * math.pi * (u * x / 4 + v * y / 5)) / 20
    close(applied(update["weight"], weight), weight + 3.0 * wanted)


def test_ln_tuning_and_tokens() -> None:
    value, weight = noise(4), noise(4, seed=1)
    update = read("LN_TUNING", {"ln_tuning_layers.weight": value})["weight"]
    close(applied(update, weight, 0.25), 0.75 * weight + 0.25 * value)
    rows, table = noise(2, 3), noise(5, 3, seed=1)
    found = read("TRAINABLE_TOKENS", {"trainable_tokens_delta": rows}, token_indices=[4, 1])
    window = Window(slice(0, 5), slice(0, 3), (5, 3))
    moved = found["weight"].applier(torch.float64, CPU)(table.clone(), window, 1.0)
    close(moved, table.index_copy(0, torch.tensor([4, 1]), rows))


# -- every layout and every window ----------------------------------------------------------------

UPDATES = {
    "ia3-in": ("IA3", {"ia3_l": noise(1, 12)}, {}),
    "ia3-out": ("IA3", {"ia3_l": noise(8, 1)}, {}),
    "loha": ("LOHA", {f"hada_w{n}_{s}": noise(*((8, 3) if s == "a" else (3, 12)), seed=int(n))
                      for n in "12" for s in "ab"}, {}),
    "lokr": ("LOKR", {"lokr_w1": noise(2, 3), "lokr_w2": noise(4, 4)}, {}),
    "lokr-flat": ("LOKR", {"lokr_w1": noise(2, 2), "lokr_w2": noise(4, 2, 3)}, {}),
    "oft": ("OFT", {"oft_R.weight": 0.1 * noise(3, 6)}, {}),
    "boft": ("BOFT", {"boft_R": noise(2, 6, 2, 2), "boft_s": noise(8, 1)}, {}),
    "fourier": ("FOURIERFT", {"fourierft_spectrum": noise(20)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 0.5, -0.3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", UPDATES)
def test_windows_and_transposed_weights(name: str, transposed: bool, scale: float) -> None:
    kind, tensors, config = UPDATES[name]
    update: Any = read(kind, tensors, **config)["weight"]
    weight = noise(8, 12, seed=7)
    full = applied(update, weight)
    fitted = update.fitted((8, 12), {})
    stored = weight.T.contiguous() if transposed else weight
    patch = Patch(fitted, scale, Placement("w", transposed=transposed))
    base = from_values(stored)
    result = patch_tensor("w", base, [patch], Form(base.dtype), Arithmetic())
    for _ in range(2):  # what was prepared is made again after it was let go
        pieces = [piece.clone() for piece in result.stream(block=2 * stored.shape[1])]
        assert len(pieces) > 3
        found = torch.cat(pieces).reshape(stored.shape)
        close(found.T if transposed else found, weight + scale * (full - weight))


def test_one_whole_serves_many_workers() -> None:
    kind, tensors, config = UPDATES["oft"]
    update: Any = read(kind, tensors, **config)["weight"]
    weight = noise(8, 12, seed=7)
    full, base = applied(update, weight), from_values(weight.T.contiguous())
    patch = Patch(update.fitted((8, 12), {}), 1.0, Placement("w", transposed=True))
    result = patch_tensor("w", base, [patch], Form(base.dtype), Arithmetic())
    runs = [(start, start + 24) for start in range(0, 96, 24)]
    streams = [result.pieces(first, last, 8) for first, last in runs]
    parts: list[list[torch.Tensor]] = [[] for _ in runs]
    for _ in range(3):  # interleaved, as workers are
        for part, stream in zip(parts, streams, strict=True):
            part.extend(piece.clone() for _, piece in zip(range(1), stream, strict=False))
    found = torch.cat([piece for part, stream in zip(parts, streams, strict=True)
                       for piece in (*part, *stream)])  # fmt: skip
    close(found.reshape(12, 8).T, full)


def test_a_part_of_the_rows_cannot_be_rotated_across() -> None:
    kind, tensors, config = UPDATES["oft"]
    update: Any = read(kind, tensors, **config)["weight"]
    base = from_values(noise(12, 4))
    place = Placement("w", transposed=True, part=(0, 4))
    patch = Patch(update.fitted((8, 12), {}), 1.0, place)
    result = patch_tensor("w", base, [patch], Form(base.dtype), Arithmetic())
    with pytest.raises(IncompatibleError, match="only a part"):
        list(result.stream())


@pytest.mark.parametrize("name", UPDATES)
def test_rows_in_another_order(name: str) -> None:
    kind, tensors, config = UPDATES[name]
    update: Any = read(kind, tensors, **config)["weight"]
    weight = noise(8, 12, seed=7)
    full, order = applied(update, weight), Regroup((2, 2, 2), (0, 2, 1))
    rows = order.indices(8)
    base = from_values(weight[rows].contiguous())
    patch = Patch(update.fitted((8, 12), {}), 0.5, Placement("w", row_order=order))
    result = patch_tensor("w", base, [patch], Form(base.dtype), Arithmetic())
    found = torch.cat([piece.clone() for piece in result.stream(block=24)]).reshape(8, 12)
    close(found, ((weight + full) / 2)[rows])


# -- broken files ---------------------------------------------------------------------------------

BROKEN = {
    "adalora-rank": ("ADALORA", {"lora_A": noise(3, 5), "lora_B": noise(4, 2),
                                 "lora_E": noise(3, 1)}, {}),
    "adalora-half": ("ADALORA", {"lora_A": noise(3, 5), "lora_B": noise(4, 3)}, {}),
    "adalora-init": ("ADALORA", {"lora_A": noise(3, 5), "lora_B": noise(4, 3),
                                 "lora_E": noise(3, 1)}, {"init_r": "six"}),
    "ia3-matrix": ("IA3", {"ia3_l": noise(2, 3)}, {}),
    "ia3-vector": ("IA3", {"ia3_l": noise(3)}, {}),
    "ia3-scalar": ("IA3", {"ia3_l": noise(1).reshape(())}, {}),
    "loha-rank": ("LOHA", {"hada_w1_a": noise(4, 2), "hada_w1_b": noise(3, 6),
                           "hada_w2_a": noise(4, 2), "hada_w2_b": noise(2, 6)}, {}),
    "loha-integers": ("LOHA", {"hada_w1_a": noise(4, 2).int(), "hada_w1_b": noise(2, 6),
                               "hada_w2_a": noise(4, 2), "hada_w2_b": noise(2, 6)}, {}),
    "loha-alpha": ("LOHA", {f"hada_w{n}_{s}": noise(3, 3) for n in "12" for s in "ab"},
                   {"alpha": 1e40}),
    "lokr-rank": ("LOKR", {"lokr_w1": noise(2, 3), "lokr_w2_a": noise(4, 2),
                           "lokr_w2_b": noise(2, 5)}, {"r": 3}),
    "lokr-huge-rank": ("LOKR", {"lokr_w1": noise(2, 3), "lokr_w2": noise(4, 2)}, {"r": 10**12}),
    "lokr-one-side": ("LOKR", {"lokr_w1": noise(2, 3)}, {}),
    "lokr-vector": ("LOKR", {"lokr_w1": noise(2, 3), "lokr_w2": noise(4)}, {}),
    "oft-triangle": ("OFT", {"oft_R.weight": noise(2, 4)}, {}),
    "oft-share": ("OFT", {"oft_R.weight": noise(2, 3)}, {"block_share": True}),
    "oft-terms": ("OFT", {"oft_R.weight": noise(2, 3)}, {"num_cayley_neumann_terms": 10**8}),
    "boft-square": ("BOFT", {"boft_R": noise(1, 2, 2, 3), "boft_s": noise(4, 1)}, {}),
    "boft-odd": ("BOFT", {"boft_R": noise(2, 3, 2, 2), "boft_s": noise(4, 1)}, {}),
    "vera-no-matrices": ("VERA", {"vera_lambda_b": noise(4), "vera_lambda_d": noise(3)}, {"r": 3}),
    "vera-rank": ("VERA", {"vera_lambda_b": noise(4), "vera_lambda_d": noise(3)},
                  {"r": 10**9, "save_projection": False}),
    "tokens-count": ("TRAINABLE_TOKENS", {"trainable_tokens_delta": noise(2, 3)},
                     {"token_indices": [1]}),
    "tokens-twice": ("TRAINABLE_TOKENS", {"trainable_tokens_delta": noise(2, 3)},
                     {"token_indices": [1, 1]}),
    "tokens-negative": ("TRAINABLE_TOKENS", {"trainable_tokens_delta": noise(2, 3)},
                        {"token_indices": [1, -1]}),
    "fourier-seed": ("FOURIERFT", {"fourierft_spectrum": noise(7)}, {"random_loc_seed": 1.5}),
    "fourier-empty": ("FOURIERFT", {"fourierft_spectrum": noise(0)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str) -> None:
    kind, tensors, config = BROKEN[name]
    with pytest.raises(CorruptInputError):
        read(kind, tensors, **config)


MISFITS = {
    "ia3": ("IA3", {"ia3_l": noise(1, 5)}, {}),
    "loha": UPDATES["loha"],
    "lokr": UPDATES["lokr"],
    "oft": ("OFT", {"oft_R.weight": noise(3, 3)}, {}),
    "boft": UPDATES["boft"],
    "fourier": UPDATES["fourier"],
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_models_weight_does_not_fit(name: str) -> None:
    kind, tensors, config = MISFITS[name]
    update: Any = read(kind, tensors, **config)["weight"]
    for shape in ((3, 4), (7,), (), (3, 2, 2)):
        assert not update.fits(shape), shape


def test_vera_draws_nothing_unreasonable() -> None:
    rank = 3000
    tensors = {"vera_lambda_b": noise(4), "vera_lambda_d": noise(rank)}
    update: Any = read("VERA", tensors, r=rank, save_projection=False)["weight"]
    with pytest.raises(ResourceLimitError):
        update.fitted((4, 1 << 20), {})
