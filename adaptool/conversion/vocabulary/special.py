"""Tokens with a meaning: where a text begins and ends, what follows a turn, how a chat looks."""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.containers.gguf.values import Value
from adaptool.conversion.vocabulary.files import TokenizerFiles, steps
from adaptool.conversion.vocabulary.words import Vocabulary
from adaptool.errors import JSON

ROLES = {
    "bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id",
    "sep": "seperator_token_id", "pad": "padding_token_id", "mask": "mask_token_id",
}  # fmt: skip
"""Names of special tokens at Hugging Face -> in GGUF (whose spelling it is)."""

KNOWN_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "</s>",
})  # fmt: skip
"""Texts that llama.cpp itself takes for the end of an answer."""


def describe_special(
    files: TokenizerFiles, config: Mapping[str, JSON], vocabulary: Vocabulary
) -> dict[str, Value]:
    """Key-values of the special tokens, of what is put around a text, and of the chat template.

    Args:
        files: the tokenizer's files.
        config: config.json, asked where the tokenizer is silent.
        vocabulary: whose ids are meant.
    """
    ids = {word.text: number for number, word in enumerate(vocabulary.words)}
    first, last = _surroundings(files)
    found: dict[str, int] = {}
    for role in ROLES:
        number = _stated(role, files, config, ids)
        if number is not None and number < len(vocabulary.words):
            found[role] = number
    ends = [found["eos"]] if "eos" in found else []
    for role, text in (("bos", first), ("eos", last)):
        if text in ids:  # what is really put around a text goes over what it is called
            found[role] = ids[text]
    values = {f"tokenizer.ggml.{ROLES[role]}": Value.u32(i) for role, i in found.items()}
    ends += _stated_ends(files, config)
    values |= _further_ends(ends, found.get("eos"), vocabulary)
    for role, text, silent in (("bos", first, "add_bos_token"), ("eos", last, "add_eos_token")):
        adds = _adds(files, role, text, files.config.get(silent))
        adds = adds and role in found  # llama.cpp would abort without the token
        values[f"tokenizer.ggml.add_{role}_token"] = Value.boolean(adds)
    return values | _templates(files)


def _adds(files: TokenizerFiles, role: str, text: str | None, stated: JSON) -> bool:
    """Whether the tokenizer itself puts the token around a text."""
    if text is not None:
        return True
    if files.tokenizer.get("post_processor") is not None:
        return False
    if isinstance(stated, bool):
        return stated
    sentencepiece = not files.tokenizer and files.sentencepiece is not None
    return role == "bos" and sentencepiece


def _surroundings(files: TokenizerFiles) -> tuple[str | None, str | None]:
    """The tokens before and after a single text, from the template of the post-processor.

    llama.cpp puts one at most on either side; a template with more is left to chat templates,
    which spell such tokens out.
    """
    for step in steps(files.tokenizer.get("post_processor"), "processors"):
        template = step.get("single")
        if step.get("type") != "TemplateProcessing" or not isinstance(template, list):
            continue
        match [_special(part) for part in template]:
            case [first, None]:
                return first, None
            case [None, last]:
                return None, last
            case [first, None, last]:
                return first, last
    return None, None


def _special(part: JSON) -> str | None:
    token = part.get("SpecialToken") if isinstance(part, dict) else None
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None


def _stated(
    role: str, files: TokenizerFiles, config: Mapping[str, JSON], ids: Mapping[str, int]
) -> int | None:
    entry = files.config.get(f"{role}_token")
    text = entry.get("content") if isinstance(entry, dict) else entry
    if isinstance(text, str) and text in ids:
        return ids[text]
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        number = place.get(f"{role}_token_id")
        if isinstance(number, list) and number:
            number = number[0]
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
    return None


def _stated_ends(files: TokenizerFiles, config: Mapping[str, JSON]) -> list[int]:
    stated = files.generation.get("eos_token_id", config.get("eos_token_id"))
    listed = stated if isinstance(stated, list) else [stated]
    return [number for number in listed if isinstance(number, int) and number >= 0]


def _further_ends(ends: list[int], eos: int | None, vocabulary: Vocabulary) -> dict[str, Value]:
    """Ends of an answer that llama.cpp would not find by their texts: it has two more places."""
    unknown = [
        end
        for end in dict.fromkeys(ends)
        if end != eos
        and end < len(vocabulary.words)
        and vocabulary.words[end].text not in KNOWN_ENDS
    ]
    places = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return {place: Value.u32(end) for place, end in zip(places, unknown, strict=False)}


def _templates(files: TokenizerFiles) -> dict[str, Value]:
    """Chat templates as text: a runtime executes them, this program never does."""
    named: dict[str, str] = {}
    stated = files.config.get("chat_template")
    if isinstance(stated, str):
        named["default"] = stated
    elif isinstance(stated, list):
        for entry in stated:
            if isinstance(entry, dict):
                name, text = entry.get("name"), entry.get("template")
                if isinstance(name, str) and isinstance(text, str):
                    named[name] = text
    if files.template is not None:
        named["default"] = files.template
    values = {}
    if "default" in named:
        values["tokenizer.chat_template"] = Value.string(named.pop("default"))
    if named:
        values["tokenizer.chat_templates"] = Value.strings(list(named))
        for name, text in named.items():
            values[f"tokenizer.chat_template.{name}"] = Value.string(text)
    return values
