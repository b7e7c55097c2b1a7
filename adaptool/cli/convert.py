"""`adaptool convert`: an adapter in another format, type or strength; a model as GGUF."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, common_start, size
from adaptool.cli.options import (
    Dtype,
    Scale,
    Size,
    common_options,
    console_of,
    examples,
    optional_rank_options,
    output_option,
)
from adaptool.errors import JSON
from adaptool.formats import Written
from adaptool.jobs.converting import convert as convert_source
from adaptool.jobs.lowering import Lowered
from adaptool.lowering import Lowering
from adaptool.ranks import RankRequest
from adaptool.slots import SLOTS, STYLES

_EXAMPLES = examples(
    "adaptool convert old -o new --allow-pickle     # .bin to safetensors",
    "adaptool convert adapter -o half --scale 0.5   # strength baked in",
    "adaptool convert adapter -o adapter.gguf --base models/llama",
    "adaptool convert adapter.gguf --to peft -o adapter --base config.json",
    "adaptool convert loha -o plain --to lora       # any type, as a LoRA",
    "adaptool convert oft -o plain.gguf --to lora --rank 32 --base models/llama",
    "adaptool convert adapter -o adapter.onnx_adapter --for swappable.onnx",
    "adaptool convert merged -o merged.gguf --outtype q4_k_m",
)


@click.command(epilog=_EXAMPLES, short_help="Convert an adapter, or a model to GGUF.")
@click.argument("source")
@output_option("Where to write; the suffix names the format, no suffix means PEFT.")
@click.option("--to", metavar="FORMAT",
              help="Format to write, whatever the suffix; or lora: of any type a plain LoRA.",
              )  # fmt: skip
@optional_rank_options
@click.option("--base", metavar="MODEL",
              help="The adapter's base: config.json, folder, GGUF model or hub name.")  # fmt: skip
@click.option("--for", "graph", metavar="MODEL.onnx",
              help="The ONNX model whose inputs an .onnx_adapter file is for.")  # fmt: skip
@click.option("--names", type=click.Choice(STYLES), default=SLOTS, show_default=True,
              help="What an .onnx_adapter's tensors are called, without --for.")  # fmt: skip
@click.option("--scale", type=Scale(), default=1.0, show_default=True,
              help="Strength to bake in; factors stay exact, alpha changes.")  # fmt: skip
@click.option("--dtype", "--outtype", type=Dtype(blocks=True),
              help="Type of the result (default: as it is, for models f16).")  # fmt: skip
@click.option("--row-order", type=click.Choice(["hf", "ggml"]),
              help="Whose row order a legacy ggla file is in.")  # fmt: skip
@click.option("--imatrix", metavar="FILE", help="Importance of a model's columns (llama-imatrix).")
@click.option("--pre", metavar="NAME", help="llama.cpp's name of a model's pre-tokenizer.")
@click.option("--split-max-size", "--max-shard-size", "max_shard_size", type=Size(),
              help="Bytes per file of a model; -o is a folder then.")  # fmt: skip
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile beside a GGUF file.")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def convert(source: str, output: Path, to: str | None, base: str | None, graph: str | None,
            names: str, scale: float, dtype: str | None, row_order: str | None,
            imatrix: str | None, pre: str | None, max_shard_size: int | None, modelfile: bool,
            threads: int | None, force: bool, dry_run: bool, allow_pickle: bool, as_json: bool,
            quiet: bool, verbose: int, request: RankRequest | None) -> None:  # fmt: skip
    """Write SOURCE in another format, or in the same one with other types or strength.

    SOURCE is an adapter (PEFT, GGUF, ONNX), or a Hugging Face checkpoint, which becomes a GGUF
    model with its tokenizer and chat template.

    With --to lora an adapter of any type becomes a plain LoRA, which llama.cpp, vLLM and Ollama
    load: exactly where what it does is low-rank, else at the --rank, --energy or --error asked for.
    What looks at the weights (DoRA, OFT, IA3 ...) takes the model itself as --base.
    """
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    with console.progress("converting") as progress:
        written = convert_source(
            source,
            output,
            to=to,
            base=base,
            graph=graph,
            names=names,
            scale=scale,
            dtype=dtype,
            row_order=row_order,
            imatrix=imatrix,
            pre=pre,
            max_shard_size=max_shard_size,
            modelfile=modelfile,
            ranks=request,
            threads=threads,
            force=force,
            dry_run=dry_run,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    for note in written.notes:
        console.note(note)
    facts: dict[str, JSON] = {
        "output": str(written.path), "bytes": written.nbytes, "files": list(written.files),
        "notes": list(written.notes), "dry_run": dry_run,
    }  # fmt: skip
    if isinstance(written, Lowered):
        facts |= written.lowering.as_json()
    console.result(facts, lambda c: _show(c, written, dry_run=dry_run))


def _show(console: Console, written: Written, *, dry_run: bool) -> None:
    verb = "would be written" if dry_run else "written"
    console.line(f"{written.path}: {size(written.nbytes)} {verb}")
    for name in written.files:
        console.line(f"  {name}")
    if isinstance(written, Lowered):
        _show_lowering(console, written.lowering)


def _show_lowering(console: Console, done: Lowering) -> None:
    start = common_start([str(row.site) for row in done.rows])
    rows = [
        (
            str(row.site).removeprefix(start).removesuffix(".weight"), row.kind,
            "" if row.rank is None else str(row.rank),
            "kept" if row.rank is None else "exact" if row.exact else f"{row.error:.3%}",
        )
        for row in done.rows
    ]  # fmt: skip
    if console.verbosity > 0:
        title = f"in {start.rstrip('.')}" if start else ""
        console.table(("module", "update", "rank", "error"), rows, title)
    if done.error is not None:
        console.line(f"error: {done.error:.3%} of |dW| is lost")
