"""The command line: parse, one library call, print. The only place that prints or exits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from adaptool.cli.console import Console
from adaptool.cli.convert import convert
from adaptool.cli.demo import demo
from adaptool.cli.inspect import inspect
from adaptool.cli.merge import merge
from adaptool.errors import AdaptoolError
from adaptool.version import VERSION

INTERRUPTED = 130

HELP = """Move LoRA-style adapters between formats and merge them into models.

\b
  adaptool inspect ADAPTER             what is in it
  adaptool merge BASE ADAPTER -o OUT   put it into a model
  adaptool convert ADAPTER -o OTHER    another format, type or strength
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


@click.group(help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="adaptool")
def group() -> None:
    """Hold the commands."""


for command in (inspect, merge, convert, demo):
    group.add_command(command)


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
