"""Adapters of other types as plain LoRAs, run by llama.cpp beside the model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, OFTConfig, PeftModel, get_peft_model  # noqa: TID251

from .commands import adapter_file, model_file
from .llama import logits
from .models import MODELS
from .zoo import TOKENS, forward, load

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftConfig  # noqa: TID251

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, tuple[PeftConfig, tuple[object, ...]]] = {
    "loha": (LoHaConfig(r=4, alpha=6, target_modules=ALL), ()),
    "oft": (OFTConfig(r=0, oft_block_size=8, target_modules=ALL), ("--rank", 999)),
    "ia3": (IA3Config(target_modules=ALL, feedforward_modules=["down_proj"]), ("--rank", 999)),
}
"""Configurations, and the ranks at which nothing is lost."""


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_peft_does(kind: str, tmp_path: Path) -> None:
    base, adapter, model = tmp_path / "base", tmp_path / "adapter", MODELS["llama"]
    config, ranks = KINDS[kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.write(base)
        tuned = get_peft_model(load(base), config)
        generator = torch.Generator().manual_seed(2)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(noise, alpha=0.2)
        tuned.save_pretrained(adapter)
        before = forward(load(base))
        expected = forward(PeftModel.from_pretrained(load(base), adapter).eval())
    torch.set_num_threads(threads)
    plain = adapter_file(adapter, base, tmp_path / "plain.gguf", "--to", "lora", *ranks)
    actual = logits(model_file(base, tmp_path / "model.gguf"), TOKENS, [(plain, 1.0)])
    size = np.abs(expected).max()
    assert np.abs(expected - before).max() > 0.05 * size
    assert np.abs(actual - expected).max() < model.tolerance * size
