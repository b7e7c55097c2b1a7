"""Reading and writing PEFT folders: keys, strengths, and files that older versions wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adaptool.canonical import LowRank, Site
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError
from adaptool.formats import read_adapter
from adaptool.formats.peft.keys import Role, parse_key
from adaptool.formats.peft.settings import Settings
from adaptool.jobs.converting import convert
from adaptool.jobs.merging import merge_files

FIXTURES = Path(__file__).parent.parent / "fixtures" / "demo"


@pytest.mark.parametrize(
    ("name", "module", "role", "depth"),
    [
        (
            "base_model.model.model.layers.0.q_proj.lora_A.weight",
            "model.layers.0.q_proj",
            Role.A,
            0,
        ),
        ("base_model.model.base_model.model.h.0.c.lora_B.weight", "h.0.c", Role.B, 0),
        ("base_model.model.h.0.c.lora_B.default.weight", "h.0.c", Role.B, 0),
        ("base_model.model._orig_mod.h.0.c.lora_A.weight", "h.0.c", Role.A, 0),
        ("_fsdp_wrapped_module.base_model.model.h.c.lora_A.weight", "h.c", Role.A, 0),
        ("h.0.c.lora_A.weight", "h.0.c", Role.A, 0),
        ("base_model.model.emb.lora_embedding_A", "emb", Role.EMBEDDING_A, 0),
        ("base_model.model.emb.lora_embedding_B.default", "emb", Role.EMBEDDING_B, 0),
        ("base_model.model.c.lora_magnitude_vector", "c", Role.MAGNITUDE, 0),
        ("base_model.model.c.lora_magnitude_vector.default.weight", "c", Role.MAGNITUDE, 0),
        ("base_model.model.m.experts.base_layer.lora_A.weight", "m.experts", Role.A, 1),
        ("base_model.model.attn.base_layer.out_proj.lora_A.weight", "attn.out_proj", Role.A, 0),
        ("base_model.model.emb.base_layer.weight", "emb", Role.BASE, 0),
        ("base_model.model.lm_head.weight", "lm_head", Role.SAVED, 0),
        ("base_model.model.score.modules_to_save.default.weight", "score", Role.SAVED, 0),
        ("base_model.model.e.token_adapter.trainable_tokens_delta", "e", Role.TOKENS, 0),
        ("base_model.model.c.lora_B.bias", "c", Role.B_BIAS, 0),
    ],
)
def test_keys(name: str, module: str, role: Role, depth: int) -> None:
    key = parse_key(name)
    assert (key.module, key.role, key.depth) == (module, role, depth)


def settings_of(**config: object) -> Settings:
    return Settings(config, Path("adapter_config.json"))  # type: ignore[arg-type]


def test_strength() -> None:
    assert settings_of(lora_alpha=16, r=8).scaling("m", 8) == 2.0
    assert settings_of(lora_alpha=16, r=8, use_rslora=True).scaling("m", 8) == 16 / math.sqrt(8)
    assert settings_of(r=8).scaling("m", 8) == 1.0
    # the tensors' own rank is the truth
    assert settings_of(lora_alpha=16, r=8).scaling("m", 4) == 4.0


def test_the_first_matching_pattern_counts() -> None:
    config = settings_of(
        lora_alpha=8,
        alpha_pattern={"q_proj": 32, "layers.1.*": 64, r"^model\.layers\.2\.up": 1},
    )
    assert config.scaling("model.layers.1.self_attn.q_proj", 8) == 4.0
    assert config.scaling("model.layers.1.mlp.up", 8) == 8.0
    assert config.scaling("model.layers.2.up", 8) == 0.125
    assert config.scaling("model.layers.2.mlp.my_q_proj", 8) == 1.0


scalars = st.floats() | st.integers() | st.text(max_size=5) | st.none() | st.booleans()


@given(st.dictionaries(st.text(max_size=12), scalars | st.lists(scalars, max_size=3), max_size=6))
def test_no_config_makes_anything_but_our_errors(config: dict[str, object]) -> None:
    keys = ("r", "lora_alpha", "use_rslora", "alpha_pattern", "peft_type")
    settings = settings_of(**{**config, **dict(zip(keys, config.values(), strict=False))})
    try:
        assert math.isfinite(settings.scaling("model.q_proj", 8))
        assert settings.stated_rank("model.q_proj") is not False
    except AdaptoolError as error:
        assert "\n" not in error.message


def write_adapter(folder: Path, config: dict[str, object], **tensors: torch.Tensor) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({f"base_model.model.{k}": v.contiguous() for k, v in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


@pytest.mark.parametrize("enabled", [[True, False, True], [True, True, True], [False, True, False]])
@pytest.mark.parametrize("as_convolution", [False, True])
def test_merged_projections_of_old_peft(enabled, as_convolution, tmp_path: Path) -> None:
    """`enable_lora`: A rows per enabled projection, B a grouped convolution over them."""
    rank, width, inputs, count = 2, 6, 6, sum(enabled)
    a, b = torch.randn(rank * count, inputs), torch.randn(width * count, rank)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "enable_lora": enabled}
    stored_b = b[:, :, None] if as_convolution else b
    adapter = write_adapter(tmp_path / "a", config, **{
        "h.0.attn.c_attn.lora_A.weight": a, "h.0.attn.c_attn.lora_B.weight": stored_b,
    })  # fmt: skip
    wanted = torch.zeros(width * len(enabled), inputs, dtype=torch.float64)
    position = 0
    for place, on in enumerate(enabled):
        if on:
            rows_a = a[position * rank : (position + 1) * rank].double()
            rows_b = b[position * width : (position + 1) * width].double()
            wanted[place * width : (place + 1) * width] = 1.5 * rows_b @ rows_a
            position += 1
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    weight = torch.randn(inputs, width * len(enabled))
    save_file({"h.0.attn.c_attn.weight": weight}, base / "model.safetensors")
    merge_files(base, {str(adapter): 1.0}, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["h.0.attn.c_attn.weight"]
    assert torch.allclose(found.T.double(), weight.T.double() + wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["pirate", "cowboy", "formal"])
def test_writes_what_it_read(name: str, tmp_path: Path) -> None:
    convert(FIXTURES / name, tmp_path / "out")
    before = load_file(FIXTURES / name / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    one, two = read_adapter(FIXTURES / name), read_adapter(tmp_path / "out")
    assert one.method == two.method
    for site, update in one.updates.items():
        other = two.updates[site]
        if isinstance(update, LowRank) and isinstance(other, LowRank):
            assert other.scaling == pytest.approx(update.scaling, rel=1e-12)


def test_patterns_name_one_module_each(tmp_path: Path) -> None:
    tensors = {}
    for index, rank in enumerate((2, 2, 4)):
        for leaf in ("q_proj", "my_q_proj"):
            tensors[f"layers.{index}.{leaf}.lora_A.weight"] = torch.randn(rank, 4)
            tensors[f"layers.{index}.{leaf}.lora_B.weight"] = torch.randn(4, rank)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "alpha_pattern": {"layers.1.q_proj": 7},
        "rank_pattern": {"layers.2.*": 4},
    }
    one = read_adapter(write_adapter(tmp_path / "a", config, **tensors))
    convert(tmp_path / "a", tmp_path / "b", scale=0.3)
    two = read_adapter(tmp_path / "b")
    for site, update in one.updates.items():
        assert isinstance(update, LowRank)
        assert isinstance(other := two.updates[site], LowRank)
        assert other.scaling == pytest.approx(0.3 * update.scaling, rel=1e-12)


def test_scaling_a_magnitude_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="cannot be scaled"):
        convert(FIXTURES / "formal", tmp_path / "out", scale=0.5)
    assert not (tmp_path / "out").exists()


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {}, **{"m.lora_A.weight": torch.ones(2, 2)})
    with pytest.raises(CorruptInputError, match="lacks its lora_B"):
        read_adapter(folder)


def test_a_file_without_config_is_lora_of_default_strength(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {"r": 2}, **{
        "m.lora_A.weight": torch.ones(2, 2), "m.lora_B.weight": torch.ones(2, 2),
    })  # fmt: skip
    (folder / "adapter_config.json").unlink()
    adapter = read_adapter(folder)
    update = adapter.updates[Site("m")]
    assert isinstance(update, LowRank)
    assert update.scaling == 4.0
    assert "default alpha" in adapter.provenance.notes[0]
