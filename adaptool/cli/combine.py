"""`adaptool combine`: several adapters as one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import (
    Dtype,
    common_options,
    console_of,
    examples,
    method_options,
    setting,
    weighted,
)
from adaptool.errors import JSON, UsageError
from adaptool.jobs.combining import CombinationReport, combine_files

_EXAMPLES = examples(
    "adaptool combine pirate=0.7 cowboy=0.3 -o both          # the exact sum",
    "adaptool combine pirate=0.7 cowboy=0.3 --rank 16 -o both",
    "adaptool combine a=1 b=1 c=-0.5 --method ties --set density=0.3 -o d",
    "adaptool combine a=1 b=1 --method dare --set sign=elect --seed 7 -o c",
    "adaptool combine dora=1 b=0.5 --base models/llama --rank 64 -o c",
    "adaptool combine --list-methods",
)

_HELP = """Combine adapters, each with its weight: sum of w * scaling * B A, by default exactly.

They may differ in rank, strength and targets; a weight may be negative. The result is one
adapter: merge it, convert it, or load it with PEFT.

\b
PEFT's combination_type    the same here
  cat                      (the default)
  svd                      --rank R
  linear                   --space factors
  ties                     --method ties --set elect=plain --space factors
  ties_svd                 --method ties --set elect=plain --rank R
  magnitude_prune          --method magnitude --space factors
  magnitude_prune_svd      --method magnitude --rank R
"""


@click.command(help=_HELP, epilog=_EXAMPLES, short_help="Combine adapters into one.")
@click.argument("adapters", nargs=-1, metavar="ADAPTER=WEIGHT...")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Where to write; the suffix names the format, none means PEFT.")  # fmt: skip
@method_options
@click.option("--rank", type=click.IntRange(1), help="Largest rank of the result (default: exact "
              "where that is of low rank, else the largest that went in).")  # fmt: skip
@click.option("--base", metavar="MODEL", help="The base model; for DoRA, (IA)^3, OFT and others.")
@click.option("--keep-heads", metavar="ADAPTER",
              help="Whose trained heads are kept where adapters disagree.")  # fmt: skip
@click.option("--list-methods", is_flag=True, help="Show methods and their parameters.")
@click.option("--to", metavar="FORMAT", help="Format to write, whatever the suffix.")
@click.option("--dtype", type=Dtype(), help="Type of the factors (default: f32).")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Compute and report; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def combine(adapters: tuple[str, ...], output: Path | None, method: str, settings: tuple[str, ...],
            space: str, rank: int | None, seed: int, base: str | None, keep_heads: str | None,
            list_methods: bool, to: str | None, dtype: str | None, threads: int | None,
            force: bool, dry_run: bool, allow_pickle: bool, as_json: bool, quiet: bool,
            verbose: int) -> None:  # fmt: skip
    """Combine adapters into one."""
    from adaptool.combination import Recipe

    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    if list_methods:
        _list_methods(console)
        return
    if not adapters or output is None:
        raise UsageError("adapters and an output are needed",
                         hint="adaptool combine A=0.7 B=0.3 -o OUT")  # fmt: skip
    recipe = Recipe(method, dict(map(setting, settings)), space, rank, seed)
    with console.progress("combining") as progress:
        report = combine_files(
            [weighted(item) for item in adapters],
            output,
            recipe,
            base=base,
            keep_heads=keep_heads,
            to=to,
            dtype=dtype,
            force=force,
            dry_run=dry_run,
            threads=threads,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _list_methods(console: Console) -> None:
    from adaptool.methods import facts

    known = facts()

    def show(shown_on: Console) -> None:
        for name, about in known.items():
            if not isinstance(about, dict) or not isinstance(about["parameters"], dict):
                continue
            shown_on.line(f"{name}: {about['summary']}")
            for key, parameter in about["parameters"].items():
                if isinstance(parameter, dict):
                    shown_on.line(f"    {key}={parameter['default']}  ({parameter['range']})")
                    shown_on.line(f"        {parameter['text']}")

    methods: dict[str, JSON] = {"methods": known}
    console.result(methods, show)


def _show(console: Console, report: CombinationReport) -> None:
    rows = report.combination.rows
    inputs = [
        (adapter.provenance.name, f"{weight:g}", str(sum(r.ranks[n] is not None for r in rows)),
         _span(r.ranks[n] for r in rows))
        for n, (adapter, weight) in enumerate(report.inputs)
    ]  # fmt: skip
    total = ("result", "", str(sum(r.rank is not None for r in rows)), _span(r.rank for r in rows))
    console.table(("adapter", "weight", "modules", "rank"), [*inputs, total])
    verb = "would be written" if report.dry_run else "written"
    console.line(f"{report.written.path}: {size(report.written.nbytes)} {verb}")
    if report.combination.error is not None:
        console.line(f"relative error of the rank: {report.combination.error:.4g}")
    if console.verbosity > 0:
        details = [
            (str(row.site), " ".join("-" if r is None else str(r) for r in row.ranks),
             "" if row.rank is None else str(row.rank),
             f"{row.error / row.norm:.3g}" if row.norm else "")
            for row in rows
        ]  # fmt: skip
        console.table(("module", "ranks", "rank", "error"), details)


def _span(ranks: Iterable[int | None]) -> str:
    """`8`, or `8-32` where modules differ."""
    known = [rank for rank in ranks if rank is not None]
    if not known:
        return "-"
    return str(min(known)) if min(known) == max(known) else f"{min(known)}-{max(known)}"
