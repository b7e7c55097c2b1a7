"""`adaptool diff`: how alike two adapters are."""

from __future__ import annotations

from collections import Counter

import click

from adaptool.cli.console import Console, common_start
from adaptool.cli.options import common_options, console_of, examples
from adaptool.comparison import Comparison, Meeting, compare_files

_HELP = """Show how alike the adapters FIRST (A) and SECOND (B) are.

\b
cos      cosine of the two updates: 1 the same direction, -1 opposite
B/A      norm of B's update over that of A's
out, in  overlap of the spaces they write to and read from, 0 to 1
A in B   share of A's energy inside B's spaces; B in A likewise
cancel   energy lost when both are merged at strength 1; below 0 they
         reinforce each other
"""

_EXAMPLES = examples(
    "adaptool diff adapters/pirate adapters/cowboy",
    "adaptool diff adapters/pirate smaller     # what a reduction did",
    "adaptool diff adapters/pirate adapters/cowboy --json",
)

_MEETS = 0.01
"""Cancellation, or shared energy, worth a word."""


@click.command(help=_HELP, epilog=_EXAMPLES, short_help="Compare two adapters.")
@click.argument("first")
@click.argument("second")
@click.option("-j", "--threads", type=click.IntRange(1, 256), help="Workers.")
@click.option("--dry-run", is_flag=True, help="Accepted for symmetry; nothing is ever written.")
@click.option("--allow-pickle", is_flag=True,
              help="Dangerous: read .bin adapters (tensors only).")  # fmt: skip
@common_options
def diff(first: str, second: str, threads: int | None, dry_run: bool, allow_pickle: bool,
         as_json: bool, quiet: bool, verbose: int) -> None:  # fmt: skip
    """Show how alike two adapters are."""
    del dry_run
    console = console_of(as_json=as_json, quiet=quiet, verbose=verbose)
    found = compare_files(first, second, allow_pickle=allow_pickle, threads=threads)
    for note in found.notes:
        console.note(note)
    console.result(found.as_json(), lambda c: _show(c, found))


def _show(console: Console, found: Comparison) -> None:
    start = common_start([str(site) for site in found.modules])
    rows = [
        (str(site).removeprefix(start).removesuffix(".weight"), *_cells(meeting))
        for site, meeting in found.modules.items()
    ]
    head = ("module", "cos", "B/A", "out", "in", "A in B", "B in A", "cancel")
    title = f"in {start.rstrip('.')}" if start else ""
    console.table(head, [*rows, ("all", *_cells(found.total))], title)
    for site, copies in found.copies.items():
        cosine, ratio = copies.cosine, copies.ratio
        console.line(f"trained copies of {site}: cos {_number(cosine)}, B/A {_number(ratio)}")
    for name, sites in zip(found.names, found.only, strict=True):
        if sites:
            leaves = Counter(site.module.rpartition(".")[2] for site in sites)
            listed = ", ".join(f"{leaf} x{count}" for leaf, count in leaves.items())
            console.line(f"only in {name}: {listed}")
        if console.verbosity > 0:
            for site in sites:
                console.line(f"  {site}")
    for why in dict.fromkeys(found.unlike.values()):
        sites = tuple(site for site, reason in found.unlike.items() if reason == why)
        more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
        console.line(f"not comparable: {sites[0]}{more} ({why})")
    console.line(_prediction(found))


def _prediction(found: Comparison) -> str:
    """What merging both would do, in a sentence."""
    total = found.total
    lost, shared = total.cancellation, total.shared
    if (lost is None or None in shared) and found.unlike:
        return "what merging both would do is not known: not all of it was compared"
    if lost is None or None in shared:
        return "an adapter changes nothing: B or A is zero everywhere"
    if lost > _MEETS:
        return f"merged together they cancel: {lost:.0%} of their energy is lost"
    if lost < -_MEETS:
        return f"merged together they reinforce each other: {-lost:.0%} of energy is added"
    if max(share or 0.0 for share in shared) > _MEETS:
        return "merged together they share spaces, but neither cancel nor reinforce each other"
    return "merged together they do not meet"


def _cells(meeting: Meeting) -> tuple[str, ...]:
    numbers = (meeting.cosine, meeting.ratio, *meeting.overlaps, *meeting.shared,
               meeting.cancellation)  # fmt: skip
    return tuple(map(_number, numbers))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"
    return "0.000" if text == "-0.000" else text
