"""The record by which WebLLM finds a model, and JavaScript that uses it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

from adaptool.encodings.mlc import Scheme
from adaptool.errors import JSON, IncompatibleError
from adaptool.targets._limits import GPU_BINDING, USUAL_GPU_BINDING
from adaptool.targets.webllm.hyperparameters import Hyperparameters
from adaptool.targets.webllm.prebuilt import CONTEXT, Match
from adaptool.targets.webllm.weights import Entry

FILE = "app-config.json"
FOLDER = "library"
"""Where an export keeps a compiled library."""
HUB = "resolve/main"
"""Where WebLLM looks for a model's files, below the address that a record states."""


def record_of(
    name: str,
    model: Hyperparameters,
    scheme: Scheme,
    wanted: Mapping[str, Entry],
    match: Match,
    library: str | None,
) -> dict[str, JSON]:
    """An entry of `model_list`, its addresses relative to the export's folder.

    Args:
        name: of the model.
        model: what it is.
        scheme: its quantisation.
        wanted: its stored tensors.
        match: the published library.
        library: name of a file in `library/`, which goes first, or None.
    """
    found = match.library
    context = min(model.context, CONTEXT if found is None else found.context)
    published = None if found is None else found.url(scheme.name)
    where = published if library is None else f"{FOLDER}/{library}"
    largest = max(sizes(wanted).values())
    record: dict[str, JSON] = {
        "model": "./",
        "model_id": f"{name}-{scheme.name}-MLC",
        **({} if where is None else {"model_lib": where}),
        "vram_required_MB": memory(model, scheme, wanted, context)
        if found is None or context != found.context
        else found.memory[scheme.name],
        "overrides": {"context_window_size": context},
    }
    if scheme.dtype.bits == 16:
        record["required_features"] = ["shader-f16"]
    if largest > GPU_BINDING:
        record["buffer_size_required_bytes"] = largest
    return record


def sizes(wanted: Mapping[str, Entry]) -> dict[str, int]:
    """Bytes of each tensor on the graphics card: float32 is stored as bfloat16, and widened."""
    return {name: entry.nbytes for name, entry in wanted.items()}


def memory(
    model: Hyperparameters, scheme: Scheme, wanted: Mapping[str, Entry], context: int
) -> float:
    """Megabytes of the weights and of the keys and values of a whole context."""
    shape = model.shape
    row = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    cache = scheme.dtype.nbytes(row * context)
    return round((sum(sizes(wanted).values()) + cache) / (1 << 20), 2)


def refuse_large(wanted: Mapping[str, Entry]) -> None:
    """Raise IncompatibleError for a tensor that WebLLM 0.2.86 asks no device to bind."""
    found = sizes(wanted)
    name = max(found, key=lambda one: found[one])
    if found[name] > USUAL_GPU_BINDING:
        raise IncompatibleError(
            f"{name}: {found[name]} bytes on the graphics card, and WebLLM asks for buffers of "
            f"{USUAL_GPU_BINDING} at most",
            hint="choose a smaller dtype, such as q4f16_1",
            code="TENSOR_TOO_LARGE",
        )


def library_name(record: Mapping[str, JSON]) -> str | None:
    """File name of a record's library."""
    address = record.get("model_lib")
    return PurePosixPath(address).name if isinstance(address, str) else None


def encode(record: Mapping[str, JSON]) -> bytes:
    """app-config.json."""
    return (json.dumps({"model_list": [dict(record)]}, indent=2) + "\n").encode()


_LOADING = """\
import {{ CreateMLCEngine }} from "@mlc-ai/web-llm";

const folder = new URL("./", document.baseURI); // where this folder is served
const appConfig = {config}; // as in {file}
for (const record of appConfig.model_list) {{
  record.model = new URL(record.model, folder).href; // + {hub}/
  record.model_lib = new URL({library}, folder).href;
}}
const engine = await CreateMLCEngine({name}, {{ appConfig }});
const messages = [{{ role: "user", content: prompt }}];
const reply = await engine.chat.completions.create({{
  messages, temperature: 0,
}});
"""


def describe_loading(record: Mapping[str, JSON]) -> str:
    """The lines that load an export."""
    library = "record.model_lib" if "model_lib" in record else f'"{FOLDER}/model.wasm"'
    name = json.dumps(record["model_id"])
    config = encode(record).decode().strip()
    return _LOADING.format(file=FILE, hub=HUB, name=name, library=library, config=config)
