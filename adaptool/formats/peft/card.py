"""The README.md beside an adapter."""

from adaptool.canonical import Adapter
from adaptool.cards import front_matter, table


def card(adapter: Adapter) -> str:
    """Front matter that a hub understands, and what the adapter is."""
    head = front_matter({
        "base_model": adapter.base,
        "library_name": "peft",
        "license": adapter.provenance.license,
        "tags": ["adaptool", "lora", adapter.method],
    })  # fmt: skip
    rows = [
        ("method", adapter.method),
        ("base", adapter.base or "not stated"),
        ("parameters", f"{adapter.parameters:,}"),
        ("read from", f"{adapter.provenance.name} ({adapter.provenance.format})"),
    ]
    return f"{head}\n# Adapter\n\nWritten by adaptool.\n\n{table(('', ''), rows)}"
