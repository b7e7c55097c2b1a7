"""`export` and `verify`, whatever the target: what is promised for all of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adaptool import targets
from adaptool.cli import main
from adaptool.containers import Output, modules
from adaptool.demonstration import demo_folder
from adaptool.errors import IncompatibleError, UsageError, VerificationError
from adaptool.jobs import exporting, verifying
from adaptool.jobs.exporting import ExportOptions, export
from adaptool.storage import Bytes, Extent, FilePlan
from adaptool.targets import Finding, Prepared, Request

DEMO = demo_folder()
MODEL, PIRATE, COWBOY, FORMAL = (DEMO / name for name in ("model", "pirate", "cowboy", "formal"))
OPTIONS = {field.name for field in fields(ExportOptions)}
OWN = {"scratch", "dtypes", "dry_run", "workers"}


class Fake:
    """A target that writes down what it was given."""

    summary = "for tests"
    options = frozenset({"part_size"})
    swappable = "by the test"
    packages = ()

    def __init__(self):
        self.dtypes = {"safetensors": ("small", "large"), "gguf": ("small",)}
        self.model = self.request = None

    def prepare(self, model, request):
        self.model, self.request = model, request
        scratch = request.scratch()
        assert scratch.is_dir()
        content = ",".join(sorted(model.checkpoint.tensors)).encode()
        plan = FilePlan("weights.bin", len(content), (Extent(0, Bytes(content)),))
        return Prepared(
            Output((plan,), is_folder=True), ("a note",), "load()", {"file": 1}, {"x": 2}
        )

    def verify(self, folder, library):
        return [Finding("weights", (folder / "weights.bin").read_bytes() != b"", "is empty")]


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    for module in (exporting, verifying):
        monkeypatch.setattr(module, "target_named", {"fake": made}.__getitem__)
        monkeypatch.setattr(module, "names", lambda: ("fake",))
    return made


# -- the job --------------------------------------------------------------------------------------


def test_a_target_gets_the_model_as_it_is(fake, tmp_path):
    report = export(MODEL, [], tmp_path / "web", target="fake")
    assert fake.model.path == MODEL
    assert fake.model.adapters == {}
    assert fake.request.dtypes == ("small",)
    assert report.dtypes == ("small",)
    assert report.notes == ("a note",)
    assert report.as_json()["x"] == 2
    assert {p.name for p in (tmp_path / "web").iterdir()} == {"weights.bin", "adaptool.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["web"]  # the scratch folder is gone


def test_touched_tensors_are_wide_and_others_as_stored(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_write", lambda files, folder, *_, **__: files.planned(folder))
    export(MODEL, {str(COWBOY): 0.5}, tmp_path / "web", target="fake")
    tensors = fake.model.checkpoint.tensors
    assert tensors["model.layers.0.self_attn.q_proj.weight"].kind == "float32"
    assert tensors["model.layers.0.mlp.up_proj.weight"].kind == "bfloat16"


def test_adapters_stay_apart(fake, tmp_path):
    export(MODEL, [(str(PIRATE), 0.5), (str(COWBOY), 0.5)], tmp_path / "web", target="fake",
           swappable=True)  # fmt: skip
    assert list(fake.model.adapters) == ["pirate", "cowboy"]
    assert fake.model.scale == 0.5
    assert fake.model.checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].stored
    record = json.loads((tmp_path / "web" / "adaptool.json").read_text())
    assert record["target"] == "fake"
    assert [one["role"] for one in record["inputs"]] == ["base", "adapter", "adapter"]
    assert record["files"] == {"weights.bin": (tmp_path / "web" / "weights.bin").stat().st_size}


def test_a_dry_run_writes_nothing(fake, tmp_path):
    report = export(MODEL, [(str(PIRATE), 1.0)], tmp_path / "web", target="fake", dry_run=True)
    assert fake.request.dry_run
    assert report.nbytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_changes_nothing_is_refused(fake, tmp_path, monkeypatch):
    """An adapter whose B is zero; the target reads what it was given."""
    adapter = tmp_path / "zero"
    shutil.copytree(COWBOY, adapter)
    factors = load_file(adapter / "adapter_model.safetensors")
    zeros = {k: v * 0 if "lora_B" in k else v for k, v in factors.items()}
    save_file(zeros, adapter / "adapter_model.safetensors", {"format": "pt"})
    prepare = fake.prepare

    def reading(model, request):
        for tensor in model.checkpoint.tensors.values():
            tensor.values()
        return prepare(model, request)

    monkeypatch.setattr(fake, "prepare", reading)
    with pytest.raises(IncompatibleError, match="none of the 8 touched"):
        export(MODEL, [(str(adapter), 1.0)], tmp_path / "web", target="fake")
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"target": "other"}, "unknown target 'other'"),
        ({"dtypes": ["medium"]}, "small, large"),
        ({"options": ExportOptions(pre="gpt-2")}, "--pre means nothing"),
        ({"options": ExportOptions(optimize=True)}, "--optimize means nothing"),
        ({"swappable": True}, "no adapter named"),
        ({"runtime": "node_modules"}, "--runtime is for the page"),
        ({"base_weights": "dequantized"}, "nothing is merged"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_refused(fake, tmp_path, more, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        export(MODEL, [], tmp_path / "web", **{"target": "fake", **more})
    assert list(tmp_path.iterdir()) == []


def test_a_match_is_for_onnx_models(tmp_path):
    with pytest.raises(UsageError, match="for ONNX models, model is none"):
        export(MODEL, [], tmp_path / "web", target="ortweb", options=ExportOptions(match=MODEL))


def test_two_scales_or_two_names_are_refused(fake, tmp_path):
    for pairs, message in (
        ([(str(PIRATE), 1.0), (str(COWBOY), 0.5)], "one --scale"),
        ([(str(PIRATE), 1.0), (str(PIRATE), 1.0)], "two adapters are called pirate"),
    ):
        with pytest.raises(UsageError, match=message):
            export(MODEL, pairs, tmp_path / "web", target="fake", swappable=True)


def test_a_target_says_which_models_it_takes(fake, tmp_path):
    fake.dtypes = {"gguf": ("small",)}
    with pytest.raises(IncompatibleError, match="model is safetensors, and fake takes gguf"):
        export(MODEL, [], tmp_path / "web", target="fake")


def test_an_output_is_replaced_with_force_only(fake, tmp_path):
    export(MODEL, [], tmp_path / "web", target="fake")
    with pytest.raises(Exception, match="exists already"):
        export(MODEL, [], tmp_path / "web", target="fake")
    export(MODEL, [], tmp_path / "web", target="fake", force=True)


# -- verify ---------------------------------------------------------------------------------------


def test_verify_finds_sizes_then_asks_the_target(fake, tmp_path):
    web = tmp_path / "web"
    export(MODEL, [], web, target="fake")
    found = verifying.verify(web)
    assert found.wrong == ()
    assert [one.what for one in found.findings][-1] == "weights"
    (web / "weights.bin").write_bytes(b"short")
    found = verifying.verify(web)
    assert len(found.wrong) == 1
    assert "5 bytes, written with" in found.wrong[0].detail
    with pytest.raises(VerificationError, match="weights"):
        found.require_right()
    (web / "weights.bin").unlink()
    assert verifying.verify(web).wrong[0].detail == "is missing"


def test_verify_follows_nothing_out_of_the_folder(fake, tmp_path):
    web = tmp_path / "web"
    export(MODEL, [], web, target="fake")
    record = json.loads((web / "adaptool.json").read_text())
    record["files"] = {"../../etc/passwd": 1}
    (web / "adaptool.json").write_text(json.dumps(record))
    with pytest.raises(Exception, match="not a plain relative name"):
        verifying.verify(web)


def test_verify_without_a_record_asks_for_the_target(fake, tmp_path):
    with pytest.raises(UsageError, match="names no target"):
        verifying.verify(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"1")
    assert verifying.verify(tmp_path, target="fake").wrong == ()


# -- every target ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", targets.names())
def test_what_a_target_says_of_itself(name):
    target = targets.target_named(name)
    assert target.summary
    assert target.dtypes
    assert set(target.dtypes) <= set(modules())
    assert all(target.dtypes.values())
    assert target.options <= {field.name for field in fields(Request)} - OWN
    assert target.options <= OPTIONS
    assert all(package.version and package.entry for package in target.packages)
    driver = Path(targets.__path__[0]) / name / "driver.js"
    assert "export async function open(" in driver.read_text()
    imported = set(re.findall(r'from "([^."][^"]*)"', driver.read_text()))
    assert imported <= {package.name for package in target.packages}


@pytest.mark.parametrize("name", targets.names())
def test_pages_pin_the_versions_that_are_tested(name):
    pinned = json.loads((Path(__file__).parent / "web" / "package.json").read_text())
    for package in targets.target_named(name).packages:
        assert pinned["dependencies"][package.name] == package.version


@pytest.mark.parametrize("name", targets.names())
def test_a_dry_run_of_every_target(name, tmp_path, capsys):
    more = {"wllama": ["--pre", "gpt-2"], "webllm": ["--conversation", "LM"]}.get(name, [])
    arguments = ["export", str(MODEL), str(PIRATE), "--target", name, "-o", str(tmp_path / "web")]
    assert main([*arguments, *more, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == name
    assert found["dry_run"] is True
    assert list(tmp_path.iterdir()) == []
