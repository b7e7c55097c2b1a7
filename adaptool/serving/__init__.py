"""A folder, served to the browser of this machine: files with the headers that runtimes need.

    with serve(Path("web")) as server:
        print(server.url)

On loopback only, and only for requests that name it (RFC 9110 section 7.4: a page of another
site whose name was made to lead here is refused). GET and HEAD; single ranges (section 14) and
entity tags (section 13). No folder is listed, and nothing outside the folder is read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Self

from adaptool.errors import UsageError
from adaptool.serving.conversation import LOOPBACK
from adaptool.serving.files import INDEX
from adaptool.serving.listening import Listener
from adaptool.storage import blaming

__all__ = ["INDEX", "Server", "serve"]


def serve(root: Path, port: int = 0, log: Callable[[str], None] | None = None) -> Server:
    """Serve `root` from a thread until the server is closed.

    Args:
        root: a folder.
        port: of 127.0.0.1; 0 takes a free one.
        log: called with one line per request, from several threads.

    Raises:
        StorageError: `root` is no folder that can be read.
        UsageError: the port is taken, or not for everyone (code PORT).
    """
    server = Server(root, port, log)
    server.start()
    return server


class Server:
    """Serves a folder; `serve` has it started. Closed by `close` or by `with`.

    Attributes:
        root: the folder.
        port: that it listens at, already.
    """

    def __init__(self, root: Path, port: int = 0, log: Callable[[str], None] | None = None) -> None:
        with blaming(root):
            os.scandir(root).close()
        self.root = root
        try:
            self._listener = Listener(root, port, log or _say_nothing)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UsageError(
                f"port {port} of {LOOPBACK}: {(error.strerror or str(error)).lower()}",
                hint="--port 0 takes a free one",
                code="PORT",
            ) from error
        self.port: int = self._listener.server_address[1]
        self._thread: Thread | None = None

    @property
    def url(self) -> str:
        """Where a browser finds it; ends in a slash."""
        return f"http://{LOOPBACK}:{self.port}/"

    def start(self) -> None:
        """Serve from a thread."""
        self._thread = Thread(target=self.serve_forever, name="adaptool serve", daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Serve from this thread, until an exception such as KeyboardInterrupt comes up."""
        self._listener.serve_forever(poll_interval=0.1)

    def close(self) -> None:
        """Stop, and cut what is still open; twice is as good as once."""
        if self._thread is not None:
            self._listener.shutdown()
            self._thread.join()
            self._thread = None
        self._listener.server_close()
        self._listener.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _say_nothing(_line: str) -> None:
    """Where nobody wants to know."""
