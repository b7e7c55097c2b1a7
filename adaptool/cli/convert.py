"""`adaptool convert`: an adapter in another format, type or strength."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import (
    Dtype,
    Scale,
    common_options,
    console_of,
    examples,
    output_option,
)
from adaptool.errors import JSON
from adaptool.formats import Written
from adaptool.jobs import convert as convert_adapter

_EXAMPLES = examples(
    "adaptool convert old -o new --allow-pickle     # .bin to safetensors",
    "adaptool convert adapter -o half --scale 0.5   # strength baked in",
    "adaptool convert adapter -o small --dtype bf16",
)


@click.command(epilog=_EXAMPLES, short_help="Convert an adapter.")
@click.argument("adapter")
@output_option("Where to write; the suffix names the format, no suffix means PEFT.")
@click.option("--to", metavar="FORMAT", help="Format to write, whatever the suffix.")
@click.option("--scale", type=Scale(), default=1.0, show_default=True,
              help="Strength to bake in; factors stay exact, alpha changes.")  # fmt: skip
@click.option("--dtype", type=Dtype(), help="Type of the factors (default: as they are).")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def convert(adapter: str, output: Path, to: str | None, scale: float, dtype: str | None,
            force: bool, dry_run: bool, allow_pickle: bool, as_json: bool, quiet: bool,
            verbose: int) -> None:  # fmt: skip
    """Write ADAPTER in another format, or in the same one with other types or strength."""
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    written = convert_adapter(
        adapter,
        output,
        to=to,
        scale=scale,
        dtype=dtype,
        force=force,
        dry_run=dry_run,
        allow_pickle=allow_pickle,
    )
    facts: dict[str, JSON] = {
        "output": str(written.path), "bytes": written.nbytes, "files": list(written.files),
        "dry_run": dry_run,
    }  # fmt: skip
    console.result(facts, lambda c: _show(c, written, dry_run=dry_run))


def _show(console: Console, written: Written, *, dry_run: bool) -> None:
    verb = "would be written" if dry_run else "written"
    console.line(f"{written.path}: {size(written.nbytes)} {verb}")
    for name in written.files:
        console.line(f"  {name}")
