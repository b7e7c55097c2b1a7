"""`adaptool merge`: adapters into a model."""

from __future__ import annotations

from collections.abc import Mapping
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
    method_options,
    output_option,
    setting,
    weighted,
)
from adaptool.errors import UsageError
from adaptool.jobs.merging import merge_files
from adaptool.jobs.reporting import MergeReport
from adaptool.merging import Survival

_EXAMPLES = examples(
    "adaptool merge models/llama adapters/pirate -o merged",
    "adaptool merge models/llama adapters/pirate -o merged --dry-run",
    "adaptool merge llama pirate --scale 0.75 --dtype bf16 -o milder",
    "adaptool merge llama pirate=0.7 cowboy=0.3 -o both --force",
    "adaptool merge llama a=1 b=1 --method ties --set density=0.3 -o both",
    "adaptool merge q4_k_m.gguf pirate -o merged.gguf --base-weights llama",
    "adaptool merge onnx/model.onnx pirate -o merged-onnx --match llama",
    "adaptool merge llama-nf4 pirate -o merged",
    "adaptool merge org/model org/adapter@main -o out --max-shard-size 2GB -j 4",
)


@click.command(epilog=_EXAMPLES, short_help="Merge adapters into a model.")
@click.argument("base")
@click.argument("adapters", nargs=-1, metavar="ADAPTER[=SCALE]...")
@output_option("Folder to write, or a file ending as BASE does.")
@click.option("--scale", type=Scale(), default=1.0, show_default=True,
              help="Strength of ADAPTERs without their own; negative un-applies.")  # fmt: skip
@click.option("-a", "--adapter", "more", multiple=True, metavar="PATH=SCALE",
              help="One more adapter and its strength; repeatable.")  # fmt: skip
@click.option("--dtype", "--outtype", type=Dtype(blocks=True),
              help="Type of the result (default: the base's); block types for GGUF.")  # fmt: skip
@click.option("--base-weights", metavar="[dequantized|ORIGINAL]",
              help="What a quantised BASE was made from: touched tensors come of it.")  # fmt: skip
@click.option("--requantize", is_flag=True,
              help="Write a quantised Hugging Face BASE in its own scheme again.")  # fmt: skip
@click.option("--match", metavar="ORIGINAL",
              help="What an ONNX BASE came from: values tell where names do not.")  # fmt: skip
@click.option("--imatrix", metavar="FILE", help="Importance of columns, from llama-imatrix.")
@click.option("--rounding", type=click.Choice(["nearest", "stochastic"]), default="nearest",
              show_default=True, help="How touched blocks are rounded.")  # fmt: skip
@method_options
@click.option("--device", default="auto", show_default=True, metavar="[auto|cpu|cuda[:n]]",
              help="Where to compute.")  # fmt: skip
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option(
    "--max-shard-size",
    "--split-max-size",
    "max_shard_size",
    type=Size(),
    help="Bytes per file, as 5GB (default: as BASE, GGUF in one).",
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@click.option("--allow-nonfinite", is_flag=True,
              help="Dangerous: let NaNs and infinities pass.")  # fmt: skip
@click.option("--allow-loss", is_flag=True,
              help="Dangerous: accept that rounding swallows most of the update.")  # fmt: skip
@common_options
def merge(base: str, adapters: tuple[str, ...], output: Path, scale: float, more: tuple[str, ...],
          dtype: str | None, base_weights: str | None, requantize: bool, match: str | None,
          imatrix: str | None, rounding: str,
          method: str, settings: tuple[str, ...], space: str, seed: int, device: str,
          threads: int | None, max_shard_size: int | None, force: bool, dry_run: bool,
          allow_pickle: bool, allow_nonfinite: bool, allow_loss: bool, as_json: bool,
          quiet: bool, verbose: int) -> None:  # fmt: skip
    """Merge ADAPTER into BASE: W + scale * scaling * B A, rounded once.

    BASE is a folder or file of safetensors, a GGUF or ONNX model, or a hub model; ADAPTER is
    PEFT's or GGUF. GGUF and ONNX models are decoded, merged and encoded again in their own types;
    a quantised Hugging Face model is written in full precision, unless --requantize. Memory does
    not grow with the model. All adapters are summed, or combined by --method, before the one
    rounding: nothing is lost to a rank. The command fails, and writes nothing, unless every
    tensor of every adapter finds its place.
    """
    from adaptool.combination import Recipe

    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    pairs = [weighted(item, scale) for item in adapters] + [weighted(item) for item in more]
    if not pairs:
        raise UsageError("no adapter named", hint="adaptool merge BASE ADAPTER -o OUT")
    with console.progress("merging") as progress:
        report = merge_files(
            base,
            pairs,
            output,
            recipe=Recipe(method, dict(map(setting, settings)), space, seed=seed, factored=False),
            dtype=dtype,
            base_weights=base_weights,
            requantize=requantize,
            match=match,
            imatrix=imatrix,
            rounding=rounding,
            seed=seed,
            device=device,
            force=force,
            dry_run=dry_run,
            max_shard_size=max_shard_size,
            threads=threads,
            allow_pickle=allow_pickle,
            allow_nonfinite=allow_nonfinite,
            allow_loss=allow_loss,
            progress=progress,
        )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


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
    if len(report.by_type) > 1 or console.verbosity > 0:
        console.table(("type", "|dW|", "|stored|", "survived"), _rows(report.by_type))
    if console.verbosity > 0:
        console.table(("tensor", "|dW|", "|stored|", "survived"), _rows(report.by_tensor))


def _rows(measured: Mapping[str, Survival]) -> list[tuple[str, str, str, str]]:
    return [
        (name, f"{s.meant:.4g}", f"{s.stored:.4g}", "" if s.ratio is None else f"{s.ratio:.3f}")
        for name, s in measured.items()
    ]
