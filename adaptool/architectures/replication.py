"""Layers that stand several times in a model (`layer_replication`), written out.

PEFT trains such a model with layers that share the base's weights, each with its own update; a
merged model needs each of them as tensors.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from adaptool.canonical import Adapter, Checkpoint, LazyTensor
from adaptool.errors import JSON, CorruptInputError, IncompatibleError

_LAYER = re.compile(r"^(?P<before>(?:.*\.)?(?:layers|h|layer)\.)(?P<index>\d+)(?P<after>\..+)$")


def replicate_layers(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The base with its layers repeated as the adapter's config says; often the base itself.

    Raises:
        CorruptInputError: ranges that are no ranges.
        IncompatibleError: ranges beyond the base's layers.
    """
    stated = adapter.config.get("layer_replication")
    if not stated:
        return base
    order = _order(stated)
    parts = {n: m for n in base.tensors if (m := _LAYER.match(n))}
    count = len({int(m["index"]) for m in parts.values()})
    if base.config.get("num_hidden_layers") == len(order) != count:
        return base
    if max(order) >= count:
        raise IncompatibleError(
            f"layer_replication names layer {max(order)}, the base has {count}",
            code="SHAPE_MISMATCH",
        )
    tensors: dict[str, LazyTensor] = {n: t for n, t in base.tensors.items() if n not in parts}
    for position, source in enumerate(order):
        for name, match in parts.items():
            if int(match["index"]) == source:
                tensors[f"{match['before']}{position}{match['after']}"] = base.tensors[name]
    config: dict[str, JSON] = {**base.config, "num_hidden_layers": len(order)}
    for key, value in base.config.items():  # one entry per layer
        if isinstance(value, list) and len(value) == count and key.startswith("layer"):
            config[key] = [value[source] for source in order]
    side = {**base.side_files, "config.json": (json.dumps(config, indent=2) + "\n").encode()}
    return replace(base, tensors=tensors, config=config, side_files=side)


def _order(stated: JSON) -> list[int]:
    ranges = stated if isinstance(stated, list) else []
    order: list[int] = []
    for item in ranges:
        if not isinstance(item, list) or len(item) != 2:
            raise CorruptInputError(f"layer_replication {str(stated)[:80]} is no list of ranges")
        start, stop = item
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop <= 10_000:
            raise CorruptInputError(f"layer_replication {str(stated)[:80]} is no list of ranges")
        order += range(start, stop)
    if len(order) > 10_000 or not order:
        raise CorruptInputError("layer_replication asks for an unreasonable number of layers")
    return order
