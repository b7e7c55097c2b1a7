"""Files of PEFT's other types: which tensors are whose, and what is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftType  # noqa: TID251
from safetensors.torch import save_file

from adaptool import tuners
from adaptool.canonical import Rebased, Replacement, Site
from adaptool.errors import CorruptInputError, IncompatibleError
from adaptool.formats import ReadOptions
from adaptool.formats.peft import read
from adaptool.tuners._unmergeable import UNMERGEABLE

from .matrix import exit_code

if TYPE_CHECKING:
    from pathlib import Path

    from adaptool.canonical import Adapter

PREFIX = "base_model.model."
Q = f"{PREFIX}layers.0.q"
TRIANGLES = torch.ones(2, 3)


def adapter_of(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Adapter:
    folder.mkdir(exist_ok=True)
    save_file({k: t.clone() for k, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", **config}))
    return read(folder, ReadOptions())


def test_every_type_of_peft_is_known_or_excused() -> None:
    known = {"LORA", *tuners.names(), *UNMERGEABLE}
    assert {kind.value for kind in PeftType} <= known


@pytest.mark.parametrize("name", tuners.names())
def test_plugins_keep_the_contract(name: str) -> None:
    tuner = tuners.tuner_of(name)
    assert tuner is not None
    assert name in {kind.value for kind in PeftType}
    assert callable(tuner.read)
    assert isinstance(tuner.suffixes, tuple)
    assert isinstance(tuner.shared, tuple)
    assert tuner.suffixes or tuner.shared


@pytest.mark.parametrize(
    "key",
    [
        f"{Q}.oft_R.weight",
        f"{Q}.oft_R.default.weight",
        f"{Q}.oft_R.my-name.weight",
        "layers.0.q.oft_R.weight",
        f"_orig_mod.{Q}.oft_R.weight",
        f"{PREFIX}{Q}.oft_R.weight",
    ],
)
def test_spellings_of_a_key(key: str, tmp_path: Path) -> None:
    adapter = adapter_of(tmp_path / "a", {key: TRIANGLES})
    assert [str(site) for site in adapter.updates] == ["layers.0.q.weight"]
    (update,) = adapter.updates.values()
    assert list(update.tensors) == ["oft_R.weight"]


def test_trained_copies_and_resized_bases(tmp_path: Path) -> None:
    tensors = {
        f"{Q}.oft_R.weight": TRIANGLES,
        f"{Q}.base_layer.weight": torch.ones(4, 6),
        f"{Q}.base_layer.bias": torch.ones(4),
        f"{PREFIX}head.weight": torch.ones(2, 6),
        f"{PREFIX}old.base_layer.weight": torch.ones(2, 6),
    }
    updates = adapter_of(tmp_path / "a", tensors).updates
    kinds = {str(site): type(update) for site, update in updates.items()}
    assert kinds == {
        "layers.0.q.weight": Rebased,
        "layers.0.q.bias": Replacement,
        "head.weight": Replacement,
        "old.weight": Replacement,
    }


def test_shared_tensors_stand_once(tmp_path: Path) -> None:
    vectors = {f"{Q}.vera_lambda_b": torch.ones(4), f"{Q}.vera_lambda_d": torch.ones(3)}
    matrices = {"base_model.vera_A": torch.ones(3, 5), "base_model.vera_B": torch.ones(4, 3)}
    config = {"peft_type": "VERA", "r": 3}
    adapter = adapter_of(tmp_path / "a", vectors | matrices, **config)
    assert list(adapter.updates) == [Site("layers.0.q")]
    assert set(adapter.extras) == set(matrices)
    assert adapter.parameters == 4 + 3 + 15 + 12
    copies = {f"{Q}.vera_A": torch.ones(3, 5)}
    again = adapter_of(tmp_path / "a", vectors | matrices | copies, **config)
    assert set(again.extras) == {*matrices, *copies}  # as it was, but counted once
    assert again.parameters == adapter.parameters
    other = {f"{Q}.vera_A": torch.zeros(3, 5)}
    with pytest.raises(CorruptInputError, match="given twice"):
        adapter_of(tmp_path / "a", vectors | matrices | other, **config)


REFUSED = {
    "another type's": ({f"{Q}.lora_A.weight": TRIANGLES}, IncompatibleError),
    "a prompt": ({"prompt_embeddings": TRIANGLES}, IncompatibleError),
    "empty": ({f"{Q}.oft_R.weight": torch.ones(0)}, CorruptInputError),
    "no rows": ({f"{Q}.oft_R.weight": torch.ones(0, 3)}, CorruptInputError),
    "two rotations": (
        {f"{Q}.oft_R.weight": TRIANGLES, f"{Q}.oft_embedding_R.weight": TRIANGLES},
        CorruptInputError,
    ),
    "two names": (
        {f"{Q}.oft_R.weight": TRIANGLES, f"{Q}.oft_R.other.weight": TRIANGLES + 1},
        CorruptInputError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    tensors, error = REFUSED[name]
    extra = {f"{PREFIX}layers.1.q.oft_R.weight": TRIANGLES}
    with pytest.raises(error):
        adapter_of(tmp_path / "a", extra | tensors)


def test_wildcards_name_a_step_of_any_name() -> None:
    from adaptool.formats.peft.tuned import _first, _own_patterns

    patterns = _own_patterns(("adamss_A.*", "frod_V.*.weight"))
    assert _first(patterns, "layers.0.q.adamss_A.12") == ("adamss_A.12", "layers.0.q")
    assert _first(patterns, "layers.0.q.frod_V.attn_q.weight") == (
        "frod_V.attn_q.weight",
        "layers.0.q",
    )
    assert _first(patterns, "layers.0.q.other.12") is None


@pytest.mark.parametrize("kind", ["BRAND_NEW", "../lora", "_forms", "adalora/.."])
def test_unknown_types_are_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="is not read"):
        adapter_of(tmp_path / "a", {f"{Q}.oft_R.weight": TRIANGLES}, peft_type=kind)


@pytest.mark.parametrize("kind", UNMERGEABLE)
def test_what_changes_no_weight(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    adapter = adapter_of(folder, {"prompt_embeddings": TRIANGLES}, peft_type=kind)
    assert adapter.unmergeable == UNMERGEABLE[kind]
    assert exit_code("merge", tmp_path, folder, "-o", tmp_path / "out") != 0
    assert exit_code("convert", folder, "-o", tmp_path / "copy") == 0
    assert list(read(tmp_path / "copy", ReadOptions()).extras) == ["prompt_embeddings"]


def test_an_expression_for_feedforward_modules(tmp_path: Path) -> None:
    factors = {f"{PREFIX}layers.{n}.q.ia3_l": torch.ones(1, 4, 1, 1) for n in (0, 1)}
    config = {"peft_type": "IA3", "feedforward_modules": r".*0\.q"}
    found = adapter_of(tmp_path / "a", factors, **config)
    assert found.updates[Site("layers.0.q")].kind == "input-scaling"
    assert found.updates[Site("layers.1.q")].kind == "output-scaling"
    whole = {"peft_type": "IA3", "feedforward_modules": r"0\.q"}  # a path must match from its start
    found = adapter_of(tmp_path / "a", factors, **whole)
    assert found.updates[Site("layers.0.q")].kind == "output-scaling"
    with pytest.raises(CorruptInputError):
        adapter_of(tmp_path / "a", factors, **(config | {"feedforward_modules": "("}))
