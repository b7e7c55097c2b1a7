"""Quantised weights: read as the graph computes with them, written as ONNX Runtime would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from small import IN, OUT, SCHEMES, WORDS, dynamic, numbers, run, static, stored, words

from adaptool.canonical import Checkpoint, DType, LazyTensor, LowRank, Placement
from adaptool.canonical.forms import Form
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions
from adaptool.containers import onnx as container
from adaptool.encodings.onnx.affine import Affine
from adaptool.encodings.onnx.blockwise import Blockwise, Rule, Zeros
from adaptool.encodings.onnx.bnb4 import CODES, Bnb4
from adaptool.encodings.onnx.levels import pack, unpack
from adaptool.errors import IncompatibleError
from adaptool.merging.patching import Arithmetic, Patch, patch_tensor

W, E = numbers(0, IN, OUT), numbers(1, WORDS, IN, spread=1.0)
B, A = numbers(2, OUT, 4), numbers(3, 4, IN)
IDS = np.arange(WORDS)


def opened(model: onnx.ModelProto, folder: Path) -> Checkpoint:
    onnx.save(model, folder / "model.onnx")
    return container.open(folder / "model.onnx")


def weight_of(checkpoint: Checkpoint) -> str:
    """The name of the linear's packed weight."""
    return next(name for name in container.model_of(checkpoint).quantised if name.startswith("W"))


def is_turned(tensor: LazyTensor) -> bool:
    """Whether the weight is shown as the graph's MatMul takes it, [in, out]."""
    return tensor.shape == (IN, OUT)


def lazy(values: np.ndarray) -> LazyTensor:
    return from_values(torch.from_numpy(np.ascontiguousarray(values)))


def saved(checkpoint: Checkpoint, folder: Path, **tensors: LazyTensor) -> Path:
    changed = replace(checkpoint, tensors={**checkpoint.tensors, **tensors})
    container.save(changed, folder / "out.onnx", SaveOptions(force=True, workers=2))
    return folder / "out.onnx"


@pytest.mark.parametrize("name", SCHEMES)
def test_same_bytes_as_the_runtime_writes(name: str, tmp_path: Path) -> None:
    """W + dW packed here is what ONNX Runtime's quantiser makes of a merged model, to the bit."""
    wanted = stored(SCHEMES[name](words(W + (B @ A).T, E), tmp_path))
    checkpoint = opened(SCHEMES[name](words(W, E), tmp_path), tmp_path)
    key = weight_of(checkpoint)
    tensor = checkpoint.tensors[key]
    turned = is_turned(tensor)
    update = LowRank(lazy(A), lazy(B), 1.0)
    merged = patch_tensor(
        key, lazy(W if turned else W.T), [Patch(update, 1.0, Placement(key, transposed=turned))],
        tensor.form, Arithmetic(),
    )  # fmt: skip
    out = saved(checkpoint, tmp_path, **{key: merged})
    activations = ("e_", "x_", "y_", "ids")
    assert {n: b for n, b in stored(out).items() if not n.startswith(activations)} == {
        n: b for n, b in wanted.items() if not n.startswith(activations)
    }


@pytest.mark.parametrize("name", SCHEMES)
def test_decoded_is_what_the_graph_computes_with(name: str, tmp_path: Path) -> None:
    """The graph with decoded weights in place of packed ones gives the same numbers."""
    checkpoint = opened(SCHEMES[name](words(W, E), tmp_path), tmp_path)
    packed = container.model_of(checkpoint).quantised
    plain = {key: weight.tensor.cast(DType.FLOAT32) for key, weight in packed.items()}
    out = saved(checkpoint, tmp_path, **plain)
    assert not container.model_of(container.open(out)).quantised
    left, right = run(out, ids=IDS), run(tmp_path / "model.onnx", ids=IDS)
    rounds_activations = name.startswith(("dynamic", "QDQ"))
    assert np.abs(left - right).max() < (0.03 if rounds_activations else 1e-5)
    key = weight_of(checkpoint)
    decoded = checkpoint.tensors[key].values().numpy()
    decoded = decoded if is_turned(checkpoint.tensors[key]) else decoded.T
    assert 0 < np.abs(decoded - W).max() < (0.2 if " 2 bits" in name else 0.08)


@pytest.mark.parametrize("name", SCHEMES)
def test_packed_again_unchanged(name: str, tmp_path: Path) -> None:
    """Untouched weights keep their bytes; a copy for one consumer is a weight of its own."""
    model = SCHEMES[name](words(W, E), tmp_path)
    checkpoint = opened(model, tmp_path)
    container.save(checkpoint, tmp_path / "same.onnx", SaveOptions())
    assert (tmp_path / "same.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    key = weight_of(checkpoint)
    nodes = container.consumers(checkpoint.graph, key)
    copied = container.untie(checkpoint, key, nodes, "fresh")
    container.save(copied, tmp_path / "copy.onnx", SaveOptions())
    assert (run(tmp_path / "copy.onnx", ids=IDS) == run(tmp_path / "same.onnx", ids=IDS)).all()
    again = container.open(tmp_path / "copy.onnx")
    assert torch.equal(again.tensors["fresh"].values(), checkpoint.tensors[key].values())


@pytest.mark.parametrize("name", ["QDQ int4", "dynamic", "nf4", "MatMulNBits 4 bits 32 symmetric"])
def test_stochastic_rounding_keeps_a_small_update(name: str, tmp_path: Path) -> None:
    """What nearest rounding of few bits swallows is there on average."""
    checkpoint = opened(SCHEMES[name](words(W, E), tmp_path), tmp_path)
    key = weight_of(checkpoint)
    tensor = checkpoint.tensors[key]
    turned = is_turned(tensor)
    small = 0.02 * np.linalg.norm(W) / np.linalg.norm(B @ A)
    update = LowRank(lazy(A), lazy(B), 1.0)
    place = Patch(update, small, Placement(key, transposed=turned))
    kept = []
    for seed in range(40):
        how = Arithmetic()
        form = replace(tensor.form, seed=seed)
        list(patch_tensor(key, tensor, [place], form, how).bytes())
        kept.append(how.tally.total().ratio)
    nearest = Arithmetic()
    list(patch_tensor(key, tensor, [place], tensor.form, nearest).bytes())
    spread = np.std(kept) / np.sqrt(len(kept))
    assert abs(np.mean(kept) - 1) < 0.05 + 3 * spread
    if name != "dynamic":
        assert nearest.tally.total().ratio < 0.7


@pytest.mark.parametrize("fp16", ["MatMulNBits 4 bits 32 symmetric", "GatherBlockQuantized"])
def test_written_as_half_precision(fp16: str, tmp_path: Path) -> None:
    """Another plain type goes through a Cast to what the graph computes in."""
    checkpoint = opened(SCHEMES[fp16](words(W, E), tmp_path), tmp_path)
    packed = container.model_of(checkpoint).quantised
    halves = {key: weight.tensor.cast(DType.FLOAT16) for key, weight in packed.items()}
    out = saved(checkpoint, tmp_path, **halves)
    assert np.abs(run(out, ids=IDS) - run(tmp_path / "model.onnx", ids=IDS)).max() < 2e-3
    onnx.checker.check_model(str(out), full_check=True)


def test_zero_points_shared_by_two_weights(tmp_path: Path) -> None:
    """A weight that is packed anew gets zero points of its own, the other keeps its values."""
    model = words(W, E)
    quantised = dynamic(weight_type=onnx.TensorProto.UINT8)(model, tmp_path)
    quantised.graph.node[-1].output[0] = "y"
    nodes = list(quantised.graph.node)
    copies = []
    for node in nodes:
        if node.op_type in ("MatMulInteger", "Cast") or node.output[0] == "y" or (
            node.op_type == "Mul" and "W_scale" in node.input
        ):  # fmt: skip
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name += "_two"
            made = {value for one in nodes for value in one.output} - {"x_scale"}
            shared = {n for n in made if n.startswith(("x_", "e", "E"))}
            copy.output[:] = [f"{value}_two" for value in node.output]
            copy.input[:] = [
                "W_two" if v == "W_quantized" else "S_two" if v == "W_scale"
                else f"{v}_two" if v in made - shared else v for v in node.input
            ]  # fmt: skip
            copies.append(copy)
    tensors = {t.name: t for t in quantised.graph.initializer}
    for old, new in (("W_quantized", "W_two"), ("W_scale", "S_two")):
        twin = onnx.TensorProto()
        twin.CopyFrom(tensors[old])
        twin.name = new
        quantised.graph.initializer.append(twin)
    quantised.graph.node.extend(copies)
    quantised.graph.output.append(helper.make_tensor_value_info("y_two", 1, ["n", OUT]))
    checkpoint = opened(quantised, tmp_path)
    weights = container.model_of(checkpoint).quantised
    assert weights["W_quantized"].parts[2] == weights["W_two"].parts[2] == "W_zero_point"
    tensor = checkpoint.tensors["W_quantized"]
    moved = lazy(W + 1).written(tensor.form)
    out = saved(checkpoint, tmp_path, W_quantized=moved)
    again = container.open(out)
    assert torch.equal(again.tensors["W_two"].values(), checkpoint.tensors["W_two"].values())
    assert np.abs(again.tensors["W_quantized"].values().numpy() - (W + 1)).max() < 0.01
    assert np.isfinite(run(out, ids=IDS)).all()


def test_encoding_of_another_world_is_refused(tmp_path: Path) -> None:
    from adaptool.encodings.ggml import encoding

    checkpoint = opened(words(W, E), tmp_path)
    tensor = checkpoint.tensors["E"].written(Form(DType.FLOAT32, encoding("Q8_0")))
    with pytest.raises(IncompatibleError, match="Q8_0"):
        saved(checkpoint, tmp_path, E=tensor)


def test_scales_out_of_reach_leave_integers(tmp_path: Path) -> None:
    """A group index (GPTQ), missing scales, or sizes that do not fit: shown as what is stored."""
    model = SCHEMES["MatMulNBits 4 bits 32 symmetric"](words(W, E), tmp_path)
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits")
    for change in ("g_idx", "K", "scales"):
        damaged = onnx.ModelProto()
        damaged.CopyFrom(model)
        here = next(n for n in damaged.graph.node if n.op_type == "MatMulNBits")
        if change == "g_idx":
            here.input.extend(["", "groups"])
        elif change == "K":
            next(a for a in here.attribute if a.name == "K").i = 4096
        else:
            here.input[2] = "x"
        checkpoint = opened(damaged, tmp_path)
        assert not container.model_of(checkpoint).quantised
        assert checkpoint.tensors[node.input[1]].dtype is DType.UINT8


def test_a_static_model_moves_with_its_activations(tmp_path: Path) -> None:
    """A scale that activations share is written once, as quantize_static shares it."""
    checkpoint = opened(static()(words(W, E), tmp_path), tmp_path)
    weight = container.model_of(checkpoint).quantised["E_quantized"]
    assert isinstance(weight.tensor.encoding.encoding, Affine)
    moved = lazy(E * 2).written(weight.tensor.form)
    again = container.open(saved(checkpoint, tmp_path, E_quantized=moved))
    assert np.abs(again.tensors["E_quantized"].values().numpy() - E * 2).max() < 0.05


# -- the encodings alone ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 3, 8, 17])
def test_levels_in_bytes(bits: int, count: int) -> None:
    levels = torch.randint(0, 1 << bits, (5, count), dtype=torch.uint8)
    packed = pack(levels, bits)
    assert packed.shape == (5, -(-count * bits // 8))
    assert torch.equal(unpack(packed, bits)[:, :count], levels)


@pytest.mark.parametrize("zeros", Zeros)
@pytest.mark.parametrize("scale", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rule", [Rule.MLAS, Rule.NUMPY])
def test_half_a_step(zeros: Zeros, scale: DType, signed: bool, rule: Rule) -> None:
    """Every value comes back within half a step of its group, and the lowest symmetric one too."""
    middle = 0 if signed else 8
    encoding = Blockwise(4, 32, 80, scale, zeros, middle, signed, padded=True, rule=rule)
    values = torch.from_numpy(numbers(7, 9, 80))
    packed = encoding.encode(values)
    assert packed.numel() == 9 * encoding.size
    decoded = encoding.decode(packed).view(9, 80)
    steps = torch.nn.functional.pad(values, (0, 16)).view(9, 3, 32)
    if zeros is Zeros.NONE:
        step, clipped = steps.abs().amax(-1) / 8, 1.0
    else:
        step, clipped = (steps.amax(-1).clamp(min=0) - steps.amin(-1).clamp(max=0)) / 15, 0.51
    allowed = (step * clipped + 0.02 * steps.abs().amax(-1)).repeat_interleave(32, 1)[:, :80]
    assert ((decoded - values).abs() <= allowed).all()


@pytest.mark.parametrize("code", CODES)
def test_float_codes_are_fixed_points(code: str) -> None:
    """Each code times a scale is packed as itself; zeros of both signs stay zero."""
    table = torch.tensor(CODES[code])
    values = torch.stack((table, table * 3, table * 0.25, torch.zeros(16))).view(1, 64)
    encoding = Bnb4(code, 16, 64)
    assert torch.equal(encoding.decode(encoding.encode(values)), values.view(-1))


def test_a_group_of_zeros() -> None:
    for encoding in (
        Blockwise(4, 32, 64, middle=8),
        Blockwise(4, 32, 64, zeros=Zeros.PACKED),
        Blockwise(8, 64, 64, signed=True, rule=Rule.LINEAR),
        Bnb4("nf4", 32, 64),
    ):
        packed = encoding.encode(torch.zeros(2, 64))
        assert torch.equal(encoding.decode(packed), torch.zeros(128))


def test_numpy_reads_the_same_int4(tmp_path: Path) -> None:
    """ONNX's own reference dequantisation of a blocked int4 tensor is what we decode."""
    model = SCHEMES["QDQ int4"](words(W, E), tmp_path)
    checkpoint = opened(model, tmp_path)
    key = weight_of(checkpoint)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    levels = arrays[key].astype(np.float64)
    steps = np.repeat(arrays[key.replace("_Q4", "_scales")].astype(np.float64), 32, axis=0)
    exact = levels * steps
    assert np.abs(checkpoint.tensors[key].values().numpy().T - exact).max() < 1e-7


# -- the runtime reads what is written here --------------------------------------------------------


def by_hand(encoding: Blockwise, op: str, extra: dict[str, int], data_type: int,
            bias: bool = False) -> onnx.ModelProto:  # fmt: skip
    """A model of one operation over a weight [50, 64] packed here, without a quantiser."""
    rows = WORDS
    values = torch.from_numpy(numbers(11, rows, encoding.width))
    levels, scales, zeros = (p.contiguous() for p in encoding.split(encoding.encode(values)))
    groups = encoding.groups
    shape = [rows, encoding.width * encoding.bits // 8 if data_type == 2 else encoding.width]
    if op == "MatMulNBits":
        shape = [rows, groups, levels.shape[1] // groups]
    tensors = [
        helper.make_tensor("q", data_type, shape, levels.numpy().tobytes(), raw=True),
        helper.make_tensor("s", 1, [rows, groups], scales.numpy().tobytes(), raw=True),
    ]
    inputs = ["x", "q", "s"] if op == "MatMulNBits" else ["q", "ids", "s"]
    if encoding.zeros is not Zeros.NONE:
        kind = 1 if encoding.zeros is Zeros.SCALED else data_type
        dims = [rows, zeros.shape[1] if kind == 2 else groups]
        tensors.append(helper.make_tensor("z", kind, dims, zeros.numpy().tobytes(), raw=True))
        inputs.append("z")
    if bias:
        inputs += [""] * (5 - len(inputs)) + ["b"]
        tensors.append(numpy_helper.from_array(numbers(12, rows), "b"))
    node = helper.make_node(op, inputs, ["y"], name="/op", domain="com.microsoft", **extra)
    x = ("x", 1, ["n", encoding.width]) if op == "MatMulNBits" else ("ids", 7, ["n"])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info(*x)],
        [helper.make_tensor_value_info("y", 1, None)], tensors,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


NBITS = {"K": 64, "N": WORDS, "bits": 4, "block_size": 32}
GATHER = {"quantize_axis": 1, "block_size": 32}
BY_HAND = {
    "scaled zero points": (
        Blockwise(4, 32, 64, zeros=Zeros.SCALED, padded=True), "MatMulNBits", NBITS, 2, False),
    "a bias": (Blockwise(4, 32, 64, middle=8, padded=True), "MatMulNBits", NBITS, 2, True),
    "gathered bytes": (Blockwise(4, 32, 64, middle=8), "GatherBlockQuantized", GATHER, 2, False),
    "gathered bytes with zero points": (
        Blockwise(4, 32, 64, zeros=Zeros.PACKED), "GatherBlockQuantized", GATHER, 2, False),
    "gathered, 8 bits": (
        Blockwise(8, 32, 64, middle=128), "GatherBlockQuantized", {**GATHER, "bits": 8}, 2, False),
    "gathered uint4": (
        Blockwise(4, 32, 64, zeros=Zeros.PACKED, rule=Rule.NUMPY), "GatherBlockQuantized", GATHER,
        21, False),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_runtime_reads_the_same(name: str, tmp_path: Path) -> None:
    encoding, op, attributes, kind, bias = BY_HAND[name]
    checkpoint = opened(by_hand(encoding, op, attributes, kind, bias), tmp_path)
    assert list(container.model_of(checkpoint).quantised) == ["q"]
    values = checkpoint.tensors["q"].values().numpy()
    assert np.abs(values - numbers(11, WORDS, 64)).max() < 0.05
    x = np.eye(64, dtype=np.float32)
    feeds = {"x": x} if op == "MatMulNBits" else {"ids": IDS}
    got = run(tmp_path / "model.onnx", **feeds)
    wanted = values.T + (numbers(12, WORDS) if bias else 0) if op == "MatMulNBits" else values
    assert np.abs(got - wanted).max() < 1e-6
    out = saved(checkpoint, tmp_path, q=checkpoint.tensors["q"].cast(DType.FLOAT32))
    assert np.abs(run(out, **feeds) - wanted).max() < 1e-6


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("turned", [False, True])
def test_dequantised_along_either_axis(axis: int, turned: bool, tmp_path: Path) -> None:
    """DequantizeLinear with int8 by row, by column and in blocks of either axis."""
    levels = np.random.default_rng(5).integers(-127, 128, (64, 32)).astype(np.int8)
    shape = [64, 32]
    extra: dict[str, int] = {"axis": axis}
    if turned:  # blocks of 16
        shape[axis] //= 16
        extra["block_size"] = 16
        steps = np.abs(numbers(6, *shape)) + 0.01
        grown = np.repeat(steps, 16, axis)
    else:
        steps = np.abs(numbers(6, shape[axis])) + 0.01
        grown = steps[:, None] if axis == 0 else steps[None]
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["y"], **extra)]
    graph = helper.make_graph(
        nodes, "g", [], [helper.make_tensor_value_info("y", 1, [64, 32])],
        [numpy_helper.from_array(levels, "q"), numpy_helper.from_array(steps, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    checkpoint = opened(model, tmp_path)
    tensor = checkpoint.tensors["q"]
    values = tensor.values().numpy()
    values = values.T if turned and axis == 0 else values
    assert np.array_equal(values, levels.astype(np.float32) * grown)
    assert np.array_equal(values, run(tmp_path / "model.onnx"))
    moved = from_values(tensor.values() * 2).written(tensor.form)
    again = run(saved(checkpoint, tmp_path, q=moved))
    assert np.abs(again - 2 * values).max() <= np.abs(values).max() / 60
