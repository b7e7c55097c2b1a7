"""JavaScript that loads an export, for people to copy."""

from __future__ import annotations

import json
from collections.abc import Sequence

_MERGED = """\
import {{ Wllama }} from "@wllama/wllama";

const here = (name) => new URL(name, document.baseURI).href;
// a copy of @wllama/wllama/esm/wasm/wllama.wasm
const wllama = new Wllama({{ default: here("wllama.wasm") }});
await wllama.loadModelFromUrl(here({first}), {{ n_ctx: {context} }});
if (!wllama.getLoadedContextInfo().success) throw new Error("see the console");
await wllama.createCompletion({{ prompt, max_tokens: 100, temperature: 0 }});
"""

_APART = """\
import {{ Wllama }} from "@wllama/wllama";

const here = (name) => new URL(name, document.baseURI).href;
// a copy of @wllama/wllama/esm/wasm/wllama.wasm
const wllama = new Wllama({{ default: here("wllama.wasm") }});
const files = {files};
const blob = async (file) => (await fetch(here(file))).blob();
const blobs = await Promise.all(files.map(blob));
const number = (index) => String(index + 1).padStart(5, "0");
const count = number(files.length - 1);
const path = (index) => `models/model-${{number(index)}}-of-${{count}}.gguf`;
await wllama.loadModel(blobs, {{
  n_ctx: {context},
  // every blob is staged under such a name; the first is loaded as the model
  lora_adapters: files.slice(1).map((_, i) => ({{ path: path(i + 1), scale: 0 }})),
  lora_init_without_apply: true,
}});
if (!wllama.getLoadedContextInfo().success) throw new Error("see the console");
// a request states the scale of every adapter: {names}
const lora = [{chosen}];
// and caches nothing: what is kept does not know which adapter computed it
const options = {{ max_tokens: 100, temperature: 0, cache_prompt: false, lora }};
await wllama.createCompletion({{ prompt, ...options }});
"""


def describe_loading(parts: Sequence[str], adapters: Sequence[str], context: int) -> str:
    """The lines for a model in these files, with these adapters apart."""
    if not adapters:
        return _MERGED.format(first=json.dumps(parts[0]), context=context)
    files = [*parts, *(f"adapters/{name}.gguf" for name in adapters)]
    chosen = (f"{{ id: {number}, scale: {int(not number)} }}" for number in range(len(adapters)))
    return _APART.format(
        files=json.dumps(files, ensure_ascii=False), context=context, chosen=", ".join(chosen),
        names=", ".join(f"{number} is {name}" for number, name in enumerate(adapters)),
    )  # fmt: skip
