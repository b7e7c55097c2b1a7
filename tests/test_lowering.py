"""Adapters of any type as plain LoRAs, against PEFT and float64."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel, convert_to_lora  # noqa: TID251
from tuners.matrix import Built, Case, build, exit_code, merged, quiet
from tuners.test_merges import CASES as OLDER
from tuners.test_younger_merges import CASES as YOUNGER
from zoo.models import BASES, read_tensors
from zoo.recipes import forward

from adaptool import RankRequest, compare_files
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    Dora,
    LazyTensor,
    LowRank,
    Provenance,
    Rebased,
    Replacement,
    Site,
)
from adaptool.canonical.tensors import from_values
from adaptool.combination import combine
from adaptool.containers import open_checkpoint
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import read_adapter
from adaptool.lowering import Lowering, differences, lower
from adaptool.support import rows
from adaptool.tuners._forms import Delta

if TYPE_CHECKING:
    from pathlib import Path

CASES: dict[str, Case] = {**OLDER, **YOUNGER}

EXACT = {
    "adalora": 6, "loha": 16, "loha-conv": None, "loha-conv-cp": None, "lokr": None,
    "lokr-both": None, "lokr-conv": None, "lokr-conv-cp": 2, "miss": 6, "miss-mini": 5, "vera": 6,
    "vera-gpt2-unsaved": 6, "pvera-drawn": 4, "gralora": None, "vblora": None, "tinylora": None,
    "hra-bert": None, "deft": 3, "peanut-deep": 4, "delora": 3, "psoft": 4, "pissa-gpt2": 8,
    "olora": 8, "kasa": 8, "bd-lora": 4,
}  # fmt: skip
"""Cases that need no rank, and the rank that all of their modules get."""

FULL = ["ia3-biases", "ia3-conv", "oft", "oft-embedding", "boft-bert", "hira", "hira-gpt2", "shira",
        "c3a", "fourier-gpt2", "road-2-biases", "glora-biases", "miss-bat", "lokr-conv-full",
        "osf", "supertuning-searched"]  # fmt: skip
"""Cases that are of full rank."""


def outputs(name: str, built: Built, adapter: Path) -> torch.Tensor:
    """What PEFT computes with the base and an adapter, without merging."""
    kind = BASES[CASES[name].base]
    with quiet():
        base = kind.read(built.base, torch.float32)
        return forward(PeftModel.from_pretrained(base, adapter).eval(), kind)


def said_of(built: Built) -> str:
    """What the table of supported types says of an adapter's, of a plain LoRA."""
    config = json.loads((built.adapter / "adapter_config.json").read_text())
    return " ".join(row.cells[-1] for row in rows() if row.method.startswith(config["peft_type"]))


def close(got: torch.Tensor, want: torch.Tensor, within: float) -> None:
    assert float((got - want).abs().max() / want.abs().max()) <= within


def lowered(built: Built, request: RankRequest | None = None) -> Lowering:
    return lower(read_adapter(built.adapter), request, base=open_checkpoint(built.base))


@pytest.mark.parametrize("name", EXACT)
def test_low_rank_types_are_exact_and_peft_loads_them(name: str, tmp_path: Path) -> None:
    built, plain = build(CASES[name], tmp_path), tmp_path / "plain"
    command = ("convert", built.adapter, "--to", "lora", "--base", built.base, "-o", plain)
    assert exit_code(*command) == 0
    config = json.loads((plain / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "exact" in said_of(built)
    if EXACT[name] is not None:
        assert config["r"] == EXACT[name]
        assert config["rank_pattern"] == {}
    close(outputs(name, built, plain), outputs(name, built, built.adapter), 1e-5)


@pytest.mark.parametrize("name", FULL)
def test_full_rank_types_take_the_best_of_a_rank(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    with pytest.raises(UsageError, match="of full rank") as caught:
        lowered(built)
    assert "--rank" in (caught.value.hint or "")
    assert "approximate" in said_of(built) or name in ("lokr-conv-full", "osf")
    base = read_tensors(built.base)
    done = lowered(built, RankRequest(rank=2))
    found = {str(row.site): row for row in done.rows if row.rank is not None}
    checked = 0
    for tensor, want in built.expected.items():
        row = next((r for n, r in found.items() if n.endswith(tensor) or tensor.endswith(n)), None)
        if row is None:
            continue
        change = want.double() - base[tensor].double()
        values = torch.linalg.svdvals(change.flatten(1))
        assert row.rank == min(2, len(values))
        assert row.norm == pytest.approx(float(values.norm()), rel=1e-3)
        lost = float(values[2:].norm() / values.norm())
        assert row.error == pytest.approx(lost, abs=2e-3)
        assert row.exact == (lost < 1e-6)
        checked += 1
    assert checked == len(found)
    assert done.error is not None
    assert any("relative error" in note for note in done.notes)


@pytest.mark.parametrize("name", ["ia3-biases", "oft-embedding", "hira-gpt2", "road-2-biases"])
def test_at_full_rank_nothing_is_lost(name: str, tmp_path: Path) -> None:
    built, plain = build(CASES[name], tmp_path), tmp_path / "plain"
    command = ("convert", built.adapter, "--to", "lora", "--base", built.base, "-o", plain)
    assert exit_code(*command) == 2
    assert not plain.exists()
    assert exit_code(*command, "--rank", "999") == 0
    close(outputs(name, built, plain), outputs(name, built, built.adapter), 2e-5)


@pytest.mark.parametrize("name", ["loha", "loha-patterns", "lokr", "lokr-both", "lokr-full"])
def test_factors_follow_without_a_base(name: str, tmp_path: Path) -> None:
    built = build(CASES[name], tmp_path)
    adapter = read_adapter(built.adapter)
    done = lower(adapter)
    assert "--base" in done.notes[-1]
    told = lowered(built).adapter
    shapes = {site: update.shape for site, update in told.updates.items()}
    for site, update in adapter.updates.items():
        assert isinstance(update, Delta)
        fitted = update.fitted(shapes[site], shapes)
        assert isinstance(fitted, Delta)
        want = fitted.scaling * fitted.dense(torch.float64, torch.device("cpu"))
        low = done.adapter.updates[site]
        assert isinstance(low, LowRank)
        got = low.scaling * low.b.values().double() @ low.a.values().double()
        close(got, want, 1e-6)


def test_peft_is_no_closer(tmp_path: Path) -> None:
    """PEFT's own conversion, of the same rank."""
    built = build(CASES["lokr"], tmp_path)
    kind = BASES["llama"]
    with quiet():
        model = PeftModel.from_pretrained(kind.read(built.base, torch.float32), built.adapter)
        _, theirs = convert_to_lora(model, rank=4)
    base = read_tensors(built.base)
    for row in lowered(built, RankRequest(rank=4)).rows:
        name = f"base_model.model.{row.site.module}"
        a, b = (theirs[f"{name}.lora_{side}.weight"].double() for side in "AB")
        change = built.expected[str(row.site)].double() - base[str(row.site)].double()
        assert row.lost <= float((change - b @ a).norm()) + 1e-5 * float(change.norm())


def test_ranks_follow_from_a_share_or_an_error(tmp_path: Path) -> None:
    built = build(CASES["oft"], tmp_path)
    base = read_tensors(built.base)
    for row in lowered(built, RankRequest(energy=0.9)).rows:
        values = torch.linalg.svdvals(built.expected[str(row.site)] - base[str(row.site)])
        kept = values.double().square().cumsum(0) / values.double().square().sum()
        assert row.rank == 1 + int((kept < 0.9).sum())
    done = lowered(built, RankRequest(error=0.2))
    assert done.error is not None
    assert 0.15 < done.error <= 0.2
    capped = lowered(built, RankRequest(energy=1.0, max_rank=3))
    assert {row.rank for row in capped.rows} == {3}
    with pytest.raises(UsageError, match="by a rank, an energy or an error"):
        lowered(built, RankRequest(size=1000))


def test_gguf_is_written_for_llama_cpp(tmp_path: Path) -> None:
    """The plain factors in GGUF's names and row order do what the original does."""
    built, gguf = build(CASES["oft"], tmp_path), tmp_path / "plain.gguf"
    command = ("convert", built.adapter, "-o", gguf, "--base", built.base)
    assert exit_code(*command) == 4
    assert exit_code(*command, "--to", "lora", "--rank", "32") == 0
    got = merged(Built(built.base, gguf, {}), tmp_path / "merged")
    for tensor, want in built.expected.items():
        close(got[tensor], want, 2e-6)


# -- what stays, and what is refused --------------------------------------------------------------


def test_heads_stay_and_the_scale_goes_into_factors(tmp_path: Path) -> None:
    built = build(CASES["oft-vit"], tmp_path)
    original = read_adapter(built.adapter)
    done = lower(original, RankRequest(rank=4), base=open_checkpoint(built.base))
    heads = {site for site, update in done.adapter.updates.items()
             if isinstance(update, Replacement)}  # fmt: skip
    assert {site.module for site in heads} == {"classifier"}
    assert all(done.adapter.updates[site] is original.updates[site] for site in heads)
    loha = build(CASES["loha"], tmp_path / "loha")
    command = ("convert", loha.adapter, "--to", "lora", "-o", tmp_path / "half", "--scale", "0.5")
    assert exit_code(*command) == 0
    half = merged(Built(loha.base, tmp_path / "half", {}), tmp_path / "out")
    base = read_tensors(loha.base)
    for name, full in loha.expected.items():
        close(half[name], (base[name] + full) / 2, 2e-6)


def test_a_plain_lora_stays_itself(tmp_path: Path) -> None:
    done = lower(_adapter(low := _low(6, 5, 2)))
    assert done.adapter.updates[Site("x")] is low
    assert done.error is None
    assert done.notes == ()
    cut = lower(_adapter(low), RankRequest(rank=1))
    values = torch.linalg.svdvals(_dense(low))
    assert cut.error == pytest.approx(float(values[1] / values.norm()))
    assert exit_code("convert", tmp_path / "none", "-o", tmp_path / "o", "--rank", "2") != 0


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ia3 = build(CASES["ia3"], tmp_path / "ia3")
    with pytest.raises(IncompatibleError, match=r"IA3 .* follow from the base") as caught:
        lower(read_adapter(ia3.adapter), RankRequest(rank=2))
    assert caught.value.code == "NEEDS_BASE"
    tokens = build(CASES["tokens"], tmp_path / "tokens")
    assert exit_code("convert", tokens.adapter, "--to", "lora", "-o", tmp_path / "o") == 4
    assert "nothing in it changes a weight" in capsys.readouterr().err
    assert exit_code("convert", ia3.adapter, "-o", tmp_path / "o", "--rank", "2") == 2
    assert "--to lora" in capsys.readouterr().err
    elsewhere = Checkpoint({}, "safetensors", Provenance("b", "s"))
    with pytest.raises(IncompatibleError, match="no such parameter"):
        lower(read_adapter(ia3.adapter), RankRequest(rank=2), base=elsewhere)
    prompts = Adapter({}, "prompt", None, Provenance("p", "peft"), unmergeable="it is a prompt")
    with pytest.raises(IncompatibleError, match="it is a prompt"):
        lower(prompts)
    assert not (tmp_path / "o").exists()


def test_values_that_are_not_finite_are_refused() -> None:
    nan = LowRank(from_values(torch.full((1, 3), torch.nan)), _values(4, 1), 1.0)
    base = Checkpoint({"x.weight": _values(4, 3)}, "safetensors", Provenance("b", "s"))
    for update, request in ((nan, None), (Dora(nan, _values(4)), RankRequest(rank=2))):
        with pytest.raises(CorruptInputError, match=r"x.weight: .* not finite"):
            lower(_adapter(update), request, base=base)


# -- DoRA -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
def test_dora_against_float64(
    held: bool, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "BLOCK", 20)
    monkeypatch.setattr(differences, "HELD", 1 << 20 if held else 0)
    weight = _values(12, 8, seed=3).values()
    dora = Dora(_low(12, 8, 2), from_values(weight.norm(dim=1) * 1.3))
    stored = weight.T.contiguous() if transposed else weight
    before = stored.clone()
    base = Checkpoint({"x.weight": from_values(stored)}, "safetensors", Provenance("b", "s"))
    done = lower(_adapter(dora), RankRequest(rank=3), base=base)
    exact = _dora(dora, weight)
    u, s, vt = torch.linalg.svd(exact, full_matrices=False)
    low = done.adapter.updates[Site("x")]
    assert isinstance(low, LowRank)
    torch.testing.assert_close(_dense(low), u[:, :3] * s[:3] @ vt[:3], atol=1e-5, rtol=0)
    assert done.error == pytest.approx(float(s[3:].norm() / s.norm()), rel=1e-4)
    assert torch.equal(stored, before)


def test_a_quantised_base_is_decoded() -> None:
    """What the stored codes stand for is the weight, not the codes."""
    codes = (100 * _values(8, 6, seed=3).values()).to(torch.float8_e4m3fn)
    config = {"dtype": "float32", "quantization_config": {"quant_method": "fp8",
                                                          "weight_block_size": [8, 6]}}  # fmt: skip
    tensors = {"x.weight": from_values(codes),
               "x.weight_scale_inv": from_values(torch.tensor([[0.01]]))}  # fmt: skip
    base = Checkpoint(tensors, "safetensors", Provenance("b", "s"), config)
    dora = Dora(_low(8, 6, 2), _values(8, seed=9))
    done = lower(_adapter(dora), RankRequest(rank=6), base=base)
    found = done.adapter.updates[Site("x")]
    assert isinstance(found, LowRank)
    close(_dense(found), _dora(dora, codes.float() * 0.01), 1e-5)


def test_an_embedding_that_carries_its_own_copy() -> None:
    """Of an embedding [7, 4] the factors are those of its transpose."""
    weight = _values(7, 4, seed=3).values()
    low = _low(4, 7, 2)
    dora = Dora(LowRank(low.a, low.b, low.scaling, embedding=True), _values(4, seed=9))
    done = lower(_adapter(Rebased(from_values(weight), dora)), RankRequest(rank=4))
    found = done.adapter.updates[Site("x")]
    assert isinstance(found, Rebased)
    assert isinstance(found.update, LowRank)
    assert found.update.embedding
    torch.testing.assert_close(_dense(found.update), _dora(dora, weight.T), atol=1e-5, rtol=0)


# -- beside one another ---------------------------------------------------------------------------


def test_combine_takes_them_against_a_base(tmp_path: Path) -> None:
    one, two = (build(CASES[name], tmp_path / name) for name in ("oft", "ia3"))
    adapters = [(read_adapter(one.adapter), 0.5), (read_adapter(two.adapter), 2.0)]
    with pytest.raises(IncompatibleError, match="is no sum of updates") as caught:
        combine(adapters)
    assert "--base" in (caught.value.hint or "")
    with pytest.raises(AdaptoolError) as caught:
        combine(adapters, base=open_checkpoint(one.base))
    assert caught.value.code == "NEEDS_RANK"
    command = ("combine", f"{one.adapter}=0.5", f"{two.adapter}=2", "--base", one.base, "--rank",
               "32", "-o", tmp_path / "sum")  # fmt: skip
    assert exit_code(*command) == 0
    base = read_tensors(one.base)
    got = merged(Built(one.base, tmp_path / "sum", {}), tmp_path / "out")
    for name, weight in base.items():
        sides = one.expected[name] - weight, two.expected[name] - weight
        close(got[name], weight + 0.5 * sides[0] + 2 * sides[1], 1e-5)


def test_combine_takes_what_is_low_rank_without_one(tmp_path: Path) -> None:
    built = build(CASES["loha"], tmp_path)
    assert exit_code("combine", f"{built.adapter}=0.5", "-o", tmp_path / "half") == 0
    half = merged(Built(built.base, tmp_path / "half", {}), tmp_path / "out")
    base = read_tensors(built.base)
    for name, full in built.expected.items():
        close(half[name], (base[name] + full) / 2, 2e-6)


def test_diff_compares_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loha, ia3 = (build(CASES[name], tmp_path / name) for name in ("loha", "ia3"))
    assert exit_code("convert", loha.adapter, "--to", "lora", "-o", tmp_path / "plain") == 0
    same = compare_files(loha.adapter, tmp_path / "plain")
    assert same.total.cosine == pytest.approx(1.0)
    assert len(same.modules) == 14
    other = compare_files(loha.adapter, ia3.adapter)
    assert len(other.unlike) == 14
    assert other.copies == {}
    assert all("follows from the base" in why for why in other.unlike.values())
    capsys.readouterr()
    assert exit_code("diff", ia3.adapter, ia3.adapter) == 0
    shown = capsys.readouterr()
    assert "not all of it was compared" in shown.out
    assert "changes nothing" not in shown.out
    assert "trained copies" not in shown.out + shown.err


def _values(*shape: int, seed: int = 0) -> LazyTensor:
    return from_values(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def _low(out: int, into: int, rank: int) -> LowRank:
    return LowRank(_values(rank, into, seed=1), _values(out, rank, seed=2), 0.5)


def _adapter(update: object) -> Adapter:
    return Adapter({Site("x"): update}, "lora", None, Provenance("test", "peft"))  # type: ignore[dict-item]


def _dense(low: LowRank) -> torch.Tensor:
    return low.scaling * low.b.values().double() @ low.a.values().double()


def _dora(dora: Dora, weight: torch.Tensor) -> torch.Tensor:
    """U(W) - W in float64, of a weight [out, in]."""
    moved = weight.double() + _dense(dora.direction)
    magnitude = dora.magnitude.values().double()
    return moved * (magnitude / moved.norm(dim=1))[:, None] - weight.double()
