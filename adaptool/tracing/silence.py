"""Quiet, while libraries work that print, log and warn about what concerns no user."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep standard output, warnings and logs of the libraries to themselves.

    Standard output belongs to `--json`; standard error is left alone, for the progress bar is
    there, so the one that transformers draws is turned off.
    """
    from transformers.utils import logging as chatter

    drawn, disabled = chatter.is_progress_bar_enabled(), logging.root.manager.disable
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if drawn:
            chatter.enable_progress_bar()  # type: ignore[no-untyped-call]
