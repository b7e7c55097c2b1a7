"""`export` for models and adapters on disk: read, merge, hand to a target, write, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adaptool.architectures.speaking import ONNX
from adaptool.canonical import Adapter, Checkpoint
from adaptool.containers import Output, Saved, SaveOptions, open_checkpoint
from adaptool.encodings.checkpoints import is_quantised, open_quantised
from adaptool.errors import JSON, IncompatibleError, UsageError
from adaptool.formats import ReadOptions, read_adapter
from adaptool.hub import fetch_adapter, fetch_checkpoint
from adaptool.jobs.asking import importance_of, with_total
from adaptool.jobs.assembling import Wish, assemble
from adaptool.jobs.slotting import matched_to
from adaptool.merging import Merge
from adaptool.pages import page as page_of
from adaptool.processors import one_compute_thread, worker_count
from adaptool.records import RECORD, described, record
from adaptool.storage import Staging, read_json, scratch_beside
from adaptool.targets import AS_STORED, Model, Prepared, Request, Target, names, target_named

MAX_TOKENS = 256
"""New tokens of an answer on a page, where generation_config.json states no number."""


@dataclass(frozen=True)
class ExportOptions:
    """What only some targets heed; a target that does not heed one refuses it.

    Attributes are those of `adaptool.targets.Request`; what lies in files is named by its path.
    """

    part_size: int | None = None
    task: str | None = None
    optimize: bool = False
    pre: str | None = None
    imatrix: str | os.PathLike[str] | None = None
    conversation: str | None = None
    library: str | os.PathLike[str] | None = None
    template: str | None = None
    match: str | os.PathLike[str] | None = None

    def asked(self) -> frozenset[str]:
        """Names of those that are set."""
        return frozenset(name for name, value in vars(self).items() if value not in (None, False))


@dataclass(frozen=True)
class ExportReport:
    """What an export did, or would do.

    Attributes:
        output: the folder.
        target: the target's name.
        dtypes: of the model.
        nbytes: of all files.
        files: name -> bytes; of a dry run those that are known.
        notes: decisions a reader should know of, and what will not load where.
        loading: JavaScript that loads it.
        facts: what the target says for programs.
        page: whether there is one.
        dry_run: nothing was written.
    """

    output: Path
    target: str
    dtypes: tuple[str, ...]
    nbytes: int
    files: Mapping[str, int]
    notes: tuple[str, ...] = ()
    loading: str = ""
    facts: Mapping[str, JSON] = field(default_factory=dict)
    page: bool = False
    dry_run: bool = False

    def as_json(self) -> dict[str, JSON]:
        """Plain data."""
        return {
            "output": str(self.output), "target": self.target, "dtypes": list(self.dtypes),
            "bytes": self.nbytes, "files": dict(self.files), "notes": list(self.notes),
            "loading": self.loading, "page": self.page, "dry_run": self.dry_run, **self.facts,
        }  # fmt: skip


def export(
    model: str | os.PathLike[str],
    adapters: Mapping[str, float] | Iterable[tuple[str, float]],
    output: str | os.PathLike[str],
    *,
    target: str,
    dtypes: Sequence[str] = (),
    swappable: bool = False,
    page: bool = False,
    runtime: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    base_weights: str | os.PathLike[str] | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    allow_pickle: bool = False,
    allow_loss: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Make a folder that a browser runtime loads, of a model with adapters merged or beside it.

    Args:
        model: folder, file, or `org/name[@revision]`.
        adapters: path or hub name -> scale.
        output: a folder.
        target: one of `adaptool.targets.names()`.
        dtypes: of those that the target names for such a model; its default if there are none.
        swappable: keep the adapters apart, for the page to choose among.
        page: write a page that runs the model.
        runtime: a node_modules folder, out of which the page's runtime is copied; None lets the
            page look for node_modules in its own folder.
        options: what only some targets heed.
        base_weights, allow_loss: see `merge_files`.
        progress: called with (bytes since last call, bytes in all).

    Raises AdaptoolError; nothing is written then.
    """
    options = options or ExportOptions()
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else adapters)
    chosen, folder = _target(target), Path(output)
    path = fetch_checkpoint(os.fspath(model))
    stored = open_checkpoint(path)
    wanted = _dtypes(target, chosen, stored, dtypes)
    _refuse_unheeded(target, chosen, options, swappable=swappable, adapters=pairs)
    if runtime is not None and not page:
        raise UsageError("--runtime is for the page", hint="--page")
    if base_weights is not None and (swappable or not pairs):
        raise UsageError("--base-weights is for a merge, and nothing is merged")
    if options.match is not None and stored.container != ONNX:
        raise UsageError(f"--match is for ONNX models, {stored.provenance.name} is none")
    paths = [(fetch_adapter(name), scale) for name, scale in pairs]
    read = [(read_adapter(p, ReadOptions(allow_pickle)), scale) for p, scale in paths]
    merged, match = None, _opened(options.match)
    if swappable and match is not None:
        stored = matched_to(stored, match)  # modules that only values tell have places then
    elif read and not swappable:
        wish = _wish(stored, wanted, base_weights, options.match, threads)
        merged = assemble(stored, read, wish).merge
    given = _model(path, stored, merged, read)
    inputs = [path, *(p for p, _ in paths)]
    if not dry_run:
        _refuse_occupied(folder, inputs, force=force)
    with scratch_beside(folder) as scratch:
        request = _request(options, wanted, match, scratch, worker_count(threads), dry_run=dry_run)
        prepared = chosen.prepare(given, request)
        notes = (*(merged.notes if merged else ()), *prepared.notes)
        files = prepared.output
        if page:
            inside = [adapter for adapter, _ in read] if merged else []
            settings = _settings(given, request, prepared)
            files += page_of(
                _title(given, inside), target, chosen.packages, _driver(target), settings,
                None if runtime is None else Path(runtime),
            )  # fmt: skip
        files += Output((), {RECORD: _record(target, wanted, stored, read, notes, files)})
        if dry_run:
            saved = files.planned(folder)
        else:
            saved = _write(files, folder, merged, SaveOptions(
                force=force, workers=request.workers, inputs=inputs,
                progress=with_total(progress, files.nbytes),
            ), allow_loss=allow_loss)  # fmt: skip
    return ExportReport(
        folder, target, wanted, saved.nbytes, _sizes(files), notes, prepared.loading,
        prepared.facts, page, dry_run,
    )  # fmt: skip


def _refuse_occupied(folder: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Find out before the long work what writing would be refused for after it."""
    with Staging(folder, kind="directory", required=0, inputs=inputs, force=force):
        pass


def _target(name: str) -> Target:
    try:
        return target_named(name)
    except KeyError:
        raise UsageError(f"unknown target {name!r}", hint=f"one of: {', '.join(names())}") from None


def _dtypes(name: str, target: Target, stored: Checkpoint, asked: Sequence[str]) -> tuple[str, ...]:
    """What the model becomes: as asked, else the target's first choice for such a model."""
    known = target.dtypes.get(stored.container, ())
    if not known:
        raise IncompatibleError(
            f"{stored.provenance.name} is {stored.container}, and {name} takes "
            f"{', '.join(target.dtypes)}",
            hint="see the matrix in the documentation",
            code="NOT_EXPRESSIBLE",
        )
    unknown = [one for one in asked if one not in known]
    if unknown:
        raise UsageError(
            f"--dtype {unknown[0]}: {name} makes of a {stored.container} model: {', '.join(known)}"
        )
    return tuple(dict.fromkeys(asked)) or known[:1]


def _refuse_unheeded(
    name: str, target: Target, options: ExportOptions, *, swappable: bool,
    adapters: Sequence[tuple[str, float]],
) -> None:  # fmt: skip
    unheeded = sorted(options.asked() - target.options - {"template"})
    if unheeded:
        spelled = "--" + unheeded[0].replace("_", "-")
        raise UsageError(f"{spelled} means nothing for the target {name}")
    if not swappable:
        return
    if not adapters:
        raise UsageError("--swappable: no adapter named", hint="export MODEL A B --swappable")
    if not target.swappable:
        others = [other for other in names() if target_named(other).swappable]
        raise UsageError(
            f"{name} applies no adapters at run time: they are merged",
            hint=f"leave --swappable out, or --target {' or '.join(others)}",
            code="NOT_EXPRESSIBLE",
        )


def _wish(
    stored: Checkpoint, dtypes: tuple[str, ...], base_weights: str | os.PathLike[str] | None,
    match: str | os.PathLike[str] | None, threads: int | None,
) -> Wish:  # fmt: skip
    """How adapters are merged: wide where the target rounds the result to another type anyway."""
    again = stored.container == "gguf" and dtypes != (AS_STORED,)
    return Wish(dtype="f32" if again else None, base_weights=base_weights, match=match,
                threads=threads, widened=True)  # fmt: skip


def _opened(match: str | os.PathLike[str] | None) -> Checkpoint | None:
    return None if match is None else open_checkpoint(fetch_checkpoint(os.fspath(match)))


def _model(
    path: Path, stored: Checkpoint, merged: Merge | None, read: Sequence[tuple[Adapter, float]]
) -> Model:
    if merged is not None:
        return Model(merged.checkpoint, path)
    if is_quantised(stored):
        stored = open_quantised(stored).checkpoint
    apart: dict[str, Adapter] = {}
    for adapter, _ in read:
        name = adapter.provenance.name.rpartition("/")[2]
        if name in apart:
            raise UsageError(f"two adapters are called {name}", hint="rename one's folder")
        apart[name] = adapter
    scales = {scale for _, scale in read}
    if len(scales) > 1:
        raise UsageError("adapters that are chosen at run time start with one --scale")
    return Model(stored, path, apart, *scales)


def _request(
    options: ExportOptions, dtypes: tuple[str, ...], match: Checkpoint | None,
    scratch: Callable[[], Path], workers: int, *, dry_run: bool,
) -> Request:  # fmt: skip
    return Request(
        scratch, dtypes, dry_run, options.part_size, options.task, options.optimize, options.pre,
        importance_of(options.imatrix),
        options.conversation, None if options.library is None else Path(options.library),
        options.template, match, workers,
    )  # fmt: skip


def _driver(target: str) -> bytes:
    """The module that links a page to the target's runtime: a file of this package."""
    from adaptool import targets

    return (Path(targets.__path__[0]) / target / "driver.js").read_bytes()


def _title(model: Model, inside: Sequence[Adapter]) -> str:
    """What a page is called: the model, and the adapters that are merged into it."""
    names = [one.provenance.name.rpartition("/")[2] for one in inside]
    return " + ".join([model.checkpoint.provenance.name, *names])


def _settings(model: Model, request: Request, prepared: Prepared) -> dict[str, JSON]:
    """What a page knows, beyond its title and target; see `adaptool.pages`."""
    stated = model.checkpoint.side_files.get("generation_config.json")
    limit: object = None
    if isinstance(stated, Path):
        content = read_json(stated)
        limit = content.get("max_new_tokens") if isinstance(content, dict) else None
    return {
        "task": request.task or "text-generation",
        "template": request.template,
        "adapters": list(model.adapters),
        "scale": model.scale,
        "maxTokens": limit if isinstance(limit, int) and limit > 0 else MAX_TOKENS,
        **prepared.settings,
    }


def _record(
    target: str, dtypes: Sequence[str], stored: Checkpoint, read: Sequence[tuple[Adapter, float]],
    notes: Sequence[str], files: Output,
) -> bytes:  # fmt: skip
    inputs: list[dict[str, JSON]] = [
        {**described(stored.provenance), "role": "base"},
        *({**described(a.provenance), "role": "adapter", "scale": s} for a, s in read),
    ]
    facts: dict[str, JSON] = {
        "target": target, "dtypes": list(dtypes), "notes": list(notes),
        "files": dict(_sizes(files)),
    }  # fmt: skip
    return record("export", inputs, facts)


def _sizes(files: Output) -> dict[str, int]:
    return {
        **{plan.name: plan.size for plan in files.plans},
        **{name: len(content) for name, content in files.small.items()},
    }


def _write(
    files: Output, folder: Path, merged: Merge | None, options: SaveOptions, *, allow_loss: bool
) -> Saved:
    def approve() -> dict[str, bytes]:
        if merged is not None:
            merged.verify(allow_loss=allow_loss)
        return {}

    with one_compute_thread():
        return files.write(folder, replace(options, approve=approve))
