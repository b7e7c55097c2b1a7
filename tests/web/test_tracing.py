"""Traced graphs beside the models that they were traced from."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers as tf  # noqa: TID251
from safetensors.torch import load_file, save_file
from zoo.models import randomise

from adaptool import tracing
from adaptool.canonical import DType
from adaptool.errors import (
    AdaptoolError,
    CorruptInputError,
    IncompatibleError,
    UsageError,
    VerificationError,
)
from adaptool.tracing import graph, loading, ports, task_of, trace
from adaptool.tracing.masks import seeing_masks

torch.set_num_threads(1)
WORDS = 96
_DECODER = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1,
    "max_position_embeddings": 64, "eos_token_id": None, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
_ENCODER = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip
_GPT2 = {
    "vocab_size": WORDS, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
WINDOW = 4


@dataclass(frozen=True)
class Tiny:
    kind: Any
    config: Any
    options: dict[str, Any]
    attention: str = "sdpa"

    def write(self, folder: Path) -> Path:
        torch.manual_seed(0)
        model = self.kind(self.config(**self.options)).float()
        randomise(model)
        model.save_pretrained(folder)
        return folder


DECODERS = {
    "llama": Tiny(tf.LlamaForCausalLM, tf.LlamaConfig, _DECODER),
    "llama-tied": Tiny(
        tf.LlamaForCausalLM, tf.LlamaConfig, {**_DECODER, "tie_word_embeddings": True}
    ),
    "qwen2": Tiny(tf.Qwen2ForCausalLM, tf.Qwen2Config, {**_DECODER, "num_hidden_layers": 1}),
    "gemma3": Tiny(
        tf.Gemma3ForCausalLM, tf.Gemma3TextConfig,
        {**_DECODER, "sliding_window": WINDOW,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mistral": Tiny(
        tf.MistralForCausalLM, tf.MistralConfig, {**_DECODER, "sliding_window": WINDOW}
    ),
    "gpt2": Tiny(tf.GPT2LMHeadModel, tf.GPT2Config, _GPT2),
    "qwen3": Tiny(tf.Qwen3ForCausalLM, tf.Qwen3Config, _DECODER),
    "gemma2": Tiny(
        tf.Gemma2ForCausalLM, tf.Gemma2Config, {**_DECODER, "sliding_window": WINDOW},
        attention="eager",
    ),
    "phi3": Tiny(tf.Phi3ForCausalLM, tf.Phi3Config, {**_DECODER, "num_attention_heads": 2}),
}  # fmt: skip
ENCODERS = {
    "feature-extraction": Tiny(tf.BertModel, tf.BertConfig, _ENCODER),
    "text-classification": Tiny(tf.BertForSequenceClassification, tf.BertConfig, _ENCODER),
    "fill-mask": Tiny(
        tf.RobertaForMaskedLM, tf.RobertaConfig,
        {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1},
    ),
    "token-classification": Tiny(
        tf.DistilBertForTokenClassification, tf.DistilBertConfig,
        {"vocab_size": WORDS, "dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4,
         "max_position_embeddings": 64, "num_labels": 3},
    ),
    "question-answering": Tiny(
        tf.BertForQuestionAnswering, tf.BertConfig, {**_ENCODER, "num_labels": 2}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A model and its graph."""

    folder: Path
    traced: tracing.Traced
    run: Any = field(repr=False)
    attention: str = "sdpa"

    @classmethod
    def made(cls, tiny: Tiny, root: Path, **options: Any) -> Pair:
        folder = tiny.write(root / "model")
        (root / "graph").mkdir()
        traced = trace(folder, root / "graph", **{"dtype": DType.FLOAT32, **options})
        return cls(folder, traced, tracing.run_of(traced.model), tiny.attention)

    @cached_property
    def exact(self) -> Any:
        """The oracle, in float64, with another attention than the traced one if there is one."""
        loader = getattr(tf, tracing.TASKS[self.traced.task].loader)
        return loader.from_pretrained(
            self.folder, dtype=torch.float64, attn_implementation=self.attention
        ).eval()

    @torch.no_grad()
    def wanted(self, **inputs: torch.Tensor) -> Any:
        with seeing_masks():  # eager ones are no numbers in float64
            return self.exact(**inputs)

    def dims(self) -> dict[str, list[int | str]]:
        stored = onnx.load(self.traced.model).graph
        return {
            one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
            for one in (*stored.input, *stored.output)
        }

    def empty(self, rows: int) -> dict[str, torch.Tensor]:
        sizes = {"batch_size": rows, "past_sequence_length": 0}
        return {
            port.name: port.empty(sizes)
            for port in self.traced.inputs
            if port.name.startswith("past_key_values.")
        }

    def greedy(self, ids: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
        """As transformers.js generates: the prompt at once, then token by token on the cache."""
        cache, found = self.empty(len(ids)), []
        while True:
            positions = positions_of(mask)[:, -ids.shape[1] :]
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            out = self.run({**given, **cache})
            ids = out.pop("logits")[:, -1].argmax(-1, keepdim=True)
            found.append(ids)
            if len(found) == count:
                return torch.cat(found, 1)
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            cache = {k.replace("present", "past_key_values"): v for k, v in out.items()}


def padded(*, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 9 and 5 tokens."""
    ids = torch.randint(3, WORDS, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, slice(None, 4) if left else slice(5, None)] = 0
    return ids, mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.abs().max())


# -- decoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder(name, tmp_path):
    pair = Pair.made(DECODERS[name], tmp_path)
    ids, mask = padded(left=True)
    positions = positions_of(mask)
    plain = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    found = pair.run({**plain, **pair.empty(2)})["logits"][mask.bool()]
    assert distance(found, pair.wanted(**plain).logits[mask.bool()]) < 5e-6
    assert pair.traced.agreement < 1e-5

    with seeing_masks():
        wanted = pair.exact.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=2 * WINDOW, pad_token_id=0
        )
    assert torch.equal(pair.greedy(ids, mask, 2 * WINDOW), wanted[:, ids.shape[1] :])

    layers, heads, size = _cache_of(pair.exact.config)
    batch = ["batch_size", "sequence_length"]
    total = "total_sequence_length"
    assert pair.dims() == {
        "input_ids": batch,
        "attention_mask": ["batch_size", total],
        "position_ids": batch,
        **{f"past_key_values.{i}.{k}": ["batch_size", heads, "past_sequence_length", size]
           for i in range(layers) for k in ("key", "value")},
        "logits": [*batch, WORDS],
        **{f"present.{i}.{k}": ["batch_size", heads, total, size]
           for i in range(layers) for k in ("key", "value")},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_logits_of_the_last_tokens_alone(name, tmp_path):
    whole = Pair.made(DECODERS[name], tmp_path, trimmed=True)
    assert whole.dims()["num_logits_to_keep"] == []
    ids, mask = padded(left=True)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions_of(mask)}
    wanted = whole.wanted(**given).logits
    for count, rows in ((0, 9), (1, 1), (4, 4), (9, 9), (20, 9)):
        found = whole.run({**given, **whole.empty(2), "num_logits_to_keep": torch.tensor(count)})[
            "logits"
        ]
        assert found.shape == (2, rows, WORDS)
        real = mask[:, -rows:].bool()
        assert distance(found[real], wanted[:, -rows:][real]) < 5e-6


def _cache_of(config: Any) -> tuple[int, int, int]:
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, size


def test_float16_stays_finite_where_padding_sees_nothing(tmp_path):
    """Scores of -40 added to float16's lowest number are minus infinity."""
    folder = Tiny(tf.Qwen2ForCausalLM, tf.Qwen2Config, _DECODER).write(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        stem = f"model.layers.{layer}.self_attn"
        for name, value in (("q_proj", 3.0), ("k_proj", -3.0)):
            weights[f"{stem}.{name}.weight"] *= 0.1
            weights[f"{stem}.{name}.bias"][:] = value
    halves = {key: value.half() for key, value in weights.items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    ids, mask = padded(left=True)
    plain = tf.Qwen2ForCausalLM.from_pretrained(
        folder, dtype=torch.float16, attn_implementation="eager"
    )
    with torch.no_grad():
        broken = plain(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert not broken.isfinite().all(), "the model itself no longer shows the danger"
    (tmp_path / "graph").mkdir()
    traced = trace(folder, tmp_path / "graph", dtype=DType.FLOAT16)
    assert traced.agreement < 3e-2
    pair = Pair(folder, traced, tracing.run_of(traced.model))
    positions = positions_of(mask)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    found = pair.run({**inputs, **pair.empty(2)})["logits"]
    wanted = pair.wanted(**inputs).logits
    assert distance(found[mask.bool()], wanted[mask.bool()]) < 3e-2
    kinds = {one.name: one.type.tensor_type.elem_type
             for one in onnx.load(traced.model).graph.output}  # fmt: skip
    assert kinds.pop("logits") == onnx.TensorProto.FLOAT
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}


def test_names_are_those_of_the_modules(tmp_path):
    pair = Pair.made(DECODERS["llama-tied"], tmp_path)
    stored = onnx.load(pair.traced.model)
    onnx.checker.check_model(stored)
    weights = {tensor.name for tensor in stored.graph.initializer}
    nodes = {node.name: node for node in stored.graph.node}
    assert len(nodes) == len(stored.graph.node)
    for layer in range(2):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
            path = f"model.layers.{layer}.{module}"
            assert f"{path}.weight_t" in weights
            node = nodes[f"/{path.replace('.', '/')}/MatMul"]
            assert node.input[1] == f"{path}.weight_t"
        assert f"model.layers.{layer}.input_layernorm.weight" in weights
    text = pair.traced.model.read_bytes()
    assert b".py" not in text
    assert str(tmp_path).encode() not in text
    moving = [one.name for one in stored.graph.value_info if one.name not in weights]
    assert moving == [], "sizes under symbols that the inputs no longer have"


# -- encoders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ENCODERS)
def test_an_encoder(task, tmp_path):
    pair = Pair.made(ENCODERS[task], tmp_path)
    assert pair.traced.task == task
    ids, mask = padded(left=False)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if task not in ("fill-mask", "token-classification"):
        inputs["token_type_ids"] = (torch.arange(9) > 4).long().expand(2, 9).contiguous()
    assert [port.name for port in pair.traced.inputs] == [*inputs]
    found, wanted = pair.run(inputs), pair.wanted(**inputs)
    assert [*found] == [*tracing.TASKS[task].outputs]
    for name, values in found.items():
        real = mask.bool() if values.shape[:2] == mask.shape else slice(None)
        assert distance(values[real], wanted[name][real]) < 5e-6
    if task == "feature-extraction":
        assert pair.dims()["last_hidden_state"] == ["batch_size", "sequence_length", 32]
    unmasked = pair.run({**inputs, "attention_mask": torch.ones_like(mask)})
    name = next(iter(found))
    assert distance(unmasked[name][1], found[name][1]) > 1e-4, "the mask does nothing"


# -- what cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "task"),
    [("LlamaForCausalLM", "text-generation"), ("GPT2LMHeadModel", "text-generation"),
     ("BertModel", "feature-extraction"), ("BertForMaskedLM", "fill-mask"),
     ("LlamaForSequenceClassification", "text-classification"),
     ("DistilBertForTokenClassification", "token-classification"),
     ("RobertaForQuestionAnswering", "question-answering")],
)  # fmt: skip
def test_the_task_of_an_architecture(architecture, task):
    assert task_of({"architectures": [architecture]}) == task


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"architectures": ["T5Model"], "is_encoder_decoder": True}, "encoder with a decoder"),
     ({"architectures": ["ViTModel"], "image_size": 224}, "ViTModel reads images"),
     ({"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForConditionalGeneration is"),
     ({"architectures": ["LlavaModel"], "vision_config": {}}, "reads images"),
     ({"architectures": ["Wav2Vec2ForCTC"]}, "reads audio"),
     ({"architectures": ["GPT2DoubleHeadsModel"]}, "none of: text-generation"),
     ({"architectures": ["BertForPreTraining"]}, "BertForPreTraining"),
     ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8}, "mixture of experts"),
     ({}, "no architecture")],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(config, reason):
    with pytest.raises(IncompatibleError, match=reason):
        task_of(config)


def refused(tiny: Tiny, root: Path, **options: Any) -> AdaptoolError:
    folder = tiny.write(root / "model")
    (root / "graph").mkdir()
    with pytest.raises(AdaptoolError) as caught:
        trace(folder, root / "graph", **{"dtype": DType.FLOAT32, **options})
    assert [*(root / "graph").iterdir()] == []
    return caught.value


@pytest.mark.parametrize(
    ("kind", "config", "options", "named"),
    [
        (tf.MambaForCausalLM, tf.MambaConfig,
         {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1}, "MambaForCausalLM"),
        (tf.Lfm2ForCausalLM, tf.Lfm2Config,
         {**_DECODER, "layer_types": ["conv", "full_attention"]}, r"Lfm2ForCausalLM.*\(conv\)"),
    ],
    ids=["mamba", "lfm2"],
)  # fmt: skip
def test_other_states_are_refused_by_name(kind, config, options, named, tmp_path):
    found = refused(Tiny(kind, config, options), tmp_path)
    assert isinstance(found, IncompatibleError)
    assert found.code == "CACHE_UNSUPPORTED"
    assert pytest.importorskip("re").search(named, found.message)


def test_a_head_that_the_checkpoint_lacks_is_not_made_up(tmp_path):
    found = refused(ENCODERS["feature-extraction"], tmp_path, task="text-classification")
    assert found.code == "WEIGHTS_MISSING"
    assert "classifier" in found.message


def test_a_trace_that_disagrees_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "disagreement", lambda *_: float("nan"))
    found = refused(DECODERS["gpt2"], tmp_path)
    assert isinstance(found, VerificationError)
    assert found.code == "TRACE_DISAGREES"


def test_a_graph_with_other_weights_is_noticed(tmp_path, monkeypatch):
    whole = graph.save_graph

    def spoilt(model: Any, path: Path) -> None:
        whole(model, path)
        stored = onnx.load(path)
        name = next(t.name for t in stored.graph.initializer if t.name.endswith("c_fc.bias"))
        (bias,) = (t for t in stored.graph.initializer if t.name == name)
        values = onnx.numpy_helper.to_array(bias) + 0.01
        bias.CopyFrom(onnx.numpy_helper.from_array(values, name))
        onnx.save(stored, path)

    monkeypatch.setattr(graph, "save_graph", spoilt)
    assert refused(DECODERS["gpt2"], tmp_path).code == "TRACE_DISAGREES"


def test_a_cache_under_other_names_is_noticed(tmp_path, monkeypatch):
    whole = ports.ports_of

    def swapped(*arguments: Any, **options: Any) -> ports.Ports:
        found = whole(*arguments, **options)
        return ports.Ports(found.plain, found.outputs, found.past, found.present[::-1])

    monkeypatch.setattr(tracing, "ports_of", swapped)
    assert isinstance(refused(DECODERS["gpt2"], tmp_path), VerificationError)


def test_requests_that_make_no_sense(tmp_path, monkeypatch):
    folder = ENCODERS["feature-extraction"].write(tmp_path / "model")
    with pytest.raises(UsageError, match="bfloat16"):
        trace(folder, tmp_path, dtype=DType.BFLOAT16)
    with pytest.raises(UsageError, match="unknown task 'translation'"):
        trace(folder, tmp_path, dtype=DType.FLOAT32, task="translation")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="onnxscript") as caught:
        trace(folder, tmp_path, dtype=DType.FLOAT32)
    assert "adaptool[export]" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [({"auto_map": {"AutoModel": "m.M"}}, IncompatibleError, "code of its own"),
     ({"quantization_config": {"bits": 4}}, IncompatibleError, "stored quantised"),
     ({"model_type": "unheard-of"}, IncompatibleError, "cannot load it"),
     (None, CorruptInputError, "no config that can be read")],
    ids=["code", "quantised", "unknown", "none"],
)  # fmt: skip
def test_folders_that_are_refused(change, error, reason, tmp_path):
    folder = ENCODERS["feature-extraction"].write(tmp_path / "model")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    if change:
        path.write_text(json.dumps({**config, **change}))
    with pytest.raises(error, match=reason):
        trace(folder, tmp_path, dtype=DType.FLOAT32)


def test_a_pickle_is_not_opened(tmp_path):
    folder = ENCODERS["feature-extraction"].write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(IncompatibleError, match="cannot load it"):
        trace(folder, tmp_path, dtype=DType.FLOAT32)


# -- files and noise ------------------------------------------------------------------------------


def test_many_weights_lie_beside_the_graph_and_all_is_quiet(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(graph, "INLINE_LIMIT", 1000)
    before = logging.root.manager.disable
    pair = Pair.made(DECODERS["gpt2"], tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert logging.root.manager.disable == before
    assert {path.name for path in pair.traced.model.parent.iterdir()} == {
        "model.onnx", "model.onnx_data",
    }  # fmt: skip
    stored = onnx.load(pair.traced.model, load_external_data=False)
    places = {
        entry.value
        for tensor in stored.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx_data"}
    moved = shutil.move(pair.traced.model.parent, tmp_path / "elsewhere")
    ids, mask = padded(left=True)
    again = Pair(pair.folder, pair.traced, tracing.run_of(Path(moved) / "model.onnx"))
    assert again.greedy(ids, mask, 3).shape == (2, 3)
