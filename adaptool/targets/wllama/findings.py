"""What `verify` finds in an export for wllama."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.containers import open_checkpoint
from adaptool.errors import AdaptoolError, CorruptInputError
from adaptool.formats import ReadOptions, gguf
from adaptool.storage import read_json, shown
from adaptool.targets import Finding
from adaptool.targets._limits import FILE
from adaptool.targets.wllama.adapters import FOLDER, misfits
from adaptool.targets.wllama.parts import NAME

PAGE = "page.json"


def examine(folder: Path) -> Sequence[Finding]:
    """Compare what the files of an export say with what they are.

    Raises CorruptInputError if there is no model in the folder.
    """
    return tuple(_examine(folder))


def _examine(folder: Path) -> Iterator[Finding]:
    files = sorted(folder.glob(f"{NAME}.gguf")) + sorted(folder.glob(f"{NAME}-*-of-*.gguf"))
    if not files:
        raise CorruptInputError(
            f"{folder}: no {NAME}.gguf and no {NAME}-00001-of-0000N.gguf",
            hint="is this the folder of an export for wllama?",
        )
    apart = sorted((folder / FOLDER).glob("*.gguf"))
    yield from (_size(file) for file in (*files, *apart))
    if (folder / PAGE).is_file():
        yield _listed(folder)
    try:
        model = open_checkpoint(files[0])
    except AdaptoolError as error:
        yield Finding("parts are one model", False, error.message)
        return
    strays = [file.name for file in files if file.name not in model.provenance.files]
    detail = f"no parts of it: {', '.join(map(shown, strays))}" if strays else ""
    yield Finding("parts are one model", not strays, detail)
    if apart:
        count = len(model.provenance.files)
        detail = "" if count == 1 else f"{count} parts: adapters need a model in one file"
        yield Finding("model is one file", count == 1, detail)
    yield from (_adapter(path, model) for path in apart)


def _size(file: Path) -> Finding:
    size = file.stat().st_size
    detail = "" if size < FILE else f"{size} bytes, browsers load less than {FILE}"
    return Finding(f"size of {shown(file.name)}", size < FILE, detail)


def _listed(folder: Path) -> Finding:
    """Whether the page asks for the files that are there, in their sizes."""
    page = read_json(folder / PAGE)
    stated: list[object] = []
    for key in ("files", "adapterFiles"):
        listed = page.get(key) if isinstance(page, dict) else None
        stated += listed if isinstance(listed, list) else []
    there = [
        {"name": file.relative_to(folder).as_posix(), "bytes": file.stat().st_size}
        for file in (*folder.glob("*.gguf"), *folder.glob(f"{FOLDER}/*.gguf"))
    ]
    wrong = [one for one in stated if one not in there] + [o for o in there if o not in stated]
    return Finding(f"files in {PAGE}", not wrong, f"differs in {wrong[0]}" if wrong else "")


def _adapter(path: Path, model: Checkpoint) -> Finding:
    what = f"adapter {shown(path.stem)} fits the model"
    try:
        wrong = next(misfits(gguf.read(path, ReadOptions()), model), None)
    except AdaptoolError as error:
        wrong = error.message
    return Finding(what, wrong is None, wrong or "")
