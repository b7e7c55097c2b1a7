"""Every type that PEFT has: what is said of its configuration alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # noqa: TID251
from peft.utils.peft_types import PeftType  # noqa: TID251

from adaptool.tuners import names
from adaptool.tuners._unmergeable import UNMERGEABLE

from .matrix import build, exit_code
from .test_younger_merges import CASES

if TYPE_CHECKING:
    from pathlib import Path

TYPES = [kind.value for kind in PeftType]


def write(folder: Path, peft_type: str, **more: object) -> None:
    config = {"peft_type": peft_type, "base_model_name_or_path": "some/base", **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def test_each_type_is_known_once() -> None:
    read = {"LORA", *names()}
    assert read | set(UNMERGEABLE) == set(TYPES)
    assert not read & set(UNMERGEABLE)


@pytest.mark.parametrize("peft_type", TYPES)
def test_inspect_says_what_it_is(
    peft_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, peft_type)
    assert exit_code("inspect", tmp_path, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == peft_type.lower()
    assert facts["base"] == "some/base"
    assert facts["mergeable"] == (peft_type not in UNMERGEABLE)
    assert facts["reason"] == UNMERGEABLE.get(peft_type)
    assert any("adapter_config.json" in note for note in facts["notes"])


@pytest.mark.parametrize("peft_type", TYPES)
def test_inspect_reads_what_peft_writes(
    peft_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all of PEFT's own defaults written out."""
    try:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]()
    except (ImportError, TypeError, ValueError):  # it has to be told something, or needs more
        pytest.skip("no configuration of defaults alone")
    config.save_pretrained(tmp_path)
    assert exit_code("inspect", tmp_path) == 0
    shown = capsys.readouterr().out
    assert peft_type.lower() in shown
    assert ("cannot be merged" in shown) == (peft_type in UNMERGEABLE)


def test_a_type_of_the_future_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "QUANTUM_LORA")
    assert exit_code("inspect", tmp_path) == 4
    assert "QUANTUM_LORA" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["merge", "convert"])
def test_a_configuration_alone_is_no_adapter(command: str, tmp_path: Path) -> None:
    write(tmp_path, "HRA")
    words = ["merge", tmp_path, tmp_path] if command == "merge" else ["convert", tmp_path]
    assert exit_code(*words, "-o", tmp_path / "out") != 0
    assert not (tmp_path / "out").exists()


def test_types_are_known_without_torch() -> None:
    """`inspect` reads headers: looking at an adapter costs no heavy import."""
    driver = (
        "import sys; from adaptool.tuners import names, tuner_of;"
        "assert all(tuner_of(name) for name in names());"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", driver], check=True)


def test_the_base_of_pissa_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = build(CASES["pissa"], tmp_path)
    assert exit_code("inspect", built.adapter) == 0
    assert "residual" in capsys.readouterr().out
