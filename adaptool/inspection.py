"""A path -> plain facts, from headers alone; values are read only when statistics are asked for.

The same data serves people (tables), programs (JSON) and golden tests.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adaptool import containers, formats
from adaptool.architectures.speaking import plan_of, spoken_by
from adaptool.canonical import Adapter, Checkpoint, LazyTensor, Site, Update
from adaptool.canonical.parts import low_rank
from adaptool.canonical.verbs import Companion
from adaptool.errors import JSON, IncompatibleError
from adaptool.hub import describe_checkpoint, fetch_adapter, fetch_checkpoint
from adaptool.merging.tying import embeddings_of

Facts = dict[str, JSON]


@dataclass(frozen=True)
class Details:
    """What to look at beyond headers.

    Attributes:
        stats: norms, singular values and non-finite counts per module (reads the adapter).
        against: a base to check the fit with and to relate the norms to (reads both).
        allow_pickle: accept .bin files.
    """

    stats: bool = False
    against: str | None = None
    allow_pickle: bool = False


def inspect(path: str | os.PathLike[str], details: Details | None = None) -> Facts:
    """What an adapter or a checkpoint is.

    Returns plain data; `kind` is "adapter" or "checkpoint".

    Raises:
        IncompatibleError: nothing known stands at the path.
        CorruptInputError: it is broken.
    """
    details = details or Details()
    local = fetch_adapter(os.fspath(path))
    found = formats.find(local)
    if found is None and not os.path.lexists(path):  # a hub model that is no adapter
        return _checkpoint(describe_checkpoint(os.fspath(path)))
    if found is not None:
        options = formats.ReadOptions(details.allow_pickle, configuration=True)
        return _adapter(found[0], found[1].read(local, options), details)
    container = containers.find(local)
    if container is None:
        raise IncompatibleError(
            f"{local}: neither an adapter nor a checkpoint is recognised here",
            hint="name a folder with adapter_config.json, or with *.safetensors",
            code="UNKNOWN_FORMAT",
        )
    return _checkpoint(container[1].open(local))


def _adapter(format_name: str, adapter: Adapter, details: Details) -> Facts:
    tensors = [t for u in adapter.updates.values() for t in u.tensors.values()]
    tensors += list(adapter.extras.values())
    ranks = Counter(low.rank for u in adapter.updates.values() if (low := low_rank(u)))
    facts: Facts = {
        "kind": "adapter",
        "format": format_name,
        "name": adapter.provenance.name,
        "method": adapter.method,
        "base": adapter.base,
        "task": adapter.task,
        "mergeable": adapter.unmergeable is None,
        "reason": adapter.unmergeable,
        "parameters": adapter.parameters,
        "bytes": adapter.nbytes,
        "dtypes": _histogram(t.dtype.value for t in tensors),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "targets": _histogram(_leaf(site) for site in adapter.updates),
        "layers": _layers(adapter.updates),
        "kinds": _histogram(u.kind for u in adapter.updates.values()),
        "modules": {str(s): _module(u) for s, u in adapter.updates.items()},
        "extra_tensors": list(adapter.extras),
        "unknown_keys": list(adapter.unread),
        "files": dict(adapter.provenance.files),
        "notes": list(adapter.provenance.notes),
    }
    if details.against is not None or details.stats:
        _add_statistics(facts, adapter, details)
    return facts


def _module(update: Update) -> Facts:
    facts: Facts = {"kind": update.kind, "shape": list(update.shape)}
    low = low_rank(update)
    if low is not None:
        facts |= {"rank": low.rank, "scaling": low.scaling, "alpha": low.scaling * low.rank}
    return facts


def _histogram(items: Iterable[str]) -> dict[str, JSON]:
    return dict(Counter(items).most_common())


def _leaf(site: Site) -> str:
    leaf = site.module.rpartition(".")[2] or site.module
    return leaf if site.parameter == "weight" else f"{leaf}.{site.parameter}"


def _layers(updates: Mapping[Site, Update]) -> list[JSON]:
    found = {int(p) for site in updates for p in site.module.split(".") if p.isdecimal()}
    return [*sorted(found)]


def _add_statistics(facts: Facts, adapter: Adapter, details: Details) -> None:
    from adaptool.statistics import measure, norm_of

    plan = None
    if details.against is not None:
        base = containers.open_checkpoint(fetch_checkpoint(details.against))
        adapter = spoken_by(base, adapter)
        plan = plan_of(base, adapter.config)
        facts["modules"] = {str(site): _module(update) for site, update in adapter.updates.items()}
    unplaced: list[JSON] = []
    modules = facts["modules"]
    for site, update in adapter.updates.items():
        row = modules[str(site)] if isinstance(modules, dict) else {}
        if not isinstance(row, dict):
            continue
        row |= measure(update)
        if plan is not None:
            places = plan.place(site, plan.oriented(site, update))
            if not places:
                if not isinstance(update, Companion):
                    unplaced.append(str(site))
                continue
            names = list(dict.fromkeys(p.tensor for p in places))
            row["tensors"] = list(names)
            norm = row.get("norm")
            if isinstance(norm, float):
                weight = norm_of([plan.checkpoint.tensors[n] for n in names])
                row["relative"] = norm / weight if weight else None
    if plan is not None:
        facts["against"] = plan.checkpoint.provenance.name
        facts["fits"] = not unplaced
        facts["unplaced"] = unplaced


def _checkpoint(checkpoint: Checkpoint) -> Facts:
    tensors = checkpoint.tensors
    stored = sum(t.count for t in tensors.values())
    stated = checkpoint.metadata.get("parameters")  # where several are packed into one number
    parameters = stated if isinstance(stated, int) else stored
    return {
        "kind": "checkpoint",
        "format": checkpoint.container,
        "name": checkpoint.provenance.name,
        "architecture": _first(checkpoint.config.get("architectures"))
        or checkpoint.config.get("general.architecture"),
        "model_type": checkpoint.config.get("model_type"),
        "parameters": parameters,
        "bytes": checkpoint.nbytes,
        "tensors": len(tensors),
        "dtypes": _histogram(t.kind for t in tensors.values()),
        "layers": len({_layer(name) for name in tensors} - {None}),
        "tied_embeddings": embeddings_of(checkpoint).tied,
        "quantised": "quantization_config" in checkpoint.config
        or parameters != stored
        or any(t.encoding is not None for t in tensors.values()),
        "license": checkpoint.provenance.license,
        "files": dict(checkpoint.provenance.files),
        "largest": _largest(tensors),
    }


def _first(value: JSON) -> JSON:
    return value[0] if isinstance(value, list) and value else None


def _layer(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _largest(tensors: Mapping[str, LazyTensor]) -> list[JSON]:
    top = sorted(tensors.items(), key=lambda item: -item[1].nbytes)[:5]
    return [{"name": n, "shape": list(t.shape), "dtype": t.kind} for n, t in top]
