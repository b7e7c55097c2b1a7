"""`adaptool inspect`: what is in an adapter or a checkpoint."""

from __future__ import annotations

import click

from adaptool.cli.console import Console, common_start, size
from adaptool.cli.options import common_options, console_of, examples
from adaptool.errors import JSON
from adaptool.inspection import Details, Facts
from adaptool.inspection import inspect as inspect_path

_EXAMPLES = examples(
    "adaptool inspect adapters/pirate",
    "adaptool inspect adapters/pirate --stats -v",
    "adaptool inspect adapters/pirate --against models/llama",
    "adaptool inspect models/llama --json",
)


@click.command(epilog=_EXAMPLES, short_help="Show what is in an adapter or a model.")
@click.argument("path")
@click.option("--stats", is_flag=True,
              help="Norms, singular values, non-finite counts (reads the values).")  # fmt: skip
@click.option("--against", metavar="BASE", help="Check that it fits this model.")
@click.option("--dry-run", is_flag=True, help="Accepted for symmetry; nothing is ever written.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def inspect(path: str, stats: bool, against: str | None, dry_run: bool, allow_pickle: bool,
            as_json: bool, quiet: bool, verbose: int) -> int:  # fmt: skip
    """Show what is in PATH: format, method, ranks, strength, targets, layers, types, sizes.

    Headers are enough for that. Exit code 4 if --against finds that it does not fit.
    """
    del dry_run
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    facts = inspect_path(path, Details(stats, against, allow_pickle))
    console.result(facts, lambda c: show_facts(c, facts))
    return 0 if facts.get("fits", True) else 4


def show_facts(console: Console, facts: Facts) -> None:
    """Print an inspection as tables."""
    rows = [
        (label, text)
        for label, key in _ROWS
        if (text := _text(key, facts.get(key))) not in ("", "None")
    ]
    title = f"{facts['kind']} {facts['name']}"
    console.table(("", ""), rows, title)
    if facts["kind"] == "adapter" and (console.verbosity > 0 or "against" in facts
                                       or _has_statistics(facts)):  # fmt: skip
        _show_modules(console, facts)


_ROWS = (
    ("format", "format"), ("method", "method"), ("base", "base"), ("task", "task"),
    ("architecture", "architecture"), ("model type", "model_type"),
    ("parameters", "parameters"), ("bytes", "bytes"), ("tensors", "tensors"),
    ("types", "dtypes"), ("ranks", "ranks"), ("strength", "modules"), ("targets", "targets"),
    ("updates", "kinds"), ("layers", "layers"), ("cannot be merged", "reason"),
    ("extra tensors", "extra_tensors"), ("unknown keys", "unknown_keys"),
    ("license", "license"), ("fits", "fits"), ("not placed", "unplaced"), ("notes", "notes"),
)  # fmt: skip


def _text(key: str, value: JSON) -> str:
    if key == "modules" and isinstance(value, dict):
        return _strengths(value)
    if key == "bytes" and isinstance(value, int):
        return f"{value:,} ({size(value)})"
    if key == "layers" and isinstance(value, list):
        return _ranges([int(str(v)) for v in value])
    if isinstance(value, dict):
        return ", ".join(f"{k} x{v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value[:20])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value) if value is not None else ""


def _strengths(modules: dict[str, JSON]) -> str:
    """`scaling 2 (alpha 16) x14`: how often each strength occurs."""
    counts: dict[str, int] = {}
    for module in modules.values():
        if isinstance(module, dict) and isinstance(module.get("scaling"), float):
            text = f"{module['scaling']:.4g} (alpha/r, alpha {module['alpha']:.4g})"
            counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{text} x{count}" for text, count in counts.items())


def _ranges(numbers: list[int]) -> str:
    """0-15, 17: whole numbers as ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _has_statistics(facts: Facts) -> bool:
    modules = facts.get("modules")
    return isinstance(modules, dict) and any(
        isinstance(m, dict) and "nonfinite" in m for m in modules.values()
    )


def _show_modules(console: Console, facts: Facts) -> None:
    modules = facts["modules"]
    if not isinstance(modules, dict):
        return
    columns = [
        ("rank", "rank"), ("scaling", "scaling"), ("|dW|", "norm"), ("/|W|", "relative"),
        ("eff. r", "effective_rank"), ("top sv", "singular_values"), ("bad", "nonfinite"),
    ]  # fmt: skip
    rows = [m for m in modules.values() if isinstance(m, dict)]
    used = [(label, key) for label, key in columns if any(key in row for row in rows)]
    shared = common_start(list(modules))
    console.table(
        ("module", *(label for label, _ in used)),
        [
            (
                name.removeprefix(shared).removesuffix(".weight"),
                *(_cell(module.get(key)) for _, key in used),
            )
            for name, module in modules.items()
            if isinstance(module, dict)
        ],
        f"in {shared.rstrip('.')}" if shared else "",
    )


def _cell(value: JSON) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
