"""The page: its files, and what it does in Chromium, with a driver that only pretends."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from adaptool.containers import SaveOptions
from adaptool.demonstration import TEMPLATE, demo_folder
from adaptool.errors import CorruptInputError, IncompatibleError, StorageError
from adaptool.jobs.exporting import ExportOptions, export
from adaptool.pages import page
from adaptool.serving import serve
from adaptool.targets import Package

HERE = Path(__file__).parent
DRIVER = (HERE / "fake_driver.js").read_bytes()
FAKE = Package("fake", "1.2.3", "dist/fake.js", ("dist/further.wasm",))
SETTINGS = {
    "task": "text-generation", "template": None, "adapters": ["pirate", "cowboy"], "scale": 1.0,
    "maxTokens": 40,
}  # fmt: skip


@pytest.fixture
def modules(tmp_path):
    """node_modules with the package `fake`."""
    home = tmp_path / "node_modules" / "fake"
    (home / "dist").mkdir(parents=True)
    (home / "package.json").write_text('{"name": "fake", "version": "1.2.3"}')
    (home / "dist" / "fake.js").write_text('export const mark = "one";')
    (home / "dist" / "further.wasm").write_bytes(b"\0asm\1\0\0\0")
    (home / "LICENSE").write_text("free")
    return tmp_path / "node_modules"


def made(modules, *, title="A model", packages=(FAKE,), driver=DRIVER, **settings):
    return page(title, "fake", packages, driver, SETTINGS | settings, modules)


def import_map(output) -> dict[str, str]:
    text = output.small["index.html"].decode()
    return json.loads(re.search(r'<script type="importmap">(.*?)</script>', text, re.DOTALL)[1])[
        "imports"
    ]


# -- its files ------------------------------------------------------------------------------------


def test_files_with_a_runtime(modules, tmp_path):
    output = made(modules)
    assert set(output.names) == {
        "index.html", "style.css", "page.js", "driver.js", "page.json", "package.json",
        "runtime/fake/fake.js", "runtime/fake/further.wasm", "runtime/fake/LICENSE",
    }  # fmt: skip
    assert import_map(output) == {"fake": "./runtime/fake/fake.js"}
    output.write(tmp_path / "web", SaveOptions())
    written = tmp_path / "web"
    assert json.loads((written / "page.json").read_text()) == {
        **SETTINGS, "title": "A model", "target": "fake", "runtime": {"fake": "./runtime/fake/"},
    }  # fmt: skip
    for name in ("dist/fake.js", "dist/further.wasm", "LICENSE"):
        copy = written / "runtime" / "fake" / Path(name).name
        assert copy.read_bytes() == (modules / "fake" / name).read_bytes()


def test_files_without_a_runtime():
    output = made(None)
    assert not any(name.startswith("runtime/") for name in output.names)
    assert import_map(output) == {"fake": "./node_modules/fake/dist/fake.js"}
    settings = json.loads(output.small["page.json"])
    assert settings["runtime"] == {"fake": "./node_modules/fake/dist/"}
    stated = json.loads(output.small["package.json"])
    assert stated == {"private": True, "dependencies": {"fake": "1.2.3"}}


def test_further_files_elsewhere_in_a_package():
    scoped = Package("@a/b", "1", "esm/index.js", ("esm/wasm/b.wasm",))
    flat = Package("flat", "2", "index.js")
    output = made(None, packages=[scoped, flat])
    assert import_map(output) == {
        "@a/b": "./node_modules/@a/b/esm/index.js", "flat": "./node_modules/flat/index.js",
    }  # fmt: skip
    assert json.loads(output.small["page.json"])["runtime"] == {
        "@a/b": "./node_modules/@a/b/esm/wasm/", "flat": "./node_modules/flat/",
    }  # fmt: skip
    with pytest.raises(ValueError, match="several folders"):
        made(None, packages=[Package("x", "1", "i.js", ("a/1.wasm", "b/2.wasm"))])


def test_two_entries_of_one_package(modules):
    second = Package("fake/more", "1.2.3", "dist/more.js")
    (modules / "fake" / "dist" / "more.js").write_text("export {};")
    output = made(modules, packages=[FAKE, second])
    assert import_map(output)["fake/more"] == "./runtime/fake/more.js"
    assert json.loads(output.small["package.json"])["dependencies"] == {"fake": "1.2.3"}
    clash = Package("fake/other", "1.2.3", "src/fake.js")
    (modules / "fake" / "src").mkdir()
    (modules / "fake" / "src" / "fake.js").write_text("")
    with pytest.raises(ValueError, match=r"two files for runtime/fake/fake\.js"):
        made(modules, packages=[FAKE, clash])


def test_the_runtime_is_the_tested_one(modules):
    (modules / "fake" / "package.json").write_text('{"version": "1.2.4"}')
    with pytest.raises(IncompatibleError, match=r"1\.2\.4.*1\.2\.3") as caught:
        made(modules)
    assert caught.value.code == "VERSION"
    assert caught.value.hint == "npm install fake@1.2.3"


def test_the_runtime_is_there(modules):
    with pytest.raises(StorageError, match="no package absent"):
        made(modules, packages=[Package("absent", "1", "i.js")])
    (modules / "fake" / "dist" / "further.wasm").unlink()
    with pytest.raises(StorageError, match=r"further\.wasm: not found"):
        made(modules)


def test_the_runtime_stays_in_its_folder(modules, tmp_path):
    (tmp_path / "outside.wasm").write_bytes(b"secret")
    (modules / "fake" / "dist" / "further.wasm").unlink()
    (modules / "fake" / "dist" / "further.wasm").symlink_to(tmp_path / "outside.wasm")
    with pytest.raises(CorruptInputError, match="leads out"):
        made(modules)
    with pytest.raises(CorruptInputError):
        made(modules, packages=[Package("fake", "1.2.3", "../../outside.wasm")])


def test_the_policy_allows_the_import_map_and_nothing_inline(modules):
    text = made(modules).small["index.html"].decode()
    imports = re.search(r'<script type="importmap">(.*?)</script>', text, re.DOTALL)[1]
    digest = b64encode(sha256(imports.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"'sha256-{digest}'" in policy
    assert "unsafe-inline" not in policy and "'unsafe-eval'" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)  # the name of a namespace
    assert not re.search(r"""\s(on\w+|style)=""", text)
    assert len(re.findall("<script", text)) == 2


def test_text_is_escaped(modules):
    text = made(modules, title='</title><script>alert("$x")</script>&').small["index.html"]
    assert b"<script>alert" not in text
    assert text.count(b"&lt;/title&gt;&lt;script&gt;alert(&quot;$x&quot;)") == 2
    odd = made(None, packages=[Package("x", "1", "</script><b>.js")])
    assert import_map(odd) == {"x": "./node_modules/x/</script><b>.js"}


def test_no_file_of_the_page_names_another_host():
    import adaptool.pages

    for file in Path(adaptool.pages.__file__).parent.glob("*.*"):
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.", text), file.name


# -- in the browser -------------------------------------------------------------------------------


@contextmanager
def served(output, folder):
    output.write(folder, SaveOptions())
    with serve(folder) as server:
        yield server


def walk(browser, server, *steps, **options):
    """What the steps saw; nothing may leave the server."""
    visit = browser.visit(
        url=server.url, drive=HERE / "drive_page.mjs", argument=[list(step) for step in steps],
        **options,
    )  # fmt: skip
    away = [url for url in visit.requests if not url.startswith((server.url, "data:", "blob:"))]
    assert away == []
    return visit


@pytest.fixture
def screenshots(tmp_path):
    return str(Path(os.environ.get("ADAPTOOL_SCREENSHOTS", tmp_path / "screenshots")).absolute())


_SPEAKING = "document.getElementById('answer').textContent.length > 60"
_DRAGGED = """
[0.45, 0.5, 0.55, 0.6].map((value) => {
  const slider = document.getElementById("scale");
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
}).length
"""


def test_a_conversation_by_keyboard_alone(browser, modules, tmp_path, screenshots):
    with served(made(modules, scale=0.33), tmp_path / "web") as server:
        visit = walk(
            browser, server,
            ("open",), ("see", "status"), ("see", "device"), ("focused",), ("see", "scale-value"),
            ("type", "hello"), ("hold", "Shift", "Enter"), ("type", "ada"), ("press", "Enter"),
            ("answered", 1), ("see", "answer"), ("see", "speed"), ("see", "status"),
            ("shot", screenshots, "page-wide-light.png"),
            # to the slider and the adapters, back from the prompt
            ("hold", "Shift", "Tab"), ("focused",), ("press", "ArrowRight"),
            ("answered", 2), ("see", "answer"), ("see", "scale-value"), ("find", _DRAGGED),
            ("answered", 3), ("see", "answer"),
            ("hold", "Shift", "Tab"), ("focused",), ("press", "ArrowDown"),
            ("answered", 4), ("see", "answer"),
            ("press", "Home"), ("answered", 5), ("see", "answer"), ("find", "adapter.value"),
            ("find", "document.getElementById('scale').disabled"),
            # an answer that would take a minute, stopped
            ("click", "prompt"), ("hold", "Control", "a"), ("type", "long"), ("press", "Enter"),
            ("until", _SPEAKING),
            ("find", "document.body.dataset.state"),
            ("find", "document.getElementById('answer').getAttribute('aria-busy')"),
            ("press", "Tab", 2), ("focused",), ("press", "Enter"),
            ("answered", 6), ("see", "status"), ("focused",),
            ("find", _SPEAKING),
            # the same, with Escape; then asked anew while it speaks
            ("press", "Enter"), ("until", _SPEAKING),
            ("press", "Escape"), ("answered", 7), ("see", "status"),
            ("press", "Enter"), ("until", _SPEAKING),
            ("hold", "Control", "a"), ("type", "short"), ("press", "Enter"),
            ("answered", 8), ("see", "answer"), ("see", "status"),
            ("find", "[fake.asked, fake.most, fake.running]"),
        )  # fmt: skip
    assert visit.errors == []
    assert visit.result[:5] == [True, "Ready.", "fake one", "prompt", "0.33"]
    assert visit.result[5] == "pirate 0.33 says hello\nada to 40"
    assert re.fullmatch(r"\d+ tokens, \d+\.\d tokens/s", visit.result[6])
    assert visit.result[7:] == [
        "Ready.",
        "scale", "pirate 0.4 says hello\nada to 40", "0.4", 4,
        "pirate 0.6 says hello\nada to 40",
        "adapter", "cowboy 0.6 says hello\nada to 40",
        "base 0.6 says hello\nada to 40", "", True,
        "answering", "true", "stop",
        "Stopped.", "prompt", True,
        "Stopped.",
        "base 0.6 says short to 40", "Ready.",
        # a drag is one question, and one question is answered at a time
        [9, 1, 0],
    ]  # fmt: skip


def test_settings_reach_a_driver_in_any_folder(browser, modules, tmp_path):
    (tmp_path / "site").mkdir()
    output = made(modules, adapters=[], extra={"a": 1})
    output.write(tmp_path / "site" / "deep", SaveOptions())
    with serve(tmp_path / "site") as server:
        url = f"{server.url}deep/"
        visit = browser.visit(url=url, drive=HERE / "drive_page.mjs", argument=[
            ["open"], ["find", "fake.settings"],
            ["find", "document.getElementById('choice').hidden"],
            ["type", "x"], ["press", "Enter"], ["answered", 1], ["see", "answer"],
        ])  # fmt: skip
    ready, settings, hidden, answer = visit.result
    assert (ready, hidden, answer) == (True, True, "base 1 says x to 40")
    assert settings == {
        **SETTINGS, "adapters": [], "title": "A model", "target": "fake", "extra": {"a": 1},
        "base": url, "runtime": {"fake": f"{url}runtime/fake/"},
    }  # fmt: skip


@pytest.mark.parametrize("width", [360, 1280])
def test_light_and_dark_narrow_and_wide(browser, modules, tmp_path, screenshots, width):
    title = "A model with a name that is long, and aVeryLongWordThatNobodyCouldBreakAnywhereAtAll"
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    pressed = "document.getElementById('theme').getAttribute('aria-pressed')"
    with served(made(modules, title=title), tmp_path / "web") as server:
        visit = walk(
            browser, server, ("dark", False), ("open",),
            ("type", "what the page does with a line that is too long for it"), ("press", "Enter"),
            ("answered", 1),
            ("find", "document.scrollingElement.scrollWidth"), ("names",), ("find", paper),
            ("shot", screenshots, f"page-{width}-light.png"),
            ("click", "theme"), ("find", pressed), ("find", paper),
            ("shot", screenshots, f"page-{width}-dark.png"),
            ("open",), ("find", paper),
            ("click", "theme"), ("dark", True), ("find", paper),
            size=(width, 740),
        )  # fmt: skip
    _, across, names, light, dark_pressed, dark, _, kept, own = visit.result
    assert visit.errors == []
    assert across <= width
    assert (dark_pressed, kept, own) == ("true", dark, light)
    assert dark != light
    controls = {"button", "combobox", "slider", "textbox", "progressbar"}
    assert {name for role, name in names if role in controls} == {
        "Dark", "Name", "Scale", "Prompt", "Send", "Stop",
    }  # fmt: skip


def test_a_task_that_gives_rows(browser, modules, tmp_path):
    cells = "[...document.querySelectorAll('#rows td')].map((found) => found.textContent)"
    output = made(modules, task="text-classification", adapters=[])
    with served(output, tmp_path / "web") as server:
        visit = walk(browser, server, ("open",), ("type", "x"), ("press", "Enter"),
                     ("answered", 1), ("find", cells), ("see", "speed"))  # fmt: skip
    assert visit.errors == []
    assert visit.result[1] == ["good", "0.75", "<b>bad</b>", "0.1235"]
    assert re.fullmatch(r"\d+ ms", visit.result[2])


def test_a_missing_runtime_is_said(browser, tmp_path):
    with served(made(None), tmp_path / "web") as server:
        visit = walk(browser, server, ("open",), ("see", "status"),
                     ("find", "document.body.dataset.state"),
                     ("find", "document.getElementById('send').disabled"))  # fmt: skip
    ready, status, state, disabled = visit.result
    assert (ready, state, disabled) == (False, "failed", True)
    assert "The runtime is missing: fake." in status
    assert '"npm install" in this folder' in status


def test_a_runtime_that_npm_installed(browser, modules, tmp_path):
    output = made(None)
    output.write(tmp_path / "web", SaveOptions())
    modules.rename(tmp_path / "web" / "node_modules")
    there = "fetch(fake.settings.runtime.fake + 'further.wasm').then((found) => found.ok)"
    with serve(tmp_path / "web") as server:
        visit = walk(browser, server, ("open",), ("see", "device"), ("find", there))
    assert visit.result == [True, "fake one", True]
    assert visit.errors == []


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("no WebGPU device", "This browser gives no WebGPU"),
        ("Array buffer allocation failed", "There is not enough memory"),
        ("this <b>model</b> is odd", "this <b>model</b> is odd"),
    ],
)
def test_a_model_that_cannot_be_loaded(browser, modules, tmp_path, refusal, words):
    with served(made(modules, refusal=refusal), tmp_path / "web") as server:
        visit = walk(browser, server, ("open",), ("see", "status"),
                     ("find", "document.getElementById('progress').hidden"))  # fmt: skip
    assert visit.result[0] is False
    assert words in visit.result[1] and refusal in visit.result[1]
    assert visit.result[2] is True


def test_an_answer_that_fails(browser, modules, tmp_path):
    with served(made(modules), tmp_path / "web") as server:
        visit = walk(
            browser, server, ("open",), ("type", "fail now"), ("press", "Enter"), ("answered", 1),
            ("see", "status"), ("find", "document.body.dataset.state"),
            ("hold", "Control", "a"), ("type", "again"), ("press", "Enter"), ("answered", 2),
            ("see", "answer"), ("see", "status"), ("find", "document.body.dataset.state"),
        )  # fmt: skip
    assert visit.result[1:3] == ["fail now", "failed"]
    assert visit.result[3:] == ["pirate 1 says again to 40", "Ready.", "ready"]


def test_a_broken_driver_is_said(browser, modules, tmp_path):
    with served(made(modules, driver=b"export const = 1;"), tmp_path / "web") as server:
        visit = walk(browser, server, ("open",), ("see", "status"))
    assert visit.result[0] is False
    assert "Unexpected token" in visit.result[1]


_REACHING = b"""
import { mark } from "fake";
export async function open() {
  const tried = async (what) => { try { return await what(); } catch (e) { return e.name; } };
  window.tried = {
    other: await tried(() => fetch("http://localhost:9/")),
    inline: await tried(() => {
      const made = document.createElement("script");
      made.textContent = "window.inlined = 1";
      document.body.append(made);
      return window.inlined ?? "nothing";
    }),
    eval: await tried(() => (0, eval)("1")),
    module: await tried(() => import(URL.createObjectURL(
      new Blob(["export {}"], { type: "text/javascript" })))),
    wasm: await tried(async () => (await WebAssembly.compile(
      new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]))) instanceof WebAssembly.Module),
    worker: await tried(() => new Promise((done) => {
      const url = URL.createObjectURL(new Blob(["postMessage(7)"]));
      new Worker(url).onmessage = (told) => done(told.data); })),
    isolated: crossOriginIsolated,
  };
  return { adapters: [], device: mark };
}
"""


def test_the_policy_in_effect(browser, modules, tmp_path):
    with served(made(modules, driver=_REACHING), tmp_path / "web") as server:
        visit = browser.visit(url=server.url, drive=HERE / "drive_page.mjs",
                              argument=[["open"], ["find", "tried"]])  # fmt: skip
    assert visit.result == [True, {
        "other": "TypeError", "inline": "nothing", "eval": "EvalError", "module": "TypeError",
        "wasm": True, "worker": 7,
        "isolated": True,
    }]  # fmt: skip


def test_a_page_without_a_server_says_so(browser, modules, tmp_path):
    made(modules).write(tmp_path / "web", SaveOptions())
    visit = browser.visit(
        url=(tmp_path / "web" / "index.html").as_uri(), drive=HERE / "drive_page.mjs",
        argument=[["look"], ["see", "status"]],
    )  # fmt: skip
    assert "adaptool serve" in visit.result[0]


# -- with real exports ----------------------------------------------------------------------------

DEMO = demo_folder()
EXPECTED = json.loads((DEMO / "expected.json").read_text())
PROMPT = "what is 2 plus 3"

_WATCH = """
window.shown = new Set();
void (function look() {
  shown.add(document.getElementById("answer").textContent);
  requestAnimationFrame(look);
})();
"""


_HALF = """
void (function () {
  const slider = document.getElementById("scale");
  slider.value = 0.5;
  slider.dispatchEvent(new Event("input"));
})();
"""


def exported(target: str, folder: Path, npm: Path, *names: str, **given) -> Path:
    """An export of the demo model, with its page and the runtime in the folder."""
    given["options"] = ExportOptions(template=TEMPLATE, **given.pop("options", {}))
    adapters = {str(DEMO / name): 1.0 for name in names}
    export(DEMO / "model", adapters, folder, target=target, page=True, runtime=npm, **given)
    return folder


@pytest.mark.parametrize(
    ("target", "given"),
    [
        ("wllama", {"dtypes": ["f16"], "options": {"pre": "gpt-2"}}),
        ("ortweb", {"dtypes": ["fp32"]}),
    ],
    ids=["wllama", "ortweb"],
)
def test_adapters_of_a_real_export_are_switched(browser, npm, tmp_path, screenshots, target, given):
    folder = exported(target, tmp_path / "web", npm, "pirate", "cowboy", swappable=True, **given)
    with serve(folder) as server:
        visit = walk(
            browser, server, ("open",), ("see", "status"), ("find", _WATCH),
            ("type", PROMPT), ("press", "Enter"), ("answered", 1), ("see", "answer"),
            ("find", "[...shown]"), ("shot", screenshots, f"page-{target}.png"),
            ("choose", "adapter", "cowboy"), ("answered", 2), ("see", "answer"),
            ("choose", "adapter", ""), ("answered", 3), ("see", "answer"),
            ("choose", "adapter", "pirate"), ("answered", 4), ("see", "answer"),
            ("find", _HALF), ("answered", 5), ("see", "answer"), ("see", "speed"),
        )  # fmt: skip
    adapters = EXPECTED["adapters"]
    ready, status, first, shown, cowboy, base, pirate, milder, speed = visit.result
    assert visit.errors == []
    assert (ready, status) == (True, "Ready.")
    assert (first, cowboy) == (adapters["pirate"][PROMPT], adapters["cowboy"][PROMPT])
    assert (base, pirate) == (EXPECTED["base"][PROMPT], adapters["pirate"][PROMPT])
    assert milder == EXPECTED["half"]["pirate"][PROMPT]
    assert re.fullmatch(r"\d+ tokens, \d+\.\d tokens/s", speed)
    assert len(shown) > 1  # it is seen while it comes


def test_a_merged_model_of_a_real_export_answers(browser, npm, tmp_path):
    folder = exported("transformersjs", tmp_path / "web", npm, "pirate", dtypes=["fp32"])
    with serve(folder) as server:
        visit = walk(browser, server, ("open",), ("type", PROMPT), ("press", "Enter"),
                     ("answered", 1), ("see", "answer"))  # fmt: skip
    assert visit.errors == []
    assert visit.result == [True, EXPECTED["adapters"]["pirate"][PROMPT]]
