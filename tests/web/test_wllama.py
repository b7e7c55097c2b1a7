"""Exports for wllama: their files, what is refused, and what a real browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adaptool.canonical import DType, LazyTensor, Site
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, open_checkpoint
from adaptool.containers.gguf import Value, save_file
from adaptool.conversion import to_gguf
from adaptool.demonstration import demo_folder
from adaptool.errors import CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, gguf, read_adapter
from adaptool.jobs.converting import convert
from adaptool.jobs.exporting import ExportOptions, ExportReport, export
from adaptool.jobs.merging import merge_files
from adaptool.targets import AS_STORED, Model, Request, wllama
from adaptool.targets._limits import FILE
from adaptool.targets.wllama import memory, parts

from .chromium import Browser

DEMO = demo_folder()
EXPECTED = json.loads((DEMO / "expected.json").read_text())
PIRATE, COWBOY = str(DEMO / "pirate"), str(DEMO / "cowboy")
PROMPTS = list(EXPECTED["base"])
TEMPLATE = EXPECTED["template"]
IMPORTS = {"@wllama/wllama": "/npm/@wllama/wllama/esm/index.js"}
RUNTIME = {"@wllama/wllama": "/npm/@wllama/wllama/esm/wasm/"}
SPLIT = re.compile(r"model-(\d{5})-of-(\d{5})\.gguf")


def exported(
    output: Path, adapters: dict[str, float], *, model: Path = DEMO / "model",
    dtype: str | None = None, pre: str | None = "gpt-2", part_size: int | None = None,
    imatrix: Path | None = None, **more: Any,
) -> ExportReport:  # fmt: skip
    return export(
        model, adapters, output, target="wllama", dtypes=[dtype] if dtype else [],
        options=ExportOptions(part_size, pre=pre, imatrix=imatrix, template=TEMPLATE), **more,
    )  # fmt: skip


def findings(folder: Path) -> dict[str, tuple[bool, str]]:
    return {one.what: (one.right, one.detail) for one in wllama.verify(folder, None)}


def wrong(folder: Path) -> dict[str, str]:
    return {what: detail for what, (right, detail) in findings(folder).items() if not right}


@pytest.fixture(scope="module")
def swappable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in one file, two adapters apart, and a page without its runtime."""
    folder = tmp_path_factory.mktemp("web") / "swappable"
    exported(folder, {PIRATE: 1.0, COWBOY: 1.0}, dtype="f16", swappable=True, page=True)
    return folder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with the pirate in it, in parts."""
    folder = tmp_path_factory.mktemp("web") / "split"
    exported(folder, {PIRATE: 1.0}, dtype="f16", part_size=700_000, page=True)
    return folder


# -- files ----------------------------------------------------------------------------------------


def test_parts_have_names_keys_and_sizes_that_llama_cpp_wants(split: Path) -> None:
    from gguf import GGUFReader, Keys

    found = sorted(split.glob("*.gguf"))
    numbers = [SPLIT.fullmatch(file.name) for file in found]
    assert len(found) > 2
    assert [m and (int(m[1]), int(m[2])) for m in numbers] == [
        (number + 1, len(found)) for number in range(len(found))
    ]
    readers = [GGUFReader(file) for file in found]
    total = sum(len(reader.tensors) for reader in readers)
    for number, reader in enumerate(readers):
        for key, value in ((Keys.Split.LLM_KV_SPLIT_NO, number),
                           (Keys.Split.LLM_KV_SPLIT_COUNT, len(found)),
                           (Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, total)):  # fmt: skip
            assert reader.fields[key].contents() == value
        assert (Keys.General.ARCHITECTURE in reader.fields) == (number == 0)
    assert all(file.stat().st_size <= 700_000 for file in found)
    assert wrong(split) == {}


def test_parts_and_whole_are_one_model(split: Path, tmp_path: Path) -> None:
    exported(tmp_path / "whole", {PIRATE: 1.0}, dtype="f16")
    assert [file.name for file in (tmp_path / "whole").glob("*.gguf")] == ["model.gguf"]
    one, other = open_checkpoint(tmp_path / "whole/model.gguf"), open_checkpoint(split)
    assert list(one.tensors) == list(other.tensors)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor.values(), other.tensors[name].values())


def test_merged_weights_are_rounded_once(tmp_path: Path) -> None:
    """W + B A in float64, then half precision: nothing in between."""
    exported(tmp_path / "web", {PIRATE: 0.5}, dtype="f16")
    model = open_checkpoint(tmp_path / "web/model.gguf")
    base = open_checkpoint(DEMO / "model")
    name = "model.layers.0.mlp.down_proj"
    update: Any = read_adapter(DEMO / "pirate").updates[Site(name)]
    delta = 0.5 * update.scaling * update.b.values().double() @ update.a.values().double()
    oracle = base.tensors[f"{name}.weight"].values().double() + delta
    found = model.tensors["blk.0.ffn_down.weight"].values().double()
    step = np.spacing(oracle.abs().numpy().astype(np.float16)).astype(np.float64)
    assert float(((found - oracle).abs() / torch.from_numpy(step)).max()) <= 0.51  # and float32


def test_the_default_is_what_the_runtime_advises(tmp_path: Path) -> None:
    report = exported(tmp_path / "web", {})
    assert report.dtypes == ("q4_k_m",)
    kinds = {t.kind for t in open_checkpoint(tmp_path / "web").tensors.values()}
    assert "Q4_K" in kinds
    assert not [note for note in report.notes if "advise against" in note]
    slow = exported(tmp_path / "iq", {}, dtype="iq4_nl")
    assert any("IQ4_NL" in note and "advise against" in note for note in slow.notes)


def test_importance_of_columns_is_heeded(tmp_path: Path) -> None:
    """A column that matters comes out closer, and a model as it is stored takes no importance."""
    name, width = "blk.0.ffn_up.weight", 256
    weights = torch.full((1, width), 1e-3)
    weights[:, ::16] = 100.0
    tensors = {f"{name}.in_sum2": weights, f"{name}.counts": torch.ones(1, 1)}
    text = {"general.type": "imatrix", "general.architecture": "llama"}
    numbers = {"imatrix.chunk_count": 1, "imatrix.chunk_size": 512}
    values = {
        **{key: Value.string(value) for key, value in text.items()},
        **{key: Value.u32(value) for key, value in numbers.items()},
        "imatrix.datasets": Value.strings(["x"]),
    }
    file = tmp_path / "imatrix.gguf"
    save_file(file, values, {key: from_values(t) for key, t in tensors.items()}, SaveOptions())
    wanted = open_checkpoint(DEMO / "model").tensors["model.layers.0.mlp.up_proj.weight"].values()
    errors = []
    for imatrix in (None, file):
        out = tmp_path / f"{imatrix is None}"
        exported(out, {}, dtype="q4_k_s", imatrix=imatrix)
        found = open_checkpoint(out).tensors[name].values()
        errors.append(float((found - wanted.float())[:, ::16].norm()))
    assert errors[1] < 0.9 * errors[0]
    with pytest.raises(UsageError, match="quantised here"):
        exported(tmp_path / "no", {}, model=tmp_path / "True/model.gguf", pre=None, imatrix=file)


def test_adapters_stay_apart_as_files_of_their_own(swappable: Path) -> None:
    page = json.loads((swappable / "page.json").read_text())
    assert page["adapters"] == ["pirate", "cowboy"]
    assert [one["name"] for one in page["files"]] == ["model.gguf"]
    assert [one["name"] for one in page["adapterFiles"]] == [
        "adapters/pirate.gguf", "adapters/cowboy.gguf",
    ]  # fmt: skip
    assert (page["context"], page["chat"]) == (256, False)
    for name in page["adapters"]:
        adapter = gguf.read(swappable / f"adapters/{name}.gguf", ReadOptions())
        assert adapter.config["general.architecture"] == "llama"
        types = {t.dtype for u in adapter.updates.values() for t in u.tensors.values()}
        assert types == {DType.FLOAT16}
    assert wrong(swappable) == {}


def test_factors_are_as_exact_as_the_base(tmp_path: Path) -> None:
    exported(tmp_path / "web", {PIRATE: 1.0}, dtype="f32", swappable=True)
    adapter = gguf.read(tmp_path / "web/adapters/pirate.gguf", ReadOptions())
    original: Any = read_adapter(DEMO / "pirate").updates[Site("model.layers.0.mlp.down_proj")]
    found: Any = adapter.updates[Site("blk.0.ffn_down")]
    assert found.a.dtype is DType.FLOAT32
    assert torch.equal(found.a.values(), original.a.values().float())
    assert torch.equal(found.b.values(), original.b.values().float())


def test_a_gguf_base_keeps_its_types_or_gets_others(tmp_path: Path) -> None:
    merge_files(DEMO / "model", {COWBOY: 1.0}, tmp_path / "hf")
    exported(tmp_path / "first", {}, model=tmp_path / "hf", dtype="q8_0")
    base = tmp_path / "base.gguf"
    shutil.move(tmp_path / "first/model.gguf", base)
    exported(tmp_path / "kept", {}, model=base, pre=None)
    assert (tmp_path / "kept/model.gguf").read_bytes() == base.read_bytes()
    report = exported(tmp_path / "other", {}, model=base, pre=None, dtype="f16")
    assert any("were quantised already" in note and "Q8_0" in note for note in report.notes)
    found, stored = open_checkpoint(tmp_path / "other"), open_checkpoint(base)
    assert found.config["general.file_type"] == 1
    for name, tensor in found.tensors.items():
        assert tensor.kind == ("float16" if len(tensor.shape) > 1 else "float32")
        assert torch.equal(tensor.values(), stored.tensors[name].values().to(tensor.dtype.torch))


def test_whatever_base_and_adapter_are_stored_in_the_factors_are_the_same(tmp_path: Path) -> None:
    exported(tmp_path / "model", {}, dtype="f16")
    base = tmp_path / "model/model.gguf"
    convert(PIRATE, tmp_path / "pirate.gguf", base=base)
    theirs = str(tmp_path / "pirate.gguf")
    cases = ((DEMO / "model", PIRATE), (DEMO / "model", theirs), (base, PIRATE), (base, theirs))
    factors = []
    for number, (model, adapter) in enumerate(cases):
        folder, is_gguf = tmp_path / str(number), model.suffix == ".gguf"
        exported(folder, {adapter: 1.0}, model=model, pre=None if is_gguf else "gpt-2",
                 dtype=None if is_gguf else "f16", swappable=True)  # fmt: skip
        assert wrong(folder) == {}
        (path,) = (folder / "adapters").iterdir()
        updates = gguf.read(path, ReadOptions()).updates
        factors.append({(s, n): t.values() for s, u in updates.items()
                        for n, t in u.tensors.items()})  # fmt: skip
    for other in factors[1:]:
        assert other.keys() == factors[0].keys()
        assert all(torch.equal(other[key], value) for key, value in factors[0].items())


def test_a_dry_run_writes_nothing_and_knows_all_sizes(tmp_path: Path, split: Path) -> None:
    planned = exported(tmp_path / "web", {PIRATE: 1.0}, dtype="f16", part_size=700_000, page=True,
                       dry_run=True)  # fmt: skip
    assert not list(tmp_path.iterdir())
    models = {name: size for name, size in planned.files.items() if name.endswith(".gguf")}
    assert models == {file.name: file.stat().st_size for file in split.glob("*.gguf")}
    apart = exported(tmp_path / "web", {PIRATE: 1.0}, dtype="f16", swappable=True, dry_run=True)
    assert {"model.gguf", "adapters/pirate.gguf"} <= set(apart.files)
    assert not list(tmp_path.iterdir())


# -- limits ---------------------------------------------------------------------------------------


def request_of(tmp_path: Path, **changes: Any) -> Request:
    return Request(scratch=lambda: tmp_path, dtypes=("f16",), pre="gpt-2", **changes)


def test_refusals(tmp_path: Path) -> None:
    model = Model(open_checkpoint(DEMO / "model"), DEMO / "model")
    apart = replace(model, adapters={"pirate": read_adapter(DEMO / "pirate")})
    for size in (FILE, FILE + 1, 0):
        with pytest.raises(UsageError, match="parts of"):
            wllama.prepare(model, request_of(tmp_path, part_size=size))
    with pytest.raises(UsageError, match="header alone"):
        wllama.prepare(model, request_of(tmp_path, part_size=500))
    with pytest.raises(IncompatibleError, match="one file only") as found:
        wllama.prepare(apart, request_of(tmp_path, part_size=700_000))
    assert found.value.code == "SPLIT_BASE"
    with pytest.raises(UsageError, match="holds one model"):
        wllama.prepare(model, replace(request_of(tmp_path), dtypes=("f16", "f32")))
    with pytest.raises(UsageError, match="webllm"):
        wllama.verify(tmp_path, tmp_path / "model.wasm")
    with pytest.raises(CorruptInputError, match="no model"):
        wllama.verify(tmp_path, None)


def test_models_that_write_no_text_are_refused(tmp_path: Path) -> None:
    silent = to_gguf(open_checkpoint(DEMO / "model"), vocabulary=None)
    stored = replace(request_of(tmp_path), dtypes=(AS_STORED,), pre=None)
    with pytest.raises(IncompatibleError, match="no vocabulary"):
        wllama.prepare(Model(silent, tmp_path), stored)
    encoder = replace(silent, config={**silent.config, "general.architecture": "bert"})
    with pytest.raises(IncompatibleError, match="writes no text"):
        wllama.prepare(Model(encoder, tmp_path), stored)
    with pytest.raises(UsageError, match="has its tokenizer"):
        wllama.prepare(Model(silent, tmp_path), replace(stored, pre="gpt-2"))


def test_adapters_that_llama_cpp_cannot_apply_are_refused(tmp_path: Path) -> None:
    model = Model(open_checkpoint(DEMO / "model"), DEMO / "model")
    pirate = read_adapter(DEMO / "pirate")
    update: Any = next(iter(pirate.updates.values()))
    tied = replace(update, a=zeros(8, 256), b=zeros(512, 8))
    prompt = replace(pirate, updates={}, extras={"prompt_embeddings": zeros(4, 256)})
    for adapter, why in (
        (replace(pirate, updates={Site("lm_head"): tied}), "one weight in this base"),
        (prompt, "updates of weights only"),
    ):
        with pytest.raises(IncompatibleError, match=why):
            wllama.prepare(replace(model, adapters={"x": adapter}), request_of(tmp_path))


def zeros(*shape: int) -> LazyTensor:
    return from_values(torch.zeros(shape))


def large(count: int, name: str = "large.weight") -> LazyTensor:
    """A tensor of bytes that is never read."""

    def unread(_start: int, _stop: int, _block: int) -> Any:
        raise AssertionError(f"{name} was read")

    return LazyTensor((1, count), DType.INT8, unread)


def test_large_tensors_are_noted_or_refused(tmp_path: Path) -> None:
    small = to_gguf(open_checkpoint(DEMO / "model"), outtype="f16", pre="gpt-2")
    stored = replace(request_of(tmp_path), dtypes=(AS_STORED,), pre=None)

    def prepare(size: int, count: int = 1) -> Any:
        more = {f"large.{number}.weight": large(size) for number in range(count)}
        model = replace(small, tensors={**small.tensors, **more})
        return wllama.prepare(Model(model, tmp_path), stored)

    with pytest.raises(IncompatibleError, match=r"large\.0\.weight has 2000000000 bytes") as found:
        prepare(FILE)
    assert found.value.code == "TOO_LARGE"
    prepared = prepare(parts.PART + 1)
    assert [plan.name for plan in prepared.output.plans][-1] == "model-00002-of-00002.gguf"
    assert any(note.endswith("as it is one tensor") for note in prepared.notes)
    assert not any("4 GiB" in note for note in prepared.notes)
    prepared = prepare(parts.PART - 1_000_000, 9)
    assert all(plan.size <= parts.PART for plan in prepared.output.plans)
    assert any("ends at 4 GiB" in note for note in prepared.notes)
    assert any("Safari" in note and "do not load it" in note for note in prepared.notes)


def test_the_cache_is_what_llama_cpp_keeps() -> None:
    """Two halves of `heads * width` values per layer and token; lists are one number per layer."""
    model = to_gguf(open_checkpoint(DEMO / "model"), pre="gpt-2")
    assert memory.context_of(model) == 256
    assert memory.cache_size(model, 256) == 2 * 256 * 2 * (2 * 64 + 2 * 64)
    changed = {
        "llama.attention.head_count_kv": Value.ints([2, 1], 5),
        "llama.attention.key_length": Value.u32(32),
        "llama.context_length": Value.u32(1 << 20),
    }
    varied = replace(model, metadata={**model.metadata, **changed})
    assert memory.context_of(varied) == 4096
    assert memory.cache_size(varied, 100) == 2 * 100 * 3 * (32 + 64)


# -- verify ---------------------------------------------------------------------------------------


def test_verify_finds_broken_parts(split: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(split, tmp_path / name))

    names = sorted(file.name for file in split.glob("*.gguf"))
    cut = damaged("cut")
    (cut / names[1]).write_bytes((split / names[1]).read_bytes()[:-64])
    assert "the file at" in wrong(cut)["parts are one model"]
    assert "files in page.json" in wrong(cut)
    missing = damaged("missing")
    (missing / names[-1]).unlink()
    assert "missing" in wrong(missing)["parts are one model"]
    swapped = damaged("swapped")
    shutil.copy(split / names[1], swapped / names[2])
    assert "says otherwise" in wrong(swapped)["parts are one model"] or (
        "says it is part" in wrong(swapped)["parts are one model"]
    )
    stray = damaged("stray")
    shutil.copy(split / names[0], stray / "model-00001-of-00009.gguf")
    assert "parts are one model" in wrong(stray)


def test_verify_finds_adapters_of_another_base(swappable: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swappable, tmp_path / "web"))
    pirate = gguf.read(swappable / "adapters/pirate.gguf", ReadOptions())
    site, update = next((s, u) for s, u in pirate.updates.items() if s.module.endswith("ffn_down"))

    def written(**changes: Any) -> str:
        from adaptool.formats import WriteOptions

        gguf.write(replace(pirate, **changes), folder / "adapters/pirate.gguf",
                   WriteOptions(force=True))  # fmt: skip
        return wrong(folder)["adapter pirate fits the model"]

    other: Any = update
    assert "qwen2" in written(config={**pirate.config, "general.architecture": "qwen2"})
    assert "no such tensor" in written(updates={Site("blk.7.ffn_down"): update})
    assert "an update of [7, 512]" in written(updates={site: replace(other, b=zeros(7, 8))})
    (folder / "adapters/pirate.gguf").write_bytes(b"GGUF")
    assert not findings(folder)["adapter pirate fits the model"][0]
    shutil.rmtree(folder / "adapters")
    assert list(wrong(folder)) == ["files in page.json"]


# -- a browser ------------------------------------------------------------------------------------

_ASK = """
import { open } from "/driver.js";
export default async ({ settings, requests, cores }) => {
  if (cores) Object.defineProperty(navigator, "hardwareConcurrency", { value: cores });
  const shown = [];
  const here = { ...settings, base: location.origin + "/", runtime: {} };
  for (const [name, path] of Object.entries(settings.runtime)) {
    here.runtime[name] = new URL(path, location.origin).href;
  }
  const model = await open(here, { progress: (fraction, text) => shown.push([fraction, text]) });
  const answers = [];
  for (const { prompt, ...how } of requests) {
    const steps = [];
    try {
      const given = await model.answer(prompt, { ...how, token: (text) => steps.push(text) });
      answers.push({ ...given, steps });
    } catch (error) {
      answers.push({ name: error.name, message: error.message, steps });
    }
  }
  return { answers, shown, device: model.device, adapters: model.adapters };
};
"""


def ask(
    browser: Browser, folder: Path, requests: list[dict[str, Any]], *, cores: int | None = None,
    **changes: Any,
) -> Any:  # fmt: skip
    """The answers of an export's own driver, each with what had been shown before."""
    page = json.loads((folder / "page.json").read_text())
    settings = {**page, "runtime": RUNTIME, "maxTokens": EXPECTED["max_tokens"], **changes}
    argument = {"settings": settings, "requests": requests, "cores": cores}
    visit = browser.visit(folder, _ASK, argument, imports=IMPORTS)
    assert visit.errors == []
    return visit.result


def told(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["text"].strip() for answer in answers]


@pytest.mark.parametrize(
    ("dtype", "cores", "device"), [("f16", 2, "WASM, 1 thread"), ("q8_0", 4, "WASM, 2 threads")]
)
def test_a_split_model_with_the_pirate_in_it(
    browser: Browser, split: Path, tmp_path: Path, dtype: str, cores: int, device: str
) -> None:
    folder = split
    if dtype != "f16":
        folder = tmp_path / "web"
        exported(folder, {PIRATE: 1.0}, dtype=dtype, part_size=400_000, page=True)
    count = len(list(folder.glob("model-*.gguf")))
    assert count > 2
    found = ask(browser, folder, [{"prompt": prompt} for prompt in PROMPTS], cores=cores)
    assert told(found["answers"]) == [EXPECTED["adapters"]["pirate"][prompt] for prompt in PROMPTS]
    first = found["answers"][0]
    assert first["steps"][-1] == first["text"]
    assert len(first["steps"]) > 4
    assert first["tokens"] in (len(first["steps"]), len(first["steps"]) + 1)  # the last one ends it
    fractions = [fraction for fraction, _ in found["shown"] if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert found["device"] == device


def test_adapters_and_scales_in_one_page(browser: Browser, swappable: Path) -> None:
    cases = [
        ("", 1.0, EXPECTED["base"]), ("pirate", 1.0, EXPECTED["adapters"]["pirate"]),
        ("pirate", 0.5, EXPECTED["half"]["pirate"]),
        ("cowboy", 1.0, EXPECTED["adapters"]["cowboy"]), ("pirate", 0, EXPECTED["base"]),
        (None, 1.0, EXPECTED["base"]),
    ]  # fmt: skip
    asked = [{"prompt": p, "adapter": a, "scale": s} for a, s, _ in cases for p in PROMPTS[:3]]
    found = ask(browser, swappable, asked)
    assert told(found["answers"]) == [answers[p] for _, _, answers in cases for p in PROMPTS[:3]]
    assert found["adapters"] == ["pirate", "cowboy"]


def test_no_adapter_sees_what_another_one_made_of_a_prompt(
    browser: Browser, swappable: Path
) -> None:
    """llama.cpp's server finds prompts that it has seen by their tokens: not by the adapter."""
    asked = [{"prompt": prompt, "adapter": adapter, "scale": 1.0}
             for adapter in ("", "cowboy", "pirate", "cowboy", "")
             for prompt in ("how are you", "hello grace", "how are you")]  # fmt: skip
    found = ask(browser, swappable, asked)
    known = {"": EXPECTED["base"], **EXPECTED["adapters"]}
    assert told(found["answers"]) == [known[str(a["adapter"])][str(a["prompt"])] for a in asked]


def test_a_chat_template_is_used_where_there_is_one(browser: Browser, tmp_path: Path) -> None:
    model = Path(shutil.copytree(DEMO / "model", tmp_path / "model"))
    config = json.loads((model / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for message in messages %}user: {{ message['content'] }}\nbot:{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    exported(tmp_path / "web", {PIRATE: 1.0}, model=model, dtype="f16", page=True)
    page = json.loads((tmp_path / "web/page.json").read_text())
    assert page["chat"]
    found = ask(browser, tmp_path / "web", [{"prompt": PROMPTS[0]}], template=None)
    assert told(found["answers"]) == [EXPECTED["adapters"]["pirate"][PROMPTS[0]]]
    assert found["answers"][0]["steps"][-1] == found["answers"][0]["text"]


@pytest.mark.parametrize(
    ("file", "words", "why"),
    [("model.gguf", (b"llama", b"llamx"), "unknown model architecture: 'llamx'"),
     ("adapters/pirate.gguf", (b"llama", b"qwen2"), "model arch and LoRA arch mismatch")],
)  # fmt: skip
def test_what_llama_cpp_does_not_load_is_told_with_the_reason(
    browser: Browser, swappable: Path, tmp_path: Path, file: str, words: tuple[bytes, bytes],
    why: str,
) -> None:  # fmt: skip
    """wllama itself reports success, and breaks at the first question."""
    folder = Path(shutil.copytree(swappable, tmp_path / "web"))
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content.replace(*words, 1))
    with pytest.raises(AssertionError, match=f"llama.cpp does not load this model .*{why}"):
        ask(browser, folder, [{"prompt": "hello ada"}])


_STOP = """
import { open } from "/driver.js";
export default async ({ settings }) => {
  const url = (path) => new URL(path, location.origin).href;
  const runtime = { "@wllama/wllama": url(settings.runtime["@wllama/wllama"]) };
  const model = await open({ ...settings, base: url("/"), runtime }, { progress() {} });
  const stopping = new AbortController();
  const steps = [];
  const ask = (more) => model.answer("hello ada", { adapter: "pirate", scale: 1, ...more });
  const token = (text) => { steps.push(text); if (steps.length === 2) stopping.abort(); };
  const stopped = await ask({ signal: stopping.signal, token }).catch((error) => error.name);
  const long = await model.answer("hello ".repeat(400), {}).catch((error) => error.message);
  return { stopped, count: steps.length, long, after: (await ask({})).text };
};
"""


def test_an_answer_can_be_stopped_and_errors_are_told(browser: Browser, swappable: Path) -> None:
    settings = {**json.loads((swappable / "page.json").read_text()), "runtime": RUNTIME}
    visit = browser.visit(swappable, _STOP, {"settings": settings}, imports=IMPORTS)
    found = visit.result
    assert found["stopped"] == "AbortError"
    assert found["count"] < 6  # of ten
    assert "exceeds the available context size (256 tokens" in found["long"]
    assert found["after"].strip() == EXPECTED["adapters"]["pirate"]["hello ada"]
    assert visit.errors == []


def test_bytes_that_are_no_text_are_an_error_in_words(browser: Browser, tmp_path: Path) -> None:
    """A bare byte is what the model writes whatever it is asked: wllama breaks on it."""
    checkpoint = open_checkpoint(DEMO / "model")
    config = json.loads((DEMO / "model/tokenizer.json").read_text())
    byte = config["model"]["vocab"]["ÿ"]  # 0xff, as byte-level vocabularies spell it
    model = Path(shutil.copytree(DEMO / "model", tmp_path / "model"))
    write_head(model, checkpoint.tensors["model.embed_tokens.weight"].values(), byte)
    exported(tmp_path / "web", {}, model=model, dtype="f16", page=True)
    found = ask(browser, tmp_path / "web", [{"prompt": "hello"}])
    assert found["answers"][0]["message"] == (
        "The model wrote bytes that are no text (invalid UTF-8)"
    )


def write_head(model: Path, embedding: torch.Tensor, token: int) -> None:
    """Untie the head, and let one token win: its row is a multiple of every other one's sum."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    head = torch.zeros_like(embedding)
    norm = tensors["model.norm.weight"].float()
    head[token] = (norm / norm.square().sum().sqrt()).to(head.dtype)
    save_file({**tensors, "lm_head.weight": head}, model / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))


@pytest.mark.parametrize("apart", [False, True], ids=["merged", "apart"])
def test_the_lines_to_copy_run(browser: Browser, npm: Path, tmp_path: Path, apart: bool) -> None:
    size = None if apart else 700_000
    adapters = {PIRATE: 1.0, COWBOY: 1.0} if apart else {PIRATE: 1.0}
    report = exported(tmp_path / "web", adapters, dtype="f16", part_size=size, swappable=apart)
    shutil.copy(npm / "@wllama/wllama/esm/wasm/wllama.wasm", tmp_path / "web")
    first, _, rest = report.loading.partition("\n")
    asked = re.sub(r"await (wllama\.createCompletion\(.*\));", r"return await \1;", rest)
    script = f"{first}\nexport default async (prompt) => {{{asked}}};"
    prompt = TEMPLATE.replace("{prompt}", "hello ada")
    visit = browser.visit(tmp_path / "web", script, prompt, imports=IMPORTS)
    text = visit.result["choices"][0]["text"]
    assert text.strip() == EXPECTED["adapters"]["pirate"]["hello ada"]


_DRIVE = """
export default async (page, prompt, url) => {
  await page.goto(`${url}index.html`);
  const answered = (count) => page.waitForFunction(
    (wanted) => Number(document.body.dataset.answers ?? 0) >= wanted, {}, count);
  const shown = () => page.$eval("#answer", (element) => element.textContent);
  await page.waitForFunction(() => ["ready", "failed"].includes(document.body.dataset.state));
  await page.type("#prompt", prompt);
  await page.keyboard.press("Enter");
  await answered(1);
  const first = await shown();
  await page.select("#adapter", "cowboy");
  await answered(2);
  const status = await page.$eval("#status", (element) => element.textContent);
  return { first, second: await shown(), status };
};
"""


def test_the_page_runs_it_with_nothing_from_elsewhere(
    browser: Browser, npm: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "web"
    exported(folder, {PIRATE: 1.0, COWBOY: 1.0}, dtype="q8_0", swappable=True, page=True,
             runtime=npm)  # fmt: skip
    drive = tmp_path / "drive.mjs"
    drive.write_text(_DRIVE)
    visit = browser.visit(folder, drive=drive, argument="hello ada")
    assert visit.result["first"].strip() == EXPECTED["adapters"]["pirate"]["hello ada"]
    assert visit.result["second"].strip() == EXPECTED["adapters"]["cowboy"]["hello ada"]
    assert visit.errors == []
    origins = {re.sub(r"^blob:", "", url).split("/", 3)[2] for url in visit.requests
               if not url.startswith("data:")}  # fmt: skip
    assert len(origins) == 1
