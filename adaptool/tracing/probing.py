"""A traced graph in ONNX Runtime beside the model that it was traced from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool.errors import VerificationError
from adaptool.tracing.masks import seeing_masks
from adaptool.tracing.ports import PAST, PRESENT, Port, Ports, caching
from adaptool.tracing.running import run_of
from adaptool.tracing.trimming import COUNT, KEPT

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from adaptool.tracing.running import Run

    Tensors = Mapping[str, torch.Tensor]

_LONG, _SHORT = 9, 5
"""Tokens of the two rows of the probe."""


def disagreement(model: PreTrainedModel, path: Path, ports: Ports) -> float:
    """The largest difference between a graph's outputs and the model's, over the largest output.

    Two rows of unequal length are padded as transformers.js pads (on the left for decoders, else on
    the right) and run with an empty cache, then one more token of each on the cache that came out;
    last a single token alone. The model keeps its own kind of cache. Rows of padding do not count.

    Raises:
        VerificationError: ONNX Runtime does not run the graph, or a value is not finite.
    """
    import torch

    run = run_of(path)
    worst = 0.0
    with torch.inference_mode(), seeing_masks():
        for masks in (_masks(ports), [torch.ones((1, 1), dtype=torch.int64)]):
            for wanted, found, real in _rounds(model, run, ports, masks):
                worst = max(worst, _distance(wanted, found, real, ports.outputs))
    return worst


def _masks(ports: Ports) -> list[torch.Tensor]:
    """Masks of the rounds of the padded batch: all tokens so far."""
    import torch

    first = torch.ones((2, _LONG), dtype=torch.int64)
    if not ports.past:
        first[1, _SHORT:] = 0
        return [first]
    first[1, :-_SHORT] = 0
    return [first, torch.cat([first, first[:, -1:]], dim=1)]


def _rounds(
    model: PreTrainedModel,
    run: Run,
    ports: Ports,
    masks: list[torch.Tensor],
) -> Iterator[tuple[Tensors, Tensors, torch.Tensor]]:
    """Outputs of model and graph, and which tokens are real, round by round."""
    import torch
    from transformers import DynamicCache

    generator = torch.Generator().manual_seed(0)
    words = model.config.get_text_config().vocab_size
    batch = masks[0].shape[0]
    sizes = {"batch_size": batch, "past_sequence_length": 0}
    cache = {port.name: port.empty(sizes) for port in ports.past}
    options = caching(model, DynamicCache(config=model.config)) if ports.past else {}
    for mask in masks:
        known = next(iter(cache.values())).shape[2] if cache else 0
        length = mask.shape[1] - known
        ids = torch.randint(words, (batch, length), generator=generator)
        positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)[:, -length:]
        kinds = (torch.arange(length) >= length // 2).long().expand(batch, length)
        given = {
            "input_ids": ids, "attention_mask": mask, "position_ids": positions,
            "token_type_ids": kinds, COUNT: torch.tensor(0),
        }  # fmt: skip
        plain = {port.name: given[port.name].contiguous() for port in ports.plain}
        answer = model(**{k: v for k, v in plain.items() if k != COUNT}, **options)
        found = run({**plain, **cache})
        cache = {name: found[name.replace(PAST, PRESENT)] for name in cache}
        yield answer, found, mask[:, -length:].bool()


def _distance(
    wanted: Tensors, found: Tensors, real: torch.Tensor, outputs: tuple[Port, ...]
) -> float:
    """See `disagreement`."""
    worst = 0.0
    for port in outputs:
        one, other = wanted[port.name].double(), found[port.name].double()
        if {"sequence_length", KEPT} & {*port.dims}:
            one, other = one[real], other[real]
        if not (one.isfinite().all() and other.isfinite().all()):
            raise VerificationError(
                f"{port.name} is not finite: the model's largest value is {one.abs().max():.3g},"
                f" the graph's {other.abs().max():.3g}",
                hint="choose a dtype with more range: fp32, q8 or q4",
                code="NOT_FINITE",
            )
        worst = max(worst, float((one - other).abs().max() / one.abs().max()))
    return worst
