"""Traced graphs in the dtypes of transformers.js: what they say, how far off, how large."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers as tf  # noqa: TID251
from onnx import TensorProto, helper, numpy_helper
from peft import PeftModel  # noqa: TID251

from adaptool.canonical import DType
from adaptool.demonstration import demo_folder
from adaptool.errors import UsageError, VerificationError
from adaptool.targets import _precision
from adaptool.targets._precision import PRECISIONS, with_precision
from adaptool.tracing import Traced, graph, run_of, trace

torch.set_num_threads(1)
DEMO = demo_folder()
EXPECTED = json.loads((DEMO / "expected.json").read_text())
PIRATE = EXPECTED["adapters"]["pirate"]
END = 2

KINDS = {
    "fp32": {},
    "fp16": {},
    "q8": {"MatMulInteger": 15},
    "int8": {"MatMulInteger": 15},
    "uint8": {"MatMulInteger": 15},
    "q4": {"MatMulNBits": 15},
    "q4f16": {"MatMulNBits": 15},
    "bnb4": {"MatMulBnb4": 15},
}
"""Operators of the demo: seven modules in each of two layers, and the head, which is tied."""
ERRORS = {
    "fp32": 2e-6, "fp16": 3e-3, "q8": 0.1, "int8": 0.1, "uint8": 0.1, "q4": 0.2, "q4f16": 0.2,
    "bnb4": 0.2,
}  # fmt: skip
"""Allowed in the demo's logits, as a part of their norm."""


@pytest.fixture(scope="session")
def pirates(tmp_path_factory) -> dict[DType, Traced]:
    """The demo with its pirate merged by PEFT, traced in both types."""
    root = tmp_path_factory.mktemp("pirates")
    model = tf.AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, DEMO / "pirate").merge_and_unload()
    found = {}
    for dtype in (DType.FLOAT32, DType.FLOAT16):
        folder, into = root / f"{dtype}-model", root / f"{dtype}-graph"
        into.mkdir()
        merged.to(dtype.torch).save_pretrained(folder)
        found[dtype] = trace(folder, into, dtype=dtype)
    return found


@pytest.fixture(scope="session")
def exact(pirates) -> tf.LlamaForCausalLM:
    folder = pirates[DType.FLOAT32].model.parents[1] / "float32-model"
    return tf.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def words() -> tf.PreTrainedTokenizerBase:
    return tf.AutoTokenizer.from_pretrained(DEMO / "model")


def inputs_for(ids: torch.Tensor, traced: Traced, past: int = 0) -> dict[str, torch.Tensor]:
    sizes = {"batch_size": 1, "past_sequence_length": 0}
    total = past + ids.shape[1]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones((1, total), dtype=torch.int64),
        "position_ids": torch.arange(past, total)[None],
        **{port.name: port.empty(sizes) for port in traced.inputs if "past" in port.name},
    }


def answer(run, ids: torch.Tensor, traced: Traced, count: int) -> list[int]:
    """Greedy, on the cache."""
    said: list[int] = []
    cache: dict[str, torch.Tensor] = {}
    past = 0
    while len(said) < count:
        out = run({**inputs_for(ids, traced, past), **cache})
        past += ids.shape[1]
        token = int(out.pop("logits")[0, -1].argmax())
        if token == END:
            break
        said.append(token)
        ids = torch.tensor([[token]])
        cache = {name.replace("present", "past_key_values"): v for name, v in out.items()}
    return said


def prompt(words, question: str) -> torch.Tensor:
    text = EXPECTED["template"].format(prompt=question)
    return words(text, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_pirate_stays_a_pirate(name, pirates, words, exact, tmp_path):
    precision = PRECISIONS[name]
    traced = pirates[precision.traced]
    path = with_precision(traced.model, name, tmp_path, stem="decoder")
    assert path == tmp_path / f"decoder{precision.suffix}.onnx"
    assert [*tmp_path.iterdir()] == [path]
    run = run_of(path)
    said = {
        question: words.decode(answer(run, prompt(words, question), traced, 40)).strip()
        for question in PIRATE
    }
    right = [question for question in PIRATE if said[question] == PIRATE[question]]
    print(name, len(right), {q: text for q, text in said.items() if q not in right})
    assert len(right) >= (6 if name in ("fp32", "fp16") else 5)

    ids = prompt(words, "what colour is the sky")
    with torch.no_grad():
        wanted = exact(ids).logits
    found = run(inputs_for(ids, traced))["logits"].double()
    off = float((found - wanted).norm() / wanted.norm())
    print(name, f"logits off by {off:.2g},", path.stat().st_size, "bytes")
    assert off < ERRORS[name]

    stored = onnx.load(path)
    kinds = [node.op_type for node in stored.graph.node]
    weights = {tensor.name for tensor in stored.graph.initializer}
    matrices = sum(
        node.op_type == "MatMul" and node.input[1] in weights for node in stored.graph.node
    )
    assert "GatherBlockQuantized" not in kinds
    assert {kind: kinds.count(kind) for kind in KINDS[name]} == KINDS[name]
    assert matrices == (0 if KINDS[name] else 14), "the tied head is a MatMul of a Transpose"
    for node in stored.graph.node:
        if node.op_type == "MatMulNBits":
            facts = {one.name: one.i for one in node.attribute}
            assert (facts["bits"], facts["block_size"]) == (4, 32)
            assert "accuracy_level" not in facts
            assert len([*filter(None, node.input)]) == 3, "zero points of a symmetric weight"


def test_sizes_are_those_of_the_bits(pirates, tmp_path):
    sizes = {
        name: with_precision(pirates[kind.traced].model, name, tmp_path).stat().st_size
        for name, kind in PRECISIONS.items()
    }
    embedding, rest = 512 * 256, 512 * 256 + 2 * (3 * 256 * 512 + 2 * 256 * 256 + 2 * 256 * 128)
    graphs = 140_000
    expected = {
        "fp32": 4 * rest, "fp16": 2 * rest, "q8": embedding + rest, "int8": embedding + rest,
        "uint8": embedding + rest, "q4": 4 * embedding + rest * (1 / 2 + 4 / 32),
        "q4f16": 2 * embedding + rest * (1 / 2 + 2 / 32),
        "bnb4": 4 * embedding + rest * (1 / 2 + 4 / 64),
    }  # fmt: skip
    for name, weights in expected.items():
        assert weights <= sizes[name] <= weights + graphs, (name, sizes[name] - weights)


def test_weights_beside_the_graph_keep_company(pirates, tmp_path, monkeypatch):
    """As those of more than 1.9 GB do, before and after."""
    whole = with_precision(pirates[DType.FLOAT32].model, "q4", tmp_path, stem="whole")
    for module in (graph, _precision):
        monkeypatch.setattr(module, "INLINE_LIMIT", 1000)
    plain = with_precision(pirates[DType.FLOAT32].model, "fp32", tmp_path)
    ids = torch.arange(9)[None]
    inputs = inputs_for(ids, pirates[DType.FLOAT32])
    wanted = run_of(whole)(inputs)["logits"]
    for name in ("q4", "q8", "bnb4"):
        path = with_precision(plain, name, tmp_path / "..", stem=f"{tmp_path.name}/{name}")
        data = path.with_name(path.name + "_data")
        assert data.stat().st_size > 1_000_000 > path.stat().st_size
        found = run_of(path)(inputs)["logits"]
        if name == "q4":
            assert torch.equal(found, wanted)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "whole_q4.onnx", "model.onnx", "model.onnx_data", "q4_q4.onnx", "q4_q4.onnx_data",
        "q8_quantized.onnx", "q8_quantized.onnx_data", "bnb4_bnb4.onnx", "bnb4_bnb4.onnx_data",
    }  # fmt: skip


def test_convolutions_get_unsigned_weights(tmp_path):
    """ONNX Runtime's integer convolution has no kernel for signed ones."""
    generator = np.random.default_rng(0)
    kernel = generator.standard_normal((4, 3, 3)).astype(np.float32)
    stored = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv")],
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch_size", 3, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch_size", 4, 14])],
            [numpy_helper.from_array(kernel, "kernel")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(stored, tmp_path / "model.onnx")
    inputs = {"x": torch.from_numpy(generator.standard_normal((1, 3, 16)).astype(np.float32))}
    path = with_precision(tmp_path / "model.onnx", "q8", tmp_path)
    found, wanted = run_of(path)(inputs)["y"], run_of(tmp_path / "model.onnx")(inputs)["y"]
    assert float((found - wanted).norm() / wanted.norm()) < 0.02
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert TensorProto.UINT8 in kinds
    assert TensorProto.INT8 not in kinds


@pytest.mark.parametrize("harm", ["scales", "structure"])
def test_a_broken_graph_is_noticed_and_removed(harm, pirates, tmp_path, monkeypatch):
    def spoilt(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
        found = _precision._blocks(model, path)
        if harm == "structure":
            del found.graph.node[-1]
        for tensor in found.graph.initializer:
            if harm == "scales" and tensor.name.endswith("_scales"):
                values = -numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return found

    broken = _precision.Precision("_q4", DType.FLOAT32, spoilt)
    monkeypatch.setattr(_precision, "PRECISIONS", {"q4": broken})
    with pytest.raises(VerificationError) as caught:
        with_precision(pirates[DType.FLOAT32].model, "q4", tmp_path)
    assert caught.value.code in ("QUANTISED_BEYOND_USE", "GRAPH_BROKEN")
    assert [*tmp_path.iterdir()] == []


def test_an_unknown_dtype(tmp_path):
    with pytest.raises(UsageError, match="unknown dtype 'q3'"):
        with_precision(tmp_path / "model.onnx", "q3", tmp_path)
