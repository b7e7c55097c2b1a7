"""Slotted models, how they are run, and what PEFT computes in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from exports import MODELS, Shelf, inputs_of, outputs_of, tune
from exports import _past as past
from peft import PeftModel  # noqa: TID251
from peft.tuners.lora import LoraLayer  # noqa: TID251

from adaptool.containers import SaveOptions, open_checkpoint, save_checkpoint
from adaptool.formats import read_adapter
from adaptool.jobs.slotting import make_slots
from adaptool.slots import EXTERNAL, SlotRequest, fill, slots_of
from adaptool.slots.sites import linears_of

EXACT = 1e-5
HALF = 2e-3
"""Largest error of a logit over the largest one, in float32 and in float16."""

ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
NONE = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


# -- running --------------------------------------------------------------------------------------


def session(path: Path, level: ort.GraphOptimizationLevel = NONE) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(running: ort.InferenceSession, name: str, extra: Mapping[str, np.ndarray] | None = None,
        adapter: Path | None = None) -> np.ndarray:  # fmt: skip
    given = {key: value.numpy() for key, value in inputs_of(name).items()}
    if "input_ids" in given:
        given["attention_mask"] = np.ones_like(given["input_ids"])
    feeds = {one.name: given[one.name] if one.name in given else past(one)
             for one in running.get_inputs() if one.name not in (extra or {})}  # fmt: skip
    options = ort.RunOptions()
    loaded = ort.LoraAdapter()
    if adapter is not None:
        loaded.Load(str(adapter))
        options.add_active_adapter(loaded)
    names = [one.name for one in running.get_outputs()]
    wanted = "logits" if "logits" in names else names[0]
    return running.run([wanted], {**feeds, **(extra or {})}, options)[0]


def strength(scale: float) -> dict[str, np.ndarray]:
    return {"lora_scale": np.array(scale, np.float32)}


@torch.no_grad()
def by_peft(name: str, base: Any, folder: Path, scale: float = 1.0) -> np.ndarray:
    """What PEFT computes with the factors beside the weights, each strength times `scale`."""
    model = PeftModel.from_pretrained(base, folder).eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.scale_layer(scale)
    return outputs_of(model.base_model.model, name)


@dataclass(frozen=True)
class Case:
    """A slotted model, the model that it was made of, and two adapters of its base."""

    name: str
    plain: Path
    slotted: Path
    base: Path
    first: Path
    second: Path

    def reference(self, adapter: Path, scale: float = 1.0) -> np.ndarray:
        return by_peft(self.name, MODELS[self.name].read(self.base), adapter, scale)

    def factors(self, adapter: Path) -> dict[str, np.ndarray]:
        filling = fill(read_adapter(adapter), slots_of(open_checkpoint(self.slotted)))
        return {key: tensor.values().numpy() for key, tensor in filling.tensors.items()}


def make(shelf: Shelf, folder: Path, name: str, exporter: str, **request: Any) -> Case:
    plain, base = shelf.exported(name, exporter), shelf.base(name)
    is_external = request.get("mode") == EXTERNAL
    slotted = folder / ("slotted" if is_external else "slotted.onnx")
    make_slots(plain, slotted, SlotRequest(**request))
    targets = MODELS[name].targets
    layers = [t for t in targets if t != "classifier"]
    tune(name, base, folder / "first", r=4, lora_alpha=8, target_modules=layers)
    tune(name, base, folder / "second", r=2, lora_alpha=3, target_modules=layers[:2])
    return Case(name, plain, slotted, base, folder / "first", folder / "second")


# -- quantised bases ------------------------------------------------------------------------------


def accurate(model: Path, path: Path) -> Path:
    """The model with products in float32; the builder asks for 8-bit activations."""
    checkpoint = open_checkpoint(model)
    assert checkpoint.graph is not None
    nodes = tuple(
        replace(node, attributes={**node.attributes, "accuracy_level": 1})
        if node.op.endswith("MatMulNBits")
        else node
        for node in checkpoint.graph.nodes
    )
    graph = replace(checkpoint.graph, nodes=nodes)
    save_checkpoint(replace(checkpoint, graph=graph), path, SaveOptions())
    return path


def decoded(model: Path, base: Path) -> Any:
    """The base with the weights that a quantised graph computes with."""
    checkpoint, torch_model = open_checkpoint(model), MODELS["llama"].read(base)
    state = torch_model.state_dict()
    linears = linears_of(checkpoint)
    assert len(linears) == 11
    for linear in linears:
        weight = checkpoint.tensors[linear.tensor].values()  # [out, in]
        assert not torch.equal(weight, state[f"{linear.parts[0].module}.weight"])
        for part in linear.parts:
            state[f"{part.module}.weight"].copy_(weight[slice(*part.rows)])
    return torch_model
