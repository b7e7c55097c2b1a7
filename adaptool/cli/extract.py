"""`adaptool extract`: what a fine-tune changed in a model, as an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import (
    Dtype,
    common_options,
    console_of,
    examples,
    output_option,
    rank_options,
)
from adaptool.jobs.extracting import ExtractionReport, extract_files
from adaptool.ranks import RankRequest

_EXAMPLES = examples(
    "adaptool extract llama llama-tuned -o adapter --rank 32",
    "adaptool extract llama llama-tuned -o adapter --energy 0.9 --max-rank 64",
    "adaptool extract llama llama-tuned -o adapter --error 0.3 --dry-run",
    "adaptool extract llama llama-tuned -o adapter --size 50MB --dtype bf16",
    "adaptool extract llama llama-tuned -o attn --rank 8 --modules self_attn",
)


@click.command(epilog=_EXAMPLES, short_help="Turn a fine-tuned model into an adapter.")
@click.argument("base")
@click.argument("tuned")
@output_option("Where to write; the suffix names the format, no suffix means PEFT.")
@rank_options
@click.option("--modules", metavar="REGEX", help="Only modules whose path matches.")
@click.option("--skip", metavar="REGEX", help="Not the modules whose path matches.")
@click.option("--exact", is_flag=True,
              help="Full decompositions: many times slower, at most 0.1 % better.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Of the random start.")  # fmt: skip
@click.option(
    "--dtype", type=Dtype(), default="float32", help="Type of the factors (default: f32)."
)
@click.option("--to", metavar="FORMAT", help="Format to write, whatever the suffix.")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Choose the ranks; write nothing.")
@common_options
def extract(base: str, tuned: str, output: Path, request: RankRequest, modules: str | None,
            skip: str | None, exact: bool, seed: int, dtype: str, to: str | None,
            threads: int | None, force: bool, dry_run: bool, as_json: bool, quiet: bool,
            verbose: int) -> None:  # fmt: skip
    """Write what TUNED changed in BASE as an adapter, in ranks as small as you say.

    Give exactly one of --rank, --energy, --error, --size and --params. Both models are streamed,
    so that memory does not grow with them. Linear layers, convolutions, embeddings and stacked
    experts become low-rank; norms, biases, a task's head and a resized vocabulary are stored as
    they are in TUNED; what is equal in both is left out. No rank is above 256 unless asked for.
    """
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    with console.progress("extracting") as progress:
        report = extract_files(
            base,
            tuned,
            output,
            request,
            to=to,
            modules=modules,
            skip=skip,
            dtype=dtype,
            exact=exact,
            seed=seed,
            force=force,
            dry_run=dry_run,
            threads=threads,
            progress=progress,
        )
    for note in report.extraction.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _show(console: Console, report: ExtractionReport) -> None:
    done = report.extraction
    rows = [
        (
            str(row.site) if row.rank is None else row.site.module,
            "whole" if row.rank is None else str(row.rank),
            "" if row.norm is None else f"{row.norm:.4g}",
            f"{row.kept:.2%}",
        )
        for row in done.rows
    ]
    console.table(("module", "rank", "|dW|", "energy kept"), rows)
    verb = "would be written" if report.dry_run else "written"
    console.line(f"{report.written.path}: {size(report.written.nbytes)} {verb}, "
                 f"{done.adapter.parameters:,} parameters")  # fmt: skip
    console.line(f"error: {done.error:.3%} of |dW| is lost; |dW| = {done.norm:.4g}")
    console.line(f"equal in both models: {done.same} tensors")
    if done.left_out:
        console.line(f"left out: {len(done.left_out)} tensors that differ, |dW| = "
                     f"{done.left_out_norm:.4g}")  # fmt: skip
