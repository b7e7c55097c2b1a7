"""Where sites lie in graphs made by hand, each in one exporter's manner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from adaptool.architectures.onnx.matching import matched
from adaptool.architectures.onnx.naming import joined_in, module_of, parameter_of, spellings
from adaptool.architectures.onnx.originals import Originals
from adaptool.architectures.speaking import plan_of
from adaptool.canonical import Adapter, Checkpoint, LowRank, Placement, Provenance, Replacement
from adaptool.canonical import Site as At
from adaptool.canonical.graph import Node
from adaptool.canonical.tensors import from_values
from adaptool.canonical.verbs import Update
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.errors import IncompatibleError
from adaptool.merging import merge

IN, OUT = 6, 4
Weights = dict[str, np.ndarray]


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def graph(
    nodes: Sequence[NodeProto], weights: Weights, *, inputs: int = IN, ids: bool = False
) -> GraphProto:
    kind, shape = (TensorProto.INT64, ["n"]) if ids else (TensorProto.FLOAT, ["n", inputs])
    return helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )


def write(path: Path, made: GraphProto) -> Path:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


def scoped(node: NodeProto, *scopes: str) -> NodeProto:
    entry = node.metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(["", *scopes, "op"])
    return node


def low_rank(out: int, inputs: int, *, embedding: bool = False, seed: int = 1) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(s, generator=generator) for s in ((2, inputs), (out, 2)))
    return LowRank(from_values(a), from_values(b), 0.5, embedding)


def delta(update: LowRank) -> np.ndarray:
    return update.scaling * (update.b.values() @ update.a.values()).double().numpy()


def adapter(**updates: Update) -> Adapter:
    sites = {At(name.replace("__", ".")): update for name, update in updates.items()}
    return Adapter(sites, "lora", None, Provenance("made", "peft"))


def merged(path: Path, tuned: Adapter, **more: object) -> Path:
    """The model with the adapter, written beside it."""
    result = merge(open_checkpoint(path), [(tuned, 1.0)], **more)  # type: ignore[arg-type]
    target = path.with_name("merged.onnx")
    save_checkpoint(result.checkpoint, target, SaveOptions(force=True))
    return target


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def place(path: Path, module: str, update: Update) -> tuple[Placement, ...]:
    return plan_of(open_checkpoint(path), {}).place(At(module), update)


# -- names ----------------------------------------------------------------------------------------


def test_modules_of_nodes() -> None:
    def of(name: str = "", *scopes: str) -> str:
        return module_of(Node("MatMul", name, (), (), scopes=scopes))

    assert of("/model/layers.0/self_attn/q_proj/MatMul") == "model.layers.0.self_attn.q_proj"
    assert of("/model/layers.0/attn/q_proj/MatMul_Q4") == "model.layers.0.attn.q_proj"
    assert of("node_linear_3", "", "m", "m.fc", "linear_3") == "m.fc"
    assert of("MatMul_7") == of() == ""


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", ("model.layers.0.mlp.up_proj", "weight")),
        ("model.layers.0.attn.o_proj.MatMul.weight_Q4", ("model.layers.0.attn.o_proj", "weight")),
        ("model.embed_tokens.weight_transposed", ("model.embed_tokens", "weight")),
        ("model.layers.0.self_attn.q_proj.weight_t", ("model.layers.0.self_attn.q_proj", "weight")),
        ("h.0.ln_1.weight_quantized", ("h.0.ln_1", "weight")),
        ("model.layers.0.attn.qkv_proj.Add.bias", ("model.layers.0.attn.qkv_proj", "bias")),
        ("onnx::MatMul_733", None),
        ("val_84", None),
    ],
)
def test_parameters_of_initializers(tensor: str, expected: tuple[str, str] | None) -> None:
    assert parameter_of(tensor) == expected


def test_joined_names() -> None:
    name = "a.q_proj.weight__a.k_proj.weight__a.v_proj.weight__axis_0__concat_t"
    assert joined_in(name) == ("a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight")
    assert joined_in("a.q_proj.weight") == ()


def test_a_tower_is_no_wrapper() -> None:
    """An adapter of the language model must not land in a vision tower of the same shape."""
    assert (1, "layers.0.q.weight") in list(spellings("m.layers.0.q.weight"))
    towers = [s for _, s in spellings("vision_model.layers.0.q.weight")]
    assert "layers.0.q.weight" not in towers
    assert "layers.0.q.weight" not in [s for _, s in spellings("m.encoder.layers.0.q.weight")]


# -- orientations ---------------------------------------------------------------------------------


def matmul(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    return [helper.make_node("MatMul", ["x", "onnx::MatMul_1"], ["y"], "/fc/MatMul")], {
        "onnx::MatMul_1": w.T.copy()
    }


def gemm(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    node = helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["y"], "/fc/Gemm", transB=1)
    return [node], {"fc.weight": w, "fc.bias": weight(w.shape[0], seed=3)}


def scaled_gemm(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "/fc/Gemm", alpha=0.5)
    return [node], {"w": 2 * w.T}


def turned(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    nodes = [
        helper.make_node("Transpose", ["fc.weight"], ["t"], "/fc/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"], "/fc/MatMul"),
    ]
    return nodes, {"fc.weight": w}


def cast(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    nodes = [
        helper.make_node("Identity", ["half"], ["same"], "Identity_3"),
        helper.make_node("Cast", ["same"], ["wide"], "/Cast", to=TensorProto.FLOAT),
        scoped(helper.make_node("MatMul", ["x", "wide"], ["y"], "node_linear"), "fc"),
    ]
    return nodes, {"half": w.T.astype(np.float16)}


def constant(w: np.ndarray) -> tuple[list[NodeProto], Weights]:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(w.T.copy(), "c")),
        helper.make_node("MatMul", ["x", "c"], ["y"], "/fc/MatMul"),
    ]
    return nodes, {}


@pytest.mark.parametrize("make", [matmul, gemm, scaled_gemm, turned, cast, constant])
@pytest.mark.parametrize("out", [OUT, IN])
def test_orientation(
    tmp_path: Path, make: Callable[[np.ndarray], tuple[list[NodeProto], Weights]], out: int
) -> None:
    """Square weights too, where shapes do not tell."""
    w = weight(out, IN)
    path = write(tmp_path / "m.onnx", graph(*make(w)))
    update, x = low_rank(out, IN), weight(3, IN, seed=9)
    after = run(merged(path, adapter(fc=update)), x)
    expected = run(path, x) + x @ delta(update).T
    np.testing.assert_allclose(after, expected, atol=2e-2 if make is cast else 1e-5)


def test_embedding_both_ways(tmp_path: Path) -> None:
    """Looked up as it is, or through a transpose of a head that is stored [in, out]."""
    table = weight(7, OUT)
    update = low_rank(OUT, 7, embedding=True)
    expected = (table + delta(update).T)[[1, 4]]
    ids = np.array([1, 4])
    plain = [helper.make_node("Gather", ["e", "x"], ["y"], "/embed_tokens/Gather")]
    back = [
        helper.make_node("Transpose", ["head"], ["e"], "/embed_tokens/Transpose"),
        helper.make_node("Gather", ["e", "x"], ["y"], "/embed_tokens/Gather"),
    ]
    for nodes, weights in ((plain, {"e": table}), (back, {"head": table.T.copy()})):
        path = write(tmp_path / "m.onnx", graph(nodes, weights, ids=True))
        after = run(merged(path, adapter(embed_tokens=update)), ids)
        np.testing.assert_allclose(after, expected, atol=1e-5)


# -- packed weights -------------------------------------------------------------------------------


def packed(name: str, node: str, sizes: Sequence[int]) -> GraphProto:
    """One product, taken apart and put together again."""
    nodes = [
        helper.make_node("MatMul", ["x", name], ["p"], node),
        helper.make_node(
            "Split", ["p", "sizes"], [f"s{i}" for i in range(len(sizes))], "Split", axis=1
        ),
        helper.make_node("Concat", [f"s{i}" for i in range(len(sizes))], ["y"], "Concat", axis=1),
    ]
    made = graph(nodes, {name: weight(IN, sum(sizes))})
    made.initializer.append(numpy_helper.from_array(np.array(sizes), "sizes"))
    return made


MOBIUS = "a.self_attn.q_proj.weight__a.self_attn.k_proj.weight__a.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("name", "node"),
    [
        ("a.attn.qkv_proj.MatMul.weight", "/a/attn/qkv_proj/MatMul"),
        (f"{MOBIUS}__axis_0__concat_t", "node_7"),
    ],
)
def test_packed_projections(tmp_path: Path, name: str, node: str) -> None:
    path = write(tmp_path / "m.onnx", packed(name, node, (4, 2, 2)))
    k, v = low_rank(2, IN, seed=1), low_rank(2, IN, seed=2)
    x = weight(3, IN, seed=9)
    after = run(merged(path, adapter(a__self_attn__k_proj=k, a__self_attn__v_proj=v)), x)
    expected = run(path, x)
    expected[:, 4:6] += (x @ delta(k).T).astype(np.float32)
    expected[:, 6:8] += (x @ delta(v).T).astype(np.float32)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_packed_without_sizes_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "/a/attn/qkv_proj/MatMul")
    path = write(tmp_path / "m.onnx", graph([node], {"w": weight(IN, 8)}))
    with pytest.raises(IncompatibleError, match="how many outputs are whose") as caught:
        place(path, "a.self_attn.k_proj", low_rank(2, IN))
    assert "--match" in (caught.value.hint or "")


def test_heads_of_an_attention_tell_sizes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "/a/attn/qkv_proj/MatMul"),
        helper.make_node("GroupQueryAttention", ["p"], ["y"], "/a/attn/GQA", num_heads=2,
                         kv_num_heads=1, domain="com.microsoft"),
    ]  # fmt: skip
    path = write(tmp_path / "m.onnx", graph(nodes, {"w": weight(IN, 8)}))
    (found,) = place(path, "a.self_attn.v_proj", low_rank(2, IN))
    assert found == Placement("w", transposed=True, cols=(6, 8))


def test_fused_attention_names_its_parts(tmp_path: Path) -> None:
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], "node_A", num_heads=2,
                            domain="com.microsoft")  # fmt: skip
    scoped(node, "bert", "bert.attention", "bert.attention.self")
    path = write(tmp_path / "m.onnx", graph([node], {"w": weight(IN, 12), "b": weight(12)}))
    (key,) = place(path, "bert.attention.self.key", low_rank(4, IN))
    assert key == Placement("w", transposed=True, cols=(4, 8))
    plan = plan_of(open_checkpoint(path), {})
    bias = At("bert.attention.self.value", "bias")
    (value,) = plan.place(bias, Replacement(from_values(torch.zeros(4))))
    assert value == Placement("b", rows=(8, 12))


def test_a_module_that_the_exporter_took_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "g"], ["a"], "/mlp/gate_proj/MatMul"),
        helper.make_node("MatMul", ["x", "u"], ["b"], "/mlp/up_proj/MatMul"),
        helper.make_node("Concat", ["a", "b"], ["y"], "Concat", axis=1),
    ]
    weights = {"g": weight(IN, 4, seed=1), "u": weight(IN, 4, seed=2)}
    path = write(tmp_path / "m.onnx", graph(nodes, weights))
    update, x = low_rank(8, IN), weight(3, IN, seed=9)
    after = run(merged(path, adapter(mlp__gate_up_proj=update)), x)
    np.testing.assert_allclose(after, run(path, x) + x @ delta(update).T, atol=1e-5)


# -- shared tensors -------------------------------------------------------------------------------


def twins() -> GraphProto:
    """Two layers whose equal weights an exporter stored once."""
    nodes = [
        helper.make_node("Transpose", ["a.weight"], ["t"], "Transpose_1", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"], "/a/MatMul"),
        helper.make_node("MatMul", ["h", "t"], ["y"], "/b/MatMul"),
    ]
    return graph(nodes, {"a.weight": weight(IN, IN)})


@pytest.mark.parametrize("changed", ["a", "b"])
def test_a_shared_tensor_becomes_two(tmp_path: Path, changed: str) -> None:
    path = write(tmp_path / "m.onnx", twins())
    update, x = low_rank(IN, IN), weight(3, IN, seed=9)
    result = merge(open_checkpoint(path), [(adapter(**{changed: update}), 1.0)])
    assert any("served 2 modules" in note for note in result.notes)
    target = tmp_path / "merged.onnx"
    save_checkpoint(result.checkpoint, target, SaveOptions())
    w = weight(IN, IN).astype(np.float64)
    a, b = (w + (delta(update) if changed == name else 0) for name in "ab")
    np.testing.assert_allclose(run(target, x), x @ a.T @ b.T, rtol=1e-4, atol=1e-4)


def test_both_sharers_changed(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", twins())
    one, other, x = low_rank(IN, IN, seed=1), low_rank(IN, IN, seed=2), weight(3, IN, seed=9)
    after = run(merged(path, adapter(a=one, b=other)), x)
    w = weight(IN, IN).astype(np.float64)
    np.testing.assert_allclose(
        after, x @ (w + delta(one)).T @ (w + delta(other)).T, rtol=1e-4, atol=1e-4
    )


def test_a_reader_that_is_not_understood_keeps_the_old_values(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "/fc/MatMul"),
        helper.make_node("ReduceSum", ["w"], ["s"], "/sum/ReduceSum", keepdims=0),
        helper.make_node("Add", ["h", "s"], ["y"], "/Add"),
    ]
    path = write(tmp_path / "m.onnx", graph(nodes, {"w": weight(IN, OUT)}))
    update, x = low_rank(OUT, IN), weight(3, IN, seed=9)
    after = run(merged(path, adapter(fc=update)), x)
    np.testing.assert_allclose(after, run(path, x) + x @ delta(update).T, rtol=1e-4, atol=1e-4)


def test_values_and_sharing_together(tmp_path: Path) -> None:
    """A place that was found by values follows its module to the tensor of its own."""
    path = write(tmp_path / "m.onnx", twins())
    w, update, x = weight(IN, IN), low_rank(IN, IN), weight(3, IN, seed=9)
    opened = matched(open_checkpoint(path), original(a=w, b=w), ["b.weight"])
    result = merge(opened, [(adapter(b=update), 1.0)])
    target = tmp_path / "merged.onnx"
    save_checkpoint(result.checkpoint, target, SaveOptions())
    expected = x @ w.T.astype(np.float64) @ (w + delta(update)).T
    np.testing.assert_allclose(run(target, x), expected, rtol=1e-4, atol=1e-4)


def test_sharers_without_names_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]),
             helper.make_node("MatMul", ["h", "w"], ["y"])]  # fmt: skip
    opened = open_checkpoint(
        write(tmp_path / "m.onnx", graph(nodes, {"w": weight(40, 40)}, inputs=40))
    )
    found = matched(opened, original(fc=weight(40, 40).T.copy()), ["fc.weight"])
    with pytest.raises(IncompatibleError, match="does not tell which of them"):
        merge(found, [(adapter(fc=low_rank(40, 40)), 1.0)])


# -- refusals -------------------------------------------------------------------------------------


def test_unplaced_names_candidates(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", graph(*matmul(weight(OUT, IN))))
    with pytest.raises(IncompatibleError, match="1 of 1 updates fit nowhere") as caught:
        merged(path, adapter(fd=low_rank(OUT, IN)))
    assert caught.value.code == "UNPLACED"
    assert "onnx::MatMul_1" in (caught.value.hint or "")


def test_one_place_for_two_sites(tmp_path: Path) -> None:
    """Both spellings of a module, in one adapter."""
    path = write(tmp_path / "m.onnx", graph(*matmul(weight(OUT, IN))))
    update = low_rank(OUT, IN)
    with pytest.raises(IncompatibleError, match="changes a weight once") as caught:
        merged(path, adapter(fc=update, model__fc=update))
    assert caught.value.code == "PLACED_TWICE"


def test_one_name_for_two_tensors(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["h"], "/fc/MatMul"),
        helper.make_node("MatMul", ["h", "two"], ["y"], "/fc/MatMul_1"),
    ]
    weights = {"one": weight(IN, IN, seed=1), "two": weight(IN, IN, seed=2)}
    path = write(tmp_path / "m.onnx", graph(nodes, weights))
    with pytest.raises(IncompatibleError, match="could mean one or two"):
        place(path, "fc", low_rank(IN, IN))


def test_wrong_shape(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", graph(*matmul(weight(OUT, IN))))
    with pytest.raises(IncompatibleError) as caught:
        place(path, "fc", low_rank(OUT + 1, IN))
    assert caught.value.code == "SHAPE_MISMATCH"


def test_a_head_that_the_graph_lacks_is_not_added(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", graph(*matmul(weight(OUT, IN))))
    head = Replacement(from_values(torch.zeros(2, OUT)))
    with pytest.raises(IncompatibleError, match="fit nowhere"):
        merged(path, adapter(score=head))


# -- values ---------------------------------------------------------------------------------------


def original(**weights: np.ndarray) -> Checkpoint:
    tensors = {f"{n.replace('__', '.')}.weight": from_values(torch.from_numpy(w))
               for n, w in weights.items()}  # fmt: skip
    return Checkpoint(tensors, "safetensors", Provenance("original", "safetensors"))


def anonymous(weights: Weights) -> GraphProto:
    """Products without a name, one after another and next to each other."""
    nodes = [helper.make_node("MatMul", ["x", name], [f"h{i}"]) for i, name in enumerate(weights)]
    nodes.append(helper.make_node("Concat", [f"h{i}" for i in range(len(weights))], ["y"], axis=1))
    return graph(nodes, weights, inputs=40)


def test_values_tell_orientation_and_band(tmp_path: Path) -> None:
    q, k, o = weight(40, 40, seed=1), weight(20, 40, seed=2), weight(40, 40, seed=3)
    weights = {"w1": np.concatenate([q, k]).T.copy(), "w2": o.T.copy()}
    opened = open_checkpoint(write(tmp_path / "m.onnx", anonymous(weights)))
    names = ("q.weight", "k.weight", "o.weight")
    found = matched(opened, original(q=q, k=k, o=o), names).placements
    assert found == {
        "q.weight": Placement("w1", transposed=True, cols=(0, 40)),
        "k.weight": Placement("w1", transposed=True, cols=(40, 60)),
        "o.weight": Placement("w2", transposed=True),
    }


@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_nearest_copy_is_found(tmp_path: Path, noise: float) -> None:
    """A quantised copy is off by a part of itself; all other weights by more than themselves."""
    layers = {f"l{i}": weight(40, 40, seed=i) for i in range(4)}
    weights = {f"w{i}": (w + noise * weight(40, 40, seed=10 + i)).T.copy()
               for i, w in enumerate(layers.values())}  # fmt: skip
    opened = open_checkpoint(write(tmp_path / "m.onnx", anonymous(weights)))
    found = matched(opened, original(**layers), [f"{n}.weight" for n in layers]).placements
    assert found == {f"l{i}.weight": Placement(f"w{i}", transposed=True) for i in range(4)}


def test_equal_copies_are_ambiguous(tmp_path: Path) -> None:
    w = weight(40, 40)
    weights = {"w1": w.T.copy(), "w2": w.T.copy()}
    opened = open_checkpoint(write(tmp_path / "m.onnx", anonymous(weights)))
    with pytest.raises(IncompatibleError, match="values are the same"):
        matched(opened, original(fc=w), ["fc.weight"])


def test_a_name_that_lies_is_overruled(tmp_path: Path) -> None:
    """The node says fc, the values say that its weight is another module's."""
    fc, other = weight(40, 40, seed=1), weight(40, 40, seed=2)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], "/fc/MatMul"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], "/other/MatMul"),
    ]
    weights = {"w1": other.T.copy(), "w2": fc.T.copy()}
    opened = open_checkpoint(write(tmp_path / "m.onnx", graph(nodes, weights, inputs=40)))
    found = matched(opened, original(fc=fc, other=other), ["fc.weight"]).placements
    assert found["fc.weight"].tensor == "w2"


def test_rows_in_another_order_do_not_match(tmp_path: Path) -> None:
    """A head-wise permutation keeps the first row, and is noticed all the same."""
    w = weight(40, 40)
    order = np.array([0, *range(39, 0, -1)])
    opened = open_checkpoint(write(tmp_path / "m.onnx", anonymous({"w": w[order].T.copy()})))
    with pytest.raises(IncompatibleError, match="holds this weight"):
        matched(opened, original(fc=w), ["fc.weight"])


def test_originals_lie_as_the_model_keeps_them(tmp_path: Path) -> None:
    q, k, v = weight(4, IN, seed=1), weight(2, IN, seed=2), weight(2, IN, seed=3)
    made = packed("a.attn.qkv_proj.MatMul.weight", "/a/attn/qkv_proj/MatMul", (4, 2, 2))
    opened = open_checkpoint(write(tmp_path / "m.onnx", made))
    whole = original(a__self_attn__q_proj=q, a__self_attn__k_proj=k, a__self_attn__v_proj=v)
    found = Originals(opened, whole)["a.attn.qkv_proj.MatMul.weight"]
    expected = np.concatenate([q, k, v]).T
    np.testing.assert_array_equal(found.values().numpy(), expected)
    part = torch.cat([piece.clone() for piece in found.stream(9, 21, block=5)])
    np.testing.assert_array_equal(part.numpy(), expected.reshape(-1)[9:21])
    with pytest.raises(KeyError):
        Originals(opened, original(a__self_attn__q_proj=q))["a.attn.qkv_proj.MatMul.weight"]
