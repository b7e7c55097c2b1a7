"""The same model as other libraries store it, merged here and by PEFT on what they load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft  # noqa: TID251
import pytest
import torch
import transformers as tf  # noqa: TID251
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from transformers.integrations.finegrained_fp8 import Fp8Quantize  # noqa: TID251

from adaptool.containers import open_checkpoint
from adaptool.encodings.checkpoints import dequantised
from adaptool.jobs.merging import merge_files
from tests.quantised.models import Tensors, read_tensors, write_plain, write_settings

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def quantise(folder: Path, plain: Path, settings: dict[str, Any],
             store: Callable[[str, torch.Tensor], Tensors]) -> Path:  # fmt: skip
    """The plain model with every linear module as `store` makes it."""
    tensors: Tensors = {}
    for name, tensor in read_tensors(plain).items():
        module = name.removesuffix(".weight")
        tensors |= store(module, tensor) if module.endswith(LINEAR) else {name: tensor}
    config = json.loads((plain / "config.json").read_text())
    return write_settings(folder, tensors, settings, config)


def compressed(folder: Path, plain: Path, name: str, args: dict[str, Any]) -> Path:
    compressor = (
        PackedQuantizationCompressor if name == "pack-quantized" else NaiveQuantizationCompressor
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    top = 448 if args["type"] == "float" else (1 << args["num_bits"] - 1) - 1
    width = args.get("group_size")

    def store(module: str, weight: torch.Tensor) -> Tensors:
        grouped = weight.float().unflatten(1, (-1, width or weight.shape[1]))
        scale = (grouped.abs().amax(2) / top).to(weight.dtype)
        state = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
        return {f"{module}.{part}": tensor for part, tensor in state.items()}

    settings = {
        "quant_method": "compressed-tensors", "format": name, "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
    }  # fmt: skip
    return quantise(folder, plain, settings, store)


def fp8(folder: Path, plain: Path) -> Path:
    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt=None)
    library = Fp8Quantize(SimpleNamespace(quantization_config=config))

    def store(module: str, weight: torch.Tensor) -> Tensors:
        if weight.shape[0] % 128:  # below a block, transformers stores a weight as it is
            return {f"{module}.weight": weight}
        return dict(library.convert({f"{module}.weight": weight}))

    settings = {"quant_method": "fp8", "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                "modules_to_not_convert": ["lm_head", "k_proj", "v_proj"]}  # fmt: skip
    return quantise(folder, plain, settings, store)


GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
CHANNEL = {"num_bits": 8, "symmetric": True, "strategy": "channel"}
CASES: dict[str, tuple[Callable[[Path, Path], Path], Any]] = {
    "pack-quantized": (
        lambda f, p: compressed(f, p, "pack-quantized", GROUP),
        lambda: tf.CompressedTensorsConfig(run_compressed=False),
    ),
    "int-quantized": (
        lambda f, p: compressed(f, p, "int-quantized", {**CHANNEL, "type": "int"}),
        lambda: tf.CompressedTensorsConfig(run_compressed=False),
    ),
    "float-quantized": (
        lambda f, p: compressed(f, p, "float-quantized", {**CHANNEL, "type": "float"}),
        lambda: tf.CompressedTensorsConfig(run_compressed=False),
    ),
    "fp8": (fp8, lambda: tf.FineGrainedFP8Config(dequantize=True)),
}  # fmt: skip


def inputs() -> torch.Tensor:
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(2))


def adapter(model: Any, folder: Path, **how: Any) -> Path:
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **how))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tuned.save_pretrained(folder)
    return folder


def check_logits(merged: Path, loaded: Any, lora: Path) -> None:
    """The merged model speaks as PEFT's merge into what the library loaded."""
    expected = peft.PeftModel.from_pretrained(loaded.float(), lora).merge_and_unload()
    got = tf.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    with torch.no_grad():
        one, two = got(inputs()).logits, expected(inputs()).logits
    assert (one - two).abs().max() < 1e-4 * two.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write, settings = CASES[name]
    plain = write_plain(tmp_path / "plain")
    base = write(tmp_path / "base", plain)
    loaded = tf.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=settings(), device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    decoded = dequantised(open_checkpoint(base)).tensors
    state = loaded.state_dict()
    for key, tensor in decoded.items():
        assert torch.equal(state[key], tensor.values()), key
    plain_model = tf.AutoModelForCausalLM.from_pretrained(plain)
    lora = adapter(plain_model, tmp_path / "lora", target_modules=["q_proj", "down_proj"])
    merge_files(base, {str(lora): 1.0}, tmp_path / "merged", dtype="f32")
    check_logits(tmp_path / "merged", loaded, lora)
    if name != "pack-quantized":
        report = merge_files(base, {str(lora): 1.0}, tmp_path / "again", requantize=True)
        assert report.survival is not None
        assert (report.survival.ratio or 0) > 0.9
        before, after = read_tensors(base), read_tensors(tmp_path / "again")
        assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
            n: (t.shape, t.dtype) for n, t in after.items()
        }


def gpt_oss(folder: Path) -> Path:
    """A tiny gpt-oss whose experts are stored in MXFP4."""
    config = tf.GptOssConfig(
        hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=96, num_local_experts=4,
        num_experts_per_tok=2, max_position_embeddings=64, sliding_window=32,
    )  # fmt: skip
    torch.manual_seed(0)
    tf.GptOssForCausalLM(config).bfloat16().save_pretrained(folder / "plain")
    tensors: Tensors = {}
    for name, tensor in read_tensors(folder / "plain").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = tensor
            continue
        experts, width, out = tensor.shape
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (experts, out, width // 32, 16), dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.randint(
            119, 123, (experts, out, width // 32), dtype=torch.uint8
        )
    content = json.loads((folder / "plain" / "config.json").read_text())
    return write_settings(folder / "base", tensors, {"quant_method": "mxfp4"}, content)


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base = gpt_oss(tmp_path)
    loaded = tf.AutoModelForCausalLM.from_pretrained(
        base, quantization_config=tf.Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    state = loaded.state_dict()
    for key, tensor in dequantised(open_checkpoint(base)).tensors.items():
        assert torch.equal(state[key], tensor.values()), key
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    lora = adapter(
        plain, tmp_path / "lora", target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    merge_files(base, {str(lora): 1.0}, tmp_path / "merged", dtype="f32")
    check_logits(tmp_path / "merged", loaded, lora)
    report = merge_files(base, {str(lora): 1.0}, tmp_path / "again", requantize=True)
    assert report.survival is not None
    assert (report.survival.ratio or 0) > 0.5
    again = tf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", quantization_config=tf.Mxfp4Config(dequantize=True)
    )
    with torch.no_grad():
        assert again(inputs()).logits.isfinite().all()
