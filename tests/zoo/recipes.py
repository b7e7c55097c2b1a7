"""Adapters made with PEFT, and what a merge of each must give."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: TID251
from safetensors.torch import load_file, save_file
from torch import nn

from .models import BASES, Base, Tensors, read_tensors

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Built:
    """Folders to merge and the tensors that the merge must write.

    ``oracle`` says where ``expected`` is from: "merge" is PEFT's merge_and_unload, "forward" a
    float64 computation checked against the forward of the unmerged adapter, "hand" a float64
    computation where PEFT's forward is wrong too. ``optional`` names tensors of the base that the
    adapted model class does not have: a merge may keep them.

    PEFT adds an embedding's, an expert stack's and a packed attention's delta after rounding it to
    the base's dtype, every other delta in float32. ``other`` is the result rounded the other way:
    once where ``expected`` is PEFT's, twice where ``expected`` is computed by hand.
    """

    base: Path
    adapter: Path
    expected: Tensors
    oracle: str
    optional: frozenset[str] = frozenset()
    other: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A named base and adapter."""

    name: str
    build: Callable[[Path, torch.dtype], Built]


Hand = Callable[[Tensors, Tensors, dict[str, Any]], Tensors]


@dataclass(frozen=True)
class Recipe:
    """One LoRA adapter on one base."""

    base: str
    lora: dict[str, Any]
    hand: Hand | None = None
    oracle: str = "forward"
    resize: int = 0
    save: dict[str, Any] = field(default_factory=dict)
    names: Callable[[str], str] = str  # name in PEFT's saved result -> name in the base
    after: Callable[[Path], None] | None = None  # rewrites the adapter's files
    later: Callable[[Path], None] | None = None  # the same, unknown to PEFT: after its merge
    changed: dict[str, Any] = field(default_factory=dict)  # config of the hand-merged model
    check: Hand | None = None  # what PEFT's forward computes, where it is wrong

    def build(self, folder: Path, dtype: torch.dtype) -> Built:
        """Write the base and the adapter, and compute what their merge must be."""
        base, adapter = folder / "base", folder / "adapter"
        kind = BASES[self.base]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.write(base, dtype, **self.save)
            model = get_peft_model(self._load(base, dtype), LoraConfig(**self.lora))
            fill(model)
            model.save_pretrained(adapter)
            if self.after is not None:
                self.after(adapter)
            half = dtype != torch.float32
            if self.hand is None:
                expected = self._merged(folder, dtype)
                other = self._merged(folder, torch.float32) if half else {}
                other = {name: tensor.to(dtype) for name, tensor in other.items()}
                oracle = "merge"
            else:
                expected = self._by_hand(folder, dtype)
                other = self._rounded_twice(folder, dtype) if half else {}
                oracle = self.oracle
        if self.later is not None:
            self.later(adapter)
        unused = frozenset(read_tensors(base)) - frozenset(expected)
        return Built(base, adapter, expected, oracle, unused, other)

    def _load(self, base: Path, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(1)
        model = BASES[self.base].read(base, dtype)
        if self.resize:
            model.resize_token_embeddings(model.config.vocab_size + self.resize)
        return model

    def adapted(self, folder: Path, dtype: torch.dtype) -> PeftModel:
        """The unmerged adapter on its base, as PEFT loads them."""
        model = self._load(folder / "base", dtype)
        return PeftModel.from_pretrained(model, folder / "adapter").eval()

    def _merged(self, folder: Path, dtype: torch.dtype) -> Tensors:
        model = self.adapted(folder, dtype)
        kind = BASES[self.base]
        before = forward(model, kind) if dtype == torch.float32 else None
        merged = model.merge_and_unload()
        if before is not None:
            torch.testing.assert_close(forward(merged, kind), before, atol=1e-4, rtol=1e-4)
        if kind.loader is None:
            return {name: tensor.clone() for name, tensor in merged.state_dict().items()}
        saved = folder / f"expected-{dtype}"
        merged.save_pretrained(saved, **self.save)
        return {self.names(name): tensor for name, tensor in read_tensors(saved).items()}

    def _by_hand(self, folder: Path, dtype: torch.dtype) -> Tensors:
        stored = read_tensors(folder / "base")
        adapter = read_tensors(folder / "adapter")
        assert self.hand is not None
        if dtype == torch.float32:
            actual = forward(self.adapted(folder, dtype), BASES[self.base])
            result = (self.check or self.hand)(stored, adapter, self.lora)
            model = self._untied(folder, result)
            torch.testing.assert_close(
                forward(model, BASES[self.base]), actual, atol=1e-4, rtol=1e-4
            )
        return self.hand(stored, adapter, self.lora)

    def _rounded_twice(self, folder: Path, dtype: torch.dtype) -> Tensors:
        stored = read_tensors(folder / "base")
        adapter = read_tensors(folder / "adapter")
        assert self.hand is not None
        exact = self.hand({n: t.double() for n, t in stored.items()}, adapter, self.lora)
        return {
            name: stored[name] + (exact[name] - stored[name].double()).to(dtype)
            for name in stored
            if name in exact
        }

    def _untied(self, folder: Path, tensors: Tensors) -> nn.Module:
        kind = BASES[self.base]
        if kind.loader is None:
            model = kind.make()
        else:
            model = kind.read(folder / "base", torch.float32)
            config = model.config
            config.tie_word_embeddings = "lm_head.weight" not in tensors
            for key, value in self.changed.items():
                setattr(config, key, value)
            model = type(model)(config)
        missing = model.load_state_dict(tensors, strict=False)
        assert not missing.unexpected_keys
        assert set(missing.missing_keys) <= {"lm_head.weight"}, missing.missing_keys
        if "lm_head.weight" in missing.missing_keys:
            model.tie_weights()
        return model.eval()


def forward(model: nn.Module, kind: Base) -> torch.Tensor:
    """The model's logits on the base's fixed inputs."""
    with torch.no_grad():
        output = model(**kind.inputs())
    return output if isinstance(output, torch.Tensor) else output[0]


def fill(model: nn.Module, seed: int = 2) -> None:
    """Random values for everything that the adapter trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if "lora_magnitude" in name:
                parameter.mul_((1 + 0.2 * noise).to(parameter.dtype))
            elif "lora_" in name:
                parameter.copy_(0.2 * noise)
            else:
                parameter.add_((0.2 * noise).to(parameter.dtype))


def plus(weight: torch.Tensor, *deltas: torch.Tensor) -> torch.Tensor:
    """weight + deltas, in float64 and rounded once."""
    total = weight.double()
    for delta in deltas:
        total = total + delta
    return total.to(weight.dtype)


def delta(adapter: Tensors, module: str, lora: dict[str, Any]) -> torch.Tensor:
    """scaling * B @ A of a module, in float64; an embedding's is transposed."""
    key = f"base_model.model.{module}"
    scale = lora["lora_alpha"] / lora["r"]
    if f"{key}.lora_embedding_A" in adapter:
        a, b = adapter[f"{key}.lora_embedding_A"], adapter[f"{key}.lora_embedding_B"]
        return scale * (b.double() @ a.double()).T
    return scale * (
        adapter[f"{key}.lora_B.weight"].double() @ adapter[f"{key}.lora_A.weight"].double()
    )


def one_side(embedding: str, *targets: str) -> Hand:
    """Deltas on one or both sides of a tied pair: the head becomes its own tensor."""

    def compute(stored: Tensors, adapter: Tensors, lora: dict[str, Any]) -> Tensors:
        assert "lm_head.weight" not in stored
        result = {**stored, "lm_head.weight": stored[embedding].clone()}
        for target in targets:
            name = f"{target}.weight"
            result[name] = plus(result[name], delta(adapter, target, lora))
        return result

    return compute


def still_tied(embedding: str) -> Hand:
    """One delta shared by both sides."""

    def compute(stored: Tensors, adapter: Tensors, lora: dict[str, Any]) -> Tensors:
        shared = delta(adapter, embedding.removesuffix(".weight"), lora)
        return {**stored, embedding: plus(stored[embedding], shared)}

    return compute


def attention(out_times: int) -> Hand:
    """Packed attention; PEFT counts the output projection's delta twice."""

    def compute(stored: Tensors, adapter: Tensors, lora: dict[str, Any]) -> Tensors:
        packed = delta(adapter, "attn", lora)
        out = delta(adapter, "attn.base_layer.out_proj", lora)
        result = dict(stored)
        result["attn.in_proj_weight"] = plus(stored["attn.in_proj_weight"], packed)
        name = "attn.out_proj.weight"
        result[name] = plus(stored[name], *[out] * out_times)
        return result

    return compute


def replicated(stored: Tensors, adapter: Tensors, lora: dict[str, Any]) -> Tensors:
    """Every copy of a layer becomes a layer with its own delta."""
    sources = [i for start, end in lora["layer_replication"] for i in range(start, end)]
    result = {n: t for n, t in stored.items() if not n.startswith("model.layers.")}
    for number, source in enumerate(sources):
        start = f"model.layers.{source}."
        for name, tensor in stored.items():
            if name.startswith(start):
                result[f"model.layers.{number}.{name.removeprefix(start)}"] = tensor.clone()
    for key in adapter:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            name = f"{module}.weight"
            result[name] = plus(result[name], delta(adapter, module, lora))
    return result


def old_expert_names(folder: Path) -> None:
    """A Mixtral adapter as written before the experts were fused."""
    generator = torch.Generator().manual_seed(4)
    shapes = {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}
    tensors = {}
    for layer in range(2):
        block = f"base_model.model.model.layers.{layer}.block_sparse_moe"
        for expert in range(3):
            for part, (out, inner) in shapes.items():
                key = f"{block}.experts.{expert}.{part}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(4, inner, generator=generator)
                tensors[f"{key}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    save_file({n: 0.2 * t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    change_config(folder, target_modules=["w1", "w2", "w3"], target_parameters=None)


def swapped_expert_factors(folder: Path) -> None:
    """Factors of fused experts as PEFT wrote them before 0.19: in and out exchanged."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "experts" in name and ".lora_A." in name]:
        partner = name.replace(".lora_A.", ".lora_B.")
        a, b = tensors[name], tensors[partner]
        a = a.reshape(3, -1, a.shape[1])
        b = b.reshape(b.shape[0], -1, 3)
        tensors[name] = b.permute(2, 1, 0).flatten(0, 1).contiguous()
        tensors[partner] = a.permute(2, 1, 0).flatten(1).contiguous()
    save_file(tensors, path)
    change_config(folder, peft_version="0.18.1")


def legacy_names(*pairs: tuple[str, str]) -> Callable[[Path], None]:
    """The adapter's keys under the module names of older model classes."""

    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors: Tensors = {}
        for key, tensor in load_file(path).items():
            name = key
            for new, old in pairs:
                name = name.replace(new, old)
            tensors[name] = tensor
        save_file(tensors, path)
        change_config(folder, peft_version="0.15.0")

    return rewrite


def change_config(folder: Path, **values: Any) -> None:
    """Set values of adapter_config.json."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps(config, indent=2))
