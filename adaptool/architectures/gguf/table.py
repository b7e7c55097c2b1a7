"""What a family of models states about itself: Hugging Face names, and how GGUF lays each out.

A row is one module (or bare parameter) and one of the places where it lies. Every transformation
of llama.cpp's converters is one of these, so that a family is a table and no code:

    order of rows or columns        rotary embeddings, fused projections stored head by head
    part, and several rows          a fused projection that GGUF keeps apart
    slot                            one expert, or one head, of a stack
    expert                          the same, of a parameter that Hugging Face stacks as well
    shift                           norms that store weight + 1
    transposed                      a head of latent attention

Orders are told from the source of llama.cpp's converters (conversion/, September 2026) and checked
against their output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from adaptool.architectures.gguf.dimensions import Dimensions
from adaptool.canonical import Placement
from adaptool.canonical.arrangement import Regroup

lay = partial(Placement, "")
"""A layout: a placement whose tensor is still to be named."""

WHOLE = lay()


@dataclass(frozen=True, slots=True)
class Row:
    """One module, or one bare parameter, and a place where it lies.

    Attributes:
        name: below the prefix of its block, or of the model: "self_attn.q_proj".
        to: GGUF's name below "blk.N.", without suffix; empty where gguf's name map knows it.
        layout: how the weight lies there; a bias follows the order of the rows.
        suffixes: parameters of the module; none for a bare parameter, and `to` is then complete.
        alias: another spelling, understood but never told.
        instead: another way to store a parameter that files in the wild have.
        turned: Hugging Face stores the transpose of the weight [out, in] that adapters mean.
        decays: GGUF stores -exp(parameter).
        shape: GGUF's shape if it is another; 0 for the first size of Hugging Face's, -1 for what
            remains.
    """

    name: str
    to: str = ""
    layout: Placement = WHOLE
    suffixes: tuple[str, ...] = ("weight", "bias")
    alias: bool = False
    instead: bool = False
    turned: bool = False
    decays: bool = False
    shape: tuple[int, ...] = ()


Rows = Callable[[Dimensions], Iterable[Row]]


def bare(
    name: str,
    to: str,
    layout: Placement = WHOLE,
    *,
    alias: bool = False,
    turned: bool = False,
    decays: bool = False,
    shape: tuple[int, ...] = (),
) -> Row:
    """A parameter that is no module's weight or bias; `to` includes the suffix."""
    return Row(name, to, layout, (), alias, turned=turned, decays=decays, shape=shape)


def convolution(name: str, layout: Placement = WHOLE) -> Row:
    """A convolution of each channel by itself, [channels, 1, width]."""
    return Row(name, layout=layout, shape=(0, -1))


def norm(name: str, shift: float = 0.0, to: str = "") -> Row:
    """A normalisation, of which GGUF stores weight + shift."""
    return Row(name, to, lay(shift=shift))


def decoder(*, shift: float = 0.0, head: bool = True) -> Rows:
    """What stands around the blocks of most decoders.

    Args:
        shift: what GGUF adds to the norm's weight.
        head: whether the runtime can load a head of its own, apart from the embedding.
    """
    rows = (Row("model.embed_tokens"), norm("model.norm", shift), Row("lm_head"))
    told = rows if head else rows[:-1]
    return lambda _: told


_DECODER = decoder()


@dataclass(frozen=True)
class Family:
    """Models that share names and layout.

    Attributes:
        architecture: GGUF's name, the value of general.architecture.
        models: values of model_type in config.json.
        block: rows of each block.
        outer: rows around the blocks.
        prefix: of a block's names, with {} for its number.
        embedding: name of the input embedding.
        head: name of the output head.
        gated: queries bring gates along, as many rows again.
    """

    architecture: str
    models: tuple[str, ...]
    block: Rows
    outer: Rows = _DECODER
    prefix: str = "model.layers.{}."
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    gated: bool = False


# -- layouts that several families share ----------------------------------------------------------


def rotary(heads: int, dim: int) -> Placement:
    """Rows of each head from two halves to pairs, for ggml's rotary embedding (NORM)."""
    return lay(row_order=Regroup((heads, 2, dim // 2), (0, 2, 1)))


def stretch(shape: tuple[int, int, int], start: int, stop: int) -> Regroup:
    """Of each of `shape[0]` groups of `shape[1]` chunks of rows, the chunks [start, stop)."""
    return Regroup(shape, (0, 1, 2), axis=1, start=start, stop=stop)


def attention(d: Dimensions | None = None) -> Iterator[Row]:
    """Separate projections; with dimensions, queries and keys in ggml's rotary order."""
    yield Row("self_attn.q_proj", layout=rotary(d.heads, d.head_dim) if d else WHOLE)
    yield Row("self_attn.k_proj", layout=rotary(d.kv_heads, d.head_dim) if d else WHOLE)
    yield from (Row("self_attn.v_proj"), Row("self_attn.o_proj"))


def feed_forward(*names: str, module: str = "mlp") -> Iterator[Row]:
    """A gated feed-forward layer, or the projections named."""
    return (Row(f"{module}.{name}") for name in names or GATED)


def norms(*names: str, shift: float = 0.0) -> Iterator[Row]:
    """Normalisations whose names gguf knows."""
    return (norm(name, shift) for name in names or PRE_NORMS)


def head_norms(shift: float = 0.0) -> Iterator[Row]:
    """Normalisations of queries and keys."""
    return norms("self_attn.q_norm", "self_attn.k_norm", shift=shift)


GATED = ("gate_proj", "up_proj", "down_proj")
PRE_NORMS = ("input_layernorm", "post_attention_layernorm")
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def experts(d: Dimensions, names: tuple[str, ...] = GATED, module: str = "mlp") -> Iterator[Row]:
    """Experts: one module each in files, stacked parameters in memory (transformers 5).

    The stacks are gate_up_proj [experts, 2 * rows, in], gate first, and down_proj.
    """
    for e in range(d.experts):
        for name, to in zip(names, STACKS, strict=True):
            yield Row(f"{module}.experts.{e}.{name}", to, lay(slot=e), ("weight",))
    yield from stacked_experts(d, f"{module}.experts", ("gate_up_proj", "down_proj"), alias=True)


def stacked_experts(d: Dimensions, module: str, names: tuple[str, str], *, alias: bool = False,
                    turned: bool = False) -> Iterator[Row]:  # fmt: skip
    """Experts as two parameters: gate and up rows one after the other, and down."""
    half = d.expert_feed_forward if d.experts else 0
    gate, up, down = (f"{stack}.weight" for stack in STACKS)
    for e in range(d.experts):
        for to, part in ((gate, (0, half)), (up, (half, 2 * half))):
            place = lay(slot=e, expert=e, part=part)
            yield bare(f"{module}.{names[0]}", to, place, alias=alias, turned=turned)
        yield bare(f"{module}.{names[1]}", down, lay(slot=e, expert=e), alias=alias, turned=turned)
