"""Hugging Face parameters <-> the parameters of MLC's models, which WebLLM runs.

`parameters` lists what a model of some shape consists of; what of a checkpoint lies in each of
them, and how, is data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from adaptool.architectures.mlc.families import EMBEDDING, FAMILIES, HEAD, Family, Head, Module
from adaptool.errors import IncompatibleError

__all__ = ["Parameter", "Shape", "family_of", "model_types", "parameters"]


@dataclass(frozen=True)
class Shape:
    """A model's sizes, by the names that config.json and mlc-chat-config.json share.

    Attributes:
        hidden_size, intermediate_size: widths of the residual stream and of the MLP.
        num_hidden_layers, num_attention_heads, num_key_value_heads: counts.
        head_dim: width of a head.
        vocab_size: rows of the embedding.
        tie_word_embeddings: the embedding makes the logits, too.
        attention_bias: attention has biases, in families that leave it open.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False

    def size(self, name: str) -> tuple[int, ...]:
        """[rows, columns] of a kind of weight, or [rows] of a norm.

        Raises KeyError for a kind that no module has.
        """
        attention = (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        return {
            "attention": (attention, self.hidden_size),
            "out": (self.hidden_size, self.num_attention_heads * self.head_dim),
            "gated": (2 * self.intermediate_size, self.hidden_size),
            "down": (self.hidden_size, self.intermediate_size),
            "embedding": (self.vocab_size, self.hidden_size),
            "norm": (self.hidden_size,),
            "head": (self.head_dim,),
        }[name]


@dataclass(frozen=True)
class Parameter:
    """A parameter of MLC's model.

    Attributes:
        name: as MLC calls it.
        sources: Hugging Face parameters that lie in it, one below another.
        shape: [rows, columns], or [rows] of norms and biases, which are never quantised.
        shift: what is added to the stored values.
        copied: another parameter has the same source; the checkpoint may lack it.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    shift: float = 0.0
    copied: bool = False


def model_types() -> tuple[str, ...]:
    """Values of model_type that `family_of` knows, sorted."""
    return tuple(sorted(FAMILIES))


def family_of(model_type: str) -> Family:
    """The family of a model type.

    Raises IncompatibleError for one that is not known.
    """
    family = FAMILIES.get(model_type)
    if family is None:
        raise IncompatibleError(
            f"no MLC layout is known for models of type {model_type!r}",
            hint=f"known are {', '.join(model_types())}; "
            "--target wllama or transformersjs may know it",
            code="UNSUPPORTED_ARCHITECTURE",
        )
    return family


def parameters(model_type: str, shape: Shape) -> tuple[Parameter, ...]:
    """What a model of that type and shape consists of: embedding, layers, norm, head.

    Raises IncompatibleError for a type that is not known.
    """
    family = family_of(model_type)
    found = [*_of_module(family.embedding, shape)]
    for layer in range(shape.num_hidden_layers):
        for module in family.layer:
            found += _of_module(module, shape, layer)
    found += _of_module(family.norm, shape)
    head = (f"{HEAD}.weight",)
    if family.head is Head.OWN and shape.tie_word_embeddings:
        found.append(
            Parameter(head[0], (f"{EMBEDDING}.weight",), shape.size("embedding"), copied=True)
        )
    elif family.head is not Head.EMBEDDING and not shape.tie_word_embeddings:
        found.append(Parameter(head[0], head, shape.size("embedding")))
    return tuple(found)


def _of_module(module: Module, shape: Shape, layer: int = 0) -> Iterator[Parameter]:
    name = module.name.format(layer)
    parts = [part.format(layer) for part in module.parts]
    size = shape.size(module.size)
    weights = tuple(f"{part}.weight" for part in parts)
    yield Parameter(f"{name}.weight", weights, size, module.shift)
    if shape.attention_bias if module.bias is None else module.bias:
        yield Parameter(f"{name}.bias", tuple(f"{part}.bias" for part in parts), size[:1])
