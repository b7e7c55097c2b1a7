"""The same adapter merged into a GGUF model, and into the checkpoint before it was converted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from test_gguf_merge import LAYERS, LINEARS, hugging_face, made, opened, saved

from adaptool.canonical import Adapter, Site
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.conversion import to_gguf
from adaptool.merging import merge

from .test_formulas import noise, read

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adaptool.canonical import Update

MAKERS: dict[str, Callable[[int, int], dict[str, Update]]] = {
    "ia3-in": lambda out, into: read("IA3", {"ia3_l": noise(1, into)}),
    "ia3-out": lambda out, into: read("IA3", {"ia3_l": noise(out, 1)}),
    "loha": lambda out, into: read(
        "LOHA",
        {
            f"hada_w{n}_{s}": noise(*((out, 2) if s == "a" else (2, into)))
            for n in "12"
            for s in "ab"
        },
    ),
    "oft": lambda out, into: read("OFT", {"oft_R.weight": 0.1 * noise(into // 8, 28)}),
    "vera": lambda out, into: read(
        "VERA",
        {"vera_lambda_b": noise(out), "vera_lambda_d": noise(4)},
        r=4,
        save_projection=False,
    ),
    "fourier": lambda out, into: read("FOURIERFT", {"fourierft_spectrum": noise(50)}),
}


def adapter(maker: str) -> Adapter:
    updates = {
        Site(f"model.layers.{layer}.{name}", parameter): update
        for layer in range(LAYERS)
        for name, size in LINEARS.items()
        for parameter, update in MAKERS[maker](*size).items()
    }
    return replace(made({}), updates=updates)


@pytest.mark.parametrize("maker", MAKERS)
def test_both_ways_agree(maker: str, tmp_path: Path) -> None:
    found, scale = adapter(maker), 0.5
    base = open_checkpoint(saved(tmp_path / "base.gguf", "f32"))
    save_checkpoint(merge(base, [(found, scale)]).checkpoint, tmp_path / "a.gguf", SaveOptions())
    first = merge(hugging_face(), [(found, scale)]).checkpoint
    model = to_gguf(first, outtype="f32", vocabulary=None)
    save_checkpoint(model, tmp_path / "b.gguf", SaveOptions())
    one, other = opened(tmp_path / "a.gguf"), opened(tmp_path / "b.gguf")
    before = opened(tmp_path / "base.gguf")
    assert set(one) == set(other)
    assert sum(not torch.equal(one[name], before[name]) for name in one) == LAYERS * len(LINEARS)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)
