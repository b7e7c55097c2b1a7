"""`adaptool reduce`: an adapter of smaller ranks."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, common_start, size
from adaptool.cli.options import (
    Dtype,
    common_options,
    console_of,
    examples,
    output_option,
    rank_options,
)
from adaptool.jobs.reducing import ReductionReport, reduce_file
from adaptool.ranks import CRITERIA, RankRequest

_EXAMPLES = examples(
    "adaptool reduce adapter -o small --rank 8",
    "adaptool reduce adapter -o small --error 0.05     # 5 % of |dW| may go",
    "adaptool reduce adapter -o small --size 20MB --dtype bf16",
    "adaptool reduce adapter -o small --size 20MB --against llama --dry-run",
    "adaptool reduce adapter -o small --criterion sv_fro=0.9 --max-rank 32",
)


@click.command(epilog=_EXAMPLES, short_help="Reduce an adapter's ranks.")
@click.argument("adapter")
@output_option("Where to write; the suffix names the format, no suffix means PEFT.")
@rank_options
@click.option("--criterion", metavar="NAME=VALUE",
              help=f"Per module, as sd-scripts defines it: {', '.join(CRITERIA)}.")  # fmt: skip
@click.option("--against", metavar="BASE",
              help="Count each module's error relative to its weight in this model.")  # fmt: skip
@click.option("--dtype", type=Dtype(), help="Type of the values (default: as they are).")
@click.option("--to", metavar="FORMAT", help="Format to write, whatever the suffix.")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Choose the ranks; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def reduce(adapter: str, output: Path, request: RankRequest, against: str | None,
           dtype: str | None, to: str | None, threads: int | None, force: bool, dry_run: bool,
           allow_pickle: bool, as_json: bool, quiet: bool, verbose: int) -> None:  # fmt: skip
    """Write ADAPTER with smaller ranks, as close to it as they allow.

    Give exactly one of --rank, --energy, --error, --size, --params and --criterion. Each update
    is cut to the best approximation of its rank. A size or an error is spent over all modules:
    singular values are kept in the order of energy per byte, which loses least in total; ranks
    then differ by module (rank_pattern). DoRA keeps its magnitudes. Heads, biases and token rows
    stay as they are, and count in a size.
    """
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    report = reduce_file(
        adapter,
        output,
        request,
        to=to,
        dtype=dtype,
        against=against,
        force=force,
        dry_run=dry_run,
        threads=threads,
        allow_pickle=allow_pickle,
    )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _show(console: Console, report: ReductionReport) -> None:
    done = report.reduction
    start = common_start([str(row.site) for row in done.rows])
    rows = [
        (
            str(row.site).removeprefix(start).removesuffix(".weight"),
            str(row.before),
            str(row.after),
            f"{row.kept:.2%}",
            *([f"{row.norm:.4g}"] if console.verbosity > 0 else []),
        )
        for row in done.rows
    ]
    head = ("module", "rank", "new", "energy kept", *(["|dW|"] if console.verbosity > 0 else []))
    title = f"in {start.rstrip('.')}" if start else ""
    console.table(head, rows, title)
    verb = "would be written" if report.dry_run else "written"
    share = report.written.nbytes / report.before
    console.line(f"{report.written.path}: {size(report.written.nbytes)} {verb}, "
                 f"{share:.0%} of {size(report.before)}")  # fmt: skip
    console.line(f"error: {done.error:.3%} of |dW| is lost")
    if done.weighted_error is not None:
        console.line(f"  relative to the base's weights: {done.weighted_error:.3%}")
    if done.stored_error is not None:
        console.line(f"  as stored, rounding included: {done.stored_error:.3%}")
