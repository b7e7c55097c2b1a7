"""Conversation templates: how turns become one text, family by family.

WebLLM does not run the model's chat template; it puts together
    system, role, after_role, message, separator, role, before_answer ...
Each of these says, in that scheme, what the family's own chat template says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SYSTEM = "{system_message}"
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@dataclass(frozen=True)
class Template:
    """One way of writing a conversation.

    Attributes:
        name: MLC's, where it has the template, too.
        marks: what a Jinja template has that writes so: all of them.
        user, assistant: how a turn begins.
        separators: after a user's turn, and after an answer.
        stops: tokens that end an answer, besides those that the model's files name.
        system: around a system message.
        message: the system message where nobody gives one and no chat template shows another.
        after_role: between a role and its message.
        before_answer: after the assistant's role, where the answer is to begin.
        models: model types that it is for, or empty for all.
        role_after_system: the first user's turn has its role though a system message went before.
        always_system: what is around a system message is written where there is none, too.
        forgets_thoughts: thoughts of earlier answers are left out.
    """

    name: str
    marks: tuple[str, ...]
    user: str
    assistant: str
    separators: tuple[str, str]
    stops: tuple[str, ...]
    system: str = SYSTEM
    message: str = ""
    after_role: str = "\n"
    before_answer: str = "\n"
    models: tuple[str, ...] = ()
    role_after_system: bool = True
    always_system: bool = False
    forgets_thoughts: bool = False


def _chatml(name: str, *marks: str, models: tuple[str, ...] = (), message: str = "",
            forgets_thoughts: bool = False) -> Template:  # fmt: skip
    return Template(
        name,
        ("<|im_start|>", *marks),
        user="<|im_start|>user",
        assistant="<|im_start|>assistant",
        separators=("<|im_end|>\n", "<|im_end|>\n"),
        stops=("<|im_end|>", "<|endoftext|>"),
        system=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
        message=message,
        models=models,
        forgets_thoughts=forgets_thoughts,
    )


def _llama3(name: str, *marks: str, before: str = "") -> Template:
    return Template(
        name,
        ("<|start_header_id|>", *marks),
        user="<|start_header_id|>user",
        assistant="<|start_header_id|>assistant",
        separators=("<|eot_id|>", "<|eot_id|>"),
        stops=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        system=f"<|start_header_id|>system<|end_header_id|>\n\n{before}{SYSTEM}<|eot_id|>",
        after_role="<|end_header_id|>\n\n",
        before_answer="<|end_header_id|>\n\n",
        always_system=bool(before),
    )


def _instruct(name: str, *marks: str, separators: tuple[str, str], system: str) -> Template:
    return Template(
        name,
        ("[INST]", *marks),
        user="[INST]",
        assistant="[/INST]",
        separators=separators,
        stops=("</s>",),
        system=system,
        after_role=" ",
        before_answer="",
        role_after_system=False,
    )


def _phi(name: str, *marks: str, line: str) -> Template:
    return Template(
        name,
        ("<|end|>", "<|assistant|>", *marks),
        user="<|user|>",
        assistant="<|assistant|>",
        separators=(f"<|end|>{line}", f"<|end|>{line}"),
        stops=("<|end|>", "<|endoftext|>"),
        system=f"<|system|>{line}{SYSTEM}<|end|>{line}",
        after_role=line,
        before_answer=line,
    )


_ALL = (
    _chatml("qwen3", models=("qwen3",), forgets_thoughts=True),
    _chatml("qwen2", models=("qwen2",), message="You are a helpful assistant."),
    _chatml(
        "smollm2",
        "SmolLM",
        message="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    _chatml("chatml"),
    _llama3("llama-3_1", "Cutting Knowledge Date", before=_DATES),
    _llama3("llama-3"),
    _instruct(
        "llama-2",
        "<<SYS>>",
        separators=(" ", " </s><s>"),
        system=f"[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n",
    ),
    _instruct(
        "mistral_default",
        " [/INST]",
        separators=(" ", "</s>"),
        system=f"[INST] {SYSTEM}\n\n",
    ),
    _instruct("mistral_v0_3", "[INST] ", separators=("", "</s>"), system=f"[INST] {SYSTEM}\n\n"),
    Template(
        "gemma_instruction",
        ("<start_of_turn>",),
        user="<start_of_turn>user",
        assistant="<start_of_turn>model",
        separators=("<end_of_turn>\n", "<end_of_turn>\n"),
        stops=("<end_of_turn>", "<eos>"),
    ),
    _phi("phi-3", "<|user|>", line="\n"),
    _phi("phi-4", line=""),
    Template(
        "tinyllama_v1_0",
        ("<|user|>", "<|assistant|>", "eos_token"),
        user="<|user|>",
        assistant="<|assistant|>",
        separators=("</s>\n", "</s>\n"),
        stops=("</s>",),
        system=f"<|system|>\n{SYSTEM}</s>\n",
    ),
    Template(
        "LM",
        (),
        user="",
        assistant="",
        separators=("", ""),
        stops=(),
        after_role="",
        before_answer="",
    ),
)
TEMPLATES: Mapping[str, Template] = {template.name: template for template in _ALL}
"""By name, the more particular before the more general."""
