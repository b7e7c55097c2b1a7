"""`convert` for adapters and models on disk: read, translate, write."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptool import containers, formats
from adaptool.architectures.speaking import spoken_by
from adaptool.architectures.underscored import UNDERSCORED, named
from adaptool.canonical import Adapter
from adaptool.canonical.dtypes import dtype_named
from adaptool.containers import SaveOptions, open_checkpoint, plan_checkpoint, save_checkpoint
from adaptool.errors import JSON, UsageError
from adaptool.formats import ReadOptions, WriteOptions, Written, format_for, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint, fetch_config
from adaptool.jobs.asking import importance_of, with_total
from adaptool.jobs.lowering import LORA, Lowered, lower_adapter
from adaptool.jobs.modelfiles import modelfile_path, write_modelfile
from adaptool.jobs.slotting import read_for_graph, takes_graph, write_for_graph
from adaptool.processors import one_compute_thread, worker_count
from adaptool.ranks import RankRequest
from adaptool.slots import SLOTS
from adaptool.storage import read_json

if TYPE_CHECKING:
    from adaptool.conversion.adapters import Base


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    base: str | os.PathLike[str] | None = None,
    graph: str | os.PathLike[str] | None = None,
    names: str = SLOTS,
    scale: float = 1.0,
    dtype: str | None = None,
    row_order: str | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    max_shard_size: int | None = None,
    modelfile: bool = False,
    ranks: RankRequest | None = None,
    force: bool = False,
    dry_run: bool = False,
    allow_pickle: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write an adapter in another format, or with other types or strength; or a model as GGUF.

    Args:
        source: folder, file, or `org/name[@revision]`: an adapter, or a Hugging Face checkpoint.
        output: where to write; its suffix names the format unless `to` does.
        to: a format; or "lora", an adapter of any type as a plain LoRA (see `adaptool.lowering`),
            in the format that the suffix names.
        base: the adapter's base, where names and layouts of two worlds differ: a config.json, a
            model's folder, a GGUF model, or a hub name (only its config is fetched, unless a plain
            LoRA follows from its weights).
        graph: the ONNX model whose inputs the factors are for, or were made for.
        names: what factors are called where there is no graph, "slots" or "olive".
        scale: a strength to bake in; factors stay exact, alpha changes.
        dtype: type of the result; None keeps each factor's own, and f16 for a model. GGUF knows
            block types as well: q8_0 for factors, outtypes such as q4_k_m for models.
        row_order: "hf" or "ggml", for a file that does not say whose order its rows are in.
        imatrix, pre, max_shard_size, threads, progress: of a model, see `convert_model`.
        modelfile: write an Ollama Modelfile beside the GGUF file; an adapter's names its GGUF
            base.
        ranks: of a plain LoRA; None leaves it exact, and refuses what cannot be.

    Returns what was written; a `Lowered` with ranks and errors for a plain LoRA.

    Raises AdaptoolError; nothing is written then.
    """
    path = fetch_adapter(os.fspath(source))
    found = formats.find(path)
    if found is None and containers.find(path) is not None:
        if base is not None or scale != 1.0 or row_order is not None or graph is not None or ranks:
            raise UsageError(
                f"{path} is a model: --base, --for, --scale, --row-order and ranks are for adapters"
            )
        return convert_model(
            fetch_checkpoint(os.fspath(source)), output, to=to, outtype=dtype, imatrix=imatrix,
            pre=pre, max_shard_size=max_shard_size, modelfile=modelfile, force=force,
            dry_run=dry_run, threads=threads, progress=progress,
        )  # fmt: skip
    if imatrix is not None or pre is not None or max_shard_size is not None:
        raise UsageError(f"{path} is an adapter: --imatrix, --pre and splits are for models")
    target = Path(output)
    if ranks is not None and to != LORA:
        raise UsageError(
            f"{ranks}: ranks are chosen for a plain LoRA",
            hint="--to lora; or `adaptool reduce`, which keeps the type",
        )
    module = format_for(target, None if to == LORA else to)
    if graph is not None and found and not takes_graph(module):
        adapter = read_for_graph(path, found[1], graph)
    else:  # where no format recognises it, the function says so
        read = read_adapter if found is None else found[1].read
        adapter = read(path, ReadOptions(allow_pickle, row_order))
    lowering = lower_adapter(adapter, base, ranks, threads) if to == LORA else None
    adapter = adapter if lowering is None else lowering.adapter
    if scale != 1.0:
        adapter = adapter.scaled(scale)
    if adapter.naming != module.naming:
        adapter = _translated(adapter, module.naming, base)
    plain = dtype_named(dtype) if dtype is not None else None
    options = WriteOptions(
        dtype=plain, encoding=dtype if plain is None else None, force=force,
        inputs=[path, *([Path(base)] if base is not None and Path(base).exists() else [])],
    )  # fmt: skip
    beside = _modelfile_of_adapter(target, base, force=force) if modelfile else None
    if takes_graph(module) and (graph is not None or names != SLOTS):
        written = write_for_graph(adapter, target, module, options, graph=graph, names=names,
                                  dry_run=dry_run)  # fmt: skip
    else:
        written = (module.plan if dry_run else module.write)(adapter, target, options)
    written = replace(written, notes=adapter.provenance.notes)
    written = written if lowering is None else Lowered(**vars(written), lowering=lowering)
    if beside is not None and not dry_run:
        path, model = beside
        write_modelfile(path, containers.open_checkpoint(model), model, adapter=target)
    return written if beside is None else _also(written, beside[0])


def _modelfile_of_adapter(
    target: Path, base: str | os.PathLike[str] | None, *, force: bool
) -> tuple[Path, Path]:
    """Where the Modelfile goes, and the model that it names."""
    if base is None or Path(base).suffix != ".gguf":
        raise UsageError("an adapter's Modelfile names its base", hint="--base MODEL.gguf")
    return modelfile_path(target, force=force), Path(base)


def _also(written: Written, path: Path) -> Written:
    return replace(written, files=(*written.files, path.name))


def convert_model(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    outtype: str | None = None,
    imatrix: str | os.PathLike[str] | None = None,
    pre: str | None = None,
    max_shard_size: int | None = None,
    modelfile: bool = False,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a Hugging Face checkpoint as a GGUF model, with its tokenizer and chat template.

    Args:
        source: folder, or `org/name[@revision]`.
        output: a file ending in .gguf; a folder for a split model.
        outtype: "f16" unless stated: f32, bf16, q8_0, q4_k_m and so on.
        imatrix: importance of each column, as llama-imatrix writes it.
        pre: llama.cpp's name of the pre-tokenizer, where it is not recognised.
        max_shard_size: bytes per file.
        modelfile: write an Ollama Modelfile beside the model.

    Raises AdaptoolError; nothing is written then.
    """
    from adaptool.conversion import left_out, to_gguf

    target, folder = Path(output), fetch_checkpoint(os.fspath(source))
    if to not in (None, "gguf") or (to is None and target.suffix not in (".gguf", "")):
        raise UsageError(
            f"{target}: a model is converted to GGUF only", hint="name a file ending in .gguf"
        )
    checkpoint = open_checkpoint(folder)
    if checkpoint.container == "gguf":
        raise UsageError(f"{folder} is a GGUF model already")
    model = to_gguf(
        checkpoint, outtype=outtype or "f16", importance=importance_of(imatrix), pre=pre
    )
    beside = modelfile_path(target, force=force) if modelfile else None
    options = SaveOptions(
        force=force,
        workers=worker_count(threads),
        max_shard_size=max_shard_size,
        inputs=[folder],
        progress=with_total(progress, model.nbytes),
    )
    if dry_run:
        saved = plan_checkpoint(model, target, options)
    else:
        with one_compute_thread():
            saved = save_checkpoint(model, target, options)
        if beside is not None:
            write_modelfile(beside, model, target)
    notes = [f"left out, llama.cpp has no use for it: {name}" for name in left_out(checkpoint)]
    written = Written(target, saved.nbytes, saved.files, saved.stale, tuple(notes))
    return written if beside is None else _also(written, beside)


def _translated(adapter: Adapter, naming: str, base: str | os.PathLike[str] | None) -> Adapter:
    """The adapter under the other world's names."""
    from adaptool.conversion.adapters import translate

    if adapter.naming == UNDERSCORED:
        adapter = _named(adapter, base)
        if adapter.naming == naming:
            return adapter
    return translate(adapter, naming, _base(adapter, base))


def _named(adapter: Adapter, base: str | os.PathLike[str] | None) -> Adapter:
    """The adapter under its base's names: those of a model's tensors, else those of its kind.

    Raises UsageError without a base; IncompatibleError for names that it does not have.
    """
    if base is None:
        raise UsageError(
            f"{adapter.provenance.name}: its names lost their dots, and only a base's undo that",
            hint="--base MODEL: a folder, a model's file or a hub name",
            code="BASE_NEEDED",
        )
    path = fetch_config(os.fspath(base))
    if containers.find(path) is not None:
        return spoken_by(open_checkpoint(path), adapter)
    from adaptool.architectures.gguf import layout_of

    config = _config(path, hint="name the model's folder or file")
    return named(adapter, layout_of(config).parameters(), path.name)


def _config(path: Path, hint: str) -> dict[str, JSON]:
    """A model's config.json: the file itself, or that in its folder."""
    file = path / "config.json" if path.is_dir() else path
    config = read_json(file)
    if not isinstance(config, dict):
        raise UsageError(f"{file}: not a JSON object", hint=hint)
    return config


def _base(adapter: Adapter, base: str | os.PathLike[str] | None) -> Base:
    from adaptool.conversion.adapters import describe_config, describe_model

    if base is None:
        raise UsageError(
            f"{adapter.provenance.name} does not say how its base lays out its weights",
            hint=f"--base {adapter.base or 'MODEL'}: a config.json, a folder, a GGUF model or a "
            "hub name (only its config is fetched)",
            code="BASE_NEEDED",
        )
    path = fetch_config(os.fspath(base))
    if path.suffix == ".gguf":
        return describe_model(containers.open_checkpoint(path))
    return describe_config(_config(path, hint="name the model's config.json"))
