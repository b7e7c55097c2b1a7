"""Parameters as transformers has them in memory, which is how adapters of today name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf  # noqa: TID251
from safetensors.torch import save_file

from adaptool.architectures.gguf import layout_of

from .laying import Case, cases, digest, laid_out, numbered

ELSEWHERE = {
    "baichuan", "chatglm", "deepseek", "ernie4_5_fused", "exaone", "internlm2", "internlm3",
    "minicpm", "minicpm3", "nomic_bert", "qwen",
}  # fmt: skip
"""Models whose code comes with their weights."""
CASES = {name: case for name, case in cases().items() if name not in ELSEWHERE}
ENCODERS = {"bert", "roberta", "xlm-roberta"}
HEADLESS = {"gemma", "gemma2", "cohere", "cohere2", "lfm2_moe"}
"""Models whose head is the embedding; the runtime has no tensor for another."""


def loaded(case: Case, folder: Path, *, encoder: bool) -> dict[str, torch.Tensor]:
    """State of the model that transformers makes of the numbered file."""
    given = {key: value for key, value in case.config.items() if key != "model_type"}
    config = tf.AutoConfig.for_model(case.config["model_type"], **given)
    folder.joinpath("config.json").write_text(json.dumps(config.to_dict(), default=str))
    values = {name: value.float() for name, value in numbered(case.parameters).items()}
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    auto = tf.AutoModel if encoder else tf.AutoModelForCausalLM
    model = auto.from_pretrained(folder, config=config, dtype=torch.float32)
    return {name: value.double() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_in_memory_is_placed(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    layout = layout_of(case.config)
    state = loaded(case, tmp_path, encoder=name in ENCODERS)
    if layout.head not in case.parameters:
        state.pop("lm_head.weight", None)  # tied
        assert bool(layout.place("lm_head.weight")) is not (name in HEADLESS | ENCODERS)
    assert [p for p in state if not layout.place(p) and p not in case.dropped] == []
    shapes = {tensor: shape for tensor, (shape, _) in case.tensors.items()}
    stored = laid_out(state, layout, shapes)
    assert {t: digest(v) for t, v in stored.items()} == {t: d for t, (_, d) in case.tensors.items()}
