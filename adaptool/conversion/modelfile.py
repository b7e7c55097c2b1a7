"""A Modelfile: how Ollama is told to run a GGUF model.

Ollama renders chats with a template in Go's language, the model carries one in Jinja. A Jinja
template is never executed here: the few families that most models follow are known by their marks.
https://github.com/ollama/ollama/blob/main/docs/modelfile.md
"""

from __future__ import annotations

from adaptool.canonical import Checkpoint
from adaptool.containers.gguf.values import Value
from adaptool.errors import JSON, UsageError

_CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
_LLAMA3 = """\
{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
_GEMMA = """\
<start_of_turn>user
{{ if .System }}{{ .System }}

{{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
"""
_PHI3 = """\
{{- range .Messages }}<|{{ .Role }}|>
{{ .Content }}<|end|>
{{ end }}<|assistant|>
"""
_ZEPHYR = """\
{{- range .Messages }}<|{{ .Role }}|>
{{ .Content }}</s>
{{ end }}<|assistant|>
"""
_LLAMA2 = """\
[INST] {{ if .System }}<<SYS>>
{{ .System }}
<</SYS>>

{{ end }}{{ .Prompt }} [/INST]{{ .Response }}</s>"""
_MISTRAL = """\
[INST] {{ if .System }}{{ .System }}

{{ end }}{{ .Prompt }} [/INST]{{ .Response }}</s>"""

TEMPLATES: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (("<|im_start|>",), _CHATML, ("<|im_start|>", "<|im_end|>")),
    (("<|start_header_id|>",), _LLAMA3, ("<|start_header_id|>", "<|eot_id|>")),
    (("<start_of_turn>",), _GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    (("<|end|>", "<|assistant|>"), _PHI3, ("<|end|>",)),
    (("<|assistant|>",), _ZEPHYR, ("<|user|>", "<|system|>")),
    (("[INST]", "<<SYS>>"), _LLAMA2, ("[INST]", "[/INST]")),
    (("[INST]",), _MISTRAL, ("[INST]", "[/INST]")),
)
"""Marks that a Jinja template has -> the same in Go's language, and what ends an answer."""


def modelfile(
    model: Checkpoint, file: str, *, adapter: str | None = None, system: str | None = None
) -> str:
    """The text of a Modelfile.

    Args:
        model: as GGUF; its chat template and its end token are asked.
        file: where it will lie, seen from the Modelfile: `model.gguf`.
        adapter: a GGUF adapter to put on it, seen from there.
        system: a system message.

    Raises UsageError for a text that a Modelfile cannot quote.
    """
    lines = [f"FROM {_path(file)}"]
    if adapter is not None:
        lines.append(f"ADAPTER {_path(adapter)}")
    jinja = _plain(model, "tokenizer.chat_template")
    known = next(
        (entry for entry in TEMPLATES if jinja and all(mark in str(jinja) for mark in entry[0])),
        None,
    )
    stops: list[str] = []
    if known is not None:
        lines.append(f"TEMPLATE {_quoted(known[1])}")
        stops += known[2]
    elif jinja:
        lines.append("# The model's own chat template is none of the common ones: if answers")
        lines.append("# look wrong, say it here in Go's language, as TEMPLATE.")
    stops += _ends(model)
    if system is not None:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += [f"PARAMETER stop {_quoted_line(stop)}" for stop in dict.fromkeys(stops)]
    return "\n".join(lines) + "\n"


def _ends(model: Checkpoint) -> list[str]:
    tokens = _plain(model, "tokenizer.ggml.tokens")
    roles = ("eos", "eot", "eom")
    ids = [_plain(model, f"tokenizer.ggml.{role}_token_id") for role in roles]
    if not isinstance(tokens, list):
        return []
    return [str(tokens[i]) for i in ids if isinstance(i, int) and i < len(tokens)]


def _plain(model: Checkpoint, key: str) -> JSON:
    value = model.metadata.get(key)
    return value.plain() if isinstance(value, Value) else None


def _path(path: str) -> str:
    if "\n" in path or "\r" in path:
        raise UsageError("a Modelfile cannot name a file with a line break")
    return path if path.startswith(("/", "./", "../")) else f"./{path}"


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UsageError('a Modelfile cannot quote a text with """ in it')
    return f'"""{text}"""'


def _quoted_line(text: str) -> str:
    return f'"{text}"' if '"' not in text and "\n" not in text else _quoted(text)
