"""Hub names, against a server on loopback: what is fetched, what is said when nothing can be."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from adaptool.cli import main
from adaptool.demonstration import demo_folder

DEMO = demo_folder()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "adapter_model.safetensors"
UNWANTED = {
    "pytorch_model.bin": b"an old copy",
    "adapter_model.bin": b"an old copy",
    "optimizer.pt": b"state",
    "training_args.bin": b"state",
    "model.gguf": b"another format",
    "onnx/model.onnx": b"another format",
    "checkpoint-500/adapter_model.safetensors": b"an earlier one",
    "original/consolidated.00.safetensors": b"another layout",
    "consolidated.safetensors": b"another layout",
    "run.py": b"print('no')",
}
"""What real repositories hold besides, and no command needs."""


def files_of(folder: Path) -> dict[str, bytes]:
    own = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**own, **UNWANTED}


class Hub(ThreadingHTTPServer):
    """As much of a model hub as a download needs, and a list of what was asked of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos = {
            "org/model": files_of(DEMO / "model"),
            "org/pirate": files_of(DEMO / "pirate"),
            "org/empty": {"notes.md": b"nothing here"},
        }
        self.fetched: list[str] = []
        self.revisions: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def answer(self, *, with_body: bool) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            revision = parts[5] if len(parts) > 5 else "main"
            return self.tell("/".join(parts[2:4]), revision, tree=parts[4:5] == ["tree"])
        repo, rest = "/".join(parts[:2]), parts[2:]
        content = self.server.repos.get(repo, {}).get("/".join(rest[2:]))
        if rest[:1] != ["resolve"] or content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if with_body:
            part = self.headers.get("Range", "")
            self.server.fetched.append(
                f"{repo}/{'/'.join(rest[2:])}" + (f" {part}" if part else "")
            )
        digest = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT},
                  with_body=with_body)  # fmt: skip
        return None

    def tell(self, repo: str, revision: str, *, tree: bool) -> None:
        """The description of a repository at a revision, or the list of its files."""
        if repo not in self.server.repos:
            return self.send(404, b'{"error": "Repository not found"}',
                             {"X-Error-Code": "RepoNotFound",
                              "X-Error-Message": "Repository not found"})  # fmt: skip
        self.server.revisions.append(f"{repo}@{revision}")
        if revision not in ("main", COMMIT):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound",
                                          "X-Error-Message": "Invalid rev id"})  # fmt: skip
        files = self.server.repos[repo]
        if tree:
            entries = [{"type": "file", "path": name, "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest()}
                       for name, content in files.items()]  # fmt: skip
            return self.send(200, json.dumps(entries).encode(),
                             {"Content-Type": "application/json"})  # fmt: skip
        facts = {
            "_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "private": False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [],
            "siblings": [{"rfilename": name} for name in files],
        }  # fmt: skip
        return self.send(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def send(
        self, status: int, content: bytes, headers: dict[str, str], *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def adaptool(address: str, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    """Run a command against a hub, with an empty cache of its own in the folder."""
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(("HF_", "HUGGING"))}
    kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    environment = {**kept, "HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), **more}
    return subprocess.run([sys.executable, "-m", "adaptool", *words], capture_output=True,
                          text=True, env=environment, cwd=folder, timeout=120,
                          check=False)  # fmt: skip


def test_inspect_fetches_what_it_needs(hub, tmp_path):
    done = adaptool(hub.address, tmp_path, "inspect", "org/pirate", "--json")
    assert done.stderr == ""
    assert done.returncode == 0
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["parameters"]) == ("adapter", 65536)
    assert facts["name"] == "org/pirate"
    assert sorted(hub.fetched) == ["org/pirate/adapter_config.json", f"org/pirate/{WEIGHTS}"]
    assert hub.tokens == {None}


def test_inspect_of_a_model(hub, tmp_path):
    done = adaptool(hub.address, tmp_path, "inspect", "org/model", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["name"]) == ("checkpoint", "org/model")
    assert (facts["parameters"], facts["layers"]) == (1312000, 2)
    assert facts["architecture"] == "LlamaForCausalLM"
    # of the weights, the header alone
    weights = [asked for asked in hub.fetched if asked.startswith("org/model/model.safetensors")]
    assert weights == ["org/model/model.safetensors bytes=0-100000"]
    assert "org/model/tokenizer.json" not in hub.fetched


def test_merge_fetches_what_it_needs(hub, tmp_path, monkeypatch):
    done = adaptool(hub.address, tmp_path, "merge", "org/model@main", "org/pirate", "-o", "out")
    assert done.stderr == ""
    assert done.returncode == 0
    wanted = [f"org/model/{path.name}" for path in (DEMO / "model").iterdir()]
    wanted += ["org/pirate/adapter_config.json", f"org/pirate/{WEIGHTS}"]
    assert sorted(hub.fetched) == sorted(wanted)
    assert "org/model@main" in hub.revisions
    monkeypatch.chdir(tmp_path)
    assert main(["merge", str(DEMO / "model"), str(DEMO / "pirate"), "-o", "local"]) == 0
    for path in (tmp_path / "local").iterdir():
        other = tmp_path / "out" / path.name
        assert not other.is_symlink()
        if path.name not in ("README.md", "adaptool.json"):
            assert other.read_bytes() == path.read_bytes(), path.name
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'base_model:\n- "org/model"' in card
    assert "| org/pirate | lora | 1 |" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "adaptool.json").read_text()


def test_a_second_run_fetches_nothing(hub, tmp_path):
    assert adaptool(hub.address, tmp_path, "inspect", "org/pirate").returncode == 0
    hub.fetched.clear()
    assert adaptool(hub.address, tmp_path, "inspect", "org/pirate").returncode == 0
    assert hub.fetched == []


def test_without_a_network_the_cache_serves(hub, tmp_path):
    assert adaptool(hub.address, tmp_path, "inspect", "org/pirate").returncode == 0
    hub.fetched.clear()
    done = adaptool(hub.address, tmp_path, "inspect", "org/pirate", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr, hub.fetched) == (0, "", [])


def test_the_token_is_sent_and_never_shown(hub, tmp_path):
    token = "hf_" + "abcDEF123456" * 3
    done = adaptool(hub.address, tmp_path, "inspect", "org/secret", HF_TOKEN=token)
    assert f"Bearer {token}" in hub.tokens
    assert done.returncode == 7
    assert token not in done.stdout + done.stderr


def test_a_path_wins_over_the_hub(hub, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "pirate").symlink_to(DEMO / "cowboy")
    done = adaptool(hub.address, tmp_path, "inspect", "org/pirate", "--json")
    assert json.loads(done.stdout)["ranks"] == {"4": 8}
    assert hub.fetched == hub.revisions == []


def one_line(done: subprocess.CompletedProcess, code: int) -> str:
    """Check that a failure is one line and a hint, on standard error; returns the line."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("adaptool: ")
    assert len(lines) == 2, done.stderr
    assert lines[1].startswith("  hint: ")
    return lines[0]


@pytest.mark.parametrize("name", ["org/nobody", "org/pirate@nowhere"])
@pytest.mark.parametrize("command", ["inspect", "merge", "convert"])
def test_what_the_hub_does_not_know(name, command, hub, tmp_path):
    words = {"inspect": [name], "merge": [str(DEMO / "model"), name, "-o", "out"],
             "convert": [name, "-o", "out"]}[command]  # fmt: skip
    assert name in one_line(adaptool(hub.address, tmp_path, command, *words), 7)
    assert not (tmp_path / "out").exists()
    done = adaptool(hub.address, tmp_path, command, *words, "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["exit_code"] == 7


def test_no_network(tmp_path):
    with socket.socket() as unused:  # bound, not listening: every connection is refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "org/pirate" in one_line(adaptool(address, tmp_path, "inspect", "org/pirate"), 7)


def test_offline_and_not_in_the_cache(tmp_path):
    done = adaptool("http://127.0.0.1:9", tmp_path, "inspect", "org/pirate", HF_HUB_OFFLINE="1")
    one_line(done, 7)


def test_a_repository_without_anything_of_use(hub, tmp_path):
    one_line(adaptool(hub.address, tmp_path, "inspect", "org/empty"), 4)
    assert hub.fetched == []


def test_a_name_that_is_no_hub_name(hub, tmp_path):
    for name in ("nowhere", "./org/pirate", "a/b/c", "org/pirate@", "-/x"):
        done = adaptool(hub.address, tmp_path, "inspect", "--", name)
        assert done.returncode == 6, (name, done.stderr)
    assert hub.revisions == []
