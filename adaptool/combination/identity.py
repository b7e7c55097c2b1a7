"""What a combined adapter says of itself: name, origin, base, and the facts that still hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptool.canonical import Adapter, Provenance, Site, Update
from adaptool.combination.recipe import Recipe
from adaptool.errors import JSON
from adaptool.records import described

_LASTING = ("layer_replication", "fan_in_fan_out", "ensure_weight_tying", "peft_version")
"""What a PEFT configuration says of names and layouts, so that it holds for the result as well."""


def combined_adapter(
    pairs: Sequence[tuple[Adapter, float]], updates: Mapping[Site, Update], recipe: Recipe,
    notes: list[str],
) -> Adapter:  # fmt: skip
    """The adapter that holds the combined updates; says in `notes` what the inputs disagree on."""
    adapters = [adapter for adapter, _ in pairs]
    bases = sorted({a.base for a in adapters if a.base})
    tasks = sorted({a.task for a in adapters if a.task})
    licenses = sorted({a.provenance.license for a in adapters if a.provenance.license})
    base = next((a.base for a in adapters if a.base), None)
    if len(bases) > 1:
        notes.append(f"the adapters name different bases ({', '.join(bases)}); {base} is written")
    if len(tasks) > 1:
        notes.append(f"the adapters are for different tasks ({', '.join(tasks)}); none is written")
    _, settings = recipe.chosen
    words = [recipe.method, *(f"{key}={value}" for key, value in settings.values.items())]
    words += [] if recipe.space == "delta" else [f"space={recipe.space}"]
    words += [] if recipe.rank is None else [f"rank={recipe.rank}"]
    words += [f"seed={recipe.seed}"] if recipe.seed else []
    inputs: dict[str, JSON] = {
        f"adapter {number}": {**described(adapter.provenance), "weight": weight}
        for number, (adapter, weight) in enumerate(pairs, 1)
    }
    provenance = Provenance(
        " + ".join(f"{weight:g} x {adapter.provenance.name}" for adapter, weight in pairs),
        adapters[0].provenance.format,
        inputs,
        license=licenses[0] if len(licenses) == 1 else "other" if licenses else None,
        notes=(f"combined: {' '.join(words)}", *notes),
    )
    return Adapter(
        updates=updates,
        method="lora",
        base=base,
        provenance=provenance,
        config=_shared_config(adapters),
        ties_embeddings=any(a.ties_embeddings for a in adapters),
        task=tasks[0] if len(tasks) == 1 else None,
        naming=adapters[0].naming,
    )


def _shared_config(adapters: Sequence[Adapter]) -> dict[str, JSON]:
    """What all configurations agree on, of what still holds."""
    first = adapters[0]
    asked = _LASTING if first.naming == "huggingface" else tuple(first.config)
    return {
        key: first.config[key]
        for key in asked
        if first.config.get(key) is not None
        and all(adapter.config.get(key) == first.config[key] for adapter in adapters)
    }
