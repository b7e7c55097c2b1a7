"""What is asked for: which file, which part of it, and whether it is known already."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from adaptool.errors import AdaptoolError
from adaptool.storage import SourceFile, inside

INDEX = "index.html"

_TEXT = {
    ".css": "text/css",
    ".html": "text/html",
    ".jinja": "text/plain",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".txt": "text/plain",
}
_TYPES = {
    **{suffix: f"{kind}; charset=utf-8" for suffix, kind in _TEXT.items()},
    ".ico": "image/x-icon",
    ".json": "application/json",
    ".map": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
_ANYTHING = "application/octet-stream"


class Refusal(Exception):  # noqa: N818 - not an error of ours
    """A request that is answered with a status and these headers, without a file."""

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = dict(headers or {})


def kind_of(path: Path) -> str:
    """The content type of a file, by the end of its name."""
    return _TYPES.get(path.suffix.lower(), _ANYTHING)


def opened(root: Path, target: str) -> SourceFile:
    """The file that a request target such as `/a%20b.js?x` means; INDEX for a folder."""
    missing = Refusal(HTTPStatus.NOT_FOUND)
    path = target.partition("?")[0].partition("#")[0]
    try:
        name = unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise missing from None
    steps = name.split("/")
    if steps[0] or any(step.startswith(".") for step in steps):
        raise missing
    is_folder = not steps[-1]
    steps = [step for step in steps if step]
    try:
        found = inside(root, "/".join([*steps, INDEX] if is_folder else steps))
        if not is_folder and (found / INDEX).is_file():  # its relative links need the slash
            home = "/" + quote("/".join(steps)) + "/"
            raise Refusal(HTTPStatus.MOVED_PERMANENTLY, {"Location": home})
        return SourceFile.open(found)
    except (AdaptoolError, ValueError, OSError):
        raise missing from None


def is_known(headers: Message, tag: str) -> bool:
    """Whether the client has these bytes already (RFC 9110 section 13.1.2)."""
    known = headers.get("If-None-Match", "")
    return known.strip() == "*" or tag in re.findall(r'"[^"]*"', known)


def range_of(headers: Message, size: int, tag: str) -> tuple[int, int] | None:
    """First byte and the one after the last, or None for all (RFC 9110 section 14.2).

    What is no single range is as if nothing was said; so is a range of other bytes than ours.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", headers.get("Range", "").strip())
    condition = headers.get("If-Range")
    if match is None or not any(match.groups()) or condition not in (None, tag):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise Refusal(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"}
        )
    return start, end
