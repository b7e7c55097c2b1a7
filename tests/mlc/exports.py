"""Tiny models with tokenizers, exported for WebLLM; and stand-ins for compiled libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: TID251
from runtime.models import MODELS, VOCABULARY, Model

from adaptool.jobs.exporting import ExportOptions, ExportReport, export

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tokenizer(rows: int = VOCABULARY, **more: Any) -> dict[str, Any]:
    """A tokenizer.json with so many tokens."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), rows))]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(SPECIAL)],
        "normalizer": None,
        "decoder": {"type": "ByteLevel"},
        "post_processor": None,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(words)}, "merges": []},
        **more,
    }


def write_tokenizer(folder: Path, template: str | None = CHATML, **more: Any) -> None:
    """The files beside a model."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(**more)))
    settings: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(
    folder: Path, model: Model | str, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """A model with random weights; `config` changes its config.json afterwards."""
    chosen = MODELS[model] if isinstance(model, str) else model
    chosen.write(folder, dtype)
    write_tokenizer(folder)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def write_adapter(folder: Path, base: Path, kind: Any) -> Mapping[str, torch.Tensor]:
    """A LoRA adapter on all linear layers; returns what PEFT merges, by Hugging Face name."""
    torch.manual_seed(1)
    model = kind.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(model, lora)
    adapted.save_pretrained(folder)
    merged = PeftModel.from_pretrained(
        kind.from_pretrained(base, dtype=torch.float32), folder
    ).merge_and_unload()
    return dict(merged.state_dict())


def exported(model: Path, web: Path, dtype: str = "q0f32", *adapters: Path,
             **options: Any) -> ExportReport:  # fmt: skip
    """An export by the job that the command line calls."""
    return export(
        model, dict.fromkeys(map(str, adapters), 1.0), web, target="webllm", dtypes=[dtype],
        options=ExportOptions(**options), threads=1,
    )  # fmt: skip


def chat_config(web: Path) -> dict[str, Any]:
    """mlc-chat-config.json of an export."""
    return json.loads((web / "resolve/main/mlc-chat-config.json").read_text())


def records(web: Path) -> list[dict[str, Any]]:
    """The tensors of an export, in their order, as tensor-cache.json lists them."""
    listed = json.loads((web / "resolve/main/tensor-cache.json").read_text())
    return [record for shard in listed["records"] for record in shard["records"]]


def library_text(web: Path, **more: Any) -> dict[str, Any]:
    """What a library that fits an export says of itself: the rows of the vocabulary stay open."""
    config = chat_config(web)
    rows = config["vocab_size"]
    return {
        "model_type": config["model_type"],
        "quantization": config["quantization"],
        "context_window_size": config["context_window_size"],
        "prefill_chunk_size": 1024,
        "params": [
            {
                "name": record["name"],
                "shape": ["vocab_size" if size == rows else size for size in record["shape"]],
                "dtype": record["dtype"],
                "preprocs": [],
            }
            for record in records(web)
        ],
        "memory_usage": {"prefill": 1, "decode": 1},
        **more,
    }


def write_library(path: Path, text: Mapping[str, Any] | str) -> Path:
    """A file that has WebAssembly's first bytes and this JSON among its data."""
    body = text if isinstance(text, str) else json.dumps(text)
    noise = bytes(range(256)) * 40
    data = b'{"functions": {"params": 3}}\0{"open' + noise + body.encode() + b"\0" + noise
    path.write_bytes(b"\0asm\x01\0\0\0" + data)
    return path
