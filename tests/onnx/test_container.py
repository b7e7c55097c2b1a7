"""ONNX models as checkpoints: opened without their tensors, written with what was changed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from small import FLOAT, IN, OUT, WORDS, numbers, run, words, wrapped

from adaptool.canonical import Checkpoint, DType
from adaptool.canonical.graph import Node
from adaptool.canonical.tensors import from_values
from adaptool.containers import SaveOptions, find, open_checkpoint
from adaptool.containers import onnx as container
from adaptool.errors import CorruptInputError, IncompatibleError, StorageError, UsageError

W, E = numbers(0, IN, OUT), numbers(1, WORDS, IN, spread=1.0)
IDS = np.arange(WORDS)


def written(folder: Path, *, external: bool = False, name: str = "model.onnx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    options = {"save_as_external_data": True, "location": f"{name}.data", "size_threshold": 64}
    onnx.save(words(W, E), folder / name, **(options if external else {}))
    return folder / name


def locate(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Say that a tensor's values lie in a data file."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def scaled(checkpoint: Checkpoint, name: str, factor: float) -> Checkpoint:
    values = checkpoint.tensors[name].values() * factor
    return replace(checkpoint, tensors={**checkpoint.tensors, name: from_values(values)})


@pytest.mark.parametrize("external", [False, True])
def test_opened(tmp_path: Path, external: bool) -> None:
    path = written(tmp_path, external=external)
    checkpoint = open_checkpoint(path)
    assert list(checkpoint.tensors) == ["E", "W"]
    assert np.array_equal(checkpoint.tensors["W"].values().numpy(), W)
    stored = checkpoint.tensors["W"].stored
    assert stored is not None and stored.size == W.nbytes
    assert checkpoint.shards["W"] == ("model.onnx.data" if external else "model.onnx")
    assert checkpoint.graph is not None
    assert [node.op for node in checkpoint.graph.nodes] == ["Gather", "Tanh", "MatMul"]
    assert checkpoint.graph.inputs == {"ids": ("int64", ("n",))}
    assert checkpoint.graph.outputs == {"y": ("float32", ("n", OUT))}
    found = find(tmp_path)
    assert found is not None and found[0] == "onnx"


@pytest.mark.parametrize("external", [False, True])
def test_parsed_without_weights(tmp_path: Path, external: bool) -> None:
    """What is kept in memory is the graph."""
    model = container.model_of(open_checkpoint(written(tmp_path, external=external)))
    assert model.proto.ByteSize() < 1000 < W.nbytes


@pytest.mark.parametrize("external", [False, True])
def test_unchanged_is_the_same_file(tmp_path: Path, external: bool) -> None:
    """To the byte, and data files too where their names may stay."""
    path = written(tmp_path / "in", external=external)
    if external:
        model = onnx.load(path)
        path.unlink()
        (path.parent / "model.onnx.data").unlink()
        onnx.save(model, path, save_as_external_data=True, location="model.onnx_data",
                  size_threshold=64)  # fmt: skip
    container.save(open_checkpoint(path), tmp_path / "out", SaveOptions())
    for file in path.parent.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("target", ["out.onnx", "out"])
def test_changed_tensor(tmp_path: Path, external: bool, target: str) -> None:
    path = written(tmp_path / "in", external=external)
    checkpoint = scaled(open_checkpoint(path), "W", 2.0)
    planned = container.plan(checkpoint, tmp_path / target, SaveOptions())
    saved = container.save(checkpoint, tmp_path / target, SaveOptions(workers=2))
    assert (planned.nbytes, planned.files) == (saved.nbytes, saved.files)
    out = tmp_path / target
    file = out if out.is_file() else out / "model.onnx"
    names = [p.name for p in out.iterdir()] if out.is_dir() else []
    assert sorted(names) == (
        [] if out.is_file() else ["model.onnx"] + ["model.onnx_data"] * external
    )
    assert np.allclose(run(file, ids=IDS), 2 * run(path, ids=IDS), atol=1e-5)
    onnx.checker.check_model(str(file), full_check=True)
    assert np.array_equal(open_checkpoint(file).tensors["E"].values().numpy(), E)


def test_chunks(tmp_path: Path) -> None:
    """Named as transformers.js looks for them; none larger than asked for, or it has one tensor."""
    path = written(tmp_path / "in")
    size = max(W.nbytes, E.nbytes)
    saved = container.save(
        open_checkpoint(path), tmp_path / "out", SaveOptions(max_shard_size=size)
    )
    assert saved.files == ("model.onnx", "model.onnx_data", "model.onnx_data_1")
    assert (tmp_path / "out/model.onnx").stat().st_size < 1000
    for file in saved.files[1:]:
        assert (tmp_path / "out" / file).stat().st_size <= size
    assert (run(tmp_path / "out/model.onnx", ids=IDS) == run(path, ids=IDS)).all()
    again = open_checkpoint(tmp_path / "out")
    container.save(again, tmp_path / "one.onnx", SaveOptions())
    assert (run(tmp_path / "one.onnx", ids=IDS) == run(path, ids=IDS)).all()


def test_a_file_is_one_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(tmp_path))
    with pytest.raises(UsageError, match=r"2 GiB") as caught:
        container.plan(checkpoint, tmp_path / "out.onnx", SaveOptions(max_shard_size=1000))
    assert "-o" in str(caught.value.hint)


def test_too_many_chunks(tmp_path: Path) -> None:
    weights = {f"w{i}": numbers(i, 16, 16) for i in range(101)}
    nodes = [helper.make_node("Sum", list(weights), ["y"])]
    onnx.save(wrapped(nodes, weights, y=(FLOAT, [16, 16])), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="101 data files"):
        container.plan(
            open_checkpoint(tmp_path / "model.onnx"), tmp_path / "o", SaveOptions(max_shard_size=1)
        )


def test_another_plain_type(tmp_path: Path) -> None:
    """A tensor's dims and type may change; what takes it is the caller's business."""
    path = written(tmp_path / "in", external=True)
    checkpoint = open_checkpoint(path)
    halves = {name: tensor.cast(DType.FLOAT16) for name, tensor in checkpoint.tensors.items()}
    container.save(replace(checkpoint, tensors=halves), tmp_path / "out", SaveOptions())
    again = open_checkpoint(tmp_path / "out")
    assert again.tensors["W"].dtype is DType.FLOAT16
    assert torch.equal(again.tensors["W"].values(), torch.from_numpy(W).half())
    assert (tmp_path / "out/model.onnx_data").stat().st_size < 2 * W.nbytes


def test_what_is_said_of_a_tensor_elsewhere(tmp_path: Path) -> None:
    """Old models list initializers among the inputs, others state their types once more."""
    model = words(W, E)
    model.ir_version = 3
    model.graph.input.extend(
        [
            helper.make_tensor_value_info("E", 1, E.shape),
            helper.make_tensor_value_info("W", 1, W.shape),
        ]
    )
    model.graph.value_info.append(helper.make_tensor_value_info("W", 1, W.shape))
    onnx.save(model, tmp_path / "model.onnx")
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    graph = checkpoint.graph
    assert graph is not None
    cast = Node("Cast", "wide", ("W",), ("wide",), {"to": 1})
    nodes = (*graph.nodes[:-1], cast, replace(graph.nodes[-1], inputs=("x", "wide")))
    changed = replace(
        container.untie(checkpoint, "E", [graph.nodes[0]], "mine"),
        graph=replace(graph, nodes=(replace(nodes[0], inputs=("mine", "ids")), *nodes[1:])),
    )
    halved = {**changed.tensors, "W": checkpoint.tensors["W"].cast(DType.FLOAT16)}
    container.save(replace(changed, tensors=halved), tmp_path / "out.onnx", SaveOptions())
    left, right = run(tmp_path / "out.onnx", ids=IDS), run(tmp_path / "model.onnx", ids=IDS)
    assert np.abs(left - right).max() < 1e-2
    kept = onnx.load(tmp_path / "out.onnx")
    assert {v.name: v.type.tensor_type.elem_type for v in kept.graph.input} == {
        "ids": 7, "E": 1, "W": 10,
    }  # fmt: skip
    assert not kept.graph.value_info


def test_small_and_typed_values(tmp_path: Path) -> None:
    """Values stated one by one, in every field that has some, and Constant nodes."""
    kinds = {
        "f": (1, [1.5, -2.5]), "h": (10, [1.5, -2.5]), "d": (11, [1.5, -2.5]), "b": (9, [1, 0]),
        "i8": (3, [-3, 4]), "u8": (2, [3, 250]), "i32": (6, [-3, 4]), "i64": (7, [-3, 1 << 40]),
        "u32": (12, [3, 4_000_000_000]), "u64": (13, [3, 1 << 63]), "i16": (5, [-3, 4]),
    }  # fmt: skip
    model = words(W, E)
    for name, (kind, values) in kinds.items():
        model.graph.initializer.append(helper.make_tensor(name, kind, [2], values))
    model.graph.initializer.append(helper.make_tensor("s", 8, [1], [b"text"]))
    model.graph.initializer.append(helper.make_tensor("i4", 22, [3], [1, -2, 3]))
    wide = helper.make_tensor("wide", 1, [500], list(range(500)))
    assert wide.float_data
    model.graph.initializer.append(wide)
    value = numpy_helper.from_array(np.full((2,), 7, np.float32))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    onnx.save(model, tmp_path / "model.onnx")
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    for name, (_, values) in kinds.items():
        assert checkpoint.tensors[name].values().tolist() == values
    assert checkpoint.tensors["c"].values().tolist() == [7, 7]
    assert checkpoint.tensors["wide"].values().tolist() == list(range(500))
    assert checkpoint.tensors["wide"].stored is not None
    assert not {"s", "i4"} & set(checkpoint.tensors)
    changed = scaled(scaled(scaled(checkpoint, "f", 2), "c", 3), "wide", 2)
    container.save(changed, tmp_path / "out.onnx", SaveOptions())
    again = open_checkpoint(tmp_path / "out.onnx")
    assert again.tensors["f"].values().tolist() == [3, -5]
    assert again.tensors["c"].values().tolist() == [21, 21]
    assert again.tensors["wide"].values().tolist() == list(range(0, 1000, 2))
    kept = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert kept["s"].string_data[0] == b"text"
    assert numpy_helper.to_array(kept["i4"]).tolist() == [1, -2, 3]
    assert (run(tmp_path / "out.onnx", ids=IDS) == run(tmp_path / "model.onnx", ids=IDS)).all()


def nested() -> onnx.ModelProto:
    """Y = x @ a if the flag is set, else x @ b; both weights go by the name `w` in a branch."""
    branches = []
    for seed in (5, 6):
        weight = numpy_helper.from_array(numbers(seed, 32, 32), "w")
        node = helper.make_node("MatMul", ["x", "w"], ["z"], name=f"/branch{seed}/MatMul")
        out = helper.make_tensor_value_info("z", FLOAT, None)
        branches.append(helper.make_graph([node], f"branch{seed}", [], [out], [weight]))
    nodes = [
        helper.make_node("If", ["flag"], ["m"], name="/if", then_branch=branches[0],
                         else_branch=branches[1]),
        helper.make_node("MatMul", ["m", "o"], ["y"]),
    ]  # fmt: skip
    weights = {"o": numbers(7, 32, 32)}
    kinds = {"x": (FLOAT, ["n", 32]), "flag": (onnx.TensorProto.BOOL, []), "y": (FLOAT, ["n", 32])}
    return wrapped(nodes, weights, **kinds)


@pytest.mark.parametrize("limit", [None, 100])
def test_nested_graphs(tmp_path: Path, limit: int | None) -> None:
    """Tensors of branches are seen and changed; a node beside the If does not disturb them."""
    onnx.save(nested(), tmp_path / "model.onnx")
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    names = [name for name in checkpoint.tensors if name != "o"]
    assert set(names) == {"w", "/if.then_branch:w"}
    graph = checkpoint.graph
    assert graph is not None
    assert [n.within for n in graph.nodes] == ["", "/if.else_branch", "/if.then_branch", ""]
    extra = Node("Neg", "minus", ("m",), ("minus",))
    last = replace(graph.nodes[-1], inputs=("minus", "o"))
    changed = replace(scaled(checkpoint, "/if.then_branch:w", 2.0),
                      graph=replace(graph, nodes=(extra, *graph.nodes[:-1], last)))  # fmt: skip
    moved = (changed.graph.nodes[1], *changed.graph.nodes[2:4], extra, last)
    changed = replace(changed, graph=replace(changed.graph, nodes=moved))
    container.save(changed, tmp_path / "out", SaveOptions(max_shard_size=limit))
    x = numbers(8, 3, 32)
    for flag, factor in ((True, -2), (False, -1)):
        feeds = {"x": x, "flag": np.array(flag)}
        before = run(tmp_path / "model.onnx", **feeds)
        assert np.allclose(run(tmp_path / "out/model.onnx", **feeds), factor * before, atol=1e-6)


def test_new_nodes_inputs_and_tensors(tmp_path: Path) -> None:
    """A low-rank branch beside a MatMul: what `slots` does, in the smallest form."""
    path = written(tmp_path / "in")
    checkpoint = open_checkpoint(path)
    graph = checkpoint.graph
    assert graph is not None
    *before, matmul = graph.nodes
    nodes = (
        *before,
        replace(matmul, outputs=("base",)),
        Node("MatMul", "a", ("x", "A"), ("xa",)),
        Node("com.microsoft:FusedMatMul", "b", ("xa", "B"), ("xab",), {"alpha": 0.5}),
        Node("Add", "sum", ("base", "xab"), ("y",)),
    )
    inputs = {**graph.inputs, "A": ("float32", (IN, "r")), "B": ("float32", ("r", OUT))}
    default = {"A": torch.zeros(IN, 0), "B": torch.zeros(0, OUT)}
    changed = replace(
        checkpoint,
        graph=replace(graph, nodes=nodes, inputs=inputs),
        tensors={**checkpoint.tensors, **{n: from_values(t) for n, t in default.items()}},
        metadata={**checkpoint.metadata, "slots": "{}"},
    )
    out = tmp_path / "out.onnx"
    container.save(changed, out, SaveOptions())
    onnx.checker.check_model(str(out))
    assert (run(out, ids=IDS) == run(path, ids=IDS)).all()
    a, b = numbers(3, IN, 2), numbers(4, 2, OUT)
    wanted = run(path, ids=IDS) + 0.5 * np.tanh(E) @ a @ b
    assert np.allclose(run(out, ids=IDS, A=a, B=b), wanted, atol=1e-5)
    assert open_checkpoint(out).metadata["slots"] == "{}"


def test_a_data_file_of_its_own(tmp_path: Path) -> None:
    """A new tensor's shard is a file beside the model, which another one may take the place of."""
    checkpoint = open_checkpoint(written(tmp_path / "in"))
    graph = checkpoint.graph
    assert graph is not None
    nodes = (*graph.nodes[:-1], replace(graph.nodes[-1], inputs=("x", "new")))
    changed = replace(
        checkpoint,
        graph=replace(graph, nodes=nodes),
        tensors={**checkpoint.tensors, "new": from_values(torch.from_numpy(W * 3))},
        shards={**checkpoint.shards, "new": "adapter.bin"},
    )
    saved = container.save(changed, tmp_path / "out", SaveOptions())
    assert saved.files == ("model.onnx", "adapter.bin")
    wanted = 3 * run(tmp_path / "in/model.onnx", ids=IDS)
    assert np.allclose(run(tmp_path / "out/model.onnx", ids=IDS), wanted, atol=1e-4)
    (tmp_path / "out/adapter.bin").write_bytes(W.tobytes())
    assert np.allclose(run(tmp_path / "out/model.onnx", ids=IDS), wanted / 3, atol=1e-4)
    with pytest.raises(UsageError):
        container.plan(changed, tmp_path / "out.onnx", SaveOptions())


def tied() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["e"], name="/embed"),
        helper.make_node("Transpose", ["E"], ["t"], name="/turn", perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], name="/head"),
    ]
    kinds = {"ids": (onnx.TensorProto.INT64, ["n"]), "y": (FLOAT, ["n", WORDS])}
    return wrapped(nodes, {"E": E}, **kinds)


@pytest.mark.parametrize("external", [False, True])
def test_untied(tmp_path: Path, external: bool) -> None:
    options = {"save_as_external_data": True, "location": "model.onnx_data", "size_threshold": 64}
    onnx.save(tied(), tmp_path / "model.onnx", **(options if external else {}))
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    graph = checkpoint.graph
    assert graph is not None
    embed, head = container.consumers(graph, "E")
    assert (embed.name, head.name) == ("/embed", "/turn")
    apart = scaled(container.untie(checkpoint, "E", [head], "head"), "head", 3.0)
    container.save(apart, tmp_path / "out", SaveOptions())
    wanted = 3 * run(tmp_path / "model.onnx", ids=IDS)
    assert np.allclose(run(tmp_path / "out/model.onnx", ids=IDS), wanted, atol=1e-4)
    with pytest.raises(IncompatibleError, match="already"):
        container.untie(apart, "E", [embed], "head")
    with pytest.raises(IncompatibleError, match="none of the nodes"):
        container.untie(checkpoint, "E", [graph.nodes[2]], "head")


def test_aliases_in_a_data_file(tmp_path: Path) -> None:
    """Two tensors over the same bytes come apart when one of them changes."""
    path = written(tmp_path / "in", external=True)
    model = onnx.load(path, load_external_data=False)
    first = model.graph.initializer[0]
    twin = onnx.TensorProto()
    twin.CopyFrom(first)
    twin.name = "twin"
    model.graph.initializer.append(twin)
    path.write_bytes(model.SerializeToString())
    checkpoint = scaled(open_checkpoint(path), "twin", 2.0)
    container.save(checkpoint, tmp_path / "out", SaveOptions())
    again = open_checkpoint(tmp_path / "out")
    assert np.array_equal(again.tensors["E"].values().numpy(), E)
    assert np.array_equal(again.tensors["twin"].values().numpy(), 2 * E)


def test_removed_tensor(tmp_path: Path) -> None:
    path = written(tmp_path)
    checkpoint = open_checkpoint(path)
    graph = checkpoint.graph
    assert graph is not None
    nodes = (replace(graph.nodes[0], op="Cast", inputs=("ids",), attributes={"to": 1}),)
    last = Node("Identity", "y", ("e",), ("y",))
    tensors = {"W": checkpoint.tensors["W"]}
    changed = replace(checkpoint, tensors=tensors, graph=replace(graph, nodes=(*nodes, last)))
    container.save(changed, tmp_path / "out.onnx", SaveOptions())
    kept = onnx.load(tmp_path / "out.onnx")
    assert [t.name for t in kept.graph.initializer] == ["W"]
    assert [a.name for a in kept.graph.node[0].attribute] == ["to"]


def test_what_nothing_makes_is_not_taken(tmp_path: Path) -> None:
    """A graph that would not load is not written."""
    model = words(W, E)
    value = numpy_helper.from_array(numbers(1, 600))
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    onnx.save(model, tmp_path / "model.onnx")
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    for name, what in (("W", "takes W"), ("c", "Constant")):
        left = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
        with pytest.raises(IncompatibleError, match=what):
            container.plan(replace(checkpoint, tensors=left), tmp_path / "o.onnx", SaveOptions())


def test_an_operation_of_an_unknown_domain(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(written(tmp_path))
    graph = checkpoint.graph
    assert graph is not None
    node = Node("org.example:Thing", "thing", ("x",), ("z",))
    changed = replace(checkpoint, graph=replace(graph, nodes=(*graph.nodes, node)))
    with pytest.raises(IncompatibleError, match=r"org\.example"):
        container.plan(changed, tmp_path / "out.onnx", SaveOptions())


def test_not_out_of_an_onnx_file(tmp_path: Path) -> None:
    checkpoint = replace(open_checkpoint(written(tmp_path)), metadata={})
    with pytest.raises(IncompatibleError, match="no ONNX graph"):
        container.plan(checkpoint, tmp_path / "out.onnx", SaveOptions())


def test_scopes_of_the_dynamo_exporter(tmp_path: Path) -> None:
    model = words(W, E)
    node = model.graph.node[2]
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'model', 'model.fc']")
    onnx.save(model, tmp_path / "model.onnx")
    graph = open_checkpoint(tmp_path / "model.onnx").graph
    assert graph is not None
    assert graph.nodes[2].scopes == ("", "model", "model.fc")


def test_a_folder(tmp_path: Path) -> None:
    """Configuration and tokenizer travel along; two models are one too many."""
    written(tmp_path / "in", external=True)
    (tmp_path / "in/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "in/tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "in")
    assert checkpoint.config == {"model_type": "llama"}
    saved = container.save(checkpoint, tmp_path / "out", SaveOptions())
    assert set(saved.files) == {"model.onnx", "model.onnx_data", "config.json", "tokenizer.json"}
    written(tmp_path / "in", name="other.onnx")
    with pytest.raises(IncompatibleError, match="2 ONNX models"):
        open_checkpoint(tmp_path / "in")


def test_changed_meanwhile(tmp_path: Path) -> None:
    path = written(tmp_path / "in", external=True)
    checkpoint = scaled(open_checkpoint(path), "W", 2.0)
    data = path.parent / "model.onnx.data"
    os.utime(data, ns=(1, 1))
    with pytest.raises(CorruptInputError, match="changed"):
        container.save(checkpoint, tmp_path / "out", SaveOptions())
    assert not (tmp_path / "out").exists()


def test_missing_data_file(tmp_path: Path) -> None:
    path = written(tmp_path, external=True)
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(StorageError, match=r"model\.onnx\.data"):
        open_checkpoint(path)


def test_a_constant_in_a_data_file(tmp_path: Path) -> None:
    """Where an exporter left a Constant's values in a data file, they stay in one."""
    value = numpy_helper.from_array(W)
    (tmp_path / "constant.bin").write_bytes(W.tobytes())
    value.ClearField("raw_data")
    locate(value, "constant.bin", 0, W.nbytes)
    model = words(W, E)
    model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=value))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    checkpoint = scaled(open_checkpoint(tmp_path / "model.onnx"), "W", 2.0)
    container.save(checkpoint, tmp_path / "out", SaveOptions())
    again = open_checkpoint(tmp_path / "out")
    assert again.shards["W"] == "model.onnx_data"
    assert np.array_equal(again.tensors["W"].values().numpy(), 2 * W)


@pytest.mark.slow
def test_more_than_one_file_can_hold(tmp_path: Path) -> None:
    """A model of 2.2 GB in a sparse data file: opened, changed, written, and refused as one."""
    rows = 9000
    big = [onnx.TensorProto(name=f"w{i}", data_type=1, dims=[rows, 8192]) for i in range(8)]
    for index, tensor in enumerate(big):
        locate(tensor, "model.onnx_data", index * rows * 8192 * 4, rows * 8192 * 4)
    model = wrapped([helper.make_node("Sum", [t.name for t in big], ["y"])], {}, y=(FLOAT, None))
    model.graph.initializer.extend(big)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "model.onnx_data").open("wb") as file:
        file.truncate(8 * rows * 8192 * 4)
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="2 GiB"):
        container.plan(checkpoint, tmp_path / "out.onnx", SaveOptions())
    planned = container.plan(checkpoint, tmp_path / "out", SaveOptions(max_shard_size=1 << 30))
    assert planned.files == ("model.onnx", "model.onnx_data", "model.onnx_data_1",
                             "model.onnx_data_2")  # fmt: skip
