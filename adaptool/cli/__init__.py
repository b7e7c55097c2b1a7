"""The command line: parse, one library call, print. The only place that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from adaptool.cli.console import Console
from adaptool.errors import AdaptoolError
from adaptool.version import VERSION

INTERRUPTED = 130

HELP = """Move LoRA-style adapters between formats and merge them into models.

\b
  adaptool inspect ADAPTER             what is in it
  adaptool merge BASE ADAPTER -o OUT   put it into a model
  adaptool convert ADAPTER -o OTHER    another format, type or strength
  adaptool combine A=0.7 B=0.3 -o OUT  several adapters as one
  adaptool reduce ADAPTER -o SMALLER   smaller ranks: by size, error or energy
  adaptool diff ADAPTER OTHER          how alike two adapters are
  adaptool extract BASE TUNED -o OUT   what a fine-tune changed, as an adapter
  adaptool slots MODEL.onnx -o OUT     adapters that swap while a model runs
  adaptool export MODEL ADAPTER --target wllama -o WEB   for a browser
  adaptool serve WEB                   a local page that runs it
  adaptool verify WEB                  read an export back
  adaptool demo                        see a merge work, in a minute

Inputs are paths, or hub models as org/name[@revision]. Results appear whole or not at all.

\b
Exit codes: 0 ok, 1 bug, 2 usage, 3 input corrupt or unsafe, 4 does not fit or
cannot be expressed, 5 verification failed, 6 disk, 7 hub or network,
8 too large, 130 interrupted.

\b
Shell completion (bash; zsh and fish alike):
  eval "$(_ADAPTOOL_COMPLETE=bash_source adaptool)"
"""


NAMES = (
    "inspect", "merge", "convert", "combine", "reduce", "diff", "extract", "slots",
    "export", "serve", "verify", "demo",
)  # fmt: skip
"""A command is the function of its name in the module of its name."""


class Commands(MutableMapping[str, click.Command]):
    """Commands by name, each imported when it is asked for: one need not wait for the others."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded and name in NAMES:
            self._loaded[name] = getattr(import_module(f"{__name__}.{name}"), name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


class Group(click.Group):
    """All commands; its help lists them in its own words, without importing them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Add nothing to the help text."""


group = Group(
    "adaptool", Commands(), help=HELP, context_settings={"help_option_names": ["-h", "--help"]}
)
click.version_option(VERSION, prog_name="adaptool")(group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code and never lets an exception out."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in args
    console = Console(as_json=as_json)
    before = _interrupt_on_terminate()
    try:
        result = group.main(args, prog_name="adaptool", standalone_mode=False)
    except AdaptoolError as error:
        return console.fail(error)
    except click.exceptions.Abort:
        return console.interrupted(INTERRUPTED)
    except KeyboardInterrupt:
        return console.interrupted(INTERRUPTED)
    except click.ClickException as error:
        return console.fail_usage(error)
    except (BrokenPipeError, SystemExit):  # click and rich exit when the reader has gone away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last door: a bug is reported, not thrown
        return console.fail_bug(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return result if isinstance(result, int) else 0


def _interrupt_on_terminate() -> signal.Handlers | None:
    """Make SIGTERM unwind like Ctrl-C, so that staging is removed."""

    def interrupt(_signum: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        return None
    return before if isinstance(before, signal.Handlers) else signal.SIG_DFL
