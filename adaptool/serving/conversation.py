"""What is said on one connection: requests that are plain questions for a file, and answers."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer
from time import monotonic

from adaptool.errors import AdaptoolError
from adaptool.serving.files import Refusal, is_known, kind_of, opened, range_of
from adaptool.storage import SourceFile

LOOPBACK = "127.0.0.1"

_NAMES = (LOOPBACK, "localhost", "[::1]")
_PATIENCE = 15.0  # seconds for a whole request head, and for a piece of an answer to leave
_PIECE = 1 << 18

_ALWAYS = {
    # threads need memory that is shared, which a page gets only when it is isolated from others
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # kept, but asked for anew: the next export may be served at the same address
    "Cache-Control": "no-cache",
}


class _Reads(io.RawIOBase):
    """What a connection receives; all of it must have come by the deadline.

    A timeout of the socket alone would begin anew with each byte of a slow client.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader's
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Conversation(BaseHTTPRequestHandler):
    """One connection, with any number of requests one after the other."""

    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE
    disable_nagle_algorithm = True  # a head and its body are two writes
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"

    def __init__(
        self, root: Path, log: Callable[[str], None], request: socket.socket, client: object,
        server: BaseServer,
    ) -> None:  # fmt: skip
        self._root = root
        self._log = log
        super().__init__(request, client, server)

    def setup(self) -> None:
        """Put the deadline under what is read."""
        super().setup()
        self.rfile.close()
        self._reads = _Reads(self.connection)
        self.rfile = io.BufferedReader(self._reads)

    def handle_one_request(self) -> None:
        """Answer one request, if it comes in time."""
        self._reads.deadline = monotonic() + _PATIENCE
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def parse_request(self) -> bool:
        """Read the head of a request and refuse what is no plain question for a file of ours."""
        if not super().parse_request():
            return False
        self.connection.settimeout(_PATIENCE)
        try:
            self._refuse_others()
        except Refusal as refusal:
            self._refuse(refusal)
            return False
        return True

    def do_GET(self) -> None:
        """Send a file, a part of it, or, where HEAD asks, what is to be known of it."""
        try:
            with opened(self._root, self.path) as source:
                self._send(source)
        except Refusal as refusal:
            self._refuse(refusal)

    do_HEAD = do_GET  # noqa: N815

    def end_headers(self) -> None:
        """Add what every answer says."""
        for name, value in _ALWAYS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        """Who answers; the version of Python is nobody's business."""
        return "adaptool"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
        """One line for whoever wants to know."""
        self._log(format % args)

    def log_error(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
        """Nothing more: the line of the request has its status."""

    def _refuse_others(self) -> None:
        if self.command not in ("GET", "HEAD"):
            raise Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD", "Connection": "close"}
            )
        port = self.connection.getsockname()[1]
        ours = {f"{name}:{port}" for name in _NAMES} | (set(_NAMES) if port == 80 else set())
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].strip().lower() not in ours:
            raise Refusal(HTTPStatus.MISDIRECTED_REQUEST, {"Connection": "close"})
        lengths = self.headers.get_all("Content-Length") or []
        if "Transfer-Encoding" in self.headers or any(length != "0" for length in lengths):
            # else the body would be read as the next request
            raise Refusal(HTTPStatus.BAD_REQUEST, {"Connection": "close"})

    def _refuse(self, refusal: Refusal) -> None:
        self.log_request(refusal.status)
        text = f"{refusal.status.value} {refusal.status.phrase}\n".encode()
        self._head(refusal.status, {
            **refusal.headers, "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(text)),
        })  # fmt: skip
        if self.command != "HEAD":
            self.wfile.write(text)

    def _send(self, source: SourceFile) -> None:
        status = os.fstat(source.fd)
        tag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{source.size:x}"'
        if is_known(self.headers, tag):
            self.log_request(HTTPStatus.NOT_MODIFIED)
            self._head(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        part = range_of(self.headers, source.size, tag) if self.command == "GET" else None
        start, end = part or (0, source.size)
        code = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
        headers = {
            "Content-Type": kind_of(source.path),
            "Content-Length": str(end - start),
            "Accept-Ranges": "bytes",
            "ETag": tag,
        }
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{source.size}"
        self.log_request(code)
        self._head(code, headers)
        if self.command == "HEAD":
            return
        try:
            for offset in range(start, end, _PIECE):
                self.wfile.write(source.read(offset, min(_PIECE, end - offset)))
        except AdaptoolError:  # it has shrunk; the length that was promised cannot be kept
            self.close_connection = True

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        self.send_header("Server", self.version_string())
        self.send_header("Date", self.date_time_string())
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
