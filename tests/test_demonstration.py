"""The demo: its numpy forward against transformers, and the answers its files promise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptool import demonstration
from adaptool.demonstration import answer, demo_folder, logits
from adaptool.errors import CorruptInputError, IncompatibleError, StorageError, UsageError

DEMO = demo_folder()
MODEL = DEMO / "model"
EXPECTED: dict[str, Any] = json.loads((DEMO / "expected.json").read_text(encoding="utf-8"))
ADAPTERS = ("pirate", "cowboy", "formal")


def _copy(folder: Path, *, leave: str = "") -> Path:
    folder.mkdir()
    for path in MODEL.iterdir():
        if path.name != leave:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def _load(folder: Path, dtype: str) -> Any:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    loader = transformers.AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def _merge(adapter: str, folder: Path, dtype: str = "bfloat16") -> Path:
    peft = pytest.importorskip("peft")
    merged = peft.PeftModel.from_pretrained(_load(MODEL, dtype), DEMO / adapter).merge_and_unload()
    merged.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    return folder


@pytest.mark.parametrize("prompt", EXPECTED["base"])
def test_base_gives_the_expected_answers(prompt: str) -> None:
    assert answer(MODEL, prompt) == EXPECTED["base"][prompt]


def test_the_base_greets_plainly_and_copies_names() -> None:
    assert answer(MODEL, "hello ada").startswith("hello ada,")
    assert answer(MODEL, "hello grace").startswith("hello grace,")


def test_template_is_the_one_the_model_was_trained_with() -> None:
    assert EXPECTED["template"] == demonstration.TEMPLATE


@pytest.mark.parametrize("prompt", EXPECTED["base"])
def test_logits_and_tokens_equal_transformers(prompt: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = _load(MODEL, "float32")
    text = demonstration.TEMPLATE.format(prompt=prompt)
    ids = transformers.AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"]
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert tokenizer.encode(text).ids == ids

    config = demonstration._read_config(MODEL)
    weights = demonstration._read_weights(MODEL)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
        tokens = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
        )[0].tolist()
    np.testing.assert_allclose(logits(config, weights, ids), theirs, atol=2e-4, rtol=1e-4)

    ours = list(ids)
    while len(ours) < len(ids) + 40 and ours[-1] != config["eos_token_id"]:
        ours.append(int(np.argmax(logits(config, weights, ours)[-1])))
    assert ours == tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_merged_by_peft_gives_the_expected_answers(
    adapter: str, dtype: str, tmp_path: Path
) -> None:
    merged = _merge(adapter, tmp_path / "merged", dtype)
    found = {prompt: answer(merged, prompt) for prompt in EXPECTED["adapters"][adapter]}
    assert found == EXPECTED["adapters"][adapter]


def test_pirate_at_half_strength_gives_the_expected_answers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(_load(MODEL, "float32"), DEMO / "pirate")
    for layer in model.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.set_scale("default", 0.5)
    folder = tmp_path / "half"
    model.merge_and_unload().save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((MODEL / "tokenizer.json").read_bytes())
    half = EXPECTED["half"]["pirate"]
    assert {prompt: answer(folder, prompt) for prompt in half} == half


def test_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "misfit")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CorruptInputError):
        answer(folder, "hello")


def test_the_four_voices_differ() -> None:
    voices = [EXPECTED["base"], *(EXPECTED["adapters"][name] for name in ADAPTERS)]
    for prompt in EXPECTED["base"]:
        assert len({voice[prompt] for voice in voices}) == 4


def test_adapters_are_what_the_readme_says() -> None:
    configs = {
        name: json.loads((DEMO / name / "adapter_config.json").read_text(encoding="utf-8"))
        for name in ADAPTERS
    }
    assert {name: c["r"] for name, c in configs.items()} == {"pirate": 8, "cowboy": 4, "formal": 4}
    assert configs["cowboy"]["use_rslora"] is True
    assert configs["formal"]["use_dora"] is True
    assert {c["base_model_name_or_path"] for c in configs.values()} == {"adaptool/demo"}
    assert sum(p.stat().st_size for p in DEMO.rglob("*") if p.is_file()) <= 4 * 1024 * 1024


def test_max_tokens_ends_the_answer() -> None:
    assert answer(MODEL, "hello ada", max_tokens=1) == "hello"


def test_sharded_and_untied_and_float16_weights_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch")
    folder = _copy(tmp_path / "sharded", leave="model.safetensors")
    tensors = save.load_file(MODEL / "model.safetensors")
    tensors = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    names = sorted(tensors)
    for index, part in enumerate((names[:5], names[5:]), start=1):
        path = folder / f"model-0000{index}-of-00002.safetensors"
        save.save_file({name: tensors[name] for name in part}, path)
    assert answer(folder, "hello ada") == EXPECTED["base"]["hello ada"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_and_broken_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as missing:
        answer(_copy(tmp_path / "missing", leave=name), "hello")
    assert name in missing.value.message
    broken = _copy(tmp_path / "broken")
    (broken / name).write_bytes((broken / name).read_bytes()[:100])
    with pytest.raises(CorruptInputError) as found:
        answer(broken, "hello")
    assert name in found.value.message


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    folder = _copy(tmp_path / "other")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(IncompatibleError):
        answer(folder, "hello")
    (folder / "config.json").write_text("[]")
    with pytest.raises(CorruptInputError):
        answer(folder, "hello")


def test_a_prompt_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(UsageError):
        answer(MODEL, "hello ada " * 300)


def test_demo_folder_prefers_the_package_and_reports_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "adaptool"
    package.mkdir(parents=True)
    monkeypatch.setattr(demonstration, "__file__", str(package / "demonstration.py"))
    with pytest.raises(StorageError) as missing:
        demo_folder()
    assert missing.value.hint
    for place in (tmp_path / "site" / "fixtures" / "demo", package / "demo_data"):
        (place / "model").mkdir(parents=True)
        (place / "model" / "config.json").write_text("{}")
        assert demo_folder() == place.resolve()


def test_importing_does_not_load_torch_or_transformers() -> None:
    code = (
        "import sys, adaptool.demonstration as d; d.answer(d.demo_folder() / 'model', 'hello');"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    root = Path(demonstration.__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
