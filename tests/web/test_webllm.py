"""The page's link to WebLLM, in Chromium: what it asks of the package, and what it says of faults.

No registry carries a compiled library, so answers come from a stand-in for the package; the real
one is taken as far as the library's first bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlc.exports import exported, library_text, write_library, write_model

import adaptool.targets.webllm as target

from .chromium import Browser

PACKAGE = "@mlc-ai/web-llm"

STAND_IN = """
export const calls = [];
export async function deleteModelAllInfoInCache(id) {
  calls.push(["forget", id]);
}
export async function CreateMLCEngine(id, { appConfig, initProgressCallback }) {
  calls.push(["create", id, appConfig.model_list[0]]);
  initProgressCallback({ progress: 0.5, text: "halfway" });
  let stopped = false;
  return {
    resetChat: async () => calls.push(["reset"]),
    interruptGenerate: () => { stopped = true; calls.push(["interrupt"]); },
    chat: { completions: { create: async (request) => {
      calls.push(["ask", request]);
      return (async function* () {
        for (const word of ["Ar", "r", "!"]) {
          if (stopped) return;
          yield { choices: [{ delta: { content: word } }] };
        }
        yield { choices: [], usage: { completion_tokens: 5 } };
      })();
    } } },
  };
}
"""

ASK = """
import { open } from "/driver.js";
import { calls } from "/stand_in.js";
export default async ({ settings, abort }) => {
  const base = new URL("/", location.href).href;
  const told = [];
  const progress = (...all) => told.push(all);
  const model = await open({ ...settings, base, runtime: {} }, { progress });
  const texts = [];
  const controller = new AbortController();
  const token = (text) => { texts.push(text); if (abort) controller.abort(); };
  const options = { token, signal: controller.signal, maxTokens: 9 };
  const answer = await model.answer("hello", options).catch((error) => error.name);
  const again = await open({ ...settings, base, runtime: {} }, { progress() {} });
  return { answer, texts, told, calls, device: again.device, adapters: again.adapters };
};
"""


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Path:
    """An export with a library that fits it, and the driver beside it."""
    folder = tmp_path_factory.mktemp("webllm")
    exported(write_model(folder / "base", "llama"), folder / "first", "q4f32_1")
    library = write_library(folder / "model.wasm", library_text(folder / "first"))
    exported(folder / "base", folder / "web", "q4f32_1", library=library)
    shutil.copy(Path(target.__file__).parent / "driver.js", folder / "web")
    (folder / "web/stand_in.js").write_text(STAND_IN)
    return folder / "web"


SETTINGS = {"model": "base-q4f32_1-MLC", "library": "model.wasm"}
IMPORTS = {PACKAGE: "/stand_in.js"}


def ask(browser: Browser, web: Path, **argument: object) -> dict:
    given = {"settings": SETTINGS, **argument}
    visit = browser.visit(web, ASK, given, imports=IMPORTS, webgpu=True)
    assert visit.errors == []
    return visit.result


def test_an_answer_streams(browser, web):
    found = ask(browser, web)
    assert found["answer"] == {"text": "Arr!", "tokens": 5}
    assert found["texts"] == ["Ar", "Arr", "Arr!"]
    assert found["told"] == [[0.5, "halfway"]]
    assert (found["device"], found["adapters"]) == ("WebGPU", [])
    kinds = [call[0] for call in found["calls"]]
    # what an earlier export left in the browser is forgotten once, not at every visit
    assert kinds == ["forget", "create", "reset", "ask", "create"]
    record = found["calls"][1][2]
    assert record["model_lib"].endswith("/library/model.wasm")
    assert record["model"].startswith("http")
    request = found["calls"][3][1]
    assert (request["temperature"], request["max_tokens"], request["stream"]) == (0, 9, True)
    assert request["messages"] == [{"role": "user", "content": "hello"}]


def test_an_answer_can_be_stopped(browser, web):
    found = ask(browser, web, abort=True)
    assert found["answer"] == "AbortError"
    assert found["texts"] == ["Ar"]
    assert ["interrupt"] in found["calls"]


FAIL = """
import { open } from "/driver.js";
export default async (settings) => {
  const base = new URL("/", location.href).href;
  return open({ ...settings, base, runtime: {} }, { progress() {} }).then(() => "", String);
};
"""


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "--lib model.wasm"),
        ({"model_lib": "https://libraries.invalid/published.wasm"}, "into the folder library/"),
    ],
    ids=["unknown", "elsewhere"],
)  # fmt: skip
def test_a_missing_library_is_said(browser, web, tmp_path, record, words):
    shutil.copytree(web, tmp_path / "web")
    path = tmp_path / "web/app-config.json"
    (stated,) = json.loads(path.read_text())["model_list"]
    del stated["model_lib"]
    path.write_text(json.dumps({"model_list": [{**stated, **record}]}))
    settings = {**SETTINGS, "library": "published.wasm" if record else None}
    visit = browser.visit(tmp_path / "web", FAIL, settings, imports=IMPORTS, webgpu=True)
    assert words in visit.result
    assert not any("libraries.invalid" in url for url in visit.requests)


def test_a_browser_without_webgpu_is_told(browser, web):
    visit = browser.visit(web, FAIL, SETTINGS, imports=IMPORTS)
    assert "no WebGPU" in visit.result


def test_the_package_finds_model_and_library(browser, web):
    """The real package takes the record, and gets as far as running the library."""
    (package,) = target.packages
    imports = {package.name: f"/npm/{package.name}/{package.entry}"}
    visit = browser.visit(web, FAIL, SETTINGS, imports=imports, webgpu=True)
    asked = {url.partition("://")[2].partition("/")[2] for url in visit.requests}
    assert {"resolve/main/mlc-chat-config.json", "library/model.wasm"} <= asked
    assert "WebAssembly" in visit.result
