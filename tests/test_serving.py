"""The local server, asked with raw sockets and http.client; and the command that runs it."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from adaptool.cli.serve import serve as command
from adaptool.errors import StorageError, UsageError
from adaptool.serving import conversation, listening, serve

BODY = bytes(range(256)) * 4096  # 1 MiB: several pieces


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "web"
    (folder / "sub" / "bare").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html>home")
    (folder / "sub" / "index.html").write_text("below")
    (folder / "model.bin").write_bytes(BODY)
    (folder / "empty.json").write_bytes(b"")
    (folder / "a b%é.txt").write_text("named")
    (folder / ".secret").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "out.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.txt").symlink_to("sub/index.html")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def server(root):
    with serve(root) as running:
        yield running


def ask(server, path: str, method: str = "GET", **headers: str):
    """(status, headers, body); underscores in header names stand for hyphens."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, headers=named)
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()


def say(server, text: bytes) -> bytes:
    """All that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# -- what is served -------------------------------------------------------------------------------


def test_a_file_comes_whole(server):
    code, headers, body = ask(server, "/model.bin")
    assert (code, body) == (200, BODY)
    assert headers["Content-Length"] == str(len(BODY))
    assert headers["Accept-Ranges"] == "bytes"


def test_head_says_the_same_without_the_body(server):
    for path in ("/model.bin", "/", "/missing"):
        code, headers, body = ask(server, path, "HEAD")
        whole = ask(server, path)
        assert (code, body) == (whole[0], b"")
        assert headers["Content-Length"] == str(len(whole[2]))
        assert headers["Content-Type"] == whole[1]["Content-Type"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.js", "text/javascript; charset=utf-8"),
        ("ort.mjs", "text/javascript; charset=utf-8"),
        ("ort.wasm", "application/wasm"),
        ("page.json", "application/json"),
        ("index.html", "text/html; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("chat_template.jinja", "text/plain; charset=utf-8"),
        ("model.onnx", "application/octet-stream"),
        ("model.onnx_data_1", "application/octet-stream"),
        ("model-00001-of-00002.gguf", "application/octet-stream"),
        ("params_shard_0.bin", "application/octet-stream"),
        ("pirate.safetensors", "application/octet-stream"),
        ("LOUD.WASM", "application/wasm"),
    ],
)
def test_types(server, root, name, kind):
    (root / name).write_text("x")
    code, headers, _ = ask(server, f"/{name}")
    assert (code, headers["Content-Type"]) == (200, kind)


@pytest.mark.parametrize("path", ["/", "/model.bin", "/missing", "/sub"])
def test_every_answer_isolates_the_page(server, path):
    _, headers, _ = ask(server, path)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-cache"
    assert "Python" not in headers["Server"]


def test_a_folder_is_its_index_or_nothing(server):
    assert ask(server, "/")[2] == b"<!doctype html>home"
    assert ask(server, "/?q=1#x")[2] == b"<!doctype html>home"
    assert ask(server, "/sub/")[2] == b"below"
    code, headers, _ = ask(server, "/sub")
    assert (code, headers["Location"]) == (301, "/sub/")
    assert ask(server, "/sub/bare/")[0] == 404
    assert ask(server, "/sub/bare")[0] == 404


def test_a_redirect_stays_here(server, root):
    (root / "sub" / "c d").mkdir()
    (root / "sub" / "c d" / "index.html").write_text("x")
    assert ask(server, "//sub/c%20d")[1]["Location"] == "/sub/c%20d/"


def test_an_encoded_name(server):
    assert ask(server, "/a%20b%25%C3%A9.txt")[2] == b"named"


def test_several_requests_share_a_connection(server):
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
        for path in ("/sub/", "/missing", "/model.bin"):
            client.request("GET", path)
            answer = client.getresponse()
            assert not answer.will_close
            answer.read()


# -- ranges and tags ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        (f"bytes=5-{10**12}", 5, len(BODY)),
        ("bytes=1000000-", 1000000, len(BODY)),
        ("bytes=-7", len(BODY) - 7, len(BODY)),
        (f"bytes=-{10**12}", 0, len(BODY)),
    ],
)
def test_a_range(server, asked, start, end):
    code, headers, body = ask(server, "/model.bin", Range=asked)
    assert (code, body) == (206, BODY[start:end])
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(BODY)}"
    assert headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("asked", [f"bytes={len(BODY)}-", "bytes=-0", f"bytes={10**17}-{10**17}"])
def test_a_range_behind_the_end(server, asked):
    code, headers, _ = ask(server, "/model.bin", Range=asked)
    assert (code, headers["Content-Range"]) == (416, f"bytes */{len(BODY)}")


def test_no_range_of_an_empty_file(server):
    assert ask(server, "/empty.json", Range="bytes=0-")[0] == 416
    assert ask(server, "/empty.json")[::2] == (200, b"")


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,4-5", "bytes=9-3", "bytes=-", "bytes=a-b", "items=0-1", "bytes=0-1x",
     f"bytes=0-{'9' * 5000}", "bytes=٣-٤".encode().decode("latin-1")],
)  # fmt: skip
def test_what_is_no_single_range_is_as_if_nothing_was_said(server, asked):
    code, _, body = ask(server, "/model.bin", Range=asked)
    assert (code, len(body)) == (200, len(BODY))


def test_head_heeds_no_range(server):
    assert ask(server, "/model.bin", "HEAD", Range="bytes=0-0")[0] == 200


def test_tags(server, root):
    tag = ask(server, "/model.bin")[1]["ETag"]
    assert ask(server, "/model.bin", If_None_Match=tag)[::2] == (304, b"")
    assert ask(server, "/model.bin", If_None_Match=f'"x", W/{tag}')[0] == 304
    assert ask(server, "/model.bin", If_None_Match="*", Range="bytes=0-0")[0] == 304
    assert ask(server, "/model.bin", If_None_Match='"x"')[0] == 200
    assert ask(server, "/model.bin", If_Range=tag, Range="bytes=0-0")[0] == 206
    assert ask(server, "/model.bin", If_Range='"x"', Range="bytes=0-0")[0] == 200
    assert ask(server, "/model.bin", If_Range=f"W/{tag}", Range="bytes=0-0")[0] == 200
    (root / "new").write_bytes(BODY)
    (root / "new").replace(root / "model.bin")
    assert ask(server, "/model.bin", If_None_Match=tag)[0] == 200


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/../outside.txt", "/sub/../../outside.txt", "/%2e%2e/outside.txt", "/..%2foutside.txt",
        "/sub/..%2f..%2foutside.txt", "/..%5coutside.txt", "/sub/../model.bin", "/./model.bin",
        "//etc/passwd", "/%2fetc%2fpasswd", "/etc/passwd", "/out.txt", "/up/outside.txt", "/up/",
        "/.secret", "/%2esecret", "/.git/config", "/.git/", "/model.bin%00", "/model.bin%00.html",
        "/%ff", "/model.bin/", "/pipe", "/model.bin/x", "/" + "a" * 5000, "/C:/x", "/~root/",
        "http://elsewhere/model.bin", "model.bin", "*",
    ],
)  # fmt: skip
def test_nothing_else_is_found(server, path):
    answer = say(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
                         "Connection: close\r\n\r\n".encode())  # fmt: skip
    assert status(answer) == 404
    assert b"outside" not in answer
    assert b"hidden" not in answer


def test_a_link_that_stays_inside_is_followed(server):
    assert ask(server, "/in.txt")[2] == b"below"


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "X"]
)
def test_other_methods(server, method):
    code, headers, _ = ask(server, "/model.bin", method)
    assert (code, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("LocalHost:{port}", 200),
        ("[::1]:{port}", 200), ("127.0.0.1", 421), ("localhost:1", 421), ("evil.example", 421),
        ("evil.example:{port}", 421), ("127.0.0.1.evil.example:{port}", 421), ("", 421),
        ("127.0.0.1:{port}:{port}", 421), ("localhost.:{port}", 421),
    ],
)  # fmt: skip
def test_a_host_that_is_not_ours(server, host, code):
    named = host.format(port=server.port)
    answer = say(
        server, f"GET /sub/ HTTP/1.1\r\nHost: {named}\r\nConnection: close\r\n\r\n".encode()
    )
    assert status(answer) == code
    assert (b"below" in answer) == (code == 200)


def test_two_hosts_or_none(server):
    ours = f"Host: 127.0.0.1:{server.port}\r\n".encode()
    assert status(say(server, b"GET /sub/ HTTP/1.1\r\n" + ours + ours + b"\r\n")) == 421
    assert status(say(server, b"GET /sub/ HTTP/1.1\r\n\r\n")) == 421
    assert status(say(server, b"GET /sub/ HTTP/1.0\r\n\r\n")) == 421
    assert b"below" not in say(server, b"GET /sub/\r\n\r\n")


@pytest.mark.parametrize("length", ["Content-Length: 41", "Transfer-Encoding: chunked"])
def test_a_body_is_not_taken_for_the_next_request(server, length):
    host = f"Host: 127.0.0.1:{server.port}"
    text = (
        f"GET /missing HTTP/1.1\r\n{host}\r\n{length}\r\n\r\nGET /sub/ HTTP/1.1\r\n{host}\r\n\r\n"
    )
    answer = say(server, text.encode())
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET / a b HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", None),
    ],
    ids=["line", "header", "headers", "version", "words", "tls"],
)
def test_heads_are_bounded_and_sound(server, text, code):
    answer = say(server, text)
    assert b"home" not in answer
    if code is not None:  # without a version that it knows, the server sends no head
        assert str(code).encode() in answer.partition(b"\n")[0]


def test_a_slow_client_is_cut(root, monkeypatch):
    monkeypatch.setattr(conversation, "_PATIENCE", 0.3)
    with serve(root) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        client.settimeout(20)
        stop = threading.Event()

        def drip():
            try:
                while not stop.wait(0.05):  # each byte comes in time; the whole does not
                    client.sendall(b"G")
            except OSError:
                pass

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            pass
        finally:
            stop.set()
            thread.join()


def test_a_client_that_goes_away_leaves_no_trace(server, capfd):
    for _ in range(3):
        client = socket.create_connection(("127.0.0.1", server.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
        client.sendall(f"GET /model.bin HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode())
        client.recv(10)
        client.close()
    assert ask(server, "/sub/")[0] == 200
    server.close()
    assert capfd.readouterr() == ("", "")


def test_connections_are_bounded(root, monkeypatch):
    monkeypatch.setattr(listening, "_CONNECTIONS", 2)
    with serve(root) as server:
        address = ("127.0.0.1", server.port)
        with (
            socket.create_connection(address),
            socket.create_connection(address),
            socket.create_connection(address, timeout=10) as third,
        ):
            assert third.recv(1) == b""


def test_a_file_that_shrinks_ends_the_connection(server, root, monkeypatch):
    whole = conversation.SourceFile.read

    def shrinking(source, offset, size):
        if offset:
            os.truncate(root / "model.bin", 10)
        return whole(source, offset, size)

    monkeypatch.setattr(conversation.SourceFile, "read", shrinking)
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "/model.bin")


def test_a_bug_is_not_swallowed(server, monkeypatch):
    seen = queue.Queue()
    monkeypatch.setattr(threading, "excepthook", lambda told: seen.put(told.exc_type))
    monkeypatch.setattr(conversation, "kind_of", lambda path: {}[path])
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/model.bin")
    assert seen.get(timeout=10) is KeyError


# -- the server itself ----------------------------------------------------------------------------


def test_it_listens_on_loopback_only(server):
    bound = server._listener.socket.getsockname()
    assert bound == ("127.0.0.1", server.port)
    assert server.url == f"http://127.0.0.1:{server.port}/"


def test_closing_cuts_what_is_open(root):
    server = serve(root)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET ")
        ask(server, "/")
        server.close()
        server.close()
        assert client.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        ask(server, "/")


def test_a_port_that_is_taken(server, root):
    with pytest.raises(UsageError, match=f"port {server.port}") as caught:
        serve(root, server.port)
    assert caught.value.code == "PORT"


def test_what_is_no_folder(root):
    for path in (root / "missing", root / "model.bin"):
        with pytest.raises(StorageError):
            serve(path)


def test_requests_are_logged(root):
    lines = []
    with serve(root, log=lines.append) as server:
        ask(server, "/sub/")
        ask(server, "/missing", "HEAD")
    assert lines == ['"GET /sub/ HTTP/1.1" 200 -', '"HEAD /missing HTTP/1.1" 404 -']


# -- the command ----------------------------------------------------------------------------------


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "adaptool", "serve", *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(root, number):
    with started(str(root), "--json") as process:
        said = json.loads(process.stdout.readline())
        assert said["ok"] and said["page"]
        port = int(said["url"].rstrip("/").rpartition(":")[2])
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
            client.request("GET", "/sub/")
            assert client.getresponse().read() == b"below"
            process.send_signal(number)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_it_says_where_and_what_is_asked_for(root):
    with started(str(root), "-v") as process:
        url = process.stdout.readline().split()[0]
        with closing(http.client.HTTPConnection(url[7:-1], timeout=10)) as client:
            client.request("GET", "/sub/%1b[2J")
            assert client.getresponse().status == 404
        assert process.stdout.readline() == '"GET /sub/%1b[2J HTTP/1.1" 404 -\n'
        process.terminate()
        process.communicate(timeout=30)


def run(*arguments: str) -> int:
    return command.main(list(arguments), standalone_mode=False)


def test_dry_run(root, capsys):
    (root / "up").unlink()
    assert run(str(root), "--dry-run", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["page"] and said["dry_run"] and "url" not in said
    assert said["files"] == 6  # without what hides, and without the pipe


def test_an_export_without_a_page(root, capsys):
    (root / "index.html").unlink()
    with pytest.raises(UsageError, match=r"no index\.html") as caught:
        run(str(root), "--dry-run")
    assert "--page" in caught.value.hint
    (root / "adaptool.json").write_text('{"operation": "merge"}')
    with pytest.raises(UsageError):
        run(str(root), "--dry-run")
    (root / "adaptool.json").write_text('{"operation": "export"}')
    assert run(str(root), "--dry-run") == 0
    assert "without a page" in capsys.readouterr().err


def test_what_cannot_be_served(root):
    with pytest.raises(StorageError, match="not found"):
        run(str(root / "missing"))
    with pytest.raises(UsageError, match="not a folder"):
        run(str(root / "model.bin"))


def test_open_shows_it(root, monkeypatch):
    import webbrowser

    from adaptool.serving import Server

    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    monkeypatch.setattr(Server, "serve_forever", lambda server: None)
    assert run(str(root), "--open", "-q") == 0
    assert len(shown) == 1 and shown[0].startswith("http://127.0.0.1:")
