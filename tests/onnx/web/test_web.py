"""Slotted models in ONNX Runtime Web, by WASM in node: PEFT's results, switched at run time."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import Shelf, distance, inputs_of, tune
from slotted import Case, accurate, by_peft, decoded, make, past, run, session

from adaptool.jobs.converting import convert
from adaptool.jobs.slotting import make_slots
from adaptool.slots import EXTERNAL, INPUTS, SlotRequest

HERE = Path(__file__).parent
FILES = ("package.json", "adapter.mjs", "run.mjs")
CLOSE = 1e-5


@dataclass(frozen=True)
class Web:
    """A folder with ONNX Runtime Web in it."""

    folder: Path

    def run(
        self, model: Path, feeds: Mapping[str, np.ndarray], sessions: Sequence[Mapping[str, Any]]
    ) -> tuple[list[str], list[np.ndarray]]:
        """Names of the inputs that JavaScript sees, and the logits of every run."""
        plan = {
            "model": str(model), "output": "logits", "sessions": sessions,
            "feeds": {
                name: {"type": str(value.dtype), "dims": value.shape,
                       "values": value.reshape(-1).tolist()}
                for name, value in feeds.items()
            },
        }  # fmt: skip
        done = subprocess.run(
            ["node", "run.mjs"], cwd=self.folder, input=json.dumps(plan), check=False,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout)
        return found["names"], [np.array(one, np.float32) for one in found["results"]]


@pytest.fixture(scope="module")
def web(shelf: Shelf) -> Web:
    """ONNX Runtime Web, installed once for all processes of a run."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = shelf.root / "web"
    if not folder.exists():
        shelf.root.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=shelf.root))
        for name in FILES:
            shutil.copy(HERE / name, fresh)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime-web: {done.stderr.strip()[-300:]}")
        with contextlib.suppress(OSError):  # another process was faster
            fresh.rename(folder)
    return Web(folder)


def feeds_of(model: Path, name: str) -> dict[str, np.ndarray]:
    """What the model is run on, as far as it asks for it."""
    given = {key: value.numpy() for key, value in inputs_of(name).items()}
    given["attention_mask"] = np.ones_like(given["input_ids"])
    return {
        one.name: given[one.name] if one.name in given else past(one)
        for one in session(model).get_inputs()
        if "lora" not in one.name
    }


def adapters_of(case: Case, folder: Path, suffix: str) -> dict[Path, Path]:
    files = {one: folder / f"{one.name}.{suffix}" for one in (case.first, case.second)}
    for one, file in files.items():
        convert(one, file, graph=case.slotted)
    return files


def test_inputs_are_switched_in_one_session(web, shelf, tmp_path):
    case = make(shelf, tmp_path, "llama", "genai", mode=INPUTS)
    files = adapters_of(case, tmp_path, "onnx_adapter")
    pairs = [(case.first, 1.0), (case.second, 1.0), (case.first, 0.5), (case.second, 0.0)]
    runs = [{"adapter": str(files[one]), "scale": scale} for one, scale in pairs]
    model = case.slotted
    names, found = web.run(model, feeds_of(model, case.name), [{"data": [], "runs": runs}])
    assert {"lora_scale", "model.layers.0.self_attn.qkv_proj.lora_A.weight"} <= set(names)
    for (one, scale), logits in zip(pairs, found, strict=True):
        wanted = case.reference(one, scale)
        assert distance(logits.reshape(wanted.shape), wanted) < CLOSE
    base = run(session(case.plain), case.name)
    assert distance(found[-1].reshape(base.shape), base) < CLOSE


def test_a_data_file_is_exchanged_beside_an_int4_model(web, shelf, tmp_path):
    """What stock transformers.js can do: another file in `session_options.externalData`."""
    plain = accurate(shelf.exported("llama", "genai-int4"), tmp_path / "plain.onnx")
    base, slotted = shelf.base("llama"), tmp_path / "slotted"
    make_slots(plain, slotted, SlotRequest(EXTERNAL, 4))
    for name, options in (("first", {}), ("second", {"r": 2, "target_modules": ["v_proj"]})):
        tune("llama", base, tmp_path / name, **options)
        convert(tmp_path / name, tmp_path / f"{name}.onnx_slots", graph=slotted)
    files = [slotted / "plain.onnx_slots", tmp_path / "first.onnx_slots",
             tmp_path / "second.onnx_slots"]  # fmt: skip
    sessions = [{"data": [{"path": "plain.onnx_slots", "file": str(file)}],
                 "runs": [{"adapter": None, "scale": None}]} for file in files]  # fmt: skip
    model = slotted / "plain.onnx"
    names, found = web.run(model, feeds_of(model, "llama"), sessions)
    assert not [name for name in names if "lora" in name]
    native = run(session(plain), "llama")
    assert distance(found[0].reshape(native.shape), native) < CLOSE
    for name, logits in zip(("first", "second"), found[1:], strict=True):
        wanted = by_peft("llama", decoded(plain, base), tmp_path / name)
        assert distance(logits.reshape(wanted.shape), wanted) < CLOSE
