"""Exports for transformers.js: files, refusals, and what a real browser makes of them."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers as tf  # noqa: TID251
from onnx import TensorProto, helper

from adaptool.canonical.tensors import from_values
from adaptool.containers import open_checkpoint
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.targets import AS_STORED, Model, Request, transformersjs
from adaptool.targets import _limits as limits
from adaptool.targets._onnx import for_browser, precision_of

from .onnx_exports import (
    DEMO,
    EXPECTED,
    IMPORTS,
    PROMPTS,
    SENTENCES,
    Toy,
    encoder,
    exported,
    kept,
    texts,
    visited,
)

PRECISIONS = ("fp32", "fp16", "q8", "q4", "q4f16")
FILES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "q8": "model_quantized.onnx",
         "q4": "model_q4.onnx", "q4f16": "model_q4f16.onnx"}  # fmt: skip


def wrong(folder: Path) -> dict[str, str]:
    return {one.what: one.detail for one in transformersjs.verify(folder, None) if not one.right}


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["transformers.js_config"]


@pytest.fixture(scope="session")
def pirates(shared: Path) -> Path:
    """The demo model with the pirate in it, in every common precision."""
    return kept(shared, "pirates", lambda folder: exported(
        DEMO / "model", {"pirate": 1.0}, folder, "transformersjs", PRECISIONS))  # fmt: skip


@pytest.fixture
def copied(pirates: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pirates, tmp_path / "web"))


# -- files ----------------------------------------------------------------------------------------


def test_the_layout_is_what_transformers_js_loads(pirates: Path) -> None:
    assert {file.name for file in (pirates / "onnx").iterdir()} == set(FILES.values())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((pirates / name).read_text())
    settings = settings_of(pirates)
    assert settings == {
        "dtype": "fp32", "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
    }  # fmt: skip
    assert json.loads((pirates / "config.json").read_text())["model_type"] == "llama"
    assert wrong(pirates) == {}


def test_each_file_is_of_its_precision(pirates: Path) -> None:
    sizes = {}
    for precision, name in FILES.items():
        checkpoint = open_checkpoint(pirates / "onnx" / name)
        assert precision_of(checkpoint) == precision
        sizes[precision] = (pirates / "onnx" / name).stat().st_size
        past = checkpoint.graph.inputs["past_key_values.1.value"]
        kind = "float16" if precision.endswith("f16") or precision == "fp16" else "float32"
        assert past == (kind, ("batch_size", 2, "past_sequence_length", 64))
    assert sizes["q4f16"] < sizes["q4"] < sizes["fp32"] / 3
    assert sizes["q8"] < sizes["fp16"] < sizes["fp32"]


def test_a_dry_run_traces_nothing(tmp_path: Path) -> None:
    report = exported(DEMO / "model", {}, tmp_path / "web", "transformersjs", dry_run=True)
    assert report.dtypes == ("q4",)
    assert "config.json" in report.files
    assert not any(name.endswith(".onnx") for name in report.files)
    assert any("known after tracing" in note for note in report.notes)
    assert not list(tmp_path.iterdir())


def test_large_models_are_parted(pirates: Path, tmp_path: Path) -> None:
    """An ONNX model whose config.json lies above its folder, in data files of 1 MB."""
    report = exported(pirates / "onnx/model.onnx", {}, tmp_path / "web", "transformersjs",
                      part_size=1_000_000, template=None)  # fmt: skip
    parts = sorted(name for name in report.files if "_data" in name)
    assert parts[:2] == ["onnx/model.onnx_data", "onnx/model.onnx_data_1"]
    assert settings_of(tmp_path / "web")["use_external_data_format"] == {"model.onnx": len(parts)}
    assert all(report.files[name] <= 1_000_000 for name in parts)
    assert wrong(tmp_path / "web") == {}
    (tmp_path / "web" / parts[1]).unlink()
    assert "onnx/model.onnx" in wrong(tmp_path / "web")


def test_a_chat_template_is_inlined(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base").parent
    (base / "chat_template.jinja").write_text("{{ messages }}\n")
    exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    config = json.loads((tmp_path / "web/tokenizer_config.json").read_text())
    assert config["chat_template"] == "{{ messages }}\n"
    page = json.loads((tmp_path / "web/page.json").read_text())
    assert page["template"] is None


def test_what_a_config_says_of_devices_stays(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    config = json.loads(base.with_name("config.json").read_text())
    stated = {"dtype": "q8", "use_external_data_format": 3, "device_config": {"webgpu": {}}}
    base.with_name("config.json").write_text(
        json.dumps({**config, "transformers.js_config": stated})
    )
    exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    assert settings_of(tmp_path / "web") == {"dtype": "fp32", "device_config": {"webgpu": {}}}


# -- graphs of other exporters --------------------------------------------------------------------

STRANGE = {
    "builder": Toy(width="kv_cache_dim"),
    "mobius": Toy(batch="batch"),
}


def run(path: Path, past: str) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(1)
    values = generator.standard_normal((2, 2, 3, 4)).astype(np.float32)
    feeds = {"input_ids": np.array([[3, 4], [5, 6]]), "attention_mask": np.ones((2, 5), np.int64)}
    feeds |= {past.format(part): values for part in ("key", "value")}
    return session.run(None, feeds)


@pytest.mark.parametrize("name", ["builder", "mobius"])
def test_sizes_become_those_that_transformers_js_knows(name: str, tmp_path: Path) -> None:
    toy = STRANGE[name]
    base = toy.write(tmp_path / "base")
    exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    file = tmp_path / "web/onnx/model.onnx"
    graph = open_checkpoint(file).graph
    assert graph.inputs == {
        "input_ids": ("int64", ("batch_size", "sequence_length")),
        "attention_mask": ("int64", ("batch_size", "total_sequence_length")),
        **{f"past_key_values.0.{part}":
           ("float32", ("batch_size", 2, "past_sequence_length", 4)) for part in ("key", "value")},
    }  # fmt: skip
    assert not onnx.load(file).graph.value_info  # whose symbols are not those of the inputs
    for one, other in zip(run(base, toy.past), run(file, "past_key_values.0.{}"), strict=True):
        assert np.array_equal(one, other)
    assert wrong(tmp_path / "web") == {}
    shutil.copy(base, file)
    assert any("names and sizes" in what for what in wrong(tmp_path / "web"))


def test_names_become_those_that_transformers_js_knows(tmp_path: Path) -> None:
    """transformers' own exporter puts "input." and "output." before all names."""
    base = Toy().write(tmp_path / "base")
    proto = onnx.load(base)
    names = {value.name: f"input.{value.name}" for value in proto.graph.input}
    names |= {value.name: f"output.{value.name}" for value in proto.graph.output}
    for part in ("key", "value"):
        names[f"past_key_values.0.{part}"] = f"input.past_key_values.layers.0.{part}s"
        names[f"present.0.{part}"] = f"output.past_key_values.layers.0.{part}s"
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = names[value.name]
    for node in proto.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    onnx.save(proto, base)
    exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    graph = open_checkpoint(tmp_path / "web/onnx/model.onnx").graph
    assert set(graph.inputs) == {"input_ids", "attention_mask", "past_key_values.0.key",
                                 "past_key_values.0.value"}  # fmt: skip
    assert set(graph.outputs) == {"logits", "present.0.key", "present.0.value"}
    found = run(tmp_path / "web/onnx/model.onnx", "past_key_values.0.{}")
    plain = run(Toy().write(tmp_path / "plain"), "past_key_values.0.{}")
    assert all(map(np.array_equal, found, plain))


def test_the_types_tell_the_precision(tmp_path: Path) -> None:
    base = Toy(kind="float16").write(tmp_path / "base")
    report = exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    assert "onnx/model_fp16.onnx" in report.files
    assert settings_of(tmp_path / "web") == {"dtype": "fp16", "kv_cache_dtype": {"fp16": "float16"}}
    assert any("shader-f16" in note for note in report.notes)


def test_attention_that_is_wrong_for_padded_batches_is_said(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    proto = onnx.load(base)
    names = [value.name for value in (*proto.graph.input, *proto.graph.output)]
    node = helper.make_node("GroupQueryAttention", names[:3], ["?"], domain="com.microsoft")
    proto.graph.node.append(node)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, base)
    report = exported(base, {}, tmp_path / "web", "transformersjs", template=None)
    assert any("GroupQueryAttention" in note for note in report.notes)


# -- what is refused ------------------------------------------------------------------------------


def refused(base: Path, tmp_path: Path, kind: type[AdaptoolError] = IncompatibleError,
            **options: Any) -> AdaptoolError:  # fmt: skip
    with pytest.raises(kind) as caught:
        exported(base, {}, tmp_path / "web", "transformersjs", template=None, **options)
    assert not (tmp_path / "web").exists()
    return caught.value


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_a_page_needs_must_be_there(name: str, tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    base.with_name(name).unlink()
    error = refused(base, tmp_path)
    assert name in error.message
    assert error.hint


def test_a_checkpoint_lends_what_is_missing(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        base.with_name(name).unlink()
    exported(base, {}, tmp_path / "web", "transformersjs", template=None, match=DEMO / "model")
    assert json.loads((tmp_path / "web/config.json").read_text())["head_dim"] == 64
    assert (tmp_path / "web/tokenizer.json").exists()


def test_graphs_that_no_page_could_run(tmp_path: Path) -> None:
    fixed = Toy(batch=1, rows=5).write(tmp_path / "fixed")
    assert "fixed size" in refused(fixed, tmp_path).message
    whole = Toy().write(tmp_path / "whole")
    proto = onnx.load(whole)
    del proto.graph.node[-2:], proto.graph.input[2:], proto.graph.output[1:]
    onnx.save(proto, whole)
    assert "no cache" in refused(whole, tmp_path).message
    other = Toy().write(tmp_path / "other")
    proto = onnx.load(other)
    proto.graph.input[0].name = proto.graph.node[0].input[1] = "pixels"
    onnx.save(proto, other)
    assert "no input_ids" in refused(other, tmp_path).message
    wide = Toy().write(tmp_path / "wide")
    proto = onnx.load(wide)
    for value in (*proto.graph.input[2:], *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(proto, wide)
    assert "bfloat16" in refused(wide, tmp_path).message


def test_a_name_that_data_files_must_share(tmp_path: Path) -> None:
    base = Toy(kind="float16").write(tmp_path / "base")
    error = refused(base, tmp_path, part_size=20_000)
    assert error.hint == "rename model.onnx to model_fp16.onnx"


def test_heads_that_nobody_states(tmp_path: Path) -> None:
    base = Toy(width="w").write(tmp_path / "base")
    base.with_name("config.json").write_text('{"model_type": "llama"}')
    assert "how many heads" in refused(base, tmp_path).message


def test_parts_that_no_browser_loads(tmp_path: Path) -> None:
    base = Toy().write(tmp_path / "base")
    assert "2 GB" in refused(base, tmp_path, UsageError, part_size=2_000_000_000).message
    with pytest.raises(IncompatibleError, match="less than 2 GB"):
        limits.refuse_large_files({"a": 1, "b": limits.FILE}, "smaller")
    assert limits.memory_notes(limits.GIB) == ()
    assert "does not load" in limits.memory_notes(4 * limits.GIB)[0]
    assert limits.binding_notes({"a": limits.GPU_BINDING}) == ()
    assert "most devices" in limits.binding_notes({"a": 2 * limits.GIB})[0]


def test_weights_beyond_half_precision(tmp_path: Path) -> None:
    """In a row that no probe would meet."""
    checkpoint = open_checkpoint(DEMO / "model")
    values = checkpoint.tensors["model.embed_tokens.weight"].values().float()
    values[511, 3] = 70_000.0
    tensors = {**checkpoint.tensors, "model.embed_tokens.weight": from_values(values)}
    given = Model(replace(checkpoint, tensors=tensors), DEMO / "model")
    with pytest.raises(IncompatibleError, match="largest of float16"):
        transformersjs.prepare(given, Request(folders(tmp_path), ("q4f16",)))


def folders(root: Path) -> Any:
    numbers = itertools.count()

    def scratch() -> Path:
        folder = root / f"scratch-{next(numbers)}"
        folder.mkdir()
        return folder

    return scratch


def test_damage_is_found(copied: Path) -> None:
    (copied / "onnx/model_q4.onnx").rename(copied / "onnx/model_fp16.onnx")
    (copied / "tokenizer.json").write_text("[]")
    (copied / "onnx/model_quantized.onnx").write_bytes(b"\x00" * 100)
    settings = json.loads((copied / "config.json").read_text())
    settings["transformers.js_config"]["use_external_data_format"] = {"model.onnx": 2}
    settings["transformers.js_config"]["dtype"] = "q4"
    (copied / "config.json").write_text(json.dumps(settings))
    found = wrong(copied)
    assert set(found) == {
        "tokenizer.json", "onnx/model_q4.onnx", "onnx/model_fp16.onnx: precision",
        "onnx/model_quantized.onnx", "onnx/model.onnx: data files",
    }  # fmt: skip
    (copied / "config.json").write_text("[]")
    with pytest.raises(CorruptInputError):
        transformersjs.verify(copied, None)


def test_nothing_is_changed_where_nothing_is_wrong(pirates: Path) -> None:
    checkpoint = open_checkpoint(pirates / "onnx/model.onnx")
    assert for_browser(checkpoint, {}) is checkpoint
    assert transformersjs.dtypes["onnx"] == (AS_STORED,)


# -- in Chromium ----------------------------------------------------------------------------------


def test_every_precision_answers_as_pytorch_does(browser: Any, pirates: Path) -> None:
    """Also the quantised ones, whose answers need only be a pirate's."""
    questions = [{"prompt": prompt} for prompt in PROMPTS]
    visits = [{"folder": pirates.name, "settings": {"dtypes": [one]}, "questions": questions}
              for one in PRECISIONS]  # fmt: skip
    visits[0]["questions"] = [*questions, {"prompt": PROMPTS[0], "maxTokens": 3},
                              {"prompt": PROMPTS[0], "stopAfter": 2}]  # fmt: skip
    answers, visit = visited(browser, pirates.parent, visits)
    wanted = EXPECTED["adapters"]["pirate"]
    for precision, found in zip(PRECISIONS, answers, strict=True):
        said = texts(found)[: len(PROMPTS)]
        if precision in ("fp32", "fp16"):
            assert dict(zip(PROMPTS, said, strict=True)) == wanted
        assert all(any(word in one for word in ("ahoy", "arr", "matey", "be ", "ye"))
                   for one in said)  # fmt: skip
        assert found["device"].startswith("WASM")
        assert found["steps"][-1][0] == 1
    one, short, stopped = (answers[0]["said"][i] for i in (0, -2, -1))
    assert one["texts"][-1] == one["text"]
    assert len(one["texts"]) > 3
    assert short["tokens"] == 3
    assert stopped["text"] != one["text"]
    assert one["text"].startswith(stopped["text"])
    assert visit.errors == []
    assert all("127.0.0.1" in url or url.startswith(("data:", "blob:")) for url in visit.requests)


def test_adapters_are_merged_into_onnx_models(browser: Any, pirates: Path, tmp_path: Path) -> None:
    """Taking the pirate out of a model that has it leaves the base, in float32 and float16."""
    for precision in ("fp32", "fp16"):
        base = pirates / "onnx" / FILES[precision]
        exported(base, {"pirate": -1.0}, tmp_path / precision, "transformersjs")
        assert wrong(tmp_path / precision) == {}
    visits = [{"folder": one, "questions": [{"prompt": prompt} for prompt in PROMPTS]}
              for one in ("fp32", "fp16")]  # fmt: skip
    answers, _ = visited(browser, tmp_path, visits)
    for found in answers:
        assert dict(zip(PROMPTS, texts(found), strict=True)) == EXPECTED["base"]


@pytest.mark.parametrize("name", ["cowboy", "formal"])
def test_other_adapters_answer_as_pytorch_does(name: str, browser: Any, tmp_path: Path) -> None:
    exported(DEMO / "model", {name: 1.0}, tmp_path / "web", "transformersjs", ["fp32", "fp16"])
    visits = [{"folder": "web", "settings": {"dtypes": [one]},
               "questions": [{"prompt": prompt} for prompt in PROMPTS]}
              for one in ("fp32", "fp16")]  # fmt: skip
    answers, _ = visited(browser, tmp_path, visits)
    for found in answers:
        assert dict(zip(PROMPTS, texts(found), strict=True)) == EXPECTED["adapters"][name]


def test_webgpu_answers_as_pytorch_does(browser: Any, pirates: Path) -> None:
    """In software, which has no half precision: the driver does not choose it by itself."""
    visits = [{"folder": pirates.name, "settings": {"dtypes": [one], "device": "webgpu"},
               "questions": [{"prompt": PROMPTS[0]}]} for one in ("fp32", "q4")]  # fmt: skip
    plain = {**visits[0], "settings": {"dtypes": ["q4f16", "fp32"]}}
    answers, _ = visited(browser, pirates.parent, [*visits, plain], webgpu=True)
    assert [one["device"].split(",")[0] for one in answers] == ["WebGPU", "WebGPU", "WASM"]
    for found in answers:
        assert texts(found) == [EXPECTED["adapters"]["pirate"][PROMPTS[0]]]


_PREPARED = """
import { env, pipeline } from "@huggingface/transformers";
const home = new URL("/npm/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify", location).href;
env.backends.onnx.wasm.wasmPaths = { mjs: `${home}.mjs`, wasm: `${home}.wasm` };
env.allowLocalModels = true;
env.allowRemoteModels = false;
"""
_PIPELINES = (
    _PREPARED
    + """
export default async ({ folder, task, texts, options }) => {
  const run = await pipeline(task, folder, { dtype: "fp32" });
  const found = await run(texts, options);
  return found.tolist ? found.tolist() : found;
};
"""
)


def piped(browser: Any, root: Path, folder: str, task: str, given: list[str],
          **options: Any) -> Any:  # fmt: skip
    """What a pipeline of the package itself gives; no driver is in between."""
    argument = {"folder": f"/{folder}/", "task": task, "texts": given, "options": options}
    return browser.visit(root, _PIPELINES, argument, imports=IMPORTS).result


_BATCH = (
    _PREPARED
    + """
export default async ({ folder, texts }) => {
  const { model, tokenizer } = await pipeline("text-generation", folder, { dtype: "fp32" });
  tokenizer.padding_side = "left";
  const given = tokenizer(texts, { padding: true });
  const rows = (await model.generate({ ...given, max_new_tokens: 20 })).tolist();
  const width = given.input_ids.dims[1];
  return [given.attention_mask.tolist().map((row) => Number(row[0])), rows.map((row) => {
    const made = row.slice(width).map(Number); // rows that have ended go on until all have
    return tokenizer.decode(made.slice(0, made.indexOf(model.config.eos_token_id)));
  })];
};
"""
)


def test_texts_of_several_lengths_in_one_batch(browser: Any, pirates: Path) -> None:
    """transformers.js pads them on the left."""
    asked = [EXPECTED["template"].format(prompt=prompt) for prompt in PROMPTS[:4]]
    argument = {"folder": f"/{pirates.name}/", "texts": asked}
    visit = browser.visit(pirates.parent, _BATCH, argument, imports=IMPORTS)
    first, said = visit.result
    assert 0 in first  # of the mask: a row is padded
    assert [text.strip() for text in said] == [
        EXPECTED["adapters"]["pirate"][prompt] for prompt in PROMPTS[:4]
    ]


def test_a_classifier_gives_the_labels_of_its_config(browser: Any, tmp_path: Path) -> None:
    labels = {0: "gloomy", 1: "fine", 2: "great"}
    back = {label: i for i, label in labels.items()}
    model, tokenizer = encoder(
        tmp_path / "bert", tf.BertForSequenceClassification, id2label=labels, label2id=back
    )
    report = exported(tmp_path / "bert", {}, tmp_path / "web", "transformersjs", ["fp32"])
    assert report.facts["task"] == "text-classification"
    assert wrong(tmp_path / "web") == {}
    found = piped(browser, tmp_path, "web", "text-classification", list(SENTENCES), top_k=3)
    with torch.no_grad():
        logits = model(**tokenizer(list(SENTENCES), padding=True, return_tensors="pt")).logits
    for row, wanted in zip(found, logits.softmax(-1), strict=True):
        scores = {one["label"]: one["score"] for one in row}
        assert scores == pytest.approx(
            {labels[i]: float(value) for i, value in enumerate(wanted)}, rel=1e-4
        )
    page, _ = visited(browser, tmp_path, [
        {"folder": "web", "questions": [{"prompt": SENTENCES[0]}]}])  # fmt: skip
    rows = dict(page[0]["said"][0]["rows"])
    assert rows == pytest.approx(
        {labels[i]: float(value) for i, value in enumerate(logits[0].softmax(-1))}, rel=1e-4
    )


def test_embeddings_equal_those_of_pytorch(browser: Any, tmp_path: Path) -> None:
    model, tokenizer = encoder(tmp_path / "bert", tf.BertModel)
    exported(tmp_path / "bert", {}, tmp_path / "web", "transformersjs", ["fp32"])
    found = np.array(piped(browser, tmp_path, "web", "feature-extraction", list(SENTENCES),
                           pooling="mean", normalize=True))  # fmt: skip
    given = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    wanted = torch.nn.functional.normalize(mean, dim=-1).numpy()
    assert np.abs(found - wanted).max() < 1e-5
