"""`adaptool serve`: an export, for the browser of this machine."""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path

import click

from adaptool.cli.console import Console, size
from adaptool.cli.options import common_options, console_of, examples
from adaptool.errors import JSON, StorageError, UsageError

_EXAMPLES = examples(
    "adaptool serve web",
    "adaptool serve web --open              # and show it in the browser",
    "adaptool serve web --port 8000 -v      # and say what is asked for",
    "adaptool serve web --json              # the address as JSON, on one line",
)

_STOPPED = 130  # as every command that is interrupted


@click.command(epilog=_EXAMPLES, short_help="Show an export in the browser.")
@click.argument("web", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=0,
              help="Of 127.0.0.1 (default: a free one).")  # fmt: skip
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@click.option("--dry-run", is_flag=True, help="Say what would be served; serve nothing.")
@common_options
def serve(web: Path, port: int, show: bool, dry_run: bool, as_json: bool, quiet: bool,
          verbose: int) -> int:  # fmt: skip
    """Serve WEB, a folder that `adaptool export --page` wrote, until Ctrl-C.

    On this machine only, with the types, ranges and headers that WebAssembly, its threads and
    large models need. Folders are not listed, files whose names begin with a dot are not served,
    and nothing outside WEB is.
    """
    from adaptool.serving import Server

    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    has_page = _check(web)
    facts: dict[str, JSON]
    if not has_page:
        console.note(f"{web}: an export without a page: its files are served, there is none to see")
    if dry_run:
        files, nbytes = _content(web)
        facts = {"root": str(web), "files": files, "bytes": nbytes, "page": has_page,
                 "dry_run": True}  # fmt: skip
        _announce(console, facts, f"would serve {web}: {files} files, {size(nbytes)}")
        return 0
    log = console.line if verbose and not as_json else None
    with Server(web, port, log) as server:
        facts = {"url": server.url, "root": str(web), "page": has_page}
        _announce(console, facts, f"{server.url}  (Ctrl-C ends it)")
        if show:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # SIGTERM too: how a server ends
            return _STOPPED
    return 0


def _check(web: Path) -> bool:
    """Whether there is a page; raises for a folder that holds no export at all."""
    from adaptool.records import RECORD
    from adaptool.serving import INDEX
    from adaptool.storage import read_json, shown

    if not web.exists():
        raise StorageError(f"{shown(web)}: not found", code="NOT_FOUND")
    if not web.is_dir():
        raise UsageError(f"{shown(web)}: not a folder", hint="the folder that `export -o` named")
    if (web / INDEX).is_file():
        return True
    content = read_json(web / RECORD) if (web / RECORD).is_file() else None
    if not isinstance(content, dict) or content.get("operation") != "export":
        raise UsageError(
            f"{shown(web)}: no {INDEX}, and not an export",
            hint="adaptool export MODEL --target transformersjs -o WEB --page",
        )
    return False


def _content(web: Path) -> tuple[int, int]:
    """Files and bytes of what is served: not what hides, nor what a link leads out to."""
    home = web.resolve()
    sizes = [
        file.stat().st_size for file in web.rglob("*")
        if file.is_file() and home in file.resolve().parents
        and not any(step.startswith(".") for step in file.relative_to(web).parts)
    ]  # fmt: skip
    return len(sizes), sum(sizes)


def _announce(console: Console, facts: dict[str, JSON], text: str) -> None:
    """The result, at once: whoever reads it from a pipe waits for this line."""
    if console.as_json:
        click.echo(json.dumps({"ok": True, **facts}))
    elif console.verbosity >= 0:
        console.line(text)
    sys.stdout.flush()
