"""Exports for ONNX Runtime Web: manifest, adapters apart, and what a real browser makes of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as tf  # noqa: TID251
from onnx import TensorProto, helper
from safetensors.torch import load_file

from adaptool.canonical import Adapter, Replacement, Site
from adaptool.canonical.tensors import from_values
from adaptool.containers import open_checkpoint
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, read_adapter
from adaptool.targets import Model, Request, ortweb

from .onnx_exports import (
    DEMO,
    EXPECTED,
    PROMPTS,
    SENTENCES,
    WORDS,
    Toy,
    encoder,
    exported,
    kept,
    texts,
    visited,
)

TWO = {"pirate": 1.0, "cowboy": 1.0}


def wrong(folder: Path) -> dict[str, str]:
    return {one.what: one.detail for one in ortweb.verify(folder, None) if not one.right}


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="session")
def swappable(shared: Path) -> Path:
    """The demo model with two adapters apart, in float32."""
    return kept(shared, "swappable", lambda folder: exported(
        DEMO / "model", TWO, folder, "ortweb", ["fp32"], swappable=True))  # fmt: skip


@pytest.fixture
def copied(swappable: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swappable, tmp_path / "web"))


# -- files ----------------------------------------------------------------------------------------


def test_the_manifest_says_all_that_a_page_must_feed(swappable: Path) -> None:
    manifest = manifest_of(swappable)
    session = ort.InferenceSession(str(swappable / manifest["model"]))
    assert {one["name"] for one in manifest["inputs"]} == {o.name for o in session.get_inputs()}
    roles = {one["name"]: one["role"] for one in manifest["inputs"]}
    assert roles["input_ids"] == "tokens"
    assert roles["lora_scale"] == "scale"
    assert roles["past_key_values.1.key"] == "past"
    assert roles["model.layers.0.self_attn.q_proj.lora_A.weight"] == "factor"
    assert {"past": "past_key_values.1.value", "present": "present.1.value"} in manifest["cache"]
    assert manifest["answer"] == "logits"
    assert manifest["eos"] == [2]
    assert manifest["task"] == "text-generation"
    assert manifest["files"] == {"model.onnx": (swappable / "model.onnx").stat().st_size}
    assert wrong(swappable) == {}


def test_adapters_are_tensors_by_the_names_of_the_inputs(swappable: Path) -> None:
    manifest = manifest_of(swappable)
    factors = {one["name"] for one in manifest["inputs"] if one["role"] == "factor"}
    for name in TWO:
        entry = manifest["adapters"][name]
        found = load_file(swappable / entry["file"])
        assert set(found) == factors
        assert (swappable / entry["file"]).stat().st_size == entry["bytes"]
        assert all(min(tensor.shape) > 0 for tensor in found.values())  # for WebGPU
        for site, update in read_adapter(DEMO / name).updates.items():
            a, b = (found.pop(f"{site.module}.lora_{x}.weight").double() for x in "AB")
            wanted = update.scaling * update.b.values().double() @ update.a.values().double()
            assert float(((a @ b).T - wanted).abs().max()) < 1e-6 * float(wanted.abs().max())
        assert not any(tensor.any() for tensor in found.values())  # what it leaves alone


def test_without_adapters_there_are_no_slots(tmp_path: Path, swappable: Path) -> None:
    base = Toy().write(tmp_path / "base")
    report = exported(base, {}, tmp_path / "web", "ortweb", template=None)
    manifest = manifest_of(tmp_path / "web")
    assert report.facts["dtypes"] == ["fp32"]
    assert not [one for one in manifest["inputs"] if one["role"] in ("factor", "scale")]
    assert manifest["adapters"] == {}
    assert wrong(tmp_path / "web") == {}
    heads = [one["name"] for one in manifest_of(swappable)["inputs"] if "lm_head" in one["name"]]
    assert heads == []  # which the adapters leave alone


def test_an_onnx_model_gets_slots_where_adapters_change_it(tmp_path: Path) -> None:
    """Its head here, and with a scale to begin with."""
    base = Toy().write(tmp_path / "base")
    adapter = head_adapter(scale=2.0)
    given = Model(open_checkpoint(base), base, {"loud": adapter}, 0.25)
    prepared = ortweb.prepare(given, Request(lambda: tmp_path, ("as stored",)))
    manifest = json.loads(prepared.output.small["manifest.json"])
    assert manifest["scale"] == 0.25
    assert manifest["adapters"]["loud"]["file"] == "adapters/loud.safetensors"
    assert [one["name"] for one in manifest["inputs"] if one["role"] == "factor"] == [
        "lm_head.lora_A.weight", "lm_head.lora_B.weight",
    ]  # fmt: skip


def head_adapter(scale: float) -> Adapter:
    read = read_adapter(DEMO / "pirate", ReadOptions())
    update: Any = next(iter(read.updates.values()))
    a, b = from_values(torch.ones(2, 8)), from_values(torch.ones(512, 2))
    return replace(read, updates={Site("lm_head"): replace(update, a=a, b=b, scaling=scale)})


def test_a_dry_run_traces_nothing(tmp_path: Path) -> None:
    report = exported(DEMO / "model", TWO, tmp_path / "web", "ortweb", swappable=True,
                      dry_run=True)  # fmt: skip
    assert report.dtypes == ("q4",)
    assert "model.onnx" not in report.files
    assert any("known after tracing" in note for note in report.notes)
    assert not list(tmp_path.iterdir())


def test_data_files_are_named(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base", "decoder.onnx")
    exported(base, {}, tmp_path / "web", "ortweb", part_size=20_000, template=None)
    manifest = manifest_of(tmp_path / "web")
    assert manifest["data"] == ["decoder.onnx_data", "decoder.onnx_data_1"]
    assert set(manifest["files"]) == {"decoder.onnx", *manifest["data"]}
    assert wrong(tmp_path / "web") == {}


# -- what is refused ------------------------------------------------------------------------------


def refused(base: Path, tmp_path: Path, kind: type[AdaptoolError] = IncompatibleError,
            dtypes: tuple[str, ...] = (), **options: Any) -> AdaptoolError:  # fmt: skip
    with pytest.raises(kind) as caught:
        exported(base, {}, tmp_path / "web", "ortweb", dtypes, template=None, **options)
    assert not (tmp_path / "web").exists()
    return caught.value


def test_one_dtype_at_a_time(tmp_path: Path) -> None:
    error = refused(DEMO / "model", tmp_path, UsageError, ("fp32", "q4"))
    assert "one dtype" in error.message


def test_adapters_that_are_no_plain_lora(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    plain = head_adapter(1.0)
    other = replace(plain, updates={Site("lm_head"): Replacement(from_values(torch.ones(512, 8)))})
    given = Model(open_checkpoint(base), base, {"other": other})
    with pytest.raises(IncompatibleError, match="no plain LoRA") as caught:
        ortweb.prepare(given, Request(lambda: tmp_path, ("as stored",)))
    assert "--to lora" in str(caught.value.hint)


def test_inputs_that_nobody_could_feed(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    proto = onnx.load(base)
    proto.graph.input.append(helper.make_tensor_value_info("mood", TensorProto.FLOAT, [1]))
    proto.graph.node.append(helper.make_node("Identity", ["mood"], ["unused2"]))
    onnx.save(proto, base)
    assert "mood" in refused(base, tmp_path).message


def test_tasks_without_an_answer(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    assert "question-answering" in refused(base, tmp_path, task="question-answering").message


def test_damage_is_found(copied: Path) -> None:
    manifest = manifest_of(copied)
    factor = next(one for one in manifest["inputs"] if one["role"] == "factor")
    factor["dims"][0] += 1
    manifest["adapters"]["cowboy"]["bytes"] += 1
    manifest["data"] = ["model.onnx_data"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "tokenizer.json").unlink()
    found = wrong(copied)
    assert "adapter cowboy" in found
    assert "tokenizer.json" in found
    assert "model.onnx: data files" in found
    assert factor["name"] in found["model.onnx: inputs"]
    assert any("pirate" in what and factor["name"] in why for what, why in found.items())
    manifest["files"] = {"../model.onnx": 1}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert "../model.onnx: 1 bytes" in wrong(copied)
    (copied / "manifest.json").write_text('{"model": 3}')
    with pytest.raises(CorruptInputError):
        ortweb.verify(copied, None)


# -- in Chromium ----------------------------------------------------------------------------------

EACH = [
    *({"prompt": prompt, "adapter": ""} for prompt in PROMPTS),
    *({"prompt": prompt, "adapter": name, "scale": 1.0} for name in TWO for prompt in PROMPTS),
    *({"prompt": prompt, "adapter": "pirate", "scale": 0.5} for prompt in PROMPTS),
]
ANSWERS = [EXPECTED["base"], *(EXPECTED["adapters"][name] for name in TWO),
           EXPECTED["half"]["pirate"]]  # fmt: skip
WANTED = [answers[prompt] for answers in ANSWERS for prompt in PROMPTS]


def test_adapters_are_switched_between_answers(browser: Any, swappable: Path) -> None:
    """The base, two adapters and half of one in one session: PyTorch's and PEFT's answers."""
    more = [{"prompt": PROMPTS[0], "adapter": "cowboy", "scale": 0},
            {"prompt": PROMPTS[0], "adapter": "pirate", "scale": 1, "maxTokens": 2},
            {"prompt": PROMPTS[0], "adapter": "pirate", "scale": 1, "stopAfter": 3}]  # fmt: skip
    visits = [{"folder": swappable.name, "questions": [*EACH, *more]}]
    [found], visit = visited(browser, swappable.parent, visits)
    said = texts(found)
    assert said[: len(EACH)] == WANTED
    assert said[len(EACH)] == EXPECTED["base"][PROMPTS[0]]
    assert found["adapters"] == ["pirate", "cowboy"]
    assert found["device"].startswith("WASM")
    assert found["said"][-2]["tokens"] == 2
    assert found["said"][-1]["tokens"] == 3
    assert found["said"][0]["texts"][-1] == found["said"][0]["text"]
    fetched = [url for url in visit.requests if "/adapters/" in url]
    assert len(fetched) == len(TWO)  # once each
    assert visit.errors == []
    assert all("127.0.0.1" in url or url.startswith(("data:", "blob:")) for url in visit.requests)


@pytest.mark.parametrize("dtype", ["q4", "q4f16"])
def test_adapters_stay_whole_beside_quantised_weights(
    dtype: str, browser: Any, tmp_path: Path
) -> None:
    """The branch of an adapter is not rounded to the four bits of what it is added to."""
    exported(DEMO / "model", TWO, tmp_path / "web", "ortweb", [dtype], swappable=True)
    kind = "float16" if dtype == "q4f16" else "float32"
    manifest = manifest_of(tmp_path / "web")
    assert {one["type"] for one in manifest["inputs"] if one["role"] == "factor"} == {kind}
    ops = {node.op for node in open_checkpoint(tmp_path / "web/model.onnx").graph.nodes}
    assert "com.microsoft:MatMulNBits" in ops
    assert wrong(tmp_path / "web") == {}
    asked = [one for one in EACH if one["prompt"] == PROMPTS[0]]
    [found], _ = visited(browser, tmp_path, [{"folder": "web", "questions": asked}])
    said = texts(found)
    assert said[0].startswith("hello")
    assert said[1].startswith("ahoy")
    assert said[2].startswith("howdy")


def test_webgpu_switches_adapters_too(browser: Any, swappable: Path) -> None:
    asked = [one for one in EACH if one["prompt"] == PROMPTS[0]]
    settings = {"device": "webgpu"}
    visits = [{"folder": swappable.name, "settings": settings, "questions": asked}]
    [found], visit = visited(browser, swappable.parent, visits, webgpu=True)
    assert found["device"] == "WebGPU"
    assert texts(found) == [answers[PROMPTS[0]] for answers in ANSWERS]
    assert visit.errors == []


def test_an_onnx_model_is_run_as_it_is(browser: Any, tmp_path: Path) -> None:
    """Parts of 1 MB of a model that has its pirate already, and a chat template."""
    template = "user: {{ messages[0].content }}\nbot:"
    exported(DEMO / "model", {"pirate": 1.0}, tmp_path / "first", "ortweb", ["fp32"])
    config = json.loads((tmp_path / "first/tokenizer_config.json").read_text())
    (tmp_path / "first/tokenizer_config.json").write_text(
        json.dumps({**config, "chat_template": "{{ bos_token }}" + template})
    )
    exported(tmp_path / "first", {}, tmp_path / "web", "ortweb", template=None,
             part_size=1_000_000)  # fmt: skip
    assert len(manifest_of(tmp_path / "web")["data"]) > 2
    asked = [{"prompt": prompt} for prompt in PROMPTS]
    [found], _ = visited(browser, tmp_path, [{"folder": "web", "questions": asked}])
    assert texts(found) == [EXPECTED["adapters"]["pirate"][prompt] for prompt in PROMPTS]


@pytest.mark.parametrize("names", [("classes", "features"), ("words", "mask")])
def test_encoders_give_pytorchs_numbers(
    names: tuple[str, ...], browser: Any, tmp_path: Path
) -> None:
    labels = {0: "gloomy", 1: "fine", 2: "great"}
    given = {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    kinds = {"classes": (tf.BertForSequenceClassification, given), "features": (tf.BertModel, {}),
             "words": (tf.BertForTokenClassification, given),
             "mask": (tf.BertForMaskedLM, {})}  # fmt: skip
    asked = dict.fromkeys(kinds, SENTENCES[0]) | {"mask": "the film is [MASK]"}
    visits, wanted = [], []
    for name in names:
        kind, more = kinds[name]
        model, tokenizer = encoder(tmp_path / f"{name}-base", kind, **more)
        exported(tmp_path / f"{name}-base", {}, tmp_path / name, "ortweb", ["fp32"], template=None)
        assert wrong(tmp_path / name) == {}
        with torch.no_grad():
            outputs = model(**tokenizer(asked[name], return_tensors="pt"))[0][0]
        wanted.append(ROWS[name](outputs, labels))
        visits.append({"folder": name, "questions": [{"prompt": asked[name]}]})
    found, visit = visited(browser, tmp_path, visits)
    for one, rows in zip(found, wanted, strict=True):
        got = one["said"][0]["rows"]
        assert [label for label, _ in got] == [label for label, _ in rows]
        assert [value for _, value in got] == near([value for _, value in rows])
    assert visit.errors == []


Rows = list[tuple[str, float]]


def of_classes(logits: torch.Tensor, labels: dict[int, str]) -> Rows:
    rows = [(labels[i], float(value)) for i, value in enumerate(logits.softmax(-1))]
    return sorted(rows, key=lambda row: -row[1])


def of_features(hidden: torch.Tensor, labels: dict[int, str]) -> Rows:
    del labels
    mean = hidden.mean(0)
    return [(str(i), float(value)) for i, value in enumerate((mean / mean.norm())[:8])]


def of_words(logits: torch.Tensor, labels: dict[int, str]) -> Rows:
    """Between [CLS] and [SEP]."""
    best = logits[1:-1].softmax(-1).max(-1)
    words = zip(SENTENCES[0].split(), best.indices, best.values, strict=True)
    return [(f"{word}: {labels[int(i)]}", float(value)) for word, i, value in words]


def of_mask(logits: torch.Tensor, labels: dict[int, str]) -> Rows:
    """[CLS] and three words stand before it."""
    del labels
    scores = logits[4].softmax(-1).sort(descending=True)
    return [(WORDS[int(i)], float(value))
            for i, value in zip(scores.indices[:8], scores.values, strict=False)]  # fmt: skip


ROWS = {"classes": of_classes, "features": of_features, "words": of_words, "mask": of_mask}


def near(wanted: Any) -> Any:
    return pytest.approx(wanted, rel=1e-4, abs=1e-6)
