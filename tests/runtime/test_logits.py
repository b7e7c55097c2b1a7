"""llama.cpp computes with our files what transformers and PEFT compute with the originals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from .commands import adapter_file, merged_file, model_file, run
from .llama import logits
from .zoo import CASES, HEADLESS, TOKENS, Built

RUNNABLE = [name for name, case in CASES.items() if not case.unable]
UNABLE = [name for name, case in CASES.items() if case.unable]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Library:
    """Cases and their base models as GGUF, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.built: dict[str, Built] = {}
        self.models: dict[str, Path] = {}

    def case(self, name: str) -> Built:
        if name not in self.built:
            self.built[name] = CASES[name].build(self.folder / name)
        return self.built[name]

    def model(self, name: str) -> Path:
        built = self.case(name)
        if built.case.base not in self.models:
            path = self.folder / f"{built.case.base}.gguf"
            self.models[built.case.base] = model_file(built.base, path)
        return self.models[built.case.base]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return Library(tmp_path_factory.mktemp("library"))


def check(actual: np.ndarray, built: Built, scale: float) -> None:
    """Logits agree, and the adapter is the reason."""
    expected, base = built.expected(scale), built.expected(0)
    size = np.abs(expected).max()
    assert np.abs(expected - base).max() > 0.1 * size
    assert np.abs(actual - expected).max() < built.case.model.tolerance * size


@pytest.mark.parametrize("name", sorted({case.base: name for name, case in CASES.items()}.values()))
def test_model(library: Library, name: str) -> None:
    built = library.case(name)
    expected = built.expected(0)
    error = np.abs(logits(library.model(name), TOKENS) - expected).max()
    assert error < built.case.model.tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", RUNNABLE)
def test_adapter_beside_the_model(library: Library, name: str, tmp_path: Path) -> None:
    built, model = library.case(name), library.model(name)
    adapter = adapter_file(built.adapter, built.base, tmp_path / "adapter.gguf")
    for scale in (1.0, 0.5):
        check(logits(model, TOKENS, [(adapter, scale)]), built, scale)


@pytest.mark.parametrize("name", CASES)
def test_merged_model(library: Library, name: str, tmp_path: Path) -> None:
    built, model = library.case(name), library.model(name)
    for scale in (1.0, 0.5) if built.case.half else (1.0,):
        path = tmp_path / f"{scale}.gguf"
        merged_file(model, built.adapter, path, "--scale", scale)
        check(logits(path, TOKENS), built, scale)


@pytest.mark.parametrize("name", UNABLE)
def test_what_llama_cpp_cannot_run_is_not_written(
    library: Library, name: str, tmp_path: Path
) -> None:
    built, path = library.case(name), tmp_path / "adapter.gguf"
    assert run("convert", built.adapter, "--base", built.base, "-o", path) == 4
    assert not path.exists()


@pytest.mark.parametrize("name", HEADLESS)
def test_a_head_of_its_own_that_llama_cpp_would_not_read(name: str, tmp_path: Path) -> None:
    built = HEADLESS[name].build(tmp_path / "case")
    model = model_file(built.base, tmp_path / "model.gguf")
    assert run("merge", model, built.adapter, "-o", tmp_path / "merged.gguf") == 4
    assert not (tmp_path / "merged.gguf").exists()
