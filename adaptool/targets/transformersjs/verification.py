"""Whether a folder is what transformers.js will find in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adaptool.canonical import Checkpoint
from adaptool.containers import open_checkpoint
from adaptool.errors import JSON, AdaptoolError
from adaptool.storage import inside, read_object
from adaptool.targets import Finding
from adaptool.targets._beside import CONFIG, TOKENIZER, TOKENIZER_CONFIG
from adaptool.targets._limits import FILE
from adaptool.targets._onnx import SUFFIXES, data_of, for_browser, precision_of

FOLDER, SETTINGS = "onnx", "transformers.js_config"


def findings(folder: Path) -> Sequence[Finding]:
    """What config.json states, against the files that are there.

    Raises CorruptInputError if config.json cannot be read at all.
    """
    config = read_object(inside(folder, CONFIG))
    return [*_texts(folder, config), *_models(folder, config)]


def _texts(folder: Path, config: Mapping[str, JSON]) -> Iterator[Finding]:
    yield Finding(f"{CONFIG}: model_type", isinstance(config.get("model_type"), str),
                  "transformers.js chooses its class by it")  # fmt: skip
    for name in (TOKENIZER, TOKENIZER_CONFIG):
        try:
            read_object(inside(folder, name))
        except AdaptoolError as error:
            yield Finding(name, right=False, detail=error.message)
        else:
            yield Finding(name, right=True)


def _models(folder: Path, config: Mapping[str, JSON]) -> Iterator[Finding]:
    stated = config.get(SETTINGS)
    settings = stated if isinstance(stated, dict) else {}
    files = sorted((folder / FOLDER).glob("*.onnx"))
    default = f"model{SUFFIXES.get(str(settings.get('dtype')), '?')}.onnx"
    yield Finding(f"{FOLDER}/{default}", any(file.name == default for file in files),
                  f"the default of {SETTINGS}; there are: "
                  f"{', '.join(file.name for file in files) or 'none'}")  # fmt: skip
    counts = settings.get("use_external_data_format")
    for file in files:
        count = counts.get(file.name, 0) if isinstance(counts, dict) else counts or 0
        yield from _model(file, config, int(count) if isinstance(count, int) else -1)


def _model(file: Path, config: Mapping[str, JSON], chunks: int) -> Iterator[Finding]:
    label = f"{FOLDER}/{file.name}"
    try:
        checkpoint = open_checkpoint(file)
        ready = for_browser(checkpoint, config)
    except AdaptoolError as error:
        yield Finding(label, right=False, detail=error.message)
        return
    yield Finding(f"{label}: names and sizes of inputs and outputs",
                  ready.graph == checkpoint.graph, _differing(checkpoint, ready))  # fmt: skip
    wanted = {f"{file.name}_data" + (f"_{i}" if i else "") for i in range(chunks)}
    used = data_of(checkpoint)
    yield Finding(f"{label}: data files", used == wanted,
                  f"config.json has {sorted(wanted)}, the graph {sorted(used)}")  # fmt: skip
    precision = precision_of(checkpoint)
    called = next((name for name, end in SUFFIXES.items() if file.name == f"model{end}.onnx"), "")
    yield Finding(f"{label}: precision", _fits(called, precision),
                  f"its name says {called or 'nothing'}, its operations {precision}")  # fmt: skip
    for name in (file.name, *sorted(used)):
        size = (file.parent / name).stat().st_size
        yield Finding(f"{FOLDER}/{name}: {size} bytes", size < FILE,
                      f"browsers take less than {FILE}")  # fmt: skip


def _differing(one: Checkpoint, other: Checkpoint) -> str:
    if one.graph is None or other.graph is None:
        return "no graph"
    before = {**one.graph.inputs, **one.graph.outputs}
    after = {**other.graph.inputs, **other.graph.outputs}
    return "; ".join(
        f"{name} should be {list(facts[1])}"
        for name, facts in after.items()
        if before.get(name) != facts
    )


def _fits(called: str, precision: str) -> bool:
    """The dynamic int8 types, and weights of 8 bits, are not told apart by their operations."""
    eight = ("q8", "int8", "uint8")
    return called == precision or (called in eight and precision in eight)
