"""What stands beside a model's weights: configuration, tokenizer, generation settings, licence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adaptool.architectures.speaking import ONNX
from adaptool.canonical import Checkpoint
from adaptool.containers import Output
from adaptool.containers._output import side_files
from adaptool.errors import JSON, CorruptInputError, IncompatibleError
from adaptool.storage import inside, read_object, read_text, shown
from adaptool.targets import Model

CONFIG, GENERATION, GENAI = "config.json", "generation_config.json", "genai_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, TEMPLATE_FILE = "chat_template", "chat_template.jinja"
_KEPT = (TOKENIZER, GENERATION, "special_tokens_map.json")
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
_ONNX_FOLDER = "onnx"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_QUANTISED = "quantization_config"


@dataclass(frozen=True)
class Beside:
    """What an export carries along.

    Attributes:
        config: the model's config.json.
        files: name -> path or content, without config.json.
        templated: whether there is a chat template.
    """

    config: Mapping[str, JSON]
    files: Mapping[str, Path | bytes]
    templated: bool


def beside(model: Model, match: Checkpoint | None) -> Beside:
    """What stands beside a model, or beside the checkpoint that an ONNX model was exported from.

    The chat template goes into tokenizer_config.json, where alone JavaScript looks for it.

    Raises:
        IncompatibleError: no config.json, or no tokenizer.json.
        CorruptInputError: one that is no JSON object.
    """
    files = _found(model, match)
    config = _config(model, match, files)
    if not config:
        raise _missing(model, CONFIG, "put the model's config.json beside it, or --match MODEL")
    if TOKENIZER not in files:
        raise _missing(model, TOKENIZER,
                       "tokenizers of other kinds become one by transformers: "
                       "AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)")  # fmt: skip
    settings = _object(files.get(TOKENIZER_CONFIG, b"{}"), TOKENIZER_CONFIG)
    template = files.get(TEMPLATE_FILE)
    if template is not None:
        settings[TEMPLATE] = _text(template)
    kept = {name: content for name, content in files.items()
            if name in _KEPT or name.partition(".")[0].upper() in _LEGAL}  # fmt: skip
    kept[TOKENIZER_CONFIG] = json_bytes(settings)
    ends = {key: config[key] for key in _SPECIAL if config.get(key) is not None}
    if GENERATION not in kept and ends:  # JavaScript would ask for it, and log that it is missing
        kept[GENERATION] = json_bytes(ends)
    config = {key: value for key, value in config.items() if key != _QUANTISED}
    return Beside(config, kept, bool(settings.get(TEMPLATE)))


def written(around: Beside, config: Mapping[str, JSON]) -> Output:
    """The files, with this config.json."""
    copied, small = side_files(around.files)
    return Output(tuple(copied), {CONFIG: json_bytes(config), **small}, is_folder=True)


def json_bytes(content: Mapping[str, JSON]) -> bytes:
    """A small file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _missing(model: Model, name: str, hint: str) -> IncompatibleError:
    return IncompatibleError(
        f"{shown(model.path)}: no {name}, which a page needs", hint=hint, code="NO_CONFIG"
    )


def _found(model: Model, match: Checkpoint | None) -> dict[str, Path | bytes]:
    """All files, the nearest last, so that it counts."""
    files: dict[str, Path | bytes] = {} if match is None else dict(match.side_files)
    if model.checkpoint.container == ONNX:
        for folder in reversed([*_folders(model.path)]):
            files |= {file.name: inside(folder, file.name) for file in sorted(folder.iterdir())
                      if file.is_file() and _is_wanted(file.name)}  # fmt: skip
    return files | dict(model.checkpoint.side_files)


def _folders(path: Path) -> Iterator[Path]:
    """Where an ONNX model's files are looked for: beside it, and above the folder `onnx`."""
    folder = path if path.is_dir() else path.parent
    yield folder
    if folder.name == _ONNX_FOLDER:
        yield folder.parent


def _is_wanted(name: str) -> bool:
    wanted = (*_KEPT, CONFIG, GENAI, TOKENIZER_CONFIG, TEMPLATE_FILE)
    return name in wanted or name.partition(".")[0].upper() in _LEGAL


def _config(
    model: Model, match: Checkpoint | None, files: Mapping[str, Path | bytes]
) -> dict[str, JSON]:
    if model.checkpoint.config:
        return dict(model.checkpoint.config)
    if CONFIG in files:
        return _object(files[CONFIG], CONFIG)
    if GENAI in files:
        return _from_genai(_object(files[GENAI], GENAI))
    return {} if match is None else dict(match.config)


def _from_genai(stated: Mapping[str, JSON]) -> dict[str, JSON]:
    """config.json by what onnxruntime-genai's builder writes instead."""
    facts = stated.get("model")
    inner = facts.get("decoder") if isinstance(facts, dict) else None
    if not isinstance(facts, dict) or not isinstance(inner, dict):
        return {}
    known = {"model_type": facts.get("type"), "max_position_embeddings":
             facts.get("context_length"), "head_dim": inner.get("head_size")}  # fmt: skip
    for key in (*_SPECIAL, "vocab_size"):
        known[key] = facts.get(key)
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads"):
        known[key] = inner.get(key)
    return {key: value for key, value in known.items() if value is not None}


def _text(content: Path | bytes) -> str:
    return content.decode() if isinstance(content, bytes) else read_text(content)


def _object(content: Path | bytes, name: str) -> dict[str, JSON]:
    if isinstance(content, Path):
        return read_object(content)
    value = json.loads(content)
    if not isinstance(value, dict):
        raise CorruptInputError(f"{name}: not a JSON object")
    return value
