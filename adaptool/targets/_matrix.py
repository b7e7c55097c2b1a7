"""What becomes what, told by the targets themselves: target x kind of model x dtype."""

from __future__ import annotations

from adaptool.targets import AS_STORED, Target, modules

_KINDS = {
    "safetensors": "of a Hugging Face checkpoint", "gguf": "of a GGUF model",
    "onnx": "of an ONNX model",
}  # fmt: skip
_HEAD = ("target", *_KINDS.values(), "adapters apart", "its own options")
_COMMON = frozenset({"template"})
_SPELLED = {"library": "lib"}


def matrix() -> str:
    """A table in Markdown, a line for each target; the first dtype of a cell is the default."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    for name, target in modules().items():
        cells = (_dtypes(target, kind) for kind in _KINDS)
        own = ", ".join(f"`--{_spelled(option)}`" for option in sorted(target.options - _COMMON))
        lines.append((f"`{name}`", *cells, target.swappable or "no", own or "none"))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _dtypes(target: Target, kind: str) -> str:
    found, first = target.dtypes.get(kind, ()), next(iter(target.dtypes.values()))
    if found[:1] == (AS_STORED,) and found[1:] == first:
        return f"{AS_STORED}, or any of those"
    return ", ".join(found) or "no"


def _spelled(option: str) -> str:
    return _SPELLED.get(option, option.replace("_", "-"))
