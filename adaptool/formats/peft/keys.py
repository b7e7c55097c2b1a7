"""The names of tensors in a PEFT file, and in the files of those who wrap models before saving.

A key is `base_model.model.` + the module's path + a suffix that says what the tensor is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "base_model.model."


class Role(StrEnum):
    """What a tensor is to its module."""

    A = "lora_A"
    B = "lora_B"
    B_BIAS = "lora_B.bias"
    EMBEDDING_A = "lora_embedding_A"
    EMBEDDING_B = "lora_embedding_B"
    MAGNITUDE = "lora_magnitude_vector"
    DIAGONAL = "lora_diag"
    TOKENS = "trainable_tokens_delta"
    BASE = "base_layer"
    SAVED = "modules_to_save"
    ORIGINAL = "original_module"
    TRAINING = "training state"
    EXTRA = "prompt"


@dataclass(frozen=True, slots=True)
class Key:
    """A tensor's name, taken apart.

    Attributes:
        module: path of the module in the model.
        role: what the tensor is.
        parameter: name of the parameter, for roles that name one ("weight", "bias" ...).
        depth: how many wrappers stand around the module (experts with several parameters).
    """

    module: str
    role: Role
    parameter: str = "weight"
    depth: int = 0


_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
NAME = r"(?:\.[A-Za-z0-9_-]+)??"
"""An adapter's name, which some savers leave in."""

_SUFFIXES = (
    (Role.B_BIAS, re.compile(rf"^(?P<module>.+)\.lora_B{NAME}\.bias$")),
    (Role.A, re.compile(rf"^(?P<module>.+)\.lora_A{NAME}(?:\.weight)?$")),
    (Role.B, re.compile(rf"^(?P<module>.+)\.lora_B{NAME}(?:\.weight)?$")),
    (Role.EMBEDDING_A, re.compile(rf"^(?P<module>.+)\.lora_embedding_A{NAME}(?:\.weight)?$")),
    (Role.EMBEDDING_B, re.compile(rf"^(?P<module>.+)\.lora_embedding_B{NAME}(?:\.weight)?$")),
    (Role.MAGNITUDE, re.compile(rf"^(?P<module>.+)\.lora_magnitude_vector{NAME}(?:\.weight)?$")),
    (Role.DIAGONAL, re.compile(rf"^(?P<module>.+)\.lora_diag{NAME}(?:\.weight)?$")),
    (
        Role.TOKENS,
        re.compile(rf"^(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta{NAME}$"),
    ),
    (
        Role.TRAINING,
        re.compile(rf"^(?P<module>.+)\.lora_(?:velora_embed|monteclora_sampler){NAME}(?:\..+)?$"),
    ),
    (Role.SAVED, re.compile(r"^(?P<module>.+)\.modules_to_save(?:\.default)?"
                            r"(?P<inner>(?:\..+)?)\.(?P<parameter>\w+)$")),
    (Role.ORIGINAL, re.compile(r"^(?P<module>.+)\.original_module"
                               r"(?P<inner>(?:\..+)?)\.(?P<parameter>\w+)$")),
    (Role.BASE, re.compile(r"^(?P<module>.+)\.base_layer\.(?P<parameter>weight|bias)$")),
)  # fmt: skip


def bare(name: str) -> str:
    """A tensor's name without what training wrapped around the model, and without `base_model.`."""
    path = _WRAPPERS.sub("", name)
    while path.startswith(PREFIX):
        path = path.removeprefix(PREFIX)
    return path


def parse_key(name: str) -> Key:
    """Take a tensor's name apart; whatever has no known suffix is a saved parameter."""
    path = bare(name)
    for role, pattern in _SUFFIXES:
        match = pattern.match(path)
        if match is None:
            continue
        groups = match.groupdict()
        module, depth = _unwrap(match["module"] + (groups.get("inner") or ""))
        return Key(module, role, groups.get("parameter") or "weight", depth)
    if path.startswith(("prompt_embeddings", "prefix_", "internal_xlora")):
        return Key("", Role.EXTRA, path)
    module, _, parameter = path.rpartition(".")
    return Key(module, Role.SAVED, parameter)


def _unwrap(module: str) -> tuple[str, int]:
    """Drop `base_layer` steps: at the end they count wrappers, inside they mean nothing."""
    depth = 0
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
        depth += 1
    return module.replace(".base_layer.", "."), depth
