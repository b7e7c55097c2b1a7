"""Folders: indexes that point elsewhere, files that are no files, outputs that must not be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import BASE, INSPECT, MERGE, POINTER, Case, Q, packed, put, thinned, together

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHTS = "adapter/adapter_model.safetensors"
SETTINGS = "adapter/adapter_config.json"


def shards(folder: Path, weight_map: Any = None, *, text: str | None = None) -> None:
    """Split the base in two, with an index."""
    home = folder / "base"
    (home / "model.safetensors").unlink()
    names = list(BASE)
    parts = {FIRST: names[:2], SECOND: names[2:]}
    for file, inside in parts.items():
        (home / file).write_bytes(packed({name: BASE[name] for name in inside}))
    if weight_map is None:
        weight_map = {name: file for file, inside in parts.items() for name in inside}
    content = text if text is not None else json.dumps({"metadata": {}, "weight_map": weight_map})
    (home / INDEX).write_text(content)


def pointing(name: Any) -> Callable[[Path], object]:
    """The index says that the first tensor lies in `name`; a file is really there."""

    def damage(folder: Path) -> None:
        (folder / "secret.safetensors").write_bytes(packed(BASE))
        target = folder / "secret.safetensors" if name == "absolute" else name
        weight_map = {key: str(target) if name == "absolute" else target for key in BASE}
        shards(folder, weight_map)

    return damage


def _link_out(folder: Path) -> None:
    shards(folder)
    (folder / "secret.safetensors").write_bytes((folder / "base" / FIRST).read_bytes())
    (folder / "base" / FIRST).unlink()
    (folder / "base" / FIRST).symlink_to(folder / "secret.safetensors")


def _folder_link_out(folder: Path) -> None:
    shards(folder, dict.fromkeys(BASE, f"sub/{FIRST}"))
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / FIRST).write_bytes(packed(BASE))
    (folder / "base" / "sub").symlink_to(folder / "elsewhere")


def _wrong_shard(folder: Path) -> None:
    shards(
        folder, {**dict.fromkeys(list(BASE)[:1], FIRST), **dict.fromkeys(list(BASE)[1:], SECOND)}
    )


def _in_two(folder: Path) -> None:
    shards(folder)
    (folder / "base" / SECOND).write_bytes(packed(BASE))


def _unlink(folder: Path, name: str) -> None:
    (folder / name).unlink()


def instead(path: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Damage: something else where a file should be."""

    def damage(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        make(folder / path)

    return damage


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _indexes() -> list[Case]:
    def text(content: str) -> Callable[[Path], object]:
        return lambda folder: shards(folder, text=content)

    first = next(iter(BASE))
    return [
        Case("index: ..", 3, pointing("../secret.safetensors"), ("base", "secret")),
        Case("index: .. inside", 3, pointing("a/../../secret.safetensors"), ("base", "secret")),
        Case("index: absolute", 3, pointing("absolute"), ("base", "secret")),
        Case("index: drive", 3, pointing("C:\\secret.safetensors"), ("base", "secret")),
        Case("index: drive and slash", 3, pointing("C:/secret.safetensors"), ("base", "secret")),
        Case("index: UNC", 3, pointing("\\\\host\\secret.safetensors"), ("base", "secret")),
        Case("index: backslash", 3, pointing("..\\secret.safetensors"), ("base", "secret")),
        Case("index: NUL", 3, pointing("a\0.safetensors"), ("base", "\\x00")),
        Case("index: control characters", 3, pointing("\x1b[2J.safetensors/.."), (INDEX,)),
        Case("index: URL", 6, pointing("http://host/x.safetensors"), ("x.safetensors",)),
        Case("index: pickle", 3, pointing("pytorch_model.bin"), (INDEX, first)),
        Case("index: empty name", 3, pointing(""), (INDEX, first)),
        Case("index: a number", 3, pointing(7), (INDEX, first)),
        Case("index: a list", 3, pointing([FIRST]), (INDEX, first)),
        Case("index: 5000 characters", 6, pointing("n" * 5000 + ".safetensors"), ("base",)),
        Case("index: link that leads out", 3, _link_out, (FIRST, "link")),
        Case("index: folder that leads out", 3, _folder_link_out, ("link",)),
        Case("index: missing shard", 6,
             together(shards, lambda f: _unlink(f, f"base/{SECOND}")), (SECOND,)),
        Case("index: tensor in another shard", 3, _wrong_shard, (INDEX, f"{Q}.weight")),
        Case("index: tensor in no shard", 3,
             lambda f: shards(f, {**dict.fromkeys(BASE, FIRST), "ghost": FIRST}), (INDEX,)),
        Case("index: tensor in two shards", 3, _in_two, (SECOND, first)),
        Case("index: no JSON", 3, text("{"), (INDEX,)),
        Case("index: a list at the top", 3, text("[]"), (INDEX,)),
        Case("index: no weight_map", 3, text("{}"), (INDEX,)),
        Case("index: empty weight_map", 3, text('{"weight_map": {}}'), (INDEX,)),
        Case("index: weight_map is a list", 3, text('{"weight_map": ["a"]}'), (INDEX,)),
        Case("index: a name twice", 3, text('{"weight_map": {"a": "b", "a": "c"}}'), (INDEX, "a")),
        Case("index: deep nesting", 3, text('{"a":' * 60_000), (INDEX,)),
        Case("index: 100 MB", 8,
             together(shards, lambda f: os.truncate(f / "base" / INDEX, 100_000_000)), (INDEX,)),
        Case("index: many lists", 8, text('{"a": [' + "[]," * 2_000_000 + "0]}"), (INDEX,)),
        Case("index: missing, several files", 3,
             together(shards, lambda f: _unlink(f, f"base/{INDEX}")), ("base", INDEX)),
    ]  # fmt: skip


def _odd_files() -> list[Case]:
    model, model_config = "base/model.safetensors", "base/config.json"
    found = [
        Case(f"{kind} as {path.rpartition('/')[2]}", code, instead(path, make),
             (path.rpartition("/")[2],), INSPECT if path.startswith("adapter") else MERGE)
        for path in (model, model_config, WEIGHTS, SETTINGS)
        for kind, make, code in (
            ("pipe", os.mkfifo, 3),
            ("folder", Path.mkdir, 3),
            ("git-LFS pointer", lambda path: path.write_bytes(POINTER), 3),
            ("link in a circle", _loop, 6),
            ("link to a device", link_to("/dev/zero"), 3),
        )
    ]  # fmt: skip
    return [
        *found,
        Case("model card is a pipe, settings too", 3,
             together(instead("base/README.md", os.mkfifo), instead(SETTINGS, os.mkfifo)),
             ("adapter_config.json",)),
        Case("model card is a device", 3,
             together(instead("base/README.md", link_to("/dev/zero")), put(SETTINGS, "{")),
             ("adapter_config.json",)),
        Case("tokenizer leads out", 3,
             together(put("secret.txt", "s"), instead("base/vocab.txt", link_to("../secret.txt"))),
             ("vocab.txt",)),
        Case("config.json is a list", 3, put(model_config, "[]"), ("config.json",)),
        Case("config.json with NaN", 3, put(model_config, '{"a": NaN}'), ("config.json", "NaN")),
        Case("config.json deeply nested", 3, put(model_config, '{"a":' * 60_000), ("config.json",)),
        Case("no model", 6, command=("merge", "missing", "adapter", "-o", "out"),
             mentions=("missing",)),
        Case("model without weights", 4, lambda f: _unlink(f, model), ("base",)),
        Case("no adapter weights", 6, lambda f: _unlink(f, WEIGHTS),
             ("adapter_model.safetensors",)),
        Case("an archive as the model", 4,
             put("model.zip", b"PK\x03\x04"), ("model.zip",),
             ("merge", "model.zip", "adapter", "-o", "out")),
        Case("a name of 5000 characters", 6, command=("inspect", "n" * 5000)),
        Case("a URL", 6, command=("inspect", "file:///etc/passwd"), mentions=("passwd",)),
    ]  # fmt: skip


def _outputs() -> list[Case]:
    def into(*output: str, adapter: str = "adapter") -> tuple[str, ...]:
        return ("merge", "base", adapter, "--device", "cpu", "-o", *output)

    def foreign(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "thesis.txt").write_text("years of work")

    def own(folder: Path) -> None:
        (folder / "out").mkdir()
        (folder / "out" / "config.json").write_text("{}")

    def own_with_folder(folder: Path) -> None:
        own(folder)
        (folder / "out" / "photos").mkdir()

    return [
        Case("output is the model", 2, command=into("base"), mentions=("base",)),
        Case("output is the model, forced", 2, command=into("base", "--force"), mentions=("base",)),
        Case("output is the adapter", 2, command=into("adapter", "--force"), mentions=("adapter",)),
        Case("output is in the model", 2, command=into("base/out"), mentions=("base",)),
        Case("output holds the inputs", 2, command=into("../" + "here", "--force")),
        Case("output is a link to the model", 2, lambda f: (f / "out").symlink_to("base"),
             ("base",), into("out", "--force")),
        Case("output is the weights file", 2,
             command=("merge", "base/model.safetensors", "adapter", "--device", "cpu", "--force",
                      "-o", "base/model.safetensors"), mentions=("model.safetensors",)),
        Case("output exists", 6, own, ("out", "exists")),
        Case("output is a file", 6, put("out", "x"), ("out",), into("out", "--force")),
        Case("output is foreign", 6, foreign, ("out",), into("out", "--force")),
        Case("output has a folder", 6, own_with_folder, ("photos",), into("out", "--force")),
        Case("no parent", 6, command=into("no/such/out"), mentions=("no/such",)),
        Case("parent is a file", 6, put("file", ""), ("file",), into("file/out")),
        Case("output is a device", 6, command=into("/dev/null"), mentions=("/dev/null",)),
        Case("output is a device, forced", 6, command=into("/dev/null", "--force")),
        Case("output of 300 characters", 6, command=into("o" * 300)),
        Case("output of 5000 characters", 6, command=into("o" * 5000)),
        Case("scale nan", 2, command=(*MERGE, "--scale", "nan"), mentions=("nan",)),
        Case("scale inf", 2, command=(*MERGE, "--scale", "-inf"), mentions=("inf",)),
        Case("scale 1e400", 2, command=(*MERGE, "--scale", "1e400"), mentions=("1e400",)),
        Case("scale is a word", 2, command=(*MERGE, "--scale", "\x1b[1mtwo"), mentions=("two",)),
        Case("second scale is a word", 2, command=(*MERGE, "-a", "adapter=foo"), mentions=("foo",)),
        Case("second scale is empty", 2, command=(*MERGE, "-a", "adapter="),
             mentions=("adapter=",)),
        Case("second scale is nan", 2, command=(*MERGE, "-a", "adapter=nan"), mentions=("nan",)),
        Case("no adapter", 2, command=("merge", "base", "-o", "out")),
        Case("unknown option", 2, command=(*MERGE, "--sacle", "2"), mentions=("--sacle",)),
        Case("unknown type", 2, command=(*MERGE, "--dtype", "int4"), mentions=("int4",)),
        Case("unknown device", 2, command=(*MERGE, "--device", "tpu"), mentions=("tpu",)),
        Case("shards of no size", 2, command=(*MERGE, "--max-shard-size", "0"), mentions=("0",)),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [*thinned(_indexes(), 2), *thinned(_odd_files(), 3), *thinned(_outputs(), 4)]
