"""Two models -> the adapter between them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from adaptool.architectures.naming import INPUT_EMBEDDINGS, normal
from adaptool.canonical import (
    Adapter,
    Checkpoint,
    DType,
    LazyTensor,
    LowRank,
    Replacement,
    Site,
    Update,
)
from adaptool.canonical.tensors import from_recipe
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.extraction.factoring import Factoring
from adaptool.extraction.outcome import Extraction, Row
from adaptool.extraction.pairing import Form, Pairing, pair_tensors
from adaptool.extraction.surveying import Found, Progress, Survey, in_total, meter
from adaptool.merging.tying import embeddings_of
from adaptool.ranks import RankRequest

if TYPE_CHECKING:
    import torch

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""Ends of the names of transformers' model classes -> PEFT's task types."""

_EXPERT = re.compile(r"\.experts\.\d+\.|\.block_sparse_moe\.")


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    request: RankRequest,
    *,
    modules: str | None = None,
    skip: str | None = None,
    dtype: DType = DType.FLOAT32,
    exact: bool = False,
    seed: int = 0,
    threads: int | None = None,
    weigh: Callable[[Adapter], int] | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """What `tuned` changed in `base`, as an adapter of that base.

    Weights of linear layers, convolutions, embeddings and stacked experts become low-rank updates;
    all else that differs (norms, biases, a task's head, a resized vocabulary) is replaced, and so
    is an embedding where that takes fewer bytes. What is equal in both is left out.

    Args:
        base, tuned: streamed, a few rows at a time; a matrix is held only if small or `exact`.
        request: how ranks are chosen. Unless it limits them, 256 singular values of a matrix are
            looked at. A goal for all modules together (error, size, params) takes two passes.
        modules, skip: expressions searched in module paths: what to take, what to leave out.
        dtype: of the factors; replacements keep the fine-tuned model's.
        exact: full decompositions; else randomised ones, see `canonical.sketching`.
        seed: of the random start.
        threads: workers; None takes as many as there are processors, at most 8.
        weigh: bytes of an adapter when it is written, for a size; None counts its values' bytes.
        progress: called from workers with (bytes since the last call, bytes in all).

    Raises:
        UsageError: an expression that is none, or a goal out of reach.
        IncompatibleError: the models do not fit each other, do not differ, or are quantised.
        CorruptInputError: weights that are not finite.
    """
    pairing = pair_tensors(base, tuned, _chooser(modules, skip))
    dress = partial(_adapter, base, tuned, pairing, request)
    rounds = 2 if in_total(request) else 1
    total = sum(rounds * p.tuned.nbytes for p in (*pairing.pairs, *pairing.skipped))
    survey = Survey(
        request,
        Factoring(dtype, exact, seed),
        lambda updates: _taken(dress(updates), request, weigh),
        threads,
        meter(total, progress),
    )
    found = survey.run(pairing.pairs)
    left_out = survey.measure(pairing.skipped)
    if not found:
        where = " in what is to be extracted" if left_out else ""
        raise IncompatibleError(
            f"{tuned.provenance.name} and {base.provenance.name} do not differ{where}",
            hint="is this the fine-tuned model?",
            code="NOTHING_TO_EXTRACT",
        )
    adapter = dress({f.pair.site: f.update for f in found if f.update is not None})
    return Extraction(
        adapter=adapter,
        rows=tuple(_row(item) for item in found),
        same=len(pairing.pairs) - len(found),
        left_out=tuple(left_out),
        notes=(*pairing.notes, *_notes(found, adapter, request)),
    )


def _chooser(modules: str | None, skip: str | None) -> Callable[[str], bool]:
    take, leave = (_compiled(text) for text in (modules, skip))

    def wanted(module: str) -> bool:
        taken = take is None or take.search(module) is not None
        return taken and (leave is None or leave.search(module) is None)

    return wanted


def _compiled(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is no regular expression: {error}") from None


def _taken(adapter: Adapter, request: RankRequest, weigh: Callable[[Adapter], int] | None) -> int:
    if request.params is not None:
        return adapter.parameters
    return adapter.nbytes if weigh is None else weigh(adapter)


def _adapter(
    base: Checkpoint,
    tuned: Checkpoint,
    pairing: Pairing,
    request: RankRequest,
    updates: Mapping[Site, Update],
) -> Adapter:
    updates = {**_siblings(pairing, updates), **updates}
    changed = [p for p in pairing.pairs if p.site in updates]
    task = _task(tuned, any(p.is_task_head for p in changed))
    config: dict[str, JSON] = {}
    shared = next((p.site for p in changed if normal(str(p.site)) in INPUT_EMBEDDINGS), None)
    if pairing.tied and shared is not None:
        config["ensure_weight_tying"] = True
        if task == "CAUSAL_LM" and not _follows(shared, updates[shared]):
            head = embeddings_of(base).head_name.removesuffix(".weight")
            updates[Site(head)] = _for_head(updates[shared])
    if any(p.form is Form.TRANSPOSED for p in changed):
        config["fan_in_fan_out"] = True
    origin = tuned.provenance
    note = f"extracted by adaptool: {origin.name} less {base.provenance.name}, {request}"
    return Adapter(
        updates=dict(sorted(updates.items())),
        method="lora",
        base=base.provenance.name,
        provenance=replace(origin, notes=(*origin.notes, note)),
        config=config,
        ties_embeddings=pairing.tied and shared is not None,
        task=task,
    )


def _siblings(pairing: Pairing, updates: Mapping[Site, Update]) -> dict[Site, Update]:
    """The other parameters of replaced modules, which PEFT saves whole and loads no other way."""
    whole = {
        site.module
        for site, update in updates.items()
        if site.parameter == "weight" and isinstance(update, Replacement)
    }
    return {p.site: Replacement(p.tuned) for p in pairing.pairs if p.site.module in whole}


def _follows(embedding: Site, update: Update) -> bool:
    """Whether PEFT gives a tied head the embedding's update by itself; else it is written twice."""
    return isinstance(update, LowRank) and embedding.module.endswith("embed_tokens")


def _for_head(update: Update) -> Update:
    """The input embedding's update, as that of the output head that shares its weight."""
    if not isinstance(update, LowRank):
        return update
    return LowRank(_transposed(update.b), _transposed(update.a), update.scaling)


def _transposed(factor: LazyTensor) -> LazyTensor:
    def turn() -> torch.Tensor:
        return factor.values().T.contiguous()

    return from_recipe(factor.shape[::-1], factor.dtype, turn)


def _task(tuned: Checkpoint, has_head: bool) -> str | None:
    """PEFT's task type; that of a task with a head of its own only if the head is written."""
    stated = tuned.config.get("architectures")
    name = str(stated[0]) if isinstance(stated, list) and stated else ""
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
    return task if task == "CAUSAL_LM" or has_head else None


def _row(found: Found) -> Row:
    update = found.update
    rank = getattr(update, "rank", None)
    kind = update.kind if update is not None else ""
    return Row(found.pair.site, kind, found.pair.tuned.shape, rank, found.norm, found.lost)


def _notes(found: list[Found], adapter: Adapter, request: RankRequest) -> list[str]:
    notes = []
    whole = [f for f in found if isinstance(f.update, Replacement)]
    if whole:
        kinds = Counter(f.pair.site.parameter for f in whole)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(kinds.items()))
        notes.append(f"{len(whole)} parameters are replaced, not factored: {counts}")
    lone = sorted({f.pair.site.parameter for f in whole} - {"weight", "bias"})
    if lone:
        notes.append(f"adaptool merges {', '.join(lone)}; PEFT does not load them")
    if any(_EXPERT.search(f"{site.module}.") for site in adapter.updates):
        notes.append(
            "experts are named as in the checkpoint; PEFT looks for the names that its version "
            "of transformers has in memory, and passes over others"
        )
    if any(f.norm is None and f.pair.base is not None for f in found):
        notes.append("a vocabulary or a head has another size: resize the base before PEFT loads")
    short = [f for f in found if _falls_short(f, request)]
    if short:
        notes.append(
            f"{len(short)} modules keep less than {request.energy:g} of their energy at the "
            "largest rank: --max-rank allows more"
        )
    return notes


def _falls_short(found: Found, request: RankRequest) -> bool:
    if request.energy is None or found.module is None or not found.norm:
        return False
    return found.lost**2 > (1 - request.energy + 1e-6) * found.norm**2
