"""The conversation template of an export: chosen by evidence, never guessed.

A wrong template makes a good model talk nonsense, and nothing complains.  So a family's template is
taken only if the model's own chat template has its marks; otherwise it must be named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.targets.webllm.templates import TEMPLATES, Template
from adaptool.targets.webllm.tokens import Tokens

_PROMPT = "{prompt}"
_MESSAGE = re.compile(r"""<\|im_start\|>system(?:\\n|\n)([^'"{}<>]{1,500})<\|im_end\|>""")
"""A system message that a ChatML template writes where nobody gave one."""


def conversation_for(
    tokens: Tokens,
    model_type: str,
    ends: Sequence[int],
    *,
    name: str | None = None,
    page: str | None = None,
) -> dict[str, JSON]:
    """`conv_template` of mlc-chat-config.json.

    Args:
        tokens: the tokenizer, with its chat template.
        model_type: MLC's name of the architecture.
        ends: ids that the model's files name as ends of a text.
        name: of the template to use, whatever the chat template looks like.
        page: a text with `{prompt}` in it, to be used instead of any family's template.

    Raises:
        UsageError: an unknown name, or both a name and a text.
        IncompatibleError: the chat template is none of those known here, or there is none.
    """
    if page is not None:
        if name is not None:
            raise UsageError(
                "--template and --conversation both say how a question is put",
                hint="give one of them",
            )
        return _plain(tokens, ends, page)
    jinja = tokens.template
    template = _named(name) if name is not None else _recognised(jinja, model_type)
    if template.name == "LM":
        jinja = None  # the text is as its writer made it, and begins as any text does
    message = template.message
    if jinja is not None:
        found = _MESSAGE.search(jinja)
        message = found[1].replace("\\n", "\n") if found else ""
    ids, texts = _stops(template, tokens, ends)
    return {
        "name": template.name,
        "system_template": template.system,
        "system_message": message,
        "system_prefix_token_ids": _prefix(tokens, jinja),
        "add_role_after_system_message": template.role_after_system,
        "render_empty_system_message": template.always_system,
        "roles": {"user": template.user, "assistant": template.assistant, "tool": template.user},
        "role_templates": {},  # through one, WebLLM reads "$&" in a message as a command
        "messages": [],
        "seps": list(dict.fromkeys(template.separators)),
        "role_content_sep": template.after_role,
        "role_empty_sep": template.before_answer,
        "stop_str": texts,
        "stop_token_ids": ids,
        "function_string": "",
        "use_function_calling": False,
        "strip_reasoning_in_history": template.forgets_thoughts,
    }


def _named(name: str) -> Template:
    template = TEMPLATES.get(name)
    if template is None:
        raise UsageError(
            f"no conversation template {name!r}", hint=f"one of: {', '.join(TEMPLATES)}"
        )
    return template


def _recognised(jinja: str | None, model_type: str) -> Template:
    """The first template whose marks are all in the chat template, for this kind of model."""
    hint = f"name one: --conversation {', '.join(TEMPLATES)}; LM continues the text as it is"
    if jinja is None:
        raise IncompatibleError(
            "the model has no chat template, so it is not known how a conversation is written",
            hint=f"{hint}; or --template 'user: {_PROMPT}'",
            code="CONVERSATION_UNKNOWN",
        )
    for template in TEMPLATES.values():
        fits = not template.models or model_type in template.models
        if template.marks and fits and all(mark in jinja for mark in template.marks):
            return template
    raise IncompatibleError(
        "the model's chat template is none of those that are known for this runtime",
        hint=f"{hint}; or --template with {_PROMPT} in it",
        code="CONVERSATION_UNKNOWN",
    )


def _plain(tokens: Tokens, ends: Sequence[int], page: str) -> dict[str, JSON]:
    """A template that puts every question into the same text, as a page does."""
    if page.count(_PROMPT) != 1:
        raise UsageError(
            f"--template needs {_PROMPT} in it, once", hint=f"for example: 'user: {_PROMPT}\\nbot:'"
        )
    before, _, after = page.partition(_PROMPT)
    plain = conversation_for(tokens, "", ends, name="LM")
    roles: dict[str, JSON] = {"user": before, "assistant": "", "tool": before}
    return {**plain, "name": "custom", "roles": roles, "seps": [after, ""]}


def _prefix(tokens: Tokens, jinja: str | None) -> list[JSON]:
    """What stands before the first turn: WebLLM's tokenizer itself adds nothing.

    Training renders the chat template and adds no further token, so only its own counts; a model
    without one was trained on what its tokenizer makes of a text.
    """
    if jinja is None:
        return [] if tokens.first is None else [tokens.first]
    begins = [text for text, number in tokens.ids.items() if number == tokens.beginning]
    spoken = "bos_token" in jinja or any(f"'{text}" in jinja or f'"{text}' in jinja
                                         for text in begins)  # fmt: skip
    return [tokens.beginning] if spoken and tokens.beginning is not None else []


def _stops(
    template: Template, tokens: Tokens, ends: Sequence[int]
) -> tuple[list[JSON], list[JSON]]:
    """Ids that end an answer; and texts, where the vocabulary has no such token."""
    ids: Mapping[str, int] = tokens.ids
    known = [ids[text] for text in template.stops if text in ids]
    texts = template.stops[:1] if template.stops[:1] and template.stops[0] not in ids else ()
    return list(dict.fromkeys([*known, *ends])), list(texts)
