"""Adapter files of ONNX Runtime and plain ONNX ones: what is written, read, and refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptool.canonical import (
    Adapter,
    Addition,
    Dora,
    DType,
    LowRank,
    Provenance,
    Replacement,
    Site,
    Update,
)
from adaptool.canonical.tensors import from_values
from adaptool.errors import AdaptoolError, CorruptInputError, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, WriteOptions, onnx_adapter, onnx_slots, read_adapter
from adaptool.formats import onnx as onnx_format
from adaptool.formats._trailer import read_trailer, trailer
from adaptool.formats.onnx_adapter.flatbuffer import Parameters, lay_out, read_parameters
from adaptool.formats.peft import write as write_peft
from adaptool.jobs.converting import convert
from adaptool.slots import EXTERNAL, Manifest, fill, slots_for
from adaptool.slots.manifest import Part, Slot
from adaptool.storage import FilePlan, SourceFile, Staging, write_files

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def low_rank(out: int, width: int, rank: int, scaling: float = 2.0, seed: int = 0,
             dtype: torch.dtype = torch.float32) -> LowRank:  # fmt: skip
    a, b = values(rank, width, seed=seed).to(dtype), values(out, rank, seed=seed + 1).to(dtype)
    return LowRank(from_values(a), from_values(b), scaling)


def adapter(updates: Mapping[str, Update], **changes: object) -> Adapter:
    sites = {Site(*name.rsplit(".", 1)): update for name, update in updates.items()}
    made = Adapter(sites, "lora", "org/base", Provenance("pirate", "peft"))
    return replace(made, **changes)  # type: ignore[arg-type]


TWO = {f"{Q}.weight": low_rank(6, 4, 2), f"{K}.weight": low_rank(3, 4, 5, scaling=1.5, seed=7)}


def dense(update: Update) -> torch.Tensor:
    assert isinstance(update, LowRank)
    return update.scaling * (update.b.values().double() @ update.a.values().double())


def written(made: Adapter, path: Path, **options: object) -> Path:
    onnx_adapter.write(made, path, WriteOptions(**options))  # type: ignore[arg-type]
    return path


def write_parameters(path: Path, parameters: Parameters) -> Path:
    size, extents = lay_out(parameters)
    with Staging(path, kind="file", required=size, inputs=[], force=True) as staging:
        write_files(staging, [FilePlan(path.name, size, extents)], workers=1, progress=None)
        staging.commit()
    return path


def by_runtime(path: Path) -> dict[str, ort.OrtValue]:
    ort.LoraAdapter().Load(str(path))
    return ort.AdapterFormat.read_adapter(str(path)).get_parameters()


# -- ONNX Runtime reads what is written, and the other way round ----------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 3), (5, 0), (1, 1), (7, 9)])
def test_the_runtime_reads_the_same_bytes(dtype, shape, tmp_path):
    tensors = {"x": values(*shape).to(dtype), "odd name": values(3, 1, seed=3).to(dtype)}
    lazy = {name: from_values(tensor) for name, tensor in tensors.items()}
    path = write_parameters(tmp_path / "a.onnx_adapter", Parameters(lazy, 5, 9))
    found = by_runtime(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].shape() == list(tensor.shape)
        assert torch.equal(torch.from_dlpack(found[name]._ortvalue), tensor) or not tensor.numel()
    versions = ort.AdapterFormat.read_adapter(str(path))
    assert (versions.get_adapter_version(), versions.get_model_version()) == (5, 9)


def test_a_file_of_the_runtime_is_read(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones((2, 0), np.float16)}
    form = ort.AdapterFormat()
    form.set_adapter_version(0)  # a default, which a flatbuffer leaves out
    form.set_model_version(7)
    form.set_parameters({n: ort.OrtValue.ortvalue_from_numpy(v) for n, v in arrays.items()})
    form.export_adapter(str(tmp_path / "a.onnx_adapter"))
    found = read_parameters(SourceFile.open(tmp_path / "a.onnx_adapter"))
    assert (found.adapter_version, found.model_version) == (0, 7)
    assert {n: t.values().numpy().tobytes() for n, t in found.tensors.items()} == {
        n: v.tobytes() for n, v in arrays.items()
    }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.text(min_size=1, max_size=20)),
                max_size=6, unique_by=lambda item: item[2]))  # fmt: skip
def test_any_names_and_sizes_come_back(tmp_path_factory, items):
    tensors = {name: values(rows, cols) for rows, cols, name in items}
    path = tmp_path_factory.mktemp("any") / "a.onnx_adapter"
    write_parameters(path, Parameters({n: from_values(t) for n, t in tensors.items()}))
    found = read_parameters(SourceFile.open(path))
    assert list(found.tensors) == list(tensors)
    assert all(torch.equal(found.tensors[n].values(), t) for n, t in tensors.items())
    assert found.end <= path.stat().st_size
    if tensors:
        assert by_runtime(path).keys() == tensors.keys()


def test_factors_lie_as_a_graph_multiplies_them(tmp_path):
    """A is [in, rank], B [rank, out] with the strength in it."""
    found = by_runtime(written(adapter(TWO), tmp_path / "a.onnx_adapter"))
    for name, update in TWO.items():
        stem = name.removesuffix(".weight")
        a, b = (found[f"{stem}.lora_{half}.weight"].numpy() for half in "AB")
        assert np.array_equal(a, update.a.values().T.numpy())
        product = torch.from_numpy(a.astype(np.float64) @ b.astype(np.float64)).T
        assert torch.allclose(product, dense(update), rtol=1e-6, atol=1e-7)


def test_files_are_the_same_every_time(tmp_path):
    one, two = (written(adapter(TWO), tmp_path / n) for n in ("1.onnx_adapter", "2.onnx_adapter"))
    assert one.read_bytes() == two.read_bytes()


# -- and back to PEFT -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scaling", [0.25, 1.0, 2.0, 16.0])
def test_a_power_of_two_comes_out_of_b_again(dtype, scaling, tmp_path):
    update = low_rank(6, 4, 2, scaling, dtype=dtype)
    found = read_adapter(written(adapter({f"{Q}.weight": update}), tmp_path / "a.onnx_adapter"))
    back = found.updates[Site(Q)]
    assert isinstance(back, LowRank)
    assert (back.scaling, back.a.dtype, found.base) == (scaling, update.a.dtype, "org/base")
    assert torch.equal(back.a.values(), update.a.values())
    assert torch.equal(back.b.values(), update.b.values())


def test_another_strength_stays_in_b_and_is_noted(tmp_path):
    update = low_rank(6, 4, 2, 1.7)
    path = written(adapter({f"{Q}.weight": update}), tmp_path / "a.onnx_adapter")
    back = read_adapter(path).updates[Site(Q)]
    assert isinstance(back, LowRank)
    assert back.scaling == 1.0
    folded = (update.b.values().double() * 1.7).float()
    assert torch.equal(back.b.values(), folded)
    notes = read_trailer(SourceFile.open(path))
    assert notes is not None
    assert notes["modules"][Q][0]["scaling"] == 1.7  # type: ignore[index,call-overload]


def test_a_peft_folder_comes_back_byte_for_byte(tmp_path):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"],
              "task_type": "CAUSAL_LM"}  # fmt: skip
    plain = {f"{Q}.weight": low_rank(6, 4, 2), f"{K}.weight": low_rank(3, 4, 4, 0.5, seed=9)}
    write_peft(adapter(plain, config=config), tmp_path / "one", WriteOptions())
    convert(tmp_path / "one", tmp_path / "a.onnx_adapter")
    convert(tmp_path / "a.onnx_adapter", tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_file_without_notes_is_read_by_its_names(tmp_path):
    """What Olive's convert-adapters writes: its names, alpha over rank in B."""
    factors = {
        f"{Q}.lora_A.weight": values(4, 2), f"{Q}.lora_B.weight": values(2, 6),
        "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight": values(4, 3),
        "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight": values(3, 4),
        "model.layers.0.attn.o_proj.lora_A.MatMul.weight": values(6, 1),
        "model.layers.0.attn.o_proj.lora_B.MatMul.weight": values(1, 4),
    }  # fmt: skip
    lazy = {name: from_values(tensor) for name, tensor in factors.items()}
    path = write_parameters(tmp_path / "a.onnx_adapter", Parameters(lazy))
    found = read_adapter(path)
    assert [str(site) for site in found.updates] == [
        "bert.encoder.layer.0.attention.self.query.weight",
        "model.layers.0.self_attn.o_proj.weight",
        f"{Q}.weight",
    ]
    a, b = factors[f"{Q}.lora_A.weight"].double(), factors[f"{Q}.lora_B.weight"].double()
    assert torch.allclose(dense(found.updates[Site(Q)]), (a @ b).T)


def test_tensors_that_are_no_factors_are_refused(tmp_path):
    lazy = {"some.weight": from_values(values(3, 3))}
    path = write_parameters(tmp_path / "a.onnx_adapter", Parameters(lazy))
    with pytest.raises(IncompatibleError, match=r"no inputs of the graph's slots.*some\.weight"):
        read_adapter(path)


def test_olive_names(tmp_path):
    """olive/cli/convert_adapters.py: base_model.model.model becomes model, nothing else changes."""
    bert = "bert.encoder.layer.0.attention.self.query"
    made = adapter({f"{Q}.weight": low_rank(6, 4, 2), f"{bert}.weight": low_rank(4, 4, 2)})
    filling = fill(made, slots_for(made, "olive"))
    assert list(filling.tensors) == [
        f"{Q}.lora_A.weight", f"{Q}.lora_B.weight",
        f"base_model.model.{bert}.lora_A.weight", f"base_model.model.{bert}.lora_B.weight",
    ]  # fmt: skip
    onnx_adapter.write_filling(filling, tmp_path / "a.onnx_adapter", WriteOptions())
    assert read_adapter(tmp_path / "a.onnx_adapter").updates.keys() == made.updates.keys()
    with pytest.raises(UsageError, match="unknown names"):
        slots_for(made, "nobody")


# -- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "update",
    [
        Dora(low_rank(6, 4, 2), from_values(values(6))),
        Replacement(from_values(values(6, 4))),
        Addition(from_values(values(6))),
        replace(low_rank(6, 4, 2), embedding=True),
        LowRank(from_values(values(2, 4, 3, 3)), from_values(values(6, 2)), 1.0),
    ],
    ids=["dora", "replacement", "addition", "embedding", "convolution"],
)
def test_what_is_no_pair_of_factors_is_refused(update, tmp_path):
    with pytest.raises(IncompatibleError, match=r"q_proj.*two factors of a linear layer"):
        written(adapter({f"{Q}.weight": update}), tmp_path / "a.onnx_adapter")
    assert not list(tmp_path.iterdir())


def test_adapters_that_are_more_than_factors_are_refused(tmp_path):
    cases = (
        (adapter(TWO, unmergeable="tokens switch it on"), "tokens switch it on"),
        (adapter({}), "no weight updates"),
        (adapter(TWO, extras={"prompt": from_values(values(2, 2))}), "no weight updates"),
    )
    for made, message in cases:
        with pytest.raises(IncompatibleError, match=message):
            written(made, tmp_path / "a.onnx_adapter")
    assert not list(tmp_path.iterdir())


def test_packed_factors_and_values_beyond_a_type_are_refused(tmp_path):
    with pytest.raises(IncompatibleError, match="q8_0"):
        written(adapter(TWO), tmp_path / "a.onnx_adapter", encoding="q8_0")
    huge = adapter({f"{Q}.weight": low_rank(6, 4, 2, scaling=1e6)})
    with pytest.raises(IncompatibleError, match="beyond float16"):
        written(huge, tmp_path / "a.onnx_adapter", dtype=DType.FLOAT16)
    with pytest.raises(IncompatibleError, match="single value"):
        lay_out(Parameters({"x": from_values(torch.tensor(1.0))}))
    assert not list(tmp_path.iterdir())


def test_the_data_file_of_a_graph_needs_the_graph(tmp_path):
    with pytest.raises(UsageError, match="places of the factors are the graph's"):
        onnx_slots.write(adapter(TWO), tmp_path / "a.onnx_slots", WriteOptions())


# -- hostile --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    path = written(adapter(TWO), tmp_path_factory.mktemp("sound") / "a.onnx_adapter")
    return path.read_bytes()


def opened(data: bytes, path: Path) -> None:
    """Read a file and all of its values; whatever is wrong must be said."""
    path.write_bytes(data)
    try:
        found = onnx_adapter.read(path, ReadOptions())
        for update in found.updates.values():
            for tensor in update.tensors.values():
                tensor.values()
    except AdaptoolError:
        pass


def test_every_cut_is_survived(sound, tmp_path):
    for size in range(0, len(sound), 7):
        opened(sound[:size], tmp_path / "a.onnx_adapter")


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 4, 127, 128, 254, 255])),
                min_size=1, max_size=4))  # fmt: skip
def test_mutations_are_survived(sound, tmp_path_factory, changes):
    data = bytearray(sound)
    for place, byte in changes:
        data[min(int(place * len(data)), len(data) - 1)] = byte
    opened(bytes(data), tmp_path_factory.getbasetemp() / "mutated.onnx_adapter")


@pytest.mark.parametrize(
    ("at", "number", "message"),
    [
        (0, 2**31, "points to bytes"),  # the root table
        (20, 2**30, "points to bytes"),  # its list of fields
        (40, 2**30, "points to bytes"),  # more tensors than the file has bytes
        (44, 2**30, "points to bytes"),  # the first tensor's table
    ],
)
def test_offsets_beyond_the_file_are_refused(sound, at, number, message, tmp_path):
    data = bytearray(sound)
    struct.pack_into("<I", data, at, number)
    (tmp_path / "a.onnx_adapter").write_bytes(data)
    with pytest.raises(CorruptInputError, match=message):
        onnx_adapter.read(tmp_path / "a.onnx_adapter", ReadOptions())


def test_sizes_that_are_not_the_values_are_refused(sound, tmp_path):
    data = bytearray(sound)
    where = data.find(struct.pack("<qq", 4, 2))
    struct.pack_into("<q", data, where, -4)
    (tmp_path / "a.onnx_adapter").write_bytes(data)
    with pytest.raises(CorruptInputError, match=r"32 bytes, its sizes are \[-4, 2\]"):
        onnx_adapter.read(tmp_path / "a.onnx_adapter", ReadOptions())


def test_damaged_notes_are_refused(sound, tmp_path):
    path = tmp_path / "a.onnx_adapter"
    end = read_parameters(SourceFile.open(_put(path, sound))).end
    for notes in (trailer({"slots": 3}), b"{]" + trailer({})[2:], trailer({"modules": {"x": [1]}})):
        with pytest.raises(CorruptInputError, match="notes"):
            onnx_adapter.read(_put(path, sound[:end] + notes), ReadOptions())


# -- the data file of a graph ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_file(tmp_path_factory) -> bytes:
    """For a graph with one slot of rank 3, which looks 64 bytes apart."""
    slot = Slot("net.q", "a", "b", 4, 6, DType.FLOAT32, 3, (Part("net.q", (0, 6)),))
    places = (("lora_scale", 0), ("a", 64), ("b", 128))
    manifest = Manifest(EXTERNAL, (slot,), file="m.onnx_slots", places=places)
    filling = fill(adapter({"net.q.weight": low_rank(6, 4, 2)}), manifest)
    path = tmp_path_factory.mktemp("data") / "a.onnx_slots"
    onnx_slots.write_filling(filling, path, WriteOptions())
    return path.read_bytes()


def test_a_data_file_has_every_factor_in_its_place(data_file, tmp_path):
    low = low_rank(6, 4, 2)
    a, b = (torch.frombuffer(bytearray(data_file[at:]), dtype=torch.float32, count=count)
            for at, count in ((64, 12), (128, 18)))  # fmt: skip
    assert struct.unpack_from("<f", data_file)[0] == 1.0
    assert torch.equal(a.view(4, 3)[:, :2], low.a.values().T)
    assert torch.equal(b.view(3, 6)[:2], 2 * low.b.values().T)
    assert not a.view(4, 3)[:, 2].any()
    assert not b.view(3, 6)[2].any()
    back = read_adapter(_put(tmp_path / "a.onnx_slots", data_file)).updates[Site("net.q")]
    assert isinstance(back, LowRank)
    assert (back.rank, back.scaling) == (2, 2.0)
    assert torch.equal(back.b.values(), low.b.values())


@settings(max_examples=300, deadline=None)
@given(st.floats(0, 1), st.binary(min_size=1, max_size=3), st.floats(0, 1))
def test_changed_data_files_are_survived(data_file, tmp_path_factory, place, put, size):
    """Above all their notes, which are JSON."""
    data = bytearray(data_file[: max(int(size * 4 * len(data_file)), 1)])
    at = int(place * (len(data) - 1))
    data[at : at + len(put)] = put
    path = _put(tmp_path_factory.getbasetemp() / "changed.onnx_slots", bytes(data))
    try:
        for update in onnx_slots.read(path, ReadOptions()).updates.values():
            for tensor in update.tensors.values():
                tensor.values()
    except AdaptoolError:
        pass


def test_places_outside_of_a_data_file_are_refused(data_file, tmp_path):
    notes = read_trailer(SourceFile.open(_put(tmp_path / "a.onnx_slots", data_file)))
    for place, rank in ((99_999, 3), (128, 99_999)):
        changed = json.loads(json.dumps(notes))
        changed["slots"]["places"]["b"] = place
        changed["slots"]["slots"][0]["rank"] = rank
        path = _put(tmp_path / "a.onnx_slots", data_file[:200] + trailer(changed))
        with pytest.raises(CorruptInputError, match="does not lie in the file"):
            read_adapter(path)


def _put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# -- plain ONNX files -----------------------------------------------------------------------------


def test_a_plain_onnx_file_holds_what_peft_stores(tmp_path):
    made = adapter({
        **{name: Dora(low, from_values(values(low.shape[0]))) for name, low in TWO.items()},
        "score.weight": Replacement(from_values(values(2, 4))),
    })  # fmt: skip
    write_peft(made, tmp_path / "one", WriteOptions())
    convert(tmp_path / "one", tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model)
    assert not model.graph.node
    names = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert names[f"base_model.model.{Q}.lora_A.weight"] == (2, 4)
    convert(tmp_path / "a.onnx", tmp_path / "two")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_plain_onnx_file_of_others_is_read_with_pefts_defaults(tmp_path):
    factors = {f"{Q}.lora_A.weight": values(2, 4), f"{Q}.lora_B.weight": values(6, 2)}
    graph = onnx.helper.make_graph([], "g", [], [], [
        onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in factors.items()
    ])  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    found = read_adapter(tmp_path / "a.onnx")
    update = found.updates[Site(Q)]
    assert isinstance(update, LowRank)
    assert update.scaling == 4.0  # alpha 8
    assert torch.equal(update.b.values(), factors[f"{Q}.lora_B.weight"])
    assert any("default alpha" in note for note in found.provenance.notes)


def test_a_model_is_no_adapter(tmp_path):
    helper = onnx.helper
    value = helper.make_tensor_value_info("x", 1, [2])
    other = helper.make_tensor_value_info("y", 1, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert not onnx_format.recognises(tmp_path / "model.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert not onnx_format.recognises(tmp_path / "empty.onnx")


def test_a_broken_configuration_is_refused(tmp_path):
    graph = onnx.helper.make_graph([], "g", [], [], [
        onnx.numpy_helper.from_array(np.ones((2, 4), np.float32), f"{Q}.lora_A.weight")
    ])  # fmt: skip
    model = onnx.helper.make_model(graph)
    model.metadata_props.add(key="adapter_config.json", value=json.dumps([1]))
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CorruptInputError, match="not a JSON object"):
        read_adapter(tmp_path / "a.onnx")
