"""`adaptool export`: a folder for a browser runtime."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import (
    Scale,
    Size,
    common_options,
    console_of,
    examples,
    output_option,
    weighted,
)
from adaptool.jobs.exporting import ExportOptions, ExportReport
from adaptool.jobs.exporting import export as export_model
from adaptool.targets import names

_EXAMPLES = examples(
    "adaptool export llama pirate --target transformersjs -o web --page",
    "adaptool export merged --target transformersjs --dtype q4 --dtype q8 -o web",
    "adaptool export llama pirate cowboy --target ortweb --swappable -o web",
    "adaptool export llama pirate=0.7 --target wllama --dtype q4_k_m -o web",
    "adaptool export q8_0.gguf pirate --target wllama --swappable -o web",
    "adaptool export llama pirate --target webllm --dtype q4f16_1 -o web",
    "adaptool export llama --target ortweb -o web --page --runtime node_modules",
)


@click.command(epilog=_EXAMPLES, short_help="Export a model for a browser runtime.")
@click.argument("model")
@click.argument("adapters", nargs=-1, metavar="[ADAPTER[=SCALE]]...")
@output_option("Folder to write, for a static host.")
@click.option("--target", required=True, type=click.Choice(names()), help="Whose runtime.")
@click.option("--dtype", "dtypes", multiple=True, metavar="TYPE",
              help="Type of the model, by the runtime's name; repeatable for transformersjs.",
              )  # fmt: skip
@click.option("--scale", type=Scale(), default=1.0, show_default=True,
              help="Strength of ADAPTERs without their own.")  # fmt: skip
@click.option("--swappable", is_flag=True,
              help="Keep ADAPTERs apart: chosen, and scaled, while the model runs.")  # fmt: skip
@click.option("--page", is_flag=True, help="Write a page that runs it; see `adaptool serve`.")
@click.option("--runtime", metavar="NODE_MODULES",
              help="Copy the page's runtime out of this folder.")  # fmt: skip
@click.option("--template", metavar="TEXT",
              help="How the page asks, with {prompt} in it (default: the model's own).",
              )  # fmt: skip
@click.option("--task", metavar="TASK",
              help="What the model is for, where its config does not say.")  # fmt: skip
@click.option("--part-size", type=Size(), help="Bytes per file of weights.")
@click.option("--match", metavar="ORIGINAL",
              help="What an ONNX MODEL came from: values tell where names do not.")  # fmt: skip
@click.option("--pre", metavar="NAME", help="wllama: llama.cpp's name of the pre-tokenizer.")
@click.option("--imatrix", metavar="FILE",
              help="wllama: importance of columns, from llama-imatrix.")  # fmt: skip
@click.option("--optimize", is_flag=True,
              help="webllm: search better scales; slower, and as loadable.")  # fmt: skip
@click.option("--conversation", metavar="NAME", help="webllm: the conversation template.")
@click.option("--lib", "library", metavar="MODEL.wasm",
              help="webllm: the compiled model library, checked and put along.")  # fmt: skip
@click.option("--base-weights", metavar="[dequantized|ORIGINAL]",
              help="What a quantised MODEL was made from: touched tensors come of it.")  # fmt: skip
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@click.option("--allow-loss", is_flag=True,
              help="Dangerous: accept that rounding swallows most of the update.")  # fmt: skip
@common_options
def export(model: str, adapters: tuple[str, ...], output: Path, target: str,
           dtypes: tuple[str, ...], scale: float, swappable: bool, page: bool, runtime: str | None,
           template: str | None, task: str | None, part_size: int | None, match: str | None,
           pre: str | None, imatrix: str | None, optimize: bool, conversation: str | None,
           library: str | None, base_weights: str | None, threads: int | None, force: bool,
           dry_run: bool, allow_pickle: bool, allow_loss: bool, as_json: bool, quiet: bool,
           verbose: int) -> None:  # fmt: skip
    """Write MODEL for a browser runtime, with ADAPTERs merged on the way or beside it.

    MODEL is a folder or file of safetensors, a GGUF or ONNX model, or a hub model.

    \b
    transformersjs  @huggingface/transformers: ONNX, its tokenizer and config
    ortweb          plain ONNX Runtime Web; --swappable: adapters as inputs
    webllm          WebLLM: MLC weights for a prebuilt model library
    wllama          llama.cpp in WASM: GGUF; --swappable: adapters apart

    --page adds a page that runs the export, which `adaptool serve` serves, or any static host.
    Its runtime is an npm package: copied out of --runtime, or installed by `npm install` in the
    folder. `adaptool verify` reads an export back.
    """  # noqa: D301 - click's mark for lines that are not to be joined
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    with console.progress("exporting") as progress:
        report = export_model(
            model,
            [weighted(item, scale) for item in adapters],
            output,
            target=target,
            dtypes=dtypes,
            swappable=swappable,
            page=page,
            runtime=runtime,
            options=ExportOptions(
                part_size, task, optimize, pre, imatrix, conversation, library, template, match
            ),
            base_weights=base_weights,
            force=force,
            dry_run=dry_run,
            threads=threads,
            allow_pickle=allow_pickle,
            allow_loss=allow_loss,
            progress=progress,
        )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _show(console: Console, report: ExportReport) -> None:
    verb = "would be written" if report.dry_run else "written"
    console.line(f"{report.output}: {report.target}, {', '.join(report.dtypes)}, "
                 f"{size(report.nbytes)} {verb}")  # fmt: skip
    if report.files:
        console.table(("file", "size"), [(n, size(b)) for n, b in report.files.items()])
    if report.loading:
        for line in ("To load it:", "", *report.loading.splitlines(), ""):
            console.line(line)
    if report.page and not report.dry_run:
        console.line(f"adaptool serve {report.output}")
