"""`adaptool slots`: inputs for adapters in a finished ONNX model."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import Size, common_options, console_of, examples, output_option
from adaptool.jobs.slotting import SlotReport, make_slots
from adaptool.slots import MODES, OPTIONAL, SlotRequest

_EXAMPLES = examples(
    "adaptool slots model.onnx -o swappable.onnx",
    "adaptool slots model.onnx -o web.onnx --mode inputs --modules q_proj,v_proj",
    "adaptool slots repo/onnx -o swappable --mode external --rank 16",
)


@click.command(epilog=_EXAMPLES, short_help="Make adapters swappable in an ONNX model.")
@click.argument("model")
@output_option("A file ending in .onnx, or a folder.")
@click.option("--mode", type=click.Choice(MODES), default=OPTIONAL, show_default=True,
              help="How factors come in.")  # fmt: skip
@click.option("--rank", type=click.IntRange(1),
              help="Ranks that every module takes (default: what an adapter has).")  # fmt: skip
@click.option("--modules", metavar="NAME,...",
              help="Which modules take factors (default: all linear ones but heads).")  # fmt: skip
@click.option("--match", metavar="BASE",
              help="The checkpoint it was exported from, where names do not tell.")  # fmt: skip
@click.option("--max-shard-size", type=Size(), help="Bytes per data file; -o is a folder then.")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@common_options
def slots(model: str, output: Path, mode: str, rank: int | None, modules: str | None,
          match: str | None, max_shard_size: int | None, threads: int | None, force: bool,
          dry_run: bool, as_json: bool, quiet: bool, verbose: int) -> None:  # fmt: skip
    """Give MODEL inputs for the factors of an adapter: y + lora_scale * (x A) B.

    MODEL is a finished ONNX graph, quantised or not; its weights stay as they are.

    \b
    optional  inputs with empty defaults: ONNX Runtime's add_active_adapter,
              onnxruntime-genai. Adapter files end in .onnx_adapter.
    inputs    inputs that are always fed, of any rank from 1: ONNX Runtime Web.
              Adapter files are the same.
    external  a data file of factors, given to a session: transformers.js.
              Adapter files end in .onnx_slots.

    `adaptool convert ADAPTER -o FILE --for OUT` makes adapter files for the result. lora_scale is
    the strength, at run time. slots.json lists the inputs.
    """  # noqa: D301 - click's mark for lines that are not to be joined
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    names = tuple(name for name in (modules or "").split(",") if name)
    with console.progress("writing") as progress:
        report = make_slots(
            model,
            output,
            SlotRequest(mode, rank, names),
            match=match,
            max_shard_size=max_shard_size,
            force=force,
            dry_run=dry_run,
            threads=threads,
            progress=progress,
        )
    for note in report.notes:
        console.note(note)
    console.result(report.as_json(), lambda c: _show(c, report))


def _show(console: Console, report: SlotReport) -> None:
    verb = "would be written" if report.dry_run else "written"
    console.line(f"{report.output}: slots for {report.modules} modules, "
                 f"{size(report.nbytes)} {verb}")  # fmt: skip
    for name in report.files:
        console.line(f"  {name}")
    if console.verbosity > 0:
        rows = [(slot.name, f"{slot.width} -> {slot.height}", slot.dtype.value,
                 "free" if slot.rank is None else str(slot.rank))
                for slot in report.manifest.slots]  # fmt: skip
        console.table(("slot", "sizes", "dtype", "rank"), rows)
