"""Combinations beside PEFT's add_weighted_adapter, type by type, on a model with every layer kind.

PEFT mixes two questions in one name. The table in PARITY says which arguments answer alike.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: TID251
from torch import nn

from adaptool.canonical import Adapter, LowRank, Replacement
from adaptool.combination import Recipe, combine
from adaptool.formats import WriteOptions, format_for, read_adapter

RANK = 5
PLAIN = {"density": 0.5, "elect": "plain"}

PARITY = {
    "linear": ({}, Recipe("linear", space="factors")),
    "cat": ({}, Recipe("linear")),
    "svd": ({"svd_rank": RANK}, Recipe("linear", rank=RANK)),
    "ties": ({"density": 0.5}, Recipe("ties", PLAIN, "factors")),
    "ties_svd": ({"density": 0.5, "svd_rank": RANK}, Recipe("ties", PLAIN, rank=RANK)),
    "magnitude_prune": ({"density": 0.5}, Recipe("magnitude", {"density": 0.5}, "factors")),
    "magnitude_prune_svd": (
        {"density": 0.5, "svd_rank": RANK},
        Recipe("magnitude", {"density": 0.5}, rank=RANK),
    ),
}
"""PEFT's combination_type -> its arguments, and ours."""

FREQUENT = {
    "ties": ("factors", None),
    "ties_svd": ("delta", RANK),
}


class Layers(nn.Module):
    """A linear, an embedding, convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"model_type": "custom", "tie_word_embeddings": False}
        self.embed = nn.Embedding(19, 12)
        self.q = nn.Linear(12, 16, bias=False)
        self.v = nn.Linear(12, 10, bias=False)
        self.plane = nn.Conv2d(3, 7, 3)
        self.point = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.q(self.embed(x)))


TARGETS = ("embed", "q", "v", "plane", "point")


def trained(folder: Path, *configs: LoraConfig) -> tuple[PeftModel, list[Path]]:
    """A PEFT model with one adapter for each config, all with random factors, saved."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(Layers(), configs[0], adapter_name="a0")
        for number, config in enumerate(configs[1:], 1):
            model.add_adapter(f"a{number}", config)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.data.normal_()
        model.save_pretrained(folder)
    return model, [folder / f"a{number}" for number in range(len(configs))]


def lora(rank: int, alpha: float, targets: tuple[str, ...] = TARGETS, **more) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), **more)


def peft_deltas(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """PEFT's own dense update of each layer, [out, in, *kernel]."""
    found = {}
    for path, layer in model.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight") and name in layer.scaling:
            delta = layer.get_delta_weight(name).detach().double()
            found[path] = delta.T if path == "embed" else delta
    return found


def our_deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    found = {}
    for site, update in adapter.updates.items():
        if isinstance(update, LowRank):
            a, b = update.factors(torch.float64, torch.device("cpu"))
            found[site.module] = (update.scaling * b @ a).reshape(update.shape)
    return found


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for name, delta in wanted.items():
        error = float((found[name] - delta).norm() / delta.norm())
        assert error <= 1e-6, f"{name}: {error:.2g}"


@pytest.mark.parametrize("kind", PARITY)
@pytest.mark.parametrize("weights", [(0.7, 0.3), (1.0, -0.5)])
def test_every_type_that_is_not_random(kind, weights, tmp_path: Path) -> None:
    model, paths = trained(tmp_path, lora(4, 6), lora(4, 8))
    arguments, recipe = PARITY[kind]
    model.add_weighted_adapter(["a0", "a1"], list(weights), "new", kind, **arguments)
    adapters = [read_adapter(path) for path in paths]
    ours = combine(list(zip(adapters, weights, strict=True)), recipe)
    assert_same(our_deltas(ours.adapter), peft_deltas(model, "new"))


@pytest.mark.parametrize("kind", FREQUENT)
def test_ties_by_frequency_of_three(kind, tmp_path: Path) -> None:
    model, paths = trained(tmp_path, lora(4, 6), lora(4, 8), lora(4, 4))
    model.add_weighted_adapter(
        ["a0", "a1", "a2"], [1.0, 0.5, 2.0], "new", kind, svd_rank=RANK, density=0.6,
        majority_sign_method="frequency",
    )  # fmt: skip
    space, rank = FREQUENT[kind]
    recipe = Recipe("ties", {"density": 0.6, "elect": "plain", "majority": "frequency"}, space,
                    rank)  # fmt: skip
    adapters = [read_adapter(path) for path in paths]
    ours = combine(list(zip(adapters, [1.0, 0.5, 2.0], strict=True)), recipe)
    assert_same(our_deltas(ours.adapter), peft_deltas(model, "new"))


@pytest.mark.parametrize("kind", ["cat", "svd", "ties_svd", "magnitude_prune_svd"])
def test_ranks_and_targets_may_differ(kind, tmp_path: Path) -> None:
    model, paths = trained(tmp_path, lora(4, 6, ("q", "v", "plane")), lora(2, 8, ("q", "embed")))
    arguments, recipe = PARITY[kind]
    model.add_weighted_adapter(["a0", "a1"], [0.7, 0.3], "new", kind, **arguments)
    ours = combine([(read_adapter(paths[0]), 0.7), (read_adapter(paths[1]), 0.3)], recipe)
    assert_same(our_deltas(ours.adapter), peft_deltas(model, "new"))


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(rank=3), Recipe("ties"), Recipe("tsv")])
def test_peft_loads_what_is_written(recipe, tmp_path: Path) -> None:
    _, paths = trained(tmp_path, lora(4, 6, ("q", "v", "plane", "point")), lora(2, 8, TARGETS))
    ours = combine([(read_adapter(paths[0]), 0.7), (read_adapter(paths[1]), -0.3)], recipe)
    out = tmp_path / "out"
    format_for(out, None).write(ours.adapter, out, WriteOptions())
    loaded = PeftModel.from_pretrained(Layers(), out)
    assert_same(our_deltas(ours.adapter), peft_deltas(loaded, "default"))


# -- where PEFT is wrong, and says nothing --------------------------------------------------------


def true_sum(model: PeftModel, weights: tuple[float, ...]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for number, weight in enumerate(weights):
        for name, delta in peft_deltas(model, f"a{number}").items():
            total[name] = total.get(name, 0) + weight * delta
    return total


def test_rslora_is_not_inherited_as_a_strength(tmp_path: Path) -> None:
    """PEFT keeps use_rslora with alpha = rank, so that its result is sqrt(rank) too strong."""
    model, paths = trained(
        tmp_path, lora(4, 6, ("q",), use_rslora=True), lora(4, 8, ("q",), use_rslora=True)
    )
    model.add_weighted_adapter(["a0", "a1"], [0.7, 0.3], "new", "cat")
    wanted = true_sum(model, (0.7, 0.3))
    ours = combine([(read_adapter(paths[0]), 0.7), (read_adapter(paths[1]), 0.3)])
    assert_same(our_deltas(ours.adapter), wanted)
    ratio = float(peft_deltas(model, "new")["q"].norm() / wanted["q"].norm())
    assert ratio == pytest.approx(8**0.5, rel=1e-5)
    out = tmp_path / "out"
    format_for(out, None).write(ours.adapter, out, WriteOptions())
    assert_same(peft_deltas(PeftModel.from_pretrained(Layers(), out), "default"), wanted)


def test_a_trained_head_is_kept(tmp_path: Path) -> None:
    """PEFT gives the new adapter a fresh copy of the base's head: what was trained is lost."""
    model, paths = trained(
        tmp_path, lora(4, 6, ("q",), modules_to_save=["head"]), lora(4, 8, ("q",))
    )
    model.add_weighted_adapter(["a0", "a1"], [0.7, 0.3], "new", "cat")
    head = model.base_model.model.head
    learned = head.modules_to_save["a0"].weight.detach()
    if "new" in head.modules_to_save:
        assert not torch.equal(head.modules_to_save["new"].weight, learned)
    ours = combine([(read_adapter(paths[0]), 0.7), (read_adapter(paths[1]), 0.3)])
    kept = {s.module: u for s, u in ours.adapter.updates.items() if isinstance(u, Replacement)
            and s.parameter == "weight"}  # fmt: skip
    assert torch.equal(kept["head"].value.values(), learned)
    assert any("kept" in note and "head.weight" in note for note in ours.notes)
    out = tmp_path / "out"
    format_for(out, None).write(ours.adapter, out, WriteOptions())
    loaded = PeftModel.from_pretrained(Layers(), out).base_model.model.head
    assert torch.equal(loaded.modules_to_save["default"].weight, learned)


def test_one_adapter_is_cut_to_a_rank(tmp_path: Path) -> None:
    """PEFT makes any combination of one adapter "linear" and forgets the rank that was asked."""
    model, paths = trained(tmp_path, lora(4, 6, ("q",)))
    model.add_weighted_adapter(["a0"], [1.0], "new", "svd", svd_rank=2)
    assert torch.linalg.matrix_rank(peft_deltas(model, "new")["q"], rtol=1e-5) == 4
    ours = combine([(read_adapter(paths[0]), 1.0)], Recipe(rank=2))
    assert torch.linalg.matrix_rank(our_deltas(ours.adapter)["q"], rtol=1e-5) == 2


def test_a_pattern_of_ranks_can_be_reloaded(tmp_path: Path) -> None:
    model, paths = trained(
        tmp_path, lora(4, 6, ("q", "v"), rank_pattern={"v": 2}, alpha_pattern={"v": 5}),
        lora(4, 8, ("q", "v")),
    )  # fmt: skip
    ours = combine([(read_adapter(paths[0]), 0.7), (read_adapter(paths[1]), 0.3)])
    assert {s.module: u.rank for s, u in ours.adapter.updates.items()} == {"q": 8, "v": 6}
    out = tmp_path / "out"
    format_for(out, None).write(ours.adapter, out, WriteOptions())
    loaded = peft_deltas(PeftModel.from_pretrained(Layers(), out), "default")
    assert_same(loaded, true_sum(model, (0.7, 0.3)))
