"""Adapters of PEFT's other types on tiny models, merged here and by PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model  # noqa: TID251
from torch import nn
from zoo.models import BASES, Tensors, read_tensors
from zoo.recipes import forward

from adaptool.cli import main

Fill = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
"""`fill(name, value, noise)`: the value that a trained parameter gets."""


def add_noise(name: str, value: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What suits most parameters, whether they begin at 0 or at 1."""
    del name
    return value + 0.2 * noise


_SAVED = ".modules_to_save.default."


@dataclass(frozen=True)
class Case:
    """One adapter on one base.

    Attributes:
        base: name in the zoo.
        config: makes PEFT's configuration.
        fill: gives the trained parameters values that matter.
        save: arguments of save_pretrained for the adapter.
        within: largest error, relative to the largest value of a tensor.
    """

    base: str
    config: Callable[[], PeftConfig]
    fill: Fill = add_noise
    save: dict[str, Any] = field(default_factory=dict)
    within: float = 1e-6


@dataclass(frozen=True)
class Built:
    """Folders, and the tensors that a merge must write."""

    base: Path
    adapter: Path
    expected: Tensors


@contextmanager
def quiet() -> Iterator[None]:
    """Without PEFT's advice, and on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)


def build(case: Case, folder: Path, dtype: torch.dtype = torch.float32) -> Built:
    """Write base and adapter, and let PEFT merge them: into what its unmerged forward computes."""
    base, adapter = folder / "base", folder / "adapter"
    kind = BASES[case.base]
    with quiet():
        kind.write(base, dtype)
        torch.manual_seed(1)
        model = get_peft_model(kind.read(base, dtype), case.config())
        _fill(model, case.fill)
        model.save_pretrained(adapter, **case.save)
        adapted = PeftModel.from_pretrained(kind.read(base, dtype), adapter).eval()
        before = forward(adapted, kind)
        merged = adapted.merge_and_unload()
        if dtype == torch.float32:
            torch.testing.assert_close(forward(merged, kind), before, atol=1e-4, rtol=1e-4)
        return Built(base, adapter, _tensors(merged, kind.loader is not None, folder / "expected"))


def _fill(model: nn.Module, fill: Fill) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(fill(name, parameter.float(), noise))


def _tensors(merged: nn.Module, saves_itself: bool, folder: Path) -> Tensors:
    if not saves_itself:
        return {name: tensor.clone() for name, tensor in merged.state_dict().items()}
    merged.save_pretrained(folder)
    tensors = read_tensors(folder).items()  # PEFT leaves a head wrapped that LN tuning trained
    return {n.replace(_SAVED, "."): t for n, t in tensors if ".original_module." not in n}


def merged(built: Built, out: Path, *options: str) -> Tensors:
    """What adaptool writes."""
    assert exit_code("merge", built.base, built.adapter, *options, "-o", out) == 0
    return read_tensors(out)


def exit_code(*arguments: object) -> int:
    """Run a command in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def check(case: Case, built: Built, actual: Tensors) -> None:
    """The expected names, types and values; and something did change."""
    base = read_tensors(built.base)
    assert set(actual) >= set(built.expected)
    assert set(actual) <= set(built.expected) | set(base)
    changed = 0
    for name, want in built.expected.items():
        got = actual[name]
        assert (got.shape, got.dtype) == (want.shape, want.dtype), name
        if torch.equal(want, base[name]):
            assert torch.equal(got, want), f"{name}: changed, but no adapter touches it"
            continue
        changed += 1
        bound = case.within if want.dtype == torch.float32 else 2**-8
        error = (got.double() - want.double()).abs().max() / want.double().abs().max()
        assert error <= bound, f"{name}: {error:.3g}"
    assert changed


def check_half(built: Built, half: Tensors) -> None:
    """Scale 0.5 is the midpoint of the base and the full merge."""
    base = read_tensors(built.base)
    for name, full in built.expected.items():
        middle = (base[name].double() + full.double()) / 2
        torch.testing.assert_close(half[name].double(), middle, atol=2e-6, rtol=1e-5)
