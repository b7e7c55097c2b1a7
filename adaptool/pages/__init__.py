"""The page that runs an export: static files, the same for every target.

    index.html    what is seen; its import map says where the runtime lies
    style.css     how it looks
    page.js       asks, shows, stops; imports driver.js, the target's link to its runtime
    page.json     settings: title, target, task, template, adapters, scale, maxTokens, and what
                  the target adds; `runtime` says where each package's further files lie
    package.json  the packages that were tested, for `npm install` in the folder

With a `node_modules` folder at hand the runtime's files are copied into `runtime/`, and the folder
is complete: nothing is loaded from anywhere else. The page allows itself its own origin only
(Content Security Policy), WebAssembly, and workers that a runtime makes of what it has loaded.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from posixpath import basename, dirname
from string import Template

from adaptool.containers import Output
from adaptool.containers._output import side_files
from adaptool.errors import JSON, IncompatibleError, StorageError
from adaptool.storage import inside, read_json, shown
from adaptool.targets import Package

_HERE = Path(__file__).parent
_LICENCES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "LICENCE")


def page(
    title: str,
    target: str,
    packages: Sequence[Package],
    driver: bytes,
    settings: Mapping[str, JSON],
    runtime: Path | None,
) -> Output:
    """The files of a page; they lie beside those of the export.

    Args:
        title: of the page.
        target: the target's name.
        packages: what `driver` imports. A name may have a path behind it, as in an import
            (`onnxruntime-web/webgpu`).
        driver: driver.js; its interface is that of `open` in page.js.
        settings: see above.
        runtime: a node_modules folder out of which the packages' files are copied; None where
            `npm install` is to be run in the folder.

    Raises:
        StorageError: a package, or a file of it, is not in `runtime`.
        IncompatibleError: a package there has another version (code VERSION).
        CorruptInputError: a package's file is a link that leads out of it.
    """
    place = _installed if runtime is None else _beside
    places = {one.name: place(one) for one in packages}
    further: dict[str, JSON] = {name: found.further for name, found in places.items()}
    content = {**settings, "title": title, "target": target, "runtime": further}
    plans, small = side_files({
        **({} if runtime is None else _copied(packages, runtime)),
        "index.html": _index(title, {name: found.entry for name, found in places.items()}),
        "style.css": _HERE / "style.css",
        "page.js": _HERE / "page.js",
        "driver.js": driver,
        "page.json": _json(content),
        "package.json": _json({
            "private": True,
            "dependencies": {_npm_name(one.name): one.version for one in packages},
        }),
    })  # fmt: skip
    return Output(tuple(plans), small, is_folder=True)


@dataclass(frozen=True)
class _Place:
    """Where a package is found from the page: its entry, and the folder of its further files."""

    entry: str
    further: str


def _beside(package: Package) -> _Place:
    """In `runtime/`: all files of a package lie in one folder."""
    folder = f"./{_folder(package)}/"
    return _Place(folder + basename(package.entry), folder)


def _installed(package: Package) -> _Place:
    """In `node_modules/`, where npm puts them."""
    folders = {dirname(file) for file in package.more} or {dirname(package.entry)}
    if len(folders) > 1:
        raise ValueError(f"{package.name}: further files in several folders: {sorted(folders)}")
    home = f"./node_modules/{_npm_name(package.name)}/"
    return _Place(home + package.entry, "/".join(filter(None, (home[:-1], *folders))) + "/")


def _copied(packages: Sequence[Package], modules: Path) -> dict[str, Path | bytes]:
    """Name in the export -> file of `modules`; licences travel along."""
    copied: dict[str, Path | bytes] = {}
    for package in packages:
        home = _checked(package, modules)
        licences = [name for name in _LICENCES if (home / name).is_file()]
        for file in (package.entry, *package.more, *licences):
            source = inside(home, file)
            name = f"{_folder(package)}/{basename(file)}"
            if copied.setdefault(name, source) != source:
                raise ValueError(f"two files for {name}")
    return copied


def _checked(package: Package, modules: Path) -> Path:
    """The package's folder in `modules`, in the version that is asked for."""
    name = _npm_name(package.name)
    home = inside(modules, name)
    if not (home / "package.json").is_file():
        raise StorageError(
            f"{shown(modules)}: no package {name}",
            hint=f"npm install {name}@{package.version}",
            code="NOT_FOUND",
        )
    stated = read_json(home / "package.json")
    version = stated.get("version") if isinstance(stated, dict) else None
    if version != package.version:
        raise IncompatibleError(
            f"{shown(home)}: version {version}, and the page is written for {package.version}",
            hint=f"npm install {name}@{package.version}",
            code="VERSION",
        )
    return home


def _npm_name(imported: str) -> str:
    """`@scope/name/path` -> `@scope/name`."""
    return "/".join(imported.split("/")[: 2 if imported.startswith("@") else 1])


def _folder(package: Package) -> str:
    return f"runtime/{_npm_name(package.name)}"


def _json(content: dict[str, JSON]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _index(title: str, entries: Mapping[str, str]) -> bytes:
    """index.html; its one inline script is the import map, allowed by its digest."""
    # "<" is spelled out: the text of a script ends at the first "</script"
    imports = json.dumps({"imports": entries}, indent=2).replace("<", "\\u003c")
    digest = b64encode(sha256(imports.encode()).digest()).decode()
    text = Template((_HERE / "index.html").read_text(encoding="utf-8"))
    return text.substitute(title=escape(title), imports=imports, digest=digest).encode()
