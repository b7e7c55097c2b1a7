"""Adapters merged inside ONNX files, beside PEFT's merge exported again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exports import MODELS, Shelf, Tuned, distance, outputs_of, run, tune
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from adaptool.canonical import DType
from adaptool.combination import Recipe
from adaptool.containers import open_checkpoint
from adaptool.errors import IncompatibleError, UsageError
from adaptool.jobs.converting import convert
from adaptool.jobs.merging import merge_files
from adaptool.jobs.reporting import MergeReport

slow = pytest.mark.slow
FP32, FP16 = 1e-5, 2e-3

QUICK = [
    ("llama", "torchscript"), ("llama-tied", "torchscript"), ("bert", "torchscript"),
    ("bert-classifier", "torchscript"), ("gpt2", "torchscript"), ("convolutions", "torchscript"),
    ("llama", "genai"), ("llama", "genai-apart"), ("llama-tied", "genai"), ("qwen2", "genai"),
    ("gemma", "genai"),
]  # fmt: skip
TRACED = [
    ("llama", "dynamo"), ("whisper", "dynamo"), ("convolutions", "dynamo"),
    ("bert-classifier", "huggingface"), ("bert", "fused"),
]  # fmt: skip
REST = [
    ("llama-tied", "dynamo"), ("qwen2", "dynamo"), ("gemma", "dynamo"), ("gpt2", "dynamo"),
    ("bert", "dynamo"), ("bert-classifier", "dynamo"), ("llama", "huggingface"),
    ("llama-tied", "huggingface"), ("qwen2", "huggingface"), ("gemma", "huggingface"),
    ("bert", "huggingface"), ("whisper", "huggingface"), ("convolutions", "huggingface"),
]  # fmt: skip


def merge(model: Path, tuned: Tuned, folder: Path, scale: float = 1.0, **more: Any) -> MergeReport:
    return merge_files(model, [(str(tuned.adapter), scale)], folder, threads=1, **more)


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


# -- every exporter -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "exporter"), QUICK)
def test_merge_equals_the_export_of_pefts_merge(
    shelf: Shelf, tmp_path: Path, name: str, exporter: str
) -> None:
    tuned = tune(name, shelf.base(name), tmp_path / "adapter")
    report = merge(shelf.exported(name, exporter), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", name)
    again = run(tuned.exported(exporter, tmp_path / "again"), name)
    assert distance(merged, again) < FP32
    assert (
        distance(again, run(shelf.exported(name, exporter), name)) > 0.05
    )  # it is no small change
    if (name, exporter) != ("gemma", "genai"):  # whose GELU is only near PyTorch's
        assert distance(merged, outputs_of(tuned.model, name)) < FP32
    assert report.survival is not None
    assert report.survival.ratio == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "exporter"), [*TRACED, *(pytest.param(*r, marks=slow) for r in REST)]
)
def test_merge_equals_pytorch(shelf: Shelf, tmp_path: Path, name: str, exporter: str) -> None:
    tuned = tune(name, shelf.base(name), tmp_path / "adapter")
    merge(shelf.exported(name, exporter), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", name)
    assert distance(merged, outputs_of(tuned.model, name)) < FP32


def test_half_precision(shelf: Shelf, tmp_path: Path) -> None:
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter")
    merge(shelf.exported("llama", "genai-f16"), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", "llama")
    again = run(tuned.exported("genai-f16", tmp_path / "again"), "llama")
    assert distance(merged, again) < FP16


def test_a_folder_keeps_what_lies_beside_the_model(shelf: Shelf, tmp_path: Path) -> None:
    model = shelf.exported("llama", "genai")
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter")
    merge(model.parent, tuned, tmp_path / "out")
    assert (tmp_path / "out" / "genai_config.json").read_bytes() == (
        model.parent / "genai_config.json"
    ).read_bytes()


def test_scales_add_up(shelf: Shelf, tmp_path: Path) -> None:
    """Half and half is one; a negative scale takes the adapter away again."""
    model = shelf.exported("llama", "torchscript")
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter")
    merge(model, tuned, tmp_path / "one")
    merge(model, tuned, tmp_path / "half", 0.5)
    merge(tmp_path / "half", tuned, tmp_path / "twice", 0.5)
    merge(tmp_path / "one", tuned, tmp_path / "none", -1.0)
    outputs = {
        f: run(tmp_path / f / "model.onnx", "llama") for f in ("one", "half", "twice", "none")
    }
    assert distance(outputs["twice"], outputs["one"]) < FP32
    assert distance(outputs["none"], run(model, "llama")) < FP32
    assert distance(outputs["half"], outputs["one"]) > 0.05


# -- embeddings, heads, norms, biases -------------------------------------------------------------


ENDS = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "saved head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "token rows": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "tied on purpose": {
        "target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("changed", ENDS)
@pytest.mark.parametrize("exporter", ["genai", "torchscript"])
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_ends_of_tied_and_untied_models(
    shelf: Shelf, tmp_path: Path, name: str, exporter: str, changed: str
) -> None:
    """PyTorch computes with the adapter beside the weights: PEFT's merge of one end moves both."""
    if name == "llama" and changed == "tied on purpose":
        pytest.skip("an untied model has nothing to tie")
    tuned = tune(name, shelf.base(name), tmp_path / "adapter", **ENDS[changed])
    report = merge(shelf.exported(name, exporter), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", name)
    assert distance(merged, outputs_of(tuned.model, name)) < FP32
    shared = name == "llama-tied" and exporter == "genai"
    untied = shared and changed in ("head", "embedding", "both", "saved head", "saved embedding")
    assert any("served 2 modules" in note for note in report.notes) == untied


def test_two_adapters_by_a_method(shelf: Shelf, tmp_path: Path) -> None:
    """What TIES makes of two adapters, merged into the graph and into the checkpoint."""
    base, model = shelf.base("llama"), shelf.exported("llama", "genai")
    pairs = [
        (str(tune("llama", base, tmp_path / name, target_modules=targets).adapter), 1.0)
        for name, targets in (("a", ["q_proj", "up_proj"]), ("b", ["q_proj", "v_proj"]))
    ]
    recipe = Recipe("ties", {"density": "0.5"}, "delta", factored=False)
    merge_files(model, pairs, tmp_path / "out", recipe=recipe, threads=1)
    merge_files(base, pairs, tmp_path / "merged", recipe=recipe, threads=1)
    expected = outputs_of(MODELS["llama"].read(tmp_path / "merged"), "llama")
    assert distance(run(tmp_path / "out" / "model.onnx", "llama"), expected) < FP32


def test_gguf_adapter(shelf: Shelf, tmp_path: Path) -> None:
    """llama.cpp's names and row order, told by the config.json that lies beside the graph."""
    base = shelf.base("llama")
    tuned = tune("llama", base, tmp_path / "adapter")
    convert(tuned.adapter, tmp_path / "adapter.gguf", base=base)
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(shelf.exported("llama", "torchscript"), folder)
    shutil.copy(base / "config.json", folder)
    merge_files(folder, [(str(tmp_path / "adapter.gguf"), 1.0)], tmp_path / "out", threads=1)
    merged = run(tmp_path / "out" / "model.onnx", "llama")
    assert distance(merged, outputs_of(tuned.model, "llama")) < FP32


@pytest.mark.parametrize("exporter", ["genai", "torchscript"])
def test_dora_on_packed_and_transposed_weights(shelf: Shelf, tmp_path: Path, exporter: str) -> None:
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter", use_dora=True)
    merge(shelf.exported("llama", exporter), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", "llama")
    assert distance(merged, outputs_of(tuned.model, "llama")) < FP32


def test_biases_of_packed_projections(shelf: Shelf, tmp_path: Path) -> None:
    tuned = tune("qwen2", shelf.base("qwen2"), tmp_path / "adapter", bias="all")
    merge(shelf.exported("qwen2", "genai"), tuned, tmp_path / "out")
    merged = run(tmp_path / "out" / "model.onnx", "qwen2")
    assert distance(merged, outputs_of(tuned.model, "qwen2")) < FP32


NORMS: dict[str, Any] = {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}


def test_a_norm_that_may_be_folded_needs_the_original(shelf: Shelf, tmp_path: Path) -> None:
    """Gemma multiplies by 1 + w, and the builder stores 1 + w under the name of w."""
    model, base = shelf.exported("gemma", "genai"), shelf.base("gemma")
    tuned = tune("gemma", base, tmp_path / "adapter", **NORMS)
    with pytest.raises(IncompatibleError, match="holds this norm as it is") as caught:
        merge(model, tuned, tmp_path / "out")
    assert "--match" in (caught.value.hint or "")
    merge(model, tuned, tmp_path / "out", match=base)
    merged = run(tmp_path / "out" / "model.onnx", "gemma")
    again = run(tuned.exported("genai", tmp_path / "again"), "gemma")
    assert distance(merged, again) < FP32


# -- names that do not tell -----------------------------------------------------------------------


def test_packed_anonymous_weights_are_found_by_value(shelf: Shelf, tmp_path: Path) -> None:
    model, base = shelf.exported("llama", "fused"), shelf.base("llama")
    tuned = tune("llama", base, tmp_path / "adapter")
    with pytest.raises(IncompatibleError, match="10 of 14 updates fit nowhere"):
        merge(model, tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(model, tuned, tmp_path / "out", match=base)
    merged = run(tmp_path / "out" / "model.onnx", "llama")
    assert distance(merged, outputs_of(tuned.model, "llama")) < FP32


def test_another_checkpoint_matches_nothing(shelf: Shelf, tmp_path: Path) -> None:
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter")
    with pytest.raises(IncompatibleError, match="holds this weight") as caught:
        merge(shelf.exported("llama", "genai"), tuned, tmp_path / "o", match=shelf.base("qwen2"))
    assert caught.value.code == "NO_MATCH"


def test_modules_that_the_graph_lacks_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    """The encoder alone was exported, without the pooler that the adapter changes too."""
    targets = ["query", "pooler.dense"]
    tuned = tune("bert", shelf.base("bert"), tmp_path / "adapter", target_modules=targets)
    with pytest.raises(IncompatibleError, match=r"first pooler\.dense\.weight"):
        merge(shelf.exported("bert", "torchscript"), tuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_of_other_containers_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    model, base = shelf.exported("llama", "torchscript"), shelf.base("llama")
    tuned = tune("llama", base, tmp_path / "adapter")
    with pytest.raises(UsageError, match="--match is for ONNX models"):
        merge(base, tuned, tmp_path / "out", match=base)
    with pytest.raises(UsageError, match="not the checkpoint"):
        merge(model, tuned, tmp_path / "out", match=model)
    with pytest.raises(UsageError, match="computes in its own types"):
        merge(model, tuned, tmp_path / "out", dtype="f16")
    assert not (tmp_path / "out").exists()


# -- quantised models -----------------------------------------------------------------------------


def nbits(source: Path, target: Path, **options: Any) -> None:
    quantiser = MatMulNBitsQuantizer(onnx.load(source), **options)
    quantiser.process()
    quantiser.model.save_model_to_file(str(target))


def int8(source: Path, target: Path, **options: Any) -> None:
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, **options)


QUANTISERS: dict[str, Any] = {
    "int4": (nbits, {"bits": 4, "block_size": 16, "is_symmetric": True}),
    "int4 with zero points": (nbits, {"bits": 4, "block_size": 32, "is_symmetric": False}),
    "int8 blocks": (nbits, {"bits": 8, "block_size": 16, "is_symmetric": True}),
    "int8 by tensor": (int8, {"op_types_to_quantize": ["MatMul"]}),
    "int8 by column": (int8, {"op_types_to_quantize": ["MatMul"], "per_channel": True}),
}


@pytest.mark.parametrize("scheme", QUANTISERS)
def test_original_weights_are_quantised_once_as_onnx_runtime_does(
    shelf: Shelf, tmp_path: Path, scheme: str
) -> None:
    """W + dW out of the checkpoint, in the bytes that the quantiser makes of PEFT's merge."""
    quantise, options = QUANTISERS[scheme]
    base = shelf.base("llama")
    tuned = tune("llama", base, tmp_path / "adapter")
    stored, again = tmp_path / "base" / "model.onnx", tmp_path / "again.onnx"
    stored.parent.mkdir()
    quantise(shelf.exported("llama", "torchscript"), stored, **options)
    quantise(tuned.exported("torchscript", tmp_path / "plain"), again, **options)
    merge(stored, tuned, tmp_path / "out", base_weights=base)
    merged, expected = initializers(tmp_path / "out" / "model.onnx"), initializers(again)
    levels = differing = 0
    names = _by_consumer(stored), _by_consumer(again)
    assert names[0].keys() == names[1].keys()
    for consumer, one in names[0].items():
        here, there = merged[one], expected[names[1][consumer]]
        assert here.shape == there.shape
        if here.dtype.kind == "f":
            np.testing.assert_allclose(here, there, rtol=1e-5, err_msg=one)
        else:
            levels += here.size
            differing += int((here != there).sum())
    assert levels > 10_000
    assert (
        differing <= levels // 1000
    )  # W + dW is summed in another order: a tie may fall elsewhere
    outputs = [run(path, "llama") for path in (tmp_path / "out" / "model.onnx", again)]
    assert distance(outputs[0], outputs[1]) < 0.02


def _by_consumer(path: Path) -> dict[tuple[str, int], str]:
    """Initializers of quantised products, by the node and input that take them."""
    graph = onnx.load(path).graph
    stored = {one.name for one in graph.initializer}
    return {
        (node.name, port): name
        for node in graph.node
        if node.op_type in ("MatMulNBits", "MatMulInteger")
        for port, name in enumerate(node.input)
        if name in stored
    }


def test_builders_int4_model(shelf: Shelf, tmp_path: Path) -> None:
    base = shelf.base("llama")
    tuned = tune("llama", base, tmp_path / "adapter")
    model = shelf.exported("llama", "genai-int4")
    merge(model, tuned, tmp_path / "out", base_weights=base)
    again = initializers(tuned.exported("genai-int4", tmp_path / "again"))
    merged = initializers(tmp_path / "out" / "model.onnx")
    assert merged.keys() == again.keys()
    for name, values in merged.items():
        if name.endswith("_Q4"):
            assert (values != again[name]).mean() < 1e-3, name


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_a_shared_int4_weight_becomes_two(shelf: Shelf, tmp_path: Path, target: str) -> None:
    """One end reads the packed weight through a Reshape; the other keeps its very values."""
    model, base = shelf.exported("llama-tied", "genai-int4-shared"), shelf.base("llama-tied")
    tuned = tune("llama-tied", base, tmp_path / "adapter", target_modules=[target])
    merge(model, tuned, tmp_path / "out", base_weights=base)
    before = initializers(model)["lm_head.MatMul.weight_Q4"]
    after = [
        one
        for one in initializers(tmp_path / "out" / "model.onnx").values()
        if one.shape == before.shape
    ]
    assert sorted(np.array_equal(one, before) for one in after) == [False, True]
    merged = run(tmp_path / "out" / "model.onnx", "llama-tied")
    wanted = outputs_of(tuned.model, "llama-tied")
    noise = distance(
        run(model, "llama-tied"), outputs_of(MODELS["llama-tied"].read(base), "llama-tied")
    )
    assert distance(merged, wanted) < 2 * noise < distance(run(model, "llama-tied"), wanted)


def _small(shelf: Shelf, folder: Path) -> Tuned:
    """An adapter whose update is about 1 % of the weights."""
    tuned = tune("llama", shelf.base("llama"), folder)
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    factors = load_file(file)
    save_file({k: v * 0.01 if "lora_B" in k else v for k, v in factors.items()}, file)
    return tuned


def test_a_small_update_does_not_vanish_in_silence(shelf: Shelf, tmp_path: Path) -> None:
    """Rounded to the nearest it is lost; each way out keeps it."""
    model, base = shelf.exported("llama", "genai-int4"), shelf.base("llama")
    tuned = _small(shelf, tmp_path / "adapter")
    with pytest.raises(IncompatibleError, match="of the update would survive") as caught:
        merge(model, tuned, tmp_path / "lost")
    hint = caught.value.hint or ""
    assert all(way in hint for way in ("--base-weights", "stochastic", "--dtype", "slots"))
    assert not (tmp_path / "lost").exists()
    lost = merge(model, tuned, tmp_path / "lost", allow_loss=True)
    assert lost.survival is not None
    assert (lost.survival.ratio or 0) < 0.5
    for folder, options in (
        ("noisy", {"rounding": "stochastic", "seed": 3}),
        ("once", {"base_weights": base}),
        ("wide", {"dtype": "f32"}),
    ):
        report = merge(model, tuned, tmp_path / folder, **options)
        assert report.survival is not None
        assert report.survival.ratio == pytest.approx(1, abs=0.3), folder


def test_wide_output_computes_with_the_decoded_weights(shelf: Shelf, tmp_path: Path) -> None:
    """--dtype f32: the touched weights are plain, and everything else is as it was."""
    model = shelf.exported("llama", "genai-int4")
    tuned = tune("llama", shelf.base("llama"), tmp_path / "adapter")
    merge(model, tuned, tmp_path / "wide", dtype="f32")
    undone = merge(tmp_path / "wide", tuned, tmp_path / "undone", -1.0)
    assert undone.touched == 10
    before = open_checkpoint(model).tensors
    after = open_checkpoint(tmp_path / "undone").tensors
    assert before.keys() <= after.keys()
    for name, tensor in before.items():
        if tensor.encoding is not None:
            assert after[name].dtype is DType.FLOAT32
            torch.testing.assert_close(after[name].values(), tensor.values(), rtol=0, atol=1e-6)
    outputs = [run(path, "llama") for path in (model, tmp_path / "undone" / "model.onnx")]
    assert distance(*outputs) < 0.05  # the packed kernel rounds activations to int8
