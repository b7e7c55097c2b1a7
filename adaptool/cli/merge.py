"""`adaptool merge`: adapters into a model."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import (
    Dtype,
    Scale,
    Size,
    common_options,
    console_of,
    examples,
    output_option,
    parse_scale,
)
from adaptool.errors import UsageError
from adaptool.jobs import MergeReport, merge_files

_EXAMPLES = examples(
    "adaptool merge models/llama adapters/pirate -o merged",
    "adaptool merge models/llama adapters/pirate -o merged --dry-run",
    "adaptool merge llama pirate --scale 0.75 --dtype bf16 -o milder",
    "adaptool merge llama -a pirate=0.7 -a cowboy=0.3 -o both --force",
    "adaptool merge org/model org/adapter@main -o out --max-shard-size 2GB -j 4",
)


@click.command(epilog=_EXAMPLES, short_help="Merge adapters into a model.")
@click.argument("base")
@click.argument("adapter", required=False)
@output_option("Folder to write, or a file ending in .safetensors.")
@click.option("--scale", type=Scale(), default=1.0, show_default=True,
              help="Strength of ADAPTER; a negative one un-applies it.")  # fmt: skip
@click.option("-a", "--adapter", "more", multiple=True, metavar="PATH=SCALE",
              help="One more adapter and its strength; repeatable.")  # fmt: skip
@click.option("--dtype", type=Dtype(), help="Type of the result (default: the base's).")
@click.option("--device", default="auto", show_default=True, metavar="[auto|cpu|cuda[:n]]",
              help="Where to compute.")  # fmt: skip
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--max-shard-size", type=Size(), help="Bytes per file, as 5GB (default: as BASE).")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@click.option("--allow-nonfinite", is_flag=True,
              help="Dangerous: let NaNs and infinities pass.")  # fmt: skip
@common_options
def merge(base: str, adapter: str | None, output: Path, scale: float, more: tuple[str, ...],
          dtype: str | None, device: str, threads: int | None, max_shard_size: int | None,
          force: bool, dry_run: bool, allow_pickle: bool, allow_nonfinite: bool,
          as_json: bool, quiet: bool, verbose: int) -> None:  # fmt: skip
    """Merge ADAPTER into BASE: W + scale * scaling * B A, rounded once.

    BASE is a folder or file of safetensors, or a hub model. Memory does not grow with the model.
    All adapters are summed before the one rounding. The command fails, and writes nothing,
    unless every tensor of every adapter finds its place.
    """
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    adapters = [(adapter, scale)] if adapter else []
    adapters += [_parse(item) for item in more]
    if not adapters:
        raise UsageError("no adapter named", hint="adaptool merge BASE ADAPTER -o OUT")
    with console.progress("merging") as progress:
        report = merge_files(
            base,
            adapters,
            output,
            dtype=dtype,
            device=device,
            force=force,
            dry_run=dry_run,
            max_shard_size=max_shard_size,
            threads=threads,
            allow_pickle=allow_pickle,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _parse(item: str) -> tuple[str, float]:
    path, separator, number = item.rpartition("=")
    if not separator:
        return item, 1.0

    def fail(message: str) -> None:
        raise UsageError(f"-a {item}: {message}", hint="-a PATH=SCALE")

    return path, parse_scale(number, fail)


def _show(console: Console, report: MergeReport) -> None:
    if report.dry_run:
        rows = [
            ("would write", f"{report.output} ({len(report.files)} files)"),
            ("bytes", f"{report.nbytes:,} ({size(report.nbytes)})"),
            ("free space", size(report.free)),
            ("peak memory", f"about {size(report.peak)}"),
            ("tensors", f"{report.touched} of {report.tensors} touched"),
        ]
        console.table(("", ""), rows)
        return
    console.line(f"{report.output}: {report.changed} of {report.tensors} tensors changed, "
                 f"{size(report.nbytes)} written")  # fmt: skip
    if report.survival is not None and report.survival.ratio is not None:
        console.line(f"update stored: {report.survival.ratio:.1%} of |dW| = "
                     f"{report.survival.meant:.4g}")  # fmt: skip
    if console.verbosity > 0:
        details = [
            (name, f"{s.meant:.4g}", f"{s.stored:.4g}", "" if s.ratio is None else f"{s.ratio:.3f}")
            for name, s in report.by_tensor.items()
        ]
        console.table(("tensor", "|dW|", "stored", "ratio"), details)
