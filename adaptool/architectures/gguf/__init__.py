"""Hugging Face names <-> GGUF names, and how rows and columns lie on either side.

`layout_of` starts from a config.json, `layout_of_model` from a GGUF model; both give a `Layout`,
which places parameters and tells what a tensor is made of.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.architectures.gguf.families import catalogue
from adaptool.architectures.gguf.layout import Layout, Source
from adaptool.errors import JSON, IncompatibleError

__all__ = ["Layout", "Source", "architectures", "layout_of", "layout_of_model", "model_types"]


def model_types() -> tuple[str, ...]:
    """Values of model_type in config.json that `layout_of` knows, sorted."""
    return tuple(sorted({model for family in catalogue() for model in family.models}))


def architectures() -> tuple[str, ...]:
    """Values of general.architecture that `layout_of_model` knows, sorted."""
    return tuple(sorted({family.architecture for family in catalogue()}))


def layout_of(config: Mapping[str, JSON]) -> Layout:
    """The layout of a Hugging Face model.

    Args:
        config: its config.json; of a multimodal model the text part counts.

    Raises IncompatibleError for a model_type that is not known.
    """
    stated = config.get("text_config")
    text = {**config, **stated} if isinstance(stated, dict) else dict(config)
    for model_type in (config.get("model_type"), text.get("model_type")):
        for family in catalogue():
            if model_type in family.models:
                return Layout((family,), Dimensions(text))
    raise IncompatibleError(
        f"no GGUF layout is known for models of type {text.get('model_type')!r}",
        hint=f"known are {', '.join(model_types())}",
        code="UNSUPPORTED_ARCHITECTURE",
    )


def layout_of_model(values: Mapping[str, JSON]) -> Layout:
    """The layout of a GGUF model.

    Several kinds of Hugging Face models may share an architecture; all their spellings are
    understood, and the first one of the family is told: for `llama` that of Llama, its experts
    being Mixtral's (`block_sparse_moe.experts.0.w1.weight`).

    Args:
        values: its plain key-values, by GGUF key.

    Raises IncompatibleError for an architecture that is not known.
    """
    architecture = values.get("general.architecture")
    families = tuple(f for f in catalogue() if f.architecture == architecture)
    if not families or not isinstance(architecture, str):
        raise IncompatibleError(
            f"no layout is known for GGUF models of architecture {architecture!r}",
            hint=f"known are {', '.join(architectures())}",
            code="UNSUPPORTED_ARCHITECTURE",
        )
    return Layout(families, Dimensions(values, architecture))
