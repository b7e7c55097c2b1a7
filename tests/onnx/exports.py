"""Tiny models as ONNX files, made by the exporters in use, and what PEFT makes of them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnxruntime as ort
import torch
import transformers as tf  # noqa: TID251
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: TID251
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from zoo.models import randomise

VOCABULARY = 96
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
BERT = ("query", "key", "value", "intermediate.dense", "output.dense")

Arrays = dict[str, np.ndarray]


# -- models ---------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """A convolution of each common kind, a linear layer with a bias and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({
            "wide": nn.Conv2d(3, 8, 3, padding=1), "point": nn.Conv2d(8, 8, 1),
            "deep": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        })  # fmt: skip
        self.hidden = nn.Linear(8, 16, bias=False)
        self.head = nn.Linear(16, 5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = pixel_values
        for layer in self.body.values():
            x = layer(x).relu()
        return self.head(self.hidden(x.mean(dim=(2, 3))).tanh())


@dataclass(frozen=True)
class Tiny:
    """A model class with its configuration, and what an adapter changes in it."""

    kind: Any
    config: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = LINEAR
    inputs: tuple[str, ...] = ("input_ids",)

    def make(self) -> nn.Module:
        model = self.kind(self.config(**self.options)) if self.config else self.kind()
        return model.float().eval()

    def write(self, folder: Path) -> None:
        torch.manual_seed(0)
        model = self.make()
        randomise(model)
        if self.config is None:
            folder.mkdir(parents=True)
            save_file(dict(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
            (folder / "config.json").write_text("{}\n")
            return
        model.save_pretrained(folder)
        words = WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")
        tf.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words), bos_token="w1", eos_token="w2", pad_token="w0"
        ).save_pretrained(folder)

    def read(self, folder: Path) -> nn.Module:
        if self.config is None:
            model = self.make()
            model.load_state_dict(load_file(folder / "model.safetensors"))
            return model
        return self.kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()


def _decoder(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "tie_word_embeddings": False, **more,
    }  # fmt: skip


_BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "num_labels": 3,
}  # fmt: skip
_WHISPER = {
    "vocab_size": VOCABULARY, "d_model": 32, "num_mel_bins": 8, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 10,
    "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "suppress_tokens": None, "begin_suppress_tokens": None,
}  # fmt: skip
_GPT2 = {
    "vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

MODELS: dict[str, Tiny] = {
    "llama": Tiny(tf.LlamaForCausalLM, tf.LlamaConfig, _decoder()),
    "llama-tied": Tiny(
        tf.LlamaForCausalLM, tf.LlamaConfig, _decoder(tie_word_embeddings=True)
    ),
    "qwen2": Tiny(tf.Qwen2ForCausalLM, tf.Qwen2Config, _decoder()),
    "gemma": Tiny(tf.GemmaForCausalLM, tf.GemmaConfig, _decoder(tie_word_embeddings=True)),
    "gpt2": Tiny(tf.GPT2LMHeadModel, tf.GPT2Config, _GPT2, ("c_attn", "c_proj", "c_fc")),
    "bert": Tiny(tf.BertModel, tf.BertConfig, _BERT, BERT, ("input_ids", "attention_mask")),
    "bert-classifier": Tiny(
        tf.BertForSequenceClassification, tf.BertConfig, _BERT, (*BERT, "classifier"),
        ("input_ids", "attention_mask"),
    ),
    "whisper": Tiny(
        tf.WhisperForConditionalGeneration, tf.WhisperConfig, _WHISPER,
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ("input_features", "decoder_input_ids"),
    ),
    "convolutions": Tiny(
        Convolutions, targets=("wide", "point", "hidden", "head"), inputs=("pixel_values",)
    ),
}  # fmt: skip


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """What a model is run on: two rows."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    known = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(2, 3, 8, 8, generator=generator),
        "input_features": torch.randn(2, 8, 20, generator=generator),
        "decoder_input_ids": ids[:, :5].contiguous(),
    }
    return {key: known[key] for key in MODELS[name].inputs}


class Plain(nn.Module):
    """A model that takes tensors in order and returns one."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.m = model
        self.names = names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(self.names, values, strict=True))
        if "pixel_values" in inputs:
            return self.m(**inputs)
        return self.m(**inputs, use_cache=False, return_dict=False)[0]


@torch.no_grad()
def outputs_of(model: nn.Module, name: str) -> np.ndarray:
    """What PyTorch computes."""
    inputs = inputs_of(name)
    return Plain(model, tuple(inputs))(*inputs.values()).numpy()


# -- adapters -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tuned:
    """A PEFT adapter on disk, and the model with it.

    Attributes:
        adapter: its folder.
        model: with the adapter beside its weights.
        base: the folder of the model without it.
    """

    adapter: Path
    model: nn.Module
    base: Path
    name: str

    def merged(self) -> nn.Module:
        """The model with the adapter merged by PEFT, which changes both ends of a tied one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(MODELS[self.name].read(self.base), self.adapter)
            return model.merge_and_unload().eval()

    def exported(self, exporter: str, folder: Path) -> Path:
        """The way without adaptool: merge in PEFT, and export again."""
        merged = self.merged()
        if exporter in EXPORTERS:
            return export(merged, self.name, exporter, folder / "model.onnx")
        shutil.copytree(self.base, folder / "merged")
        merged.save_pretrained(folder / "merged")
        return export(folder / "merged", self.name, exporter, folder / "model.onnx")


def tune(name: str, base: Path, folder: Path, **options: Any) -> Tuned:
    """Make a LoRA with random factors on a stored model."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(MODELS[name].targets), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = get_peft_model(MODELS[name].read(base), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.1 * noise)
        model.save_pretrained(folder)
        return Tuned(folder, model.base_model.model.eval(), base, name)


# -- exporters ------------------------------------------------------------------------------------


def dynamo(model: nn.Module, name: str, path: Path) -> None:
    """torch.onnx.export, as it is by default."""
    inputs = inputs_of(name)
    program = torch.onnx.export(
        Plain(model, tuple(inputs)), tuple(inputs.values()), dynamo=True, verbose=False,
        input_names=list(inputs), output_names=["logits"],
    )  # fmt: skip
    program.save(str(path))


def torchscript(model: nn.Module, name: str, path: Path) -> None:
    """What optimum does, and what the models of transformers.js were made with."""
    inputs = inputs_of(name)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    torch.onnx.export(
        Plain(model, tuple(inputs)), tuple(inputs.values()), str(path), dynamo=False,
        input_names=list(inputs), output_names=["logits"], opset_version=17,
    )  # fmt: skip


def huggingface(model: nn.Module, name: str, path: Path, fusions: str | None = None) -> None:
    """The exporter of transformers itself."""
    from transformers.exporters import OnnxConfig, OnnxExporter  # noqa: TID251

    inputs = inputs_of(name)
    if name.startswith(("llama", "qwen", "gemma")):
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["use_cache"] = False
    config = OnnxConfig(dynamic=fusions is not None, ort_fusions=fusions)
    exported = OnnxExporter().export(model, inputs, config)
    exported.save_pretrained(path.parent)


def fused(model: nn.Module, name: str, path: Path) -> None:
    """The same with weights packed for ONNX Runtime, under names that say nothing."""
    huggingface(model, name, path, "cpu")


def genai(base: Path, path: Path, precision: str = "fp32", **options: str) -> None:
    """The model builder of onnxruntime-genai."""
    from onnxruntime_genai.models import builder

    provider = "cuda" if precision == "fp16" else "cpu"
    place = ("", str(base), str(path.parent), precision, provider, str(path.parent / "cache"))
    parsed = builder.parse_extra_options(*place, [f"{k}={v}" for k, v in options.items()])
    builder.create_model(*place, **parsed)


EXPORTERS: dict[str, Callable[..., None]] = {
    "dynamo": dynamo, "torchscript": torchscript, "huggingface": huggingface, "fused": fused,
}  # fmt: skip
BUILDER: dict[str, dict[str, str]] = {
    "genai": {},
    "genai-apart": {"disable_qkv_fusion": "true"},
    "genai-f16": {"precision": "fp16"},
    "genai-int4": {"precision": "int4", "int4_block_size": "16"},
    "genai-int4-shared": {
        "precision": "int4",
        "int4_block_size": "32",
        "shared_embeddings": "true",
    },
}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Exporters print and log a page each."""
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def export(model: nn.Module | Path, name: str, exporter: str, path: Path) -> Path:
    """Write a model as ONNX; for the builder, one that is stored in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with silence():
        if exporter in EXPORTERS:
            loaded = MODELS[name].read(model) if isinstance(model, Path) else model
            EXPORTERS[exporter](loaded, name, path)
        else:
            assert isinstance(model, Path)
            genai(model, path, **BUILDER[exporter])
    return path


@dataclass(frozen=True)
class Shelf:
    """Models and exports that the tests of one run share, whichever process makes them first."""

    root: Path

    def base(self, name: str) -> Path:
        return self._kept(f"{name}-base", MODELS[name].write)

    def exported(self, name: str, exporter: str) -> Path:
        def make(folder: Path) -> None:
            export(self.base(name), name, exporter, folder / "model.onnx")

        return self._kept(f"{name}-{exporter}", make) / "model.onnx"

    def _kept(self, key: str, make: Callable[[Path], None]) -> Path:
        kept = self.root / key
        if not kept.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=self.root))
            make(fresh / key)
            with contextlib.suppress(OSError):  # another process was faster
                (fresh / key).rename(kept)
            shutil.rmtree(fresh, ignore_errors=True)
        return kept


# -- running --------------------------------------------------------------------------------------


def run(path: Path, name: str) -> np.ndarray:
    """What ONNX Runtime computes; its own graph optimisations are off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {key: value.numpy() for key, value in inputs_of(name).items()}
    if "input_ids" in given:
        given["attention_mask"] = np.ones_like(given["input_ids"])
    feeds = {one.name: given.get(one.name, _past(one)) for one in session.get_inputs()}
    names = [one.name for one in session.get_outputs()]
    wanted = "logits" if "logits" in names else names[0]
    return session.run([wanted], feeds)[0].astype(np.float32)


def _past(one: Any) -> np.ndarray:
    """An empty cache."""
    known = {"batch_size": 2, "kv_cache_dim": _decoder()["head_dim"]}
    sizes = [size if isinstance(size, int) else known.get(size, 0) for size in one.shape]
    return np.zeros(sizes, np.float16 if "float16" in one.type else np.float32)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference over the largest value of `other`."""
    return float(np.abs(one - other).max() / np.abs(other).max())
