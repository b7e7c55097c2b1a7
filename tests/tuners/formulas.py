"""The formulas of the papers, written out in float64, with a file's tensors for a tiny weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor

from adaptool.canonical import Site, Update
from adaptool.canonical.tensors import from_values
from adaptool.canonical.verbs import Applicable, Fittable
from adaptool.tuners import Options, Parts, tuner_of

OUT, IN = 6, 8
CPU = torch.device("cpu")
WEIGHT = torch.randn(OUT, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

Tensors = dict[str, Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(prod(shape) + seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Formula:
    """A file's tensors for one module, and U(W) as the paper writes it."""

    peft_type: str
    tensors: Tensors
    expected: Callable[[Tensor, Tensors], Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    shared: Tensors = field(default_factory=dict)


def blocks(kernel: Tensor) -> Tensor:
    """A matrix of circulant blocks: y_q = sum_j k[(j - q) mod b] x_j, entry by entry."""
    high, wide, b = kernel.shape
    whole = torch.zeros(high * b, wide * b, dtype=kernel.dtype)
    for m in range(high):
        for n in range(wide):
            for q in range(b):
                for j in range(b):
                    whole[m * b + q, n * b + j] = kernel[m, n, (j - q) % b]
    return whole


def reflections(weight: Tensor, t: Tensors) -> Tensor:
    for u in t["hra_u"].T:
        unit = (u / u.norm())[:, None]
        weight = weight @ (torch.eye(IN, dtype=weight.dtype) - 2 * unit @ unit.T)
    return weight


def tiled(weight: Tensor, t: Tensors) -> Tensor:
    result = weight.clone()
    rank, columns = t["miss_block"].shape
    for o in range(OUT):
        for i in range(IN):
            result[o, i] += t["miss_block"][i % rank, o % columns]
    return result


def bat(weight: Tensor, t: Tensors) -> Tensor:
    result = weight.clone()
    for p, block in enumerate(t["miss_block"]):
        for n in range(IN // 2):
            rows, cols = slice(2 * p, 2 * p + 2), slice(2 * n, 2 * n + 2)
            result[rows, cols] += weight[rows, cols] @ block + block
    return result


def rotated(weight: Tensor, t: Tensors, variant: str) -> Tensor:
    """Groups of two outputs: x1, x2 become c x1 - s x2, s x1 + c x2."""
    result = weight.clone()
    for g in range(OUT // 2):
        first, second = weight[2 * g], weight[2 * g + 1]
        if variant == "road_1":
            at = [(g, g), (g, g)]
        elif variant == "road_2":
            at = [(2 * g, 2 * g), (2 * g + 1, 2 * g + 1)]
        else:
            at = [(4 * g, 4 * g + 2), (4 * g + 1, 4 * g + 3)]
        (c1, s1), (c2, s2) = [
            (t["road_alpha"][c] * t["road_theta"][c].cos(),
             t["road_alpha"][s] * t["road_theta"][s].sin())
            for c, s in at
        ]  # fmt: skip
        result[2 * g] = c1 * first - s1 * second
        result[2 * g + 1] = c2 * second + s2 * first
    return result


def road(variant: str, count: int) -> Formula:
    tensors = {"road_theta": rand(count), "road_alpha": rand(count, seed=1)}
    config = {"variant": variant, "group_size": 2}
    return Formula("ROAD", tensors, partial(rotated, variant=variant), config)


def mixtures(weight: Tensor, t: Tensors) -> Tensor:
    bank = rand(5, 2)

    def mixed(logits: Tensor) -> Tensor:
        best = logits.argsort(descending=True)[:2]
        shares = logits[best].exp() / logits[best].exp().sum()
        return shares @ bank[best]

    a = torch.stack([torch.cat([mixed(x) for x in row]) for row in t["vblora_logits_A"]])
    b = torch.cat([torch.stack([mixed(x) for x in piece], dim=1) for piece in t["vblora_logits_B"]])
    return weight + b @ a


def granular(weight: Tensor, t: Tensors) -> Tensor:
    """Four blocks, each with one of the two ranks of either side."""
    result = weight.clone()
    a, b = t["gralora_A"], t["gralora_B"]
    for d in range(2):
        for n in range(2):
            left = b[d, n : n + 1].T @ a[n][:, d : d + 1].T
            result[3 * d : 3 * d + 3, 4 * n : 4 * n + 4] += 5 / 2 * left
    return result


def random_bases(weight: Tensor, t: Tensors) -> Tensor:
    """r = 2, three bases for the smaller side of six."""
    a, b = rand(2, 1, OUT, seed=3), rand(IN, 3, 2, seed=3)
    small = (a * t["randlora_lambda"][:, :, None] * t["randlora_gamma"]).reshape(6, OUT)
    large = b.reshape(IN, 6)
    return weight + 640 / 2 * (large @ small).T


def directions(weight: Tensor, t: Tensors) -> Tensor:
    delta = torch.zeros_like(weight)
    for a, b in zip(t["delora_A"], t["delora_B"].T, strict=True):
        delta += t["delora_lambda"] / 3 * torch.outer(b / b.norm(), a / a.norm())
    return weight + delta * weight.norm(dim=0)


def injected(weight: Tensor, t: Tensors) -> Tensor:
    p, r = t["deft_P"], t["deft_R"]
    return weight - p @ p.clamp(min=0).T @ weight + p @ (4 / 2 * r)


def taken_out(weight: Tensor, t: Tensors) -> Tensor:
    p = t["deft_P"]
    return weight - p @ torch.linalg.solve(p.T @ p, p.T @ weight)


def kept(weight: Tensor, t: Tensors) -> Tensor:
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    strong = sum(s[i] * torch.outer(u[:, i], vt[i]) for i in range(OUT - 2))
    u_low, s_low, v_low = (t[f"osf_svd_params.{side}_low"] for side in "USV")
    return cast("Tensor", strong + u_low @ s_low.diag() @ v_low)


def turned(weight: Tensor, t: Tensors) -> Tensor:
    """r = 3: strong directions, turned by Cayley's matrix and stretched on both sides."""
    u, s, vt = (x.double() for x in torch.linalg.svd(weight.float(), full_matrices=False))
    x, y, z = t["psoft_R.weight"]
    q = torch.tensor([[0, x, y], [-x, 0, z], [-y, -z, 0]], dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64)
    r = (one + q) @ torch.linalg.inv(one - q)
    r = t["psoft_R.vector_b"].diag() @ r @ t["psoft_R.vector_a"].diag()
    return weight + u[:, :3] @ s[:3].diag() @ (r - one) @ vt[:3]


def dealt(weight: Tensor, t: Tensors) -> Tensor:
    theta = rand(7)
    a, b = (
        torch.tensor(
            [[float(theta[i]) for i in row] for row in t[f"unilora_indices_{side}"].tolist()],
            dtype=torch.float64,
        )
        * t[f"unilora_scales_{side}"]
        for side in "AB"
    )
    return weight + b @ a


def scattered(weight: Tensor, t: Tensors) -> Tensor:
    result = weight.clone()
    for row, col, value in zip(*t["shira_indices"], t["shira_weight"], strict=True):
        result[row, col] += value
    return result


def flat(weight: Tensor, t: Tensors) -> Tensor:
    result = weight.flatten().clone()
    for position, value in zip(t["supertuning_indices"], t["supertuning_values"], strict=True):
        result[position] += value
    return result.view(OUT, IN)


def haar(weight: Tensor, t: Tensors) -> Tensor:
    """One level: every 2 x 2 block of the result from one value of each band."""
    positions = torch.randperm(OUT * IN, generator=torch.Generator().manual_seed(7))[:9]
    bands = torch.zeros(OUT * IN, dtype=torch.float64)
    bands[positions] = t["waveft_spectrum"]
    bands = bands.view(OUT, IN)
    smooth, rows, cols, both = bands[:3, :4], bands[:3, 4:], bands[3:, :4], bands[3:, 4:]
    result = weight.clone()
    for i in range(3):
        for j in range(4):
            for y, down in enumerate((1, -1)):
                for x, right in enumerate((1, -1)):
                    value = smooth[i, j] + down * rows[i, j] + right * cols[i, j]
                    value = value + down * right * both[i, j]
                    result[2 * i + y, 2 * j + x] += 3.0 * value / 2
    return result


def networked(weight: Tensor, t: Tensors) -> Tensor:
    result = weight.clone()
    for n, column in enumerate(weight.T):
        h0 = torch.tanh(t["peanut_A.weight"] @ column)
        h1 = torch.tanh(t["peanut_encoders.0.weight"] @ h0)
        g = torch.tanh(t["peanut_decoders.0.weight"] @ h1) + h0
        result[:, n] += 0.5 * (t["peanut_B.weight"] @ g)
    return result


def recoordinated(weight: Tensor, t: Tensors) -> Tensor:
    v = rand(IN, IN)
    coordinates = weight @ torch.linalg.inv(v).T
    u = coordinates / coordinates.norm(dim=0)
    middle = t["frod_lambda_l"].diag()
    middle[0, 3] += t["frod_lambda_s_values"][0]
    middle[5, 2] += t["frod_lambda_s_values"][1]
    return u @ middle @ v.T


FORMULAS = {
    "hra": Formula("HRA", {"hra_u": rand(IN, 3)}, reflections),
    "vblora": Formula(
        "VBLORA",
        {"vblora_logits_A": rand(2, IN // 2, 5), "vblora_logits_B": rand(OUT // 2, 2, 5)},
        mixtures,
        shared={"vblora_vector_bank": rand(5, 2)},
    ),
    "psoft": Formula(
        "PSOFT",
        {"psoft_R.weight": rand(3), "psoft_R.vector_a": rand(3, seed=1),
         "psoft_R.vector_b": rand(3, seed=2)},
        turned,
        {"r": 3, "psoft_alpha": 6},
    ),
    "tinylora": Formula(
        "TINYLORA",
        {"tinylora_A": rand(2, IN), "tinylora_B": rand(OUT, 2), "tinylora_P": rand(3, 2, 2)},
        lambda w, t: w + t["tinylora_B"] @ sum(
            rand(3)[i] * t["tinylora_P"][i] for i in range(3)
        ) @ t["tinylora_A"],
        shared={"tinylora_v.0": rand(3)},
    ),
    "unilora": Formula(
        "UNILORA",
        {"unilora_indices_A": torch.arange(2 * IN).view(2, IN) % 7,
         "unilora_indices_B": torch.arange(OUT * 2).view(OUT, 2) % 5,
         "unilora_scales_A": rand(2, IN), "unilora_scales_B": rand(OUT, 2)},
        dealt,
        shared={"unilora_theta_d": rand(7)},
    ),
    "shira": Formula(
        "SHIRA",
        {"shira_indices": torch.tensor([[5, 0, 3, 3], [7, 0, 2, 1]], dtype=torch.int32),
         "shira_weight": rand(4)},
        scattered,
    ),
    "shira-floats": Formula(
        "SHIRA",
        {"shira_indices": torch.tensor([[5.0, 0.0], [7.0, 0.0]]), "shira_weight": rand(2)},
        lambda w, t: scattered(w, {**t, "shira_indices": t["shira_indices"].int()}),
    ),
    "miss": Formula("MISS", {"miss_block": rand(3, OUT)}, tiled),
    "miss-mini": Formula("MISS", {"miss_block": rand(3, 2)}, tiled, {"init_weights": "mini"}),
    "miss-bat": Formula("MISS", {"miss_block": rand(3, 2, 2)}, bat, {"init_weights": "bat"}),
    "randlora": Formula(
        "RANDLORA",
        {"randlora_lambda": rand(2, 3), "randlora_gamma": rand(3, OUT)},
        random_bases,
        shared={"randlora_A": rand(2, 1, OUT, seed=3), "randlora_B": rand(IN, 3, 2, seed=3)},
    ),
    "c3a": Formula(
        "C3A", {"c3a_kernel": rand(3, 4, 2)}, lambda w, t: w + blocks(t["c3a_kernel"]) / IN
    ),
    "road-1": road("road_1", OUT // 2),
    "road-2": road("road_2", OUT),
    "road-4": road("road_4", 2 * OUT),
    "delora": Formula(
        "DELORA",
        {"delora_A": rand(3, IN), "delora_B": rand(OUT, 3), "delora_lambda": rand(1)},
        directions,
    ),
    "delora-norms": Formula(
        "DELORA",
        {"delora_A": rand(3, IN), "delora_B": rand(OUT, 3), "delora_lambda": rand(1),
         "delora_w_norm": WEIGHT.norm(dim=0)},
        directions,
    ),
    "hira": Formula(
        "HIRA",
        {"hira_A": rand(2, IN), "hira_B": rand(OUT, 2)},
        lambda w, t: w * (1 + t["hira_B"] @ t["hira_A"]),
    ),
    "hira-embedding": Formula(
        "HIRA",
        {"hira_embedding_A": rand(2, OUT), "hira_embedding_B": rand(IN, 2)},
        lambda w, t: w * (1 + (t["hira_embedding_B"] @ t["hira_embedding_A"]).T),
    ),
    "gralora": Formula(
        "GRALORA", {"gralora_A": rand(2, 4, 2), "gralora_B": rand(2, 2, 3)}, granular, {"alpha": 5}
    ),
    "deft": Formula(
        "DEFT", {"deft_P": rand(OUT, 2), "deft_R": rand(2, IN)}, injected, {"alpha": 4}
    ),
    "deft-para": Formula(
        "DEFT", {"deft_P": rand(OUT, 2)}, taken_out, {"para": True, "decomposition_method": "qr"}
    ),
    "osf": Formula(
        "OSF",
        {"osf_svd_params.U_low": rand(OUT, 2), "osf_svd_params.S_low": rand(2),
         "osf_svd_params.V_low": rand(2, IN)},
        kept,
    ),
    "supertuning": Formula(
        "SUPERTUNING",
        {"supertuning_indices": torch.tensor([47, 3, 20], dtype=torch.int32),
         "supertuning_values": rand(3)},
        flat,
    ),
    "supertuning-supra": Formula(
        "SUPERTUNING",
        {"supertuning_indices": torch.tensor([47, 3, 20], dtype=torch.int32),
         "supertuning_values": rand(3), "supertuning_lora_A.weight": rand(2, IN),
         "supertuning_lora_B.weight": rand(OUT, 2)},
        lambda w, t: flat(
            w + 3 / 2 * t["supertuning_lora_B.weight"] @ t["supertuning_lora_A.weight"], t
        ),
        {"lora_alpha": 3},
    ),
    "waveft": Formula(
        "WAVEFT", {"waveft_spectrum": rand(9)}, haar, {"random_loc_seed": 7, "scaling": 3.0}
    ),
    "peanut": Formula(
        "PEANUT",
        {"peanut_A.weight": rand(3, OUT), "peanut_B.weight": rand(OUT, 3),
         "peanut_encoders.0.weight": rand(3, 3), "peanut_decoders.0.weight": rand(3, 3, seed=1)},
        networked,
        {"depth": 1, "act_fn": "tanh", "scaling": 0.5},
    ),
    "frod": Formula(
        "FROD",
        {"frod_lambda_l": rand(IN), "frod_lambda_s_values": rand(2)},
        recoordinated,
        shared={"frod_V.mlp_up": rand(IN, IN),
                "frod_s_indices.mlp_up": torch.tensor([[0, 5], [3, 2]])},
    ),
    "glora": Formula(
        "GLORA",
        {"glora_A.Xd": rand(OUT, 2), "glora_A.Xu": rand(2, IN), "glora_B.X": rand(OUT, 1)},
        lambda w, t: w + w * (t["glora_A.Xd"] @ t["glora_A.Xu"]) + t["glora_B.X"],
    ),
}  # fmt: skip
MODULE = "layers.0.mlp.up"


def read(formula: Formula, **changes: Any) -> Mapping[str, Update]:
    """The module's updates; `changes` replace tensors (None: away) or keys of the config."""
    tensors = {**formula.tensors, **{k: v for k, v in changes.items() if torch.is_tensor(v)}}
    tensors = {k: v for k, v in tensors.items() if changes.get(k, v) is not None}
    lazy = {name: from_values(tensor) for name, tensor in tensors.items()}
    shared = {name: from_values(tensor) for name, tensor in formula.shared.items()}
    config = {**formula.config, **{k: v for k, v in changes.items() if k not in tensors}}
    options = Options(config, "adapter_config.json", lambda *_: None, lambda *_: False)
    parts = Parts(MODULE, "here: up", lazy, shared, (MODULE,))
    tuner = tuner_of(formula.peft_type)
    assert tuner is not None
    found = tuner.read(parts, options)
    if parts.tensors:  # as the reader of a file has it
        raise parts.corrupt("tensors stand alone")
    return found


def fitted(update: Update, shape: tuple[int, ...] = (OUT, IN)) -> Applicable:
    if isinstance(update, Fittable):
        assert update.fits(shape)
        update = update.fitted(shape, {Site(MODULE): shape})
    assert update.shape == shape
    assert isinstance(update, Applicable)
    return update
