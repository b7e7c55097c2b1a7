"""Accepting connections: on loopback, a bounded number, each in its thread."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock

from adaptool.serving.conversation import LOOPBACK, Conversation

_CONNECTIONS = 64  # a browser opens six


class Listener(ThreadingMixIn, TCPServer):
    """Accepts connections, each in its thread; knows which are open."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(self, root: Path, port: int, log: Callable[[str], None]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__((LOOPBACK, port), partial(Conversation, root, log))

    def verify_request(
        self,
        request: socket.socket | tuple[bytes, socket.socket],
        client_address: object,  # noqa: ARG002
    ) -> bool:
        """Whether there is room for one more connection."""
        with self._lock:
            if len(self._open) >= _CONNECTIONS or not isinstance(request, socket.socket):
                return False
            self._open.add(request)
            return True

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """End one connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """Say nothing of clients that have gone away; let a bug come up as one."""
        error = sys.exception()
        if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise error

    def cut(self) -> None:
        """End all connections; their threads notice."""
        with self._lock:
            left = tuple(self._open)
        for connection in left:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended by itself
