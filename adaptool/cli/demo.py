"""`adaptool demo`: see a merge work, without any download."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from adaptool.cli.console import Console, printable
from adaptool.cli.inspect import show_facts
from adaptool.cli.options import common_options, console_of, examples
from adaptool.errors import JSON
from adaptool.inspection import inspect
from adaptool.jobs.merging import merge_files

SCALES = (0.0, 0.5, 1.0)

_EXAMPLES = examples(
    "adaptool demo",
    "adaptool demo --adapter cowboy --prompt 'how are you'",
    "adaptool demo --output merged     # keep the model merged at scale 1",
)


@click.command(epilog=_EXAMPLES, short_help="See a merge work, in a minute.")
@click.option("--adapter", type=click.Choice(["pirate", "cowboy", "formal"]), default="pirate",
              show_default=True, help="Which of the demo's adapters.")  # fmt: skip
@click.option("--prompt", default="hello ada", show_default=True, help="What to say to the model.")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Keep the model merged at scale 1 here.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option("--dry-run", is_flag=True, help="Inspect only; merge nothing.")
@common_options
def demo(adapter: str, prompt: str, output: Path | None, force: bool, dry_run: bool, as_json: bool,
         quiet: bool, verbose: int) -> None:  # fmt: skip
    """Inspect a tiny trained adapter, merge it at scale 0, 0.5 and 1, and let each model answer."""
    from adaptool.demonstration import answer, demo_folder

    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    folder = demo_folder()
    facts = inspect(folder / adapter)
    answers: dict[str, JSON] = {}
    with tempfile.TemporaryDirectory(prefix="adaptool-demo-") as scratch:
        for scale in () if dry_run else SCALES:
            target = Path(scratch) / f"scale-{scale}"
            merge_files(folder / "model", {str(folder / adapter): scale}, target)
            answers[f"{scale:g}"] = answer(target, prompt)
        if output is not None and not dry_run:
            merge_files(folder / "model", {str(folder / adapter): 1.0}, output, force=force)
    result: dict[str, JSON] = {"adapter": facts, "prompt": prompt, "answers": answers}

    def show(shown_on: Console) -> None:
        show_facts(shown_on, facts)
        rows = [(scale, printable(str(text))) for scale, text in answers.items()]
        if rows:
            shown_on.table(("scale", f"answer to: {prompt}"), rows)

    console.result(result, show)
