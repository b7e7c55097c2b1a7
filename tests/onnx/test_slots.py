"""Slots in finished graphs: the same results without factors, PEFT's with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from exports import MODELS, distance, outputs_of, tune
from onnx import TensorProto, helper, numpy_helper
from peft import PeftModel  # noqa: TID251
from slotted import (
    ALL,
    EXACT,
    HALF,
    NONE,
    Case,
    accurate,
    by_peft,
    decoded,
    make,
    run,
    session,
    strength,
)

from adaptool.canonical import Adapter, LowRank, Provenance, Site
from adaptool.canonical.tensors import from_values
from adaptool.cli import main
from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import WriteOptions, onnx_adapter, onnx_slots, read_adapter
from adaptool.formats.peft import write as write_peft
from adaptool.jobs.converting import convert
from adaptool.jobs.slotting import make_slots
from adaptool.slots import (
    EXTERNAL,
    INPUTS,
    OPTIONAL,
    PROPERTY,
    SlotRequest,
    fill,
    slots_of,
    with_slots,
)

EXPORTS = [("llama", "genai"), ("llama", "dynamo"), ("llama-tied", "torchscript"),
           ("qwen2", "genai-apart"), ("bert-classifier", "torchscript")]  # fmt: skip


@pytest.fixture(scope="module", params=EXPORTS, ids="-".join)
def case(request, shelf, tmp_path_factory) -> Case:
    return make(shelf, tmp_path_factory.mktemp("slots"), *request.param)


# -- mode "optional" ------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [NONE, ALL], ids=["as it is", "optimised"])
def test_without_factors_nothing_changes(case, level):
    before, after = (run(session(path, level), case.name) for path in (case.plain, case.slotted))
    assert np.array_equal(before, after)


def test_a_sound_graph_stays_one(case):
    """The builder's models have operations that the checker does not know."""
    if "GroupQueryAttention" not in {node.op_type for node in onnx.load(case.plain).graph.node}:
        onnx.checker.check_model(str(case.plain), full_check=True)
        onnx.checker.check_model(str(case.slotted), full_check=True)


def test_active_adapters_give_pefts_results(case, tmp_path):
    """Two adapters in one session, switched between runs, at three strengths."""
    running = session(case.slotted, ALL)
    plain = run(session(case.plain, ALL), case.name)
    files = {}
    for folder in (case.first, case.second):
        files[folder] = tmp_path / f"{folder.name}.onnx_adapter"
        convert(folder, files[folder], graph=case.slotted)
    for scale in (1.0, 0.5, 0.0):
        for folder, file in files.items():
            found = run(running, case.name, strength(scale), file)
            wanted = case.reference(folder, scale)
            assert distance(found, wanted) < EXACT
            if scale:
                assert distance(plain, wanted) > 100 * EXACT  # the adapter does something
    assert np.array_equal(run(running, case.name), plain)


def test_factors_become_a_peft_adapter_again(case, tmp_path):
    convert(case.first, tmp_path / "a.onnx_adapter", graph=case.slotted)
    convert(tmp_path / "a.onnx_adapter", tmp_path / "back", to="peft", graph=case.slotted)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (case.first / weights).read_bytes()
    assert distance(case.reference(tmp_path / "back"), case.reference(case.first)) == 0


def test_factors_without_notes_are_told_apart_by_the_graph(case, tmp_path):
    """Packed modules by the zeros outside of each one's block."""
    convert(case.second, tmp_path / "a.onnx_adapter", graph=case.slotted)
    parameters = ort.AdapterFormat.read_adapter(str(tmp_path / "a.onnx_adapter")).get_parameters()
    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters(parameters)
    form.export_adapter(str(tmp_path / "b.onnx_adapter"))
    convert(tmp_path / "b.onnx_adapter", tmp_path / "back", to="peft", graph=case.slotted)
    found, wanted = (read_adapter(path) for path in (tmp_path / "back", case.second))
    assert {str(s).removeprefix("model.") for s in found.updates} == {
        str(s).removeprefix("model.") for s in wanted.updates
    }
    assert distance(case.reference(tmp_path / "back"), case.reference(case.second)) < EXACT


# -- modes "inputs" and "external" ----------------------------------------------------------------


def test_required_inputs_take_any_rank(shelf, tmp_path):
    case = make(shelf, tmp_path, "llama", "genai", mode=INPUTS)
    running = session(case.slotted, ALL)
    inputs = {one.name: one for one in running.get_inputs()}
    assert {"lora_scale", "model.layers.0.self_attn.qkv_proj.lora_A.weight"} <= inputs.keys()
    for folder in (case.first, case.second):
        factors = case.factors(folder)
        assert all(min(values.shape) > 0 for values in factors.values())  # WebGPU needs elements
        found = run(running, case.name, {**factors, **strength(1)})
        assert distance(found, case.reference(folder)) < EXACT
    zeros = run(running, case.name, {**factors, **strength(0)})
    assert np.array_equal(zeros, run(session(case.plain, ALL), case.name))


def test_an_external_file_is_exchanged(shelf, tmp_path):
    case = make(shelf, tmp_path, "llama", "genai", mode=EXTERNAL, rank=4)
    files = {path.name for path in case.slotted.iterdir()}
    assert {"model.onnx", "model.onnx_data", "model.onnx_slots", "slots.json"} <= files
    model = case.slotted / "model.onnx"
    plain = run(session(case.plain, ALL), case.name)
    assert np.array_equal(run(session(model, ALL), case.name), plain)
    for folder in (case.first, case.second):
        data = tmp_path / f"{folder.name}.onnx_slots"
        convert(folder, data, graph=case.slotted)
        (case.slotted / "model.onnx_slots").write_bytes(data.read_bytes())
        found = run(session(model, ALL), case.name)
        assert distance(found, case.reference(folder)) < EXACT
        convert(data, tmp_path / f"{folder.name}-back")
        assert distance(case.reference(tmp_path / f"{folder.name}-back"), found) < EXACT


def test_a_fixed_rank_takes_smaller_ones_and_no_larger(shelf, tmp_path):
    case = make(shelf, tmp_path, "llama", "dynamo", rank=4)
    running = session(case.slotted)
    assert np.array_equal(run(running, case.name), run(session(case.plain), case.name))
    for folder in (case.first, case.second):
        convert(folder, tmp_path / f"{folder.name}.onnx_adapter", graph=case.slotted)
        found = run(running, case.name, adapter=tmp_path / f"{folder.name}.onnx_adapter")
        assert distance(found, case.reference(folder)) < EXACT
    tune(case.name, case.base, tmp_path / "large", r=5)
    with pytest.raises(IncompatibleError, match=r"rank 5 here, the graph's slot takes 4") as error:
        convert(tmp_path / "large", tmp_path / "large.onnx_adapter", graph=case.slotted)
    assert "adaptool reduce ADAPTER --rank 4" in str(error.value.hint)


# -- other types ----------------------------------------------------------------------------------


def test_half_precision(shelf, tmp_path):
    case = make(shelf, tmp_path, "llama", "genai-f16")
    running, plain = session(case.slotted), run(session(case.plain), case.name)
    assert np.array_equal(run(running, case.name), plain)
    convert(case.first, tmp_path / "a.onnx_adapter", graph=case.slotted)
    found = run(running, case.name, strength(0.5), tmp_path / "a.onnx_adapter")
    noise = distance(plain.astype(np.float32), case.reference(case.first, 0))
    assert noise < HALF
    assert distance(found.astype(np.float32), case.reference(case.first, 0.5)) < 4 * noise
    with pytest.raises(IncompatibleError, match="takes float16, not float32"):
        convert(case.first, tmp_path / "b.onnx_adapter", graph=case.slotted, dtype="f32")


def test_a_quantised_base_stays_and_the_update_is_exact(shelf, tmp_path):
    """int4: equal to PEFT beside the very weights that the graph's blocks stand for."""
    plain = accurate(shelf.exported("llama", "genai-int4"), tmp_path / "plain.onnx")
    base = shelf.base("llama")
    make_slots(plain, tmp_path / "slotted.onnx", SlotRequest())
    tune("llama", base, tmp_path / "first", r=4, lora_alpha=8)
    convert(tmp_path / "first", tmp_path / "a.onnx_adapter", graph=tmp_path / "slotted.onnx")
    running = session(tmp_path / "slotted.onnx")
    assert np.array_equal(run(running, "llama"), run(session(plain), "llama"))
    for scale in (0.5, 1.0):
        found = run(running, "llama", strength(scale), tmp_path / "a.onnx_adapter")
        wanted = by_peft("llama", decoded(plain, base), tmp_path / "first", scale)
        assert distance(found, wanted) < EXACT


def test_dynamically_quantised_bases(shelf, tmp_path):
    """int8 with activations quantised on the way: the update comes from the unquantised ones."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = tmp_path / "plain.onnx"
    quantize_dynamic(shelf.exported("llama", "torchscript"), plain, weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul"])  # fmt: skip
    made, manifest = with_slots(open_checkpoint(plain), SlotRequest())
    assert len(manifest.slots) == 14
    save_checkpoint(made, tmp_path / "slotted.onnx", SaveOptions())
    before, running = run(session(plain), "llama"), session(tmp_path / "slotted.onnx")
    assert np.array_equal(run(running, "llama"), before)
    tune("llama", shelf.base("llama"), tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "a.onnx_adapter", graph=tmp_path / "slotted.onnx")
    found = run(running, "llama", adapter=tmp_path / "a.onnx_adapter")
    wanted = by_peft("llama", MODELS["llama"].read(shelf.base("llama")), tmp_path / "first")
    noise = distance(before, outputs_of(MODELS["llama"].read(shelf.base("llama")), "llama"))
    assert distance(found, wanted) < 3 * noise < 0.2


# -- onnxruntime-genai ----------------------------------------------------------------------------


def test_onnxruntime_genai_switches_adapters(shelf, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    case = make(shelf, tmp_path, "llama", "genai")
    make_slots(case.plain.parent, tmp_path / "model", SlotRequest())
    model = genai.Model(str(tmp_path / "model"))
    adapters = genai.Adapters(model)
    for folder in (case.first, case.second):
        convert(folder, tmp_path / f"{folder.name}.onnx_adapter", graph=tmp_path / "model")
        adapters.load(str(tmp_path / f"{folder.name}.onnx_adapter"), folder.name)
    for folder in (None, case.first, case.second, None):
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=24, min_length=24, do_sample=False,
                                      past_present_share_buffer=False)  # fmt: skip
        generator = genai.Generator(model, parameters)
        if folder is not None:
            generator.set_active_adapter(adapters, folder.name)
        generator.append_tokens([5, 17, 33])
        logits = generator.get_output("logits")[0, -1]
        torch_model = MODELS["llama"].read(case.base)
        if folder is not None:
            torch_model = PeftModel.from_pretrained(torch_model, folder).eval()
        with torch.no_grad():
            wanted = torch_model(torch.tensor([[5, 17, 33]])).logits[0, -1].numpy()
        assert distance(np.asarray(logits, np.float32), wanted) < EXACT


# -- which slots ----------------------------------------------------------------------------------


def test_modules_are_chosen_as_peft_does(shelf):
    checkpoint = open_checkpoint(shelf.exported("llama", "genai"))
    _, every = with_slots(checkpoint, SlotRequest())
    assert len(every.slots) == 10
    assert len(every.modules) == 14
    assert "lm_head" not in every.modules
    _, some = with_slots(checkpoint, SlotRequest(modules=("v_proj", "lm_head", "0.mlp.up_proj")))
    assert [slot.name for slot in some.slots] == [
        "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.qkv_proj", "lm_head",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="is called query") as error:
        with_slots(checkpoint, SlotRequest(modules=("query",)))
    assert "qkv_proj" in str(error.value.hint)


def test_names_found_by_values(shelf, tmp_path):
    """A graph whose fused weights keep no name, beside the checkpoint it was exported from."""
    plain, base = shelf.exported("llama", "fused"), shelf.base("llama")
    make_slots(plain, tmp_path / "slotted.onnx", SlotRequest(), match=base)
    tune("llama", base, tmp_path / "first")
    convert(tmp_path / "first", tmp_path / "a.onnx_adapter", graph=tmp_path / "slotted.onnx")
    running = session(tmp_path / "slotted.onnx")
    assert np.array_equal(run(running, "llama"), run(session(plain), "llama"))
    found = run(running, "llama", adapter=tmp_path / "a.onnx_adapter")
    assert distance(found, by_peft("llama", MODELS["llama"].read(base), tmp_path / "first")) < EXACT


def test_slots_are_made_once_and_asked_for_sensibly(shelf, tmp_path):
    checkpoint = open_checkpoint(shelf.exported("llama", "genai"))
    made, _ = with_slots(checkpoint, SlotRequest())
    with pytest.raises(IncompatibleError, match="has slots already"):
        with_slots(made, SlotRequest())
    with pytest.raises(UsageError, match="unknown mode"):
        with_slots(checkpoint, SlotRequest("always"))
    with pytest.raises(UsageError, match="fixed size"):
        with_slots(checkpoint, SlotRequest(EXTERNAL, file="x"))
    with pytest.raises(IncompatibleError, match="has no graph"):
        with_slots(open_checkpoint(shelf.base("llama")), SlotRequest())
    with pytest.raises(UsageError, match=r"no single \.onnx file"):
        make_slots(shelf.exported("llama", "genai"), tmp_path / "x.onnx", SlotRequest(EXTERNAL, 4))
    assert not list(tmp_path.iterdir())


# -- hand-made graphs -----------------------------------------------------------------------------


def linear_graph(
    *nodes: onnx.NodeProto,
    weights: Mapping[str, np.ndarray],
    out: int = 3,
    inputs: Mapping[str, tuple[Any, ...]] | None = None,
) -> onnx.ModelProto:
    """x [2, 4] -> y [2, out]."""
    shapes = {"x": (2, 4), **(inputs or {})}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in shapes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, out))],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hand_made(module: str, out: int = 3, width: int = 4, rank: int = 2) -> Adapter:
    low = LowRank(from_values(torch.from_numpy(random(rank, width, seed=3))),
                  from_values(torch.from_numpy(random(out, rank, seed=4))), 2.0)  # fmt: skip
    return Adapter({Site(module): low}, "lora", None, Provenance("hand", "peft"))


def product(made: Adapter, x: np.ndarray) -> np.ndarray:
    """float64 x (s B A)' of an adapter's only update."""
    (low,) = made.updates.values()
    assert isinstance(low, LowRank)
    a, b = low.a.values().double().numpy(), low.b.values().double().numpy()
    return x.astype(np.float64) @ (low.scaling * b @ a).T


def slotted(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "plain.onnx")
    make_slots(folder / "plain.onnx", folder / "slotted.onnx", SlotRequest())
    return folder / "slotted.onnx"


def gain(path: Path, made: Adapter, folder: Path, x: np.ndarray) -> np.ndarray:
    """What an adapter adds to the outputs of a graph."""
    filling = fill(made, slots_of(open_checkpoint(path)))
    onnx_adapter.write_filling(filling, folder / "a.onnx_adapter", WriteOptions(force=True))
    running, options, loaded = session(path), ort.RunOptions(), ort.LoraAdapter()
    loaded.Load(str(folder / "a.onnx_adapter"))
    options.add_active_adapter(loaded)
    return running.run(None, {"x": x}, options)[0] - running.run(None, {"x": x})[0]


@pytest.mark.parametrize("straight", [0, 1])
def test_gemm_in_both_orientations(straight, tmp_path):
    weight = random(3, 4) if straight else random(4, 3)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], "/net/fc/Gemm", transB=straight)
    path = slotted(linear_graph(node, weights={"w": weight, "b": random(3)}), tmp_path)
    made, x = hand_made("net.fc"), random(2, 4, seed=9)
    assert np.allclose(gain(path, made, tmp_path, x), product(made, x), atol=1e-5)


def test_a_gemm_that_multiplies_its_product_gets_no_slot(tmp_path):
    nodes = (
        helper.make_node("Gemm", ["x", "w"], ["h"], "/net/fc/Gemm", alpha=0.5),
        helper.make_node("MatMul", ["h", "v"], ["y"], "/net/out/MatMul"),
    )
    onnx.save(linear_graph(*nodes, weights={"w": random(4, 3), "v": random(3, 3)}),
              tmp_path / "m.onnx")  # fmt: skip
    _, manifest = with_slots(open_checkpoint(tmp_path / "m.onnx"), SlotRequest())
    assert manifest.modules == ("net.out",)


def test_a_layer_in_both_branches_of_an_if_has_one_slot(tmp_path):
    """Merged decoders hold the layers once for a prompt and once for one token."""

    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, (2, 3))
        node = helper.make_node("MatMul", ["x", "w"], [f"{name}_y"], "/net/fc/MatMul")
        return helper.make_graph([node], name, [], [output])

    choose = helper.make_node("If", ["first"], ["y"], "choose", then_branch=branch("then"),
                              else_branch=branch("else"))  # fmt: skip
    model = linear_graph(choose, weights={"w": random(4, 3)})
    model.graph.input.append(helper.make_tensor_value_info("first", TensorProto.BOOL, ()))
    path = slotted(model, tmp_path)
    made, x = hand_made("net.fc"), random(2, 4, seed=9)
    manifest = slots_of(open_checkpoint(path))
    assert len(manifest.slots) == 1
    factors = {k: v.values().numpy() for k, v in fill(made, manifest).tensors.items()}
    running = session(path)
    for first in (True, False):
        feeds = {"x": x, "first": np.array(first)}
        added = running.run(None, {**feeds, **factors})[0] - running.run(None, feeds)[0]
        assert np.allclose(added, product(made, x), atol=1e-5)


def test_a_fused_attention_has_no_slot_and_that_is_said(tmp_path):
    node = helper.make_node("Attention", ["x", "w", "b"], ["h"], "/net/self/Attention",
                            domain="com.microsoft", num_heads=1)  # fmt: skip
    last = helper.make_node("MatMul", ["h", "v"], ["y"], "/net/out/MatMul")
    weights = {"w": random(4, 12), "b": random(12), "v": random(4, 3)}
    model = linear_graph(node, last, weights=weights)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "m.onnx")
    report = make_slots(tmp_path / "m.onnx", tmp_path / "s.onnx", SlotRequest(), dry_run=True)
    assert report.manifest.modules == ("net.out",)
    assert report.notes[0].startswith("no slot for /net/self/Attention")


def test_one_name_for_two_weights_is_no_slot(tmp_path):
    nodes = (
        helper.make_node("MatMul", ["x", "w"], ["h"], "/net/fc/MatMul"),
        helper.make_node("MatMul", ["h", "v"], ["i"], "/net/fc/MatMul_1"),
        helper.make_node("MatMul", ["i", "u"], ["y"], "/net/out/MatMul"),
    )
    weights = {"w": random(4, 3), "v": random(3, 3), "u": random(3, 3)}
    onnx.save(linear_graph(*nodes, weights=weights), tmp_path / "m.onnx")
    _, manifest = with_slots(open_checkpoint(tmp_path / "m.onnx"), SlotRequest())
    assert manifest.modules == ("net.out",)


def test_a_module_that_the_exporter_took_apart(tmp_path):
    """Phi's one gate_up_proj, exported as two products."""
    nodes = (
        helper.make_node("MatMul", ["x", "w"], ["g"], "/net/gate_proj/MatMul"),
        helper.make_node("MatMul", ["x", "v"], ["u"], "/net/up_proj/MatMul"),
        helper.make_node("Concat", ["g", "u"], ["y"], axis=1),
    )
    weights = {"w": random(4, 3), "v": random(4, 3)}
    path = slotted(linear_graph(*nodes, weights=weights, out=6), tmp_path)
    made, x = hand_made("net.gate_up_proj", out=6), random(2, 4, seed=9)
    assert np.allclose(gain(path, made, tmp_path, x), product(made, x), atol=1e-5)
    convert(tmp_path / "a.onnx_adapter", tmp_path / "back", graph=path, to="peft")
    back = read_adapter(tmp_path / "back")
    assert back.updates.keys() == made.updates.keys()
    assert np.allclose(product(back, x), product(made, x))


def test_inputs_of_other_tools_are_filled(tmp_path):
    """A graph with LoRA inputs under the names that Olive gives to those of the builder."""
    a, b = (f"model.layers.0.attn.q_proj.lora_{half}.MatMul.weight" for half in "AB")
    nodes = (
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["x", a], ["d"]),
        helper.make_node("MatMul", ["d", b], ["u"]),
        helper.make_node("Add", ["h", "u"], ["y"]),
    )
    model = linear_graph(*nodes, weights={"w": random(4, 3)}, inputs={a: (4, "r"), b: ("r", 3)})
    onnx.save(model, tmp_path / "m.onnx")
    made, x = hand_made("model.layers.0.self_attn.q_proj"), random(2, 4, seed=9)
    manifest = slots_of(open_checkpoint(tmp_path / "m.onnx"))
    factors = {k: v.values().numpy() for k, v in fill(made, manifest).tensors.items()}
    assert factors.keys() == {a, b}
    found = session(tmp_path / "m.onnx").run(None, {"x": x, **factors})[0]
    plain = x.astype(np.float64) @ numpy_helper.to_array(model.graph.initializer[0])
    assert np.allclose(found, plain + product(made, x), atol=1e-5)


# -- refused --------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path) -> Path:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "/net/fc/MatMul")
    return slotted(linear_graph(node, weights={"w": random(4, 3)}), tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (hand_made("net.fd"), r"net\.fd\.weight: none of the graph's 1 slots"),
        (hand_made("net.fc", out=5), r"the adapter expects \[5, 4\], the graph has \[3, 4\]"),
        (hand_made("net.fc", width=7), r"the adapter expects \[3, 7\], the graph has \[3, 4\]"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused_by_name(small, made, message):
    with pytest.raises(IncompatibleError, match=message):
        fill(made, slots_of(open_checkpoint(small)))


def test_one_place_for_two_modules_is_refused(small):
    one, two = hand_made("net.fc"), hand_made("model.net.fc")
    both = replace(one, updates={**one.updates, **two.updates})
    with pytest.raises(IncompatibleError, match=r"net\.fc and model\.net\.fc both mean net\.fc"):
        fill(both, slots_of(open_checkpoint(small)))


def test_a_graph_without_slots_is_refused(small, tmp_path):
    with pytest.raises(IncompatibleError, match="no inputs for an adapter's factors") as error:
        slots_of(open_checkpoint(tmp_path / "plain.onnx"))
    assert "adaptool slots" in str(error.value.hint)


def test_factors_of_another_graph_are_refused(small, tmp_path):
    filling = fill(hand_made("net.fc"), slots_of(open_checkpoint(small)))
    onnx_adapter.write_filling(filling, tmp_path / "a.onnx_adapter", WriteOptions())
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "/net/other/MatMul")
    (tmp_path / "2").mkdir()
    other = slotted(linear_graph(node, weights={"w": random(4, 3)}), tmp_path / "2")
    with pytest.raises(IncompatibleError, match="no inputs of the graph's slots"):
        convert(tmp_path / "a.onnx_adapter", tmp_path / "back", to="peft", graph=other)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"version":2,"mode":"optional","slots":[],"scale":""}',
     '{"version":1,"mode":"optional","scale":"s","slots":[{"name":"n"}]}',
     '{"version":1,"mode":"never","scale":"s","slots":[]}'],
)  # fmt: skip
def test_broken_manifests_are_refused(small, text):
    checkpoint = open_checkpoint(small)
    broken = replace(checkpoint, metadata={**checkpoint.metadata, PROPERTY: text})
    with pytest.raises(CorruptInputError, match=r"adaptool\.slots"):
        slots_of(broken)


def test_a_manifest_that_contradicts_its_graph_is_refused(small):
    checkpoint = open_checkpoint(small)
    text = str(checkpoint.metadata[PROPERTY]).replace('"in":4', '"in":5')
    broken = replace(checkpoint, metadata={**checkpoint.metadata, PROPERTY: text})
    with pytest.raises(CorruptInputError, match=r"contradict each other in net\.fc\.lora_A"):
        slots_of(broken)


# -- the command line -----------------------------------------------------------------------------


def test_commands(small, tmp_path, capsys):
    plain, out = str(tmp_path / "plain.onnx"), tmp_path / "made.onnx"
    assert main(["slots", plain, "-o", str(out), "--dry-run", "--json"]) == 0
    assert not out.exists()
    assert '"modules": 1' in capsys.readouterr().out
    assert main(["slots", plain, "-o", str(out), "-v"]) == 0
    assert "slots for 1 modules" in capsys.readouterr().out
    assert (tmp_path / "made.slots.json").read_text().strip() == str(
        open_checkpoint(out).metadata[PROPERTY]
    )
    assert main(["slots", plain, "-o", str(out)]) == 6
    assert main(["slots", plain, "-o", str(out), "--force"]) == 0
    assert main(["slots", str(out), "-o", str(tmp_path / "twice.onnx")]) == 4
    write_peft(hand_made("net.fc"), tmp_path / "fits", WriteOptions())
    write_peft(hand_made("net.fc", out=5), tmp_path / "wide", WriteOptions())
    for name, code in (("fits", 0), ("wide", 4)):
        target = str(tmp_path / f"{name}.onnx_adapter")
        assert main(["convert", str(tmp_path / name), "-o", target, "--for", str(out)]) == code


def test_for_is_refused_where_no_graph_matters(small, shelf, tmp_path):
    tune("llama", shelf.base("llama"), tmp_path / "first")
    with pytest.raises(UsageError, match="--for names the ONNX model"):
        convert(tmp_path / "first", tmp_path / "other", graph=small)
    with pytest.raises(UsageError, match="--names is for when there is none"):
        convert(tmp_path / "first", tmp_path / "a.onnx_adapter", graph=small, names="olive")
    with pytest.raises(AdaptoolError, match="not tensors of a data file"):
        onnx_slots.write_filling(
            fill(hand_made("net.fc"), slots_of(open_checkpoint(small))),
            tmp_path / "a.onnx_slots",
            WriteOptions(),
        )
    assert slots_of(open_checkpoint(small)).mode == OPTIONAL
