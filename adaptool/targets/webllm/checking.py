"""What `verify` looks at: an export's files, its parameters, and a library that is to run them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from adaptool.architectures.mlc import Shape, model_types
from adaptool.canonical import Checkpoint, DType
from adaptool.containers.mlc import open as open_weights
from adaptool.encodings.mlc import SCHEMES, Scheme
from adaptool.errors import JSON, CorruptInputError
from adaptool.storage import SourceFile, inside, read_json, shown
from adaptool.targets import Finding
from adaptool.targets.webllm.configuration import NAME as CONFIGURATION
from adaptool.targets.webllm.hyperparameters import checked
from adaptool.targets.webllm.library import Library, read_library
from adaptool.targets.webllm.record import FILE, FOLDER, HUB
from adaptool.targets.webllm.weights import Entry, entries

LISTS = ("tensor-cache.json", "ndarray-cache.json")
LIST_LIMIT = 64 << 20
_READ = 1 << 20


def examine(folder: Path, library: Path | None) -> Iterator[Finding]:
    """Everything that can be told of an export without running it.

    Args:
        folder: the export.
        library: a compiled library; None for those in the export's own `library/`.

    Raises:
        CorruptInputError: the weights, the configuration or a library cannot be read at all.
    """
    hub = folder.joinpath(*HUB.split("/"))
    checkpoint = open_weights(folder)
    yield from _digests(hub, checkpoint)
    yield _lists(hub)
    config = checkpoint.config
    scheme = SCHEMES.get(str(config.get("quantization")))
    model_type = config.get("model_type")
    if scheme is None or model_type not in model_types():
        yield Finding(CONFIGURATION, False, f"{model_type} in {config.get('quantization')}: "
                      "no such model is known here")  # fmt: skip
        return
    yield from _parameters(checkpoint, config, scheme)
    yield from _settings(hub, config)
    yield _record(folder)
    for path in [library] if library is not None else sorted((folder / FOLDER).glob("*.wasm")):
        yield from fit(read_library(path), path.name, tensors_of(checkpoint), config)


def tensors_of(checkpoint: Checkpoint) -> dict[str, Entry]:
    """Stored tensors as a library sees them: float32 is stored as bfloat16, and widened."""
    widened = {DType.BFLOAT16: DType.FLOAT32}
    return {
        name: Entry(tensor.shape, widened.get(tensor.dtype, tensor.dtype))
        for name, tensor in checkpoint.tensors.items()
    }


def fit(
    library: Library, name: str, tensors: Mapping[str, Entry], config: Mapping[str, JSON]
) -> Iterator[Finding]:
    """Whether a compiled library runs a model; one finding for each difference.

    Args:
        library: what it says of itself.
        name: its file's, for messages.
        tensors: the model's.
        config: its mlc-chat-config.json.
    """
    what = f"library {shown(name)}"
    for key, theirs in (
        ("model_type", library.model_type), ("quantization", library.quantization),
    ):  # fmt: skip
        if theirs and theirs != config.get(key):
            yield Finding(what, False, f"is for {key} {theirs}, the model is {config.get(key)}")
    differences = list(_differences(library, tensors, config))
    yield from (Finding(what, False, difference) for difference in differences)
    if not differences:
        yield Finding(f"{what} asks for the {len(library.params)} tensors that are there", True)
    count = config.get("active_vocab_size")
    if library.active is not None and isinstance(count, int):
        beyond = max(count - library.active, 0)
        detail = f"{beyond} of {count} tokens lie beyond its {library.active}: never sampled"
        yield Finding(f"{what} samples all tokens", not beyond, detail if beyond else "")


def _differences(
    library: Library, tensors: Mapping[str, Entry], config: Mapping[str, JSON]
) -> Iterator[str]:
    """Names, shapes and dtypes that a library and a model do not share."""
    inner = config.get("model_config")
    words = {**config, **(inner if isinstance(inner, dict) else {})}
    for name, wanted in library.params.items():
        entry = tensors.get(name)
        if entry is None:
            yield f"asks for {shown(name)}, which is not there"
            continue
        shape = [words.get(size, size) if isinstance(size, str) else size for size in wanted.shape]
        if shape != list(entry.shape):
            yield f"{shown(name)}: asks for shape {shape}, it is {list(entry.shape)}"
        if wanted.dtype != entry.dtype.value:
            yield f"{shown(name)}: asks for {wanted.dtype}, it is {entry.dtype.value}"
    for name in tensors:
        if name not in library.params:
            yield f"does not know {shown(name)}"


def _digests(hub: Path, checkpoint: Checkpoint) -> Iterator[Finding]:
    for name, facts in checkpoint.provenance.files.items():
        stated = facts.get("md5sum") if isinstance(facts, dict) else None
        found = _digest(inside(hub, name))
        right = stated == found
        yield Finding(f"{HUB}/{shown(name)}", right,
                      "" if right else f"md5 {found}, the list states {stated}")  # fmt: skip


def _digest(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with SourceFile.open(path) as source:
        for start in range(0, source.size, _READ):
            digest.update(source.read(start, min(_READ, source.size - start)))
    return digest.hexdigest()


def _lists(hub: Path) -> Finding:
    """Old and new releases of WebLLM look for different names; both must say the same."""
    there = [hub / name for name in LISTS if os.path.lexists(hub / name)]
    missing = [name for name in LISTS if hub / name not in there]
    if missing:
        return Finding("lists of tensors", False, f"{', '.join(missing)} is missing")
    one, other = (read_json(path, LIST_LIMIT) for path in there)
    detail = "" if one == other else f"{' and '.join(LISTS)} differ"
    return Finding("lists of tensors", one == other, detail)


def _parameters(
    checkpoint: Checkpoint, config: Mapping[str, JSON], scheme: Scheme
) -> Iterator[Finding]:
    """Whether the tensors are those that the configuration's architecture has."""
    inner = config.get("model_config")
    if not isinstance(inner, dict):
        raise CorruptInputError(f"{CONFIGURATION}: no model_config")
    wanted = entries(str(config["model_type"]), _shape(inner), scheme)
    tensors = tensors_of(checkpoint)
    wrong = False
    for name in sorted(wanted.keys() | tensors.keys()):
        here, there = tensors.get(name), wanted.get(name)
        if here == there:
            continue
        wrong = True
        yield Finding(
            f"tensor {shown(name)}",
            right=False,
            detail="is missing" if here is None else "has no place in this architecture"
            if there is None else f"{here.dtype.value} {list(here.shape)}, the architecture has "
            f"{there.dtype.value} {list(there.shape)}",
        )  # fmt: skip
    if not wrong:
        yield Finding(f"{len(tensors)} tensors are those of the architecture", True)


def _shape(inner: Mapping[str, JSON]) -> Shape:
    """The sizes that `model_config` states; those it leaves out follow from the others."""
    counts = {name: inner.get(name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size",
    )}  # fmt: skip
    found = {name: value for name, value in counts.items() if type(value) is int}
    if len(found) != len(counts):
        missing = next(name for name in counts if name not in found)
        raise CorruptInputError(f"{CONFIGURATION}: model_config states no {missing}")
    return checked(Shape(
        **found, tie_word_embeddings=inner.get("tie_word_embeddings") is True,
        attention_bias=inner.get("attention_bias") is True,
    ))  # fmt: skip


def _settings(hub: Path, config: Mapping[str, JSON]) -> Iterator[Finding]:
    windows = [config.get("context_window_size"), config.get("sliding_window_size")]
    both = all(isinstance(size, int) and size > 0 for size in windows)
    detail = "context_window_size and sliding_window_size are both set: WebLLM refuses that"
    yield Finding("window", not both, detail if both else "")
    stated = config.get("tokenizer_files")
    files = [str(name) for name in stated] if isinstance(stated, list) else []
    missing = [name for name in files if not inside(hub, name).is_file()]
    usable = {"tokenizer.json", "tokenizer.model"} & set(files)
    detail = f"{missing[0]} is missing" if missing else "none that WebLLM reads is listed"
    yield Finding("tokenizer", bool(usable) and not missing,
                  "" if usable and not missing else detail)  # fmt: skip
    template = config.get("conv_template")
    right = isinstance(template, dict) and bool(template.get("seps"))
    yield Finding("conversation template", right, "" if right else "is missing, or has no seps")


def _record(folder: Path) -> Finding:
    path = folder / FILE
    content = read_json(path) if os.path.lexists(path) else None
    listed = content.get("model_list") if isinstance(content, dict) else None
    record = listed[0] if isinstance(listed, list) and listed else None
    address = record.get("model_lib") if isinstance(record, dict) else None
    if not isinstance(record, dict):
        return Finding(FILE, False, "is missing, or lists no model")
    if not isinstance(address, str):
        return Finding(f"{FILE} names no library: one must be compiled, see --lib", True)
    lost = "://" not in address and not inside(folder, address).is_file()
    return Finding(FILE, not lost, f"{shown(address)} is missing" if lost else "")
