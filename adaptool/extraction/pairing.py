"""Which tensors of two models belong together, and what becomes of each pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from adaptool.architectures.naming import (
    CONV1D_MODELS,
    CONV1D_MODULES,
    INPUT_EMBEDDINGS,
    NEW_HEADS,
    OUTPUT_HEADS,
    TRANSPOSED_EXPERTS,
    normal,
)
from adaptool.architectures.placing import Plan
from adaptool.canonical import Checkpoint, LazyTensor, Site
from adaptool.errors import IncompatibleError
from adaptool.merging.tying import Embeddings, embeddings_of

_BUFFERS = re.compile(r"(?:^|\.)(?:inv_freq|position_ids|token_type_ids|masked_bias|attn\.bias)$")
"""Constants that some library versions store and others do not."""

_EMBEDDING = re.compile(r"(?:^|[._])(?:embeddings?|embed_positions|wpe|wte|shared)$")
"""Modules that look rows up, beside the known input embeddings."""

_ROUTER = re.compile(r"(?:^|\.)(?:router|(?:mlp|block_sparse_moe|moe|feed_forward)\.gate)$")
"""Modules that choose experts. They are small, and no linear layers to recent transformers, so
that PEFT can replace but not adapt them."""


class Form(Enum):
    """What the difference of a pair becomes."""

    MATRIX = auto()
    """Low-rank; stored as [out, in, *kernel]."""
    TRANSPOSED = auto()
    """Low-rank; stored as [in, out] (Conv1D)."""
    EMBEDDING = auto()
    """Low-rank, or whole where that takes fewer bytes; stored as [vocabulary, dimension]."""
    EXPERTS = auto()
    """Low-rank for each expert; stored as [expert, out, in]."""
    TRANSPOSED_EXPERTS = auto()
    """Low-rank for each expert; stored as [expert, in, out]."""
    WHOLE = auto()
    """Replaced: norms, biases, routers, a task's head, what has another size."""


@dataclass(frozen=True)
class Pair:
    """One parameter in both models.

    Attributes:
        site: the adapter's name for it.
        base: its tensor before, or None for a head that the base lacks.
        tuned: its tensor after.
        form: what the difference becomes.
    """

    site: Site
    base: LazyTensor | None
    tuned: LazyTensor
    form: Form

    @property
    def old(self) -> LazyTensor:
        """The tensor before; every form but WHOLE has one."""
        if self.base is None:
            raise TypeError(f"{self.site} has no counterpart")
        return self.base

    @property
    def is_task_head(self) -> bool:
        """Whether this is (a part of) a head that a task adds to a model."""
        return _is_task_head(self.site)


@dataclass(frozen=True)
class Pairing:
    """All parameters of two models.

    Attributes:
        pairs: those to extract; equal ones are still among them.
        skipped: those that the user excludes.
        tied: input embedding and output head are one weight, before and after.
        notes: what a reader should know.
    """

    pairs: tuple[Pair, ...]
    skipped: tuple[Pair, ...]
    tied: bool
    notes: tuple[str, ...]


def pair_tensors(
    base: Checkpoint, tuned: Checkpoint, wanted: Callable[[str], bool] = lambda _: True
) -> Pairing:
    """Find each tensor of `tuned` in `base`, whatever library version named them.

    Args:
        base, tuned: models stored with Hugging Face names.
        wanted: whether a module is to be extracted.

    Raises IncompatibleError for a container with other names, for parameters that only one model
    has (a new task's head and stored constants excepted), and for sizes that differ elsewhere
    than in a vocabulary.
    """
    for model in (base, tuned):
        _refuse_foreign(model)
    before, after, tied = _untangled(base, tuned)
    plan = Plan(replace(base, tensors=before), {})
    partners: dict[str, str] = {}
    pairs: list[Pair] = []
    skipped: list[Pair] = []
    lone: list[str] = []
    for name, tensor in after.items():
        partner = plan.find(name)
        if partner is None and _BUFFERS.search(name):
            continue
        if partner is not None:
            _refuse_twice(partners, partner, name, tuned)
        site = _site(partner if partner is not None and partner.endswith(f".{name}") else name)
        if partner is None and not _is_task_head(site):
            lone.append(name)
            continue
        old = None if partner is None else before[partner]
        pair = Pair(site, old, tensor, _form(site, old, tensor, plan.model_type))
        (pairs if wanted(site.module) else skipped).append(pair)
    _refuse_lone([name for name in lone if wanted(_site(name).module)], tuned, base)
    absent = [name for name in before if name not in partners and not _BUFFERS.search(name)]
    inside = [name for name in absent if not _is_end(name) and wanted(_site(name).module)]
    _refuse_lone(inside, base, tuned)
    return Pairing(tuple(pairs), tuple(skipped), tied, tuple(_notes(absent, lone)))


def _notes(absent: list[str], lone: list[str]) -> list[str]:
    notes = []
    if absent:
        notes.append(
            f"{len(absent)} tensors of the base have no counterpart and stay: {absent[0]} ..."
        )
    if lone:
        notes.append(f"{len(lone)} tensors without a counterpart are left out: {lone[0]} ...")
    return notes


def _refuse_twice(partners: dict[str, str], partner: str, name: str, tuned: Checkpoint) -> None:
    other = partners.setdefault(partner, name)
    if other != name:
        raise IncompatibleError(
            f"{name} and {other} of {tuned.provenance.name} both mean {partner} of the base",
            code="AMBIGUOUS_NAME",
        )


def _refuse_foreign(model: Checkpoint) -> None:
    if model.container != "safetensors":
        raise IncompatibleError(
            f"{model.provenance.name}: tensors of a {model.container} file have names and layouts "
            "of their own",
            hint="name the safetensors model that it was made from",
            code="FOREIGN_NAMES",
        )


def _untangled(
    base: Checkpoint, tuned: Checkpoint
) -> tuple[dict[str, LazyTensor], dict[str, LazyTensor], bool]:
    """Both models' tensors with a head in both or in neither, and whether heads stay tied."""
    before, after = dict(base.tensors), dict(tuned.tensors)
    first, second = embeddings_of(base), embeddings_of(tuned)
    tied = first.tied and second.tied
    for ends, tensors, others in ((first, before, second), (second, after, first)):
        if tied:
            tensors.pop(ends.head or "", None)
        elif ends.tied and ends.head is None and others.head is not None:
            tensors[others.head] = _shared(ends, tensors)
    return before, after, tied


def _shared(ends: Embeddings, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
    return tensors[ends.embedding or ""]


def _site(name: str) -> Site:
    module, _, parameter = name.rpartition(".")
    return Site(module, "weight" if parameter == "in_proj_weight" else parameter)


def _form(site: Site, old: LazyTensor | None, new: LazyTensor, model_type: str) -> Form:
    shape = new.shape
    if old is None or _is_task_head(site) or _ROUTER.search(site.module):
        return Form.WHOLE
    if old.shape != shape:
        if not _is_end(str(site)) or old.shape[1:] != shape[1:]:
            raise IncompatibleError(
                f"{site}: {list(old.shape)} in the base, {list(shape)} in the fine-tuned model",
                hint="is this the base that it was fine-tuned from?",
                code="SHAPE_MISMATCH",
            )
        return Form.WHOLE
    if len(shape) == 3 and site.parameter != "weight" and site.module.endswith("experts"):
        return Form.TRANSPOSED_EXPERTS if model_type in TRANSPOSED_EXPERTS else Form.EXPERTS
    if site.parameter != "weight" or len(shape) < 2 or (len(shape) > 2 and shape[1] == 1):
        return Form.WHOLE  # a convolution over single channels is no smaller in factors
    last = site.module.rpartition(".")[2]
    if normal(str(site)) in INPUT_EMBEDDINGS or _EMBEDDING.search(last):
        return Form.EMBEDDING
    turned = model_type in CONV1D_MODELS and last in CONV1D_MODULES
    return Form.TRANSPOSED if turned else Form.MATRIX


def _is_task_head(site: Site) -> bool:
    return not NEW_HEADS.isdisjoint(site.module.split("."))


def _is_end(name: str) -> bool:
    """Whether models that are otherwise alike may differ in this parameter: both ends, heads."""
    form = normal(name)
    return form in INPUT_EMBEDDINGS | OUTPUT_HEADS or _is_task_head(_site(name))


def _refuse_lone(names: list[str], model: Checkpoint, other: Checkpoint) -> None:
    if names:
        raise IncompatibleError(
            f"{len(names)} tensors of {model.provenance.name} are not in {other.provenance.name}, "
            f"first {names[0]}",
            hint="are these a model and its fine-tune? --skip leaves modules out",
            code="UNPAIRED",
            details={"unpaired": [*names[:10]], "count": len(names)},
        )
