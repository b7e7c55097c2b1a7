"""`adaptool verify`: an export read back."""

from __future__ import annotations

from pathlib import Path

import click

from adaptool.cli.console import Console
from adaptool.cli.options import common_options, console_of, examples
from adaptool.jobs.verifying import Verification
from adaptool.jobs.verifying import verify as verify_export
from adaptool.targets import names

_EXAMPLES = examples(
    "adaptool verify web",
    "adaptool verify web --lib Llama-3.2-1B-q4f16_1-webgpu.wasm",
    "adaptool verify somebodys-mlc --target webllm --lib model.wasm",
)


@click.command(epilog=_EXAMPLES, short_help="Read an export back and check it.")
@click.argument("folder", metavar="WEB", type=click.Path(path_type=Path))
@click.option("--lib", "library", metavar="MODEL.wasm",
              help="webllm: the compiled model library that the weights must fit.")  # fmt: skip
@click.option("--target", type=click.Choice(names()),
              help="Whose runtime, for a folder that does not say.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="The same: nothing is ever written.")
@common_options
def verify(folder: Path, library: str | None, target: str | None, dry_run: bool,  # noqa: ARG001
           as_json: bool, quiet: bool, verbose: int) -> None:  # fmt: skip
    """Read WEB back: files, sizes, digests, names, shapes and types.

    For webllm, --lib compares names, shapes and types with the list of parameters that a compiled
    model library carries; the runtime itself tells of a difference by dying without a reason.
    """
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    found = verify_export(folder, library=library, target=target)
    if not as_json or not found.wrong:
        console.result(found.as_json(), lambda c: _show(c, found))
    found.require_right()


def _show(console: Console, found: Verification) -> None:
    shown = found.findings if console.verbosity > 0 or found.wrong else found.findings[:20]
    for one in shown:
        mark = "ok   " if one.right else "WRONG"
        console.line(f"{mark} {one.what}" + (f": {one.detail}" if one.detail else ""))
    if len(shown) < len(found.findings):
        console.line(f"... and {len(found.findings) - len(shown)} more, all right")
    if not found.wrong:
        console.line(f"{found.folder}: {found.target}, {len(found.findings)} checks, all right")
