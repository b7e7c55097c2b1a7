"""The house: who may import whom, what the command line promises everywhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click
import pytest

import adaptool
from adaptool.cli import group, main
from adaptool.demonstration import demo_folder

PACKAGE = Path(adaptool.__file__).parent
CHECKOUT = PACKAGE.parent
DEMO = demo_folder()

FLOORS = (
    ("errors",),
    ("version",),
    ("plugins", "canonical"),
    ("storage", "cards", "processors", "workers", "budgets"),
    ("encodings", "architectures", "methods", "tuners", "records", "ranks"),
    ("containers",),
    (
        "merging", "conversion", "combination", "reduction", "lowering", "extraction", "slots",
        "importance", "statistics", "hub", "tracing",
    ),
    ("formats", "targets"),
    ("pages", "serving"),
    ("inspection", "comparison", "support", "jobs", "demonstration"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)  # fmt: skip
"""From the ground up; one floor's rooms may import one another, but not in a circle."""

LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

DOORS = {
    "click": ("cli",),
    "rich": ("cli",),
    "huggingface_hub": ("hub",),
    "tokenizers": ("demonstration",),
    "gguf": ("architectures", "encodings"),
    "onnx": ("containers", "encodings", "formats", "targets", "tracing"),
    "onnxruntime": ("targets", "tracing"),
    "onnx_ir": ("tracing", "targets"),
    "onnxscript": ("tracing",),
    "transformers": ("tracing",),
    "peft": (),
}
"""The rooms that may import a third-party library."""

IMPORTED_AS = {"protobuf": "google", "onnx-ir": "onnx_ir"}

EXPORTS = {
    "ortweb": [], "transformersjs": [], "webllm": ["--conversation", "LM"],
    "wllama": ["--pre", "gpt-2"],
}  # fmt: skip
"""What each target needs to be told of the demo model."""

HEAVY = ("torch", "onnx", "onnxruntime", "gguf", "transformers")


# -- imports --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import statement: what is imported, where, and whether it runs."""

    module: str
    line: int
    runs: bool


def sources() -> dict[str, str]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(text: str) -> Iterator[Import]:
    """All imports of a source text, in functions too."""
    yield from _imports(ast.parse(text), runs=True)


def _imports(node: ast.AST, *, runs: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, runs)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import"
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", child.lineno, runs)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, runs=False)
        else:
            yield from _imports(child, runs=runs)


def module_of(imported: str, known: Mapping[str, str]) -> str | None:
    """The module of the package that an import names, or None for someone else's."""
    while imported and imported not in known:
        imported = imported.rpartition(".")[0]
    return imported or None


def room(module: str) -> str:
    """`adaptool.formats.peft.keys` -> `formats`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def upward(known: Mapping[str, str]) -> list[str]:
    """Imports that go up a floor."""
    wrong = []
    for module, text in known.items():
        for found in imports(text):
            target = module_of(found.module, known)
            if target and LEVELS[room(target)] > LEVELS[room(module)]:
                wrong.append(f"{module}:{found.line} imports {target}")
    return wrong


def circles(known: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle; imports inside functions count."""
    edges = {
        module: sorted(
            {
                target
                for found in imports(text)
                if found.runs and (target := module_of(found.module, known)) not in (None, module)
            }
        )
        for module, text in known.items()
    }
    done: set[str] = set()
    found = []

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            found.append(" > ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in edges[module]:
                visit(target, [*trail, module])
            done.add(module)

    for module in edges:
        visit(module, [])
    return found


def test_every_room_has_a_floor():
    unknown = {room(module) for module in sources()} - set(LEVELS)
    assert not unknown, f"not on any floor: {unknown}"


def test_imports_only_go_down():
    assert upward(sources()) == []


def test_no_import_circles():
    assert circles(sources()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from adaptool.cli import main",
        "from adaptool import merging",
        "import adaptool.formats.peft",
        "def f():\n    from adaptool.jobs import save",
    ],
)
def test_an_upward_import_is_caught(line):
    known = sources()
    known["adaptool.storage"] += f"\n{line}\n"
    assert len(upward(known)) == 1


def test_a_circle_is_caught():
    known = sources()
    known["adaptool.statistics"] += "\nimport adaptool.merging\n"
    known["adaptool.merging"] += "\nimport adaptool.statistics\n"
    assert len(circles(known)) == 1


def doors_broken(known: Mapping[str, str]) -> list[str]:
    """Imports of a third-party library past its door."""
    return [
        f"{module}:{found.line} imports {library}"
        for module, text in known.items()
        for found in imports(text)
        if (library := found.module.partition(".")[0]) in DOORS
        and room(module) not in DOORS[library]
    ]


def test_each_library_has_its_door():
    assert doors_broken(sources()) == []


def test_a_library_past_its_door_is_caught():
    known = sources()
    known["adaptool.jobs"] += "\nimport click\n"
    assert len(doors_broken(known)) == 1


def test_imported_libraries_are_declared():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *project["optional-dependencies"]["export"]]
    declared = {re.split(r"[^\w-]", name)[0] for name in names}
    declared = {IMPORTED_AS.get(name, name) for name in declared}
    used = {
        found.module.partition(".")[0] for text in sources().values() for found in imports(text)
    }
    assert used - declared - set(sys.stdlib_module_names) - {"adaptool", "__future__"} == set()


def test_only_the_command_line_prints_or_exits():
    wrong = [
        f"{module}:{node.lineno} calls {ast.unparse(node.func)}"
        for module, text in sources().items()
        if room(module) not in ("cli", "__main__")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "exit", "quit", "sys.exit", "os._exit")
    ]
    assert wrong == []


# -- the package ----------------------------------------------------------------------------------


def test_all_is_what_is_exported_lazily():
    assert set(adaptool.__all__) == {*adaptool._HOMES, "__version__"}
    assert list(adaptool.__all__) == sorted(adaptool.__all__)
    assert dir(adaptool) == sorted(adaptool.__all__)


@pytest.mark.parametrize("name", adaptool.__all__)
def test_each_name_can_be_imported(name):
    thing = getattr(adaptool, name)
    if name != "__version__":
        assert thing is getattr(import_module(f"adaptool.{adaptool._HOMES[name]}"), name)
        assert thing.__doc__, f"{name} says nothing about itself"


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'merger'"):
        adaptool.merger  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["merge", "--help"], ["--version"],
     ["inspect", str(DEMO / "pirate")], ["inspect", str(DEMO / "model")],
     ["convert", str(DEMO / "pirate"), "-o", "nowhere", "--dry-run"]],
    ids=["help", "merge help", "version", "adapter", "model", "convert dry run"],
)  # fmt: skip
def test_no_heavy_library_is_imported(arguments):
    driver = (
        "import sys; from adaptool.cli import main; code = main(sys.argv[1:]);"
        f"sys.exit(code or ' '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", driver, *arguments], capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert not done.stderr.strip(), done.stderr
    assert done.returncode == 0


# -- the command line -----------------------------------------------------------------------------


def help_of(capsys, *arguments: str) -> str:
    assert main([*arguments, "--help"]) == 0
    return capsys.readouterr().out


def example_lines(text: str) -> list[list[str]]:
    """The `adaptool ...` lines of a help text or a Markdown file, as argument lists."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"^\s*(?:\$ )?adaptool ([a-z][^\n]*)$", text, re.MULTILINE)
    return [shlex.split(line.split("   ")[0], comments=True) for line in found]


def parse(words: list[str]) -> click.Context:
    """Parse an example without running it."""
    name, *arguments = words
    return group.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("name", group.commands)
def test_every_command_has_the_common_options(name):
    spellings = {word for option in group.commands[name].params for word in option.opts}
    assert {"--json", "--dry-run", "--quiet", "--verbose", "-q", "-v"} <= spellings
    if "--output" in spellings:
        assert {"-o", "--force"} <= spellings


@pytest.mark.parametrize("name", group.commands)
def test_every_option_says_what_it_does(name):
    for option in group.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]}"
            assert option.help.endswith((".", ")")), f"{name} {option.opts[0]}: {option.help}"


@pytest.mark.parametrize("name", group.commands)
def test_every_command_has_examples_that_parse(name, capsys):
    text = help_of(capsys, name)
    assert "Examples:" in text
    lines = example_lines(text.partition("Examples:")[2])
    assert lines
    for words in lines:
        assert words[0] == name
        parse(words)


def test_every_command_and_option_is_documented(capsys):
    read_me = (CHECKOUT / "README.md").read_text()
    assert all(f"adaptool {name}" in help_of(capsys) for name in group.commands)
    for name, command in group.commands.items():
        text = read_me + help_of(capsys, name)
        for option in command.params:
            if isinstance(option, click.Option):
                assert all(word in text for word in option.opts), f"{name} {option.opts}"


def test_examples_of_the_read_me_parse():
    blocks = re.findall(r"```sh\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    for words in example_lines("".join(blocks)):
        parse(words)


def test_help_names_every_exit_code(capsys):
    from adaptool import errors

    text = help_of(capsys).partition("Exit codes:")[2]
    codes = {e.exit_code for e in vars(errors).values()
             if isinstance(e, type) and issubclass(e, errors.AdaptoolError)}  # fmt: skip
    assert codes | {0, 130} <= {int(word) for word in re.findall(r"\d+", text)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in group.commands),
        *(["inspect", str(DEMO / name)] for name in ("pirate", "cowboy", "formal", "model")),
        ["inspect", str(DEMO / "pirate"), "-v", "--stats", "--against", str(DEMO / "model")],
        ["merge", str(DEMO / "model"), str(DEMO / "pirate"), "-o", "out", "--dry-run"],
        ["merge", str(DEMO / "model"), str(DEMO / "pirate"), "-o", "out", "-v"],
        ["convert", str(DEMO / "pirate"), "-o", "out"],
        *(
            [
                "export",
                str(DEMO / "model"),
                str(DEMO / "pirate"),
                "-o",
                "out",
                "--dry-run",
                "--target",
                name,
                *more,
            ]
            for name, more in EXPORTS.items()
        ),
        ["demo"],
    ],
    ids=lambda arguments: " ".join(word.replace(str(DEMO), "demo") for word in arguments),
)
def test_output_fits_80_columns(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    wide = [line for line in capsys.readouterr().out.splitlines() if len(line) > 80]
    assert wide == []
