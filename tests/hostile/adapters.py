"""Adapters: settings that lie, tensors that do not belong together, bases that do not fit."""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from .files import (
    ADAPTER,
    BASE,
    INSPECT,
    MERGE,
    A,
    B,
    Case,
    Q,
    Tensor,
    adapter,
    base,
    config,
    config_text,
    put,
    thinned,
    together,
)

FILE = "adapter_config.json"
SETTINGS = f"adapter/{FILE}"
FOLDER = ("adapter",)
EMBEDDING = "base_model.model.model.embed_tokens"
MAGNITUDE = f"base_model.model.{Q}.lora_magnitude_vector"
PICKLED = (*MERGE, "--allow-pickle")


def _settings() -> list[Case]:
    def refused(name: str, code: int = 3, *, word: str | None = None, text: str | None = None,
                **changes: object) -> Case:  # fmt: skip
        key = word or next(iter(changes), "")
        damage = config(**changes) if text is None else config_text(text)
        return Case(f"config: {name}", code, damage, (FILE, key), INSPECT)

    found = [
        Case("config: no JSON", 3, put(SETTINGS, "r = 8"), (FILE,), INSPECT),
        Case("config: empty", 3, put(SETTINGS, ""), (FILE,), INSPECT),
        Case("config: a list", 3, put(SETTINGS, "[]"), (FILE,), INSPECT),
        Case("config: no UTF-8", 3, put(SETTINGS, b'{"r": "\xff"}'), (FILE,), INSPECT),
        Case("config: deep nesting", 3, put(SETTINGS, '{"a":' * 60_000), (FILE,), INSPECT),
        Case("config: 20 MB", 8,
             together(put(SETTINGS, "{}"), lambda f: os.truncate(f / SETTINGS, 20_000_000)),
             (FILE,), INSPECT),
        Case("config: many lists", 8, config_text('"a": [' + "{}," * 2_000_000 + "0]"), (FILE,),
             INSPECT),
        Case("config: no LoRA by another name", 4, config(peft_type="\x1b[31mX" * 50),
             FOLDER, INSPECT),
        refused("alpha NaN", text='"lora_alpha": NaN', word="NaN"),
        refused("alpha -Infinity", text='"alpha_pattern": {"a": -Infinity}', word="Infinity"),
        refused("alpha 1e400", text='"alpha_pattern": {"a": 1e400}', word=""),
        refused("alpha of 309 nines", lora_alpha=10**309 - 1),
        refused("alpha 1e308", lora_alpha=1e308),
        refused("alpha in a string", lora_alpha="16"),
        refused("alpha true", lora_alpha=True),
        refused("alpha negative", lora_alpha=-4),
        refused("alpha in a list", lora_alpha=[16]),
        refused("r 0", r=0),
        refused("r -1", r=-1),
        refused("r true", r=True),
        refused("r in a string", r="16"),
        refused("r 1.5", r=1.5),
        refused("r of 300 digits", r=10**300),
        refused("r twice", text='"r": 4', word="twice"),
        refused("half a surrogate", base_model_name_or_path="\ud800", word="surrogate"),
        refused("use_rslora in a string", use_rslora="false"),
        refused("use_dora is a number", use_dora=1),
        refused("unknown variant", 4, use_magic=True),
        refused("qalora", 4, use_qalora=True),
        refused("pissa", 4, init_lora_weights="pissa_niter_16"),
        refused("control characters in the init", 4, init_lora_weights="olora\x1b[31m\n" * 40),
        refused("arrow", 4, arrow_config={"top_k": 2}),
    ]  # fmt: skip
    for key in ("rank_pattern", "alpha_pattern"):
        found += [
            refused(f"{key} with a huge expression", **{key: {"a" * 100_000: 4}}),
            refused(f"{key} with nested groups", **{key: {"(" * 900 + ")" * 900: 4}}),
            refused(f"{key} no expression", **{key: {"(": 4}}),
            refused(f"{key} in a list", **{key: [4]}),
            refused(f"{key} with a string", **{key: {"q_proj": "4"}}),
            refused(f"{key} with true", **{key: {"q_proj": True}}),
            refused(f"{key} negative", **{key: {"q_proj": -4}}),
        ]
    found += [
        Case(f"type {kind}", 4, config(peft_type=kind), FOLDER, INSPECT)
        for kind in ("IA3", "VERA", "LOHA", "OFT", "BOFT", "VBLORA", "SHIP")
    ]
    found += [
        Case(f"type {kind} is not merged", 4, config(peft_type=kind), FOLDER)
        for kind in ("PROMPT_TUNING", "PREFIX_TUNING")
    ]
    found.append(Case("aLoRA is not merged", 4, config(alora_invocation_tokens=[1, 2]), FOLDER))
    return found


def _tensors() -> list[Case]:
    half = (Q,)
    saved = "base_model.model.model.layers.0"
    token = {**ADAPTER, f"{EMBEDDING}.token_adapter.trainable_tokens_delta": Tensor((2, 4))}

    def rows(name: str, indices: object, code: int = 3) -> Case:
        return Case(f"token rows: {name}", code, adapter(token, trainable_token_indices=indices),
                    ("embed_tokens",))  # fmt: skip

    def scalar(name: str) -> dict[str, Tensor]:
        return {**ADAPTER, name: Tensor(())}

    def resized(factor: Tensor, wide: Tensor, copy: Tensor) -> dict[str, Tensor]:
        return {
            f"{EMBEDDING}.lora_embedding_A": factor,
            f"{EMBEDDING}.lora_embedding_B": wide,
            f"{EMBEDDING}.base_layer.weight": copy,
        }

    return [
        Case("tensors: B without A", 3, adapter({B: ADAPTER[B]}), half),
        Case("tensors: A without B", 3, adapter({A: ADAPTER[A]}), half),
        Case("tensors: empty A", 3, adapter({**ADAPTER, A: Tensor((0,))}), (A,)),
        Case("tensors: empty B", 3, adapter({**ADAPTER, B: Tensor((0, 2))}), (B,)),
        Case("tensors: none", 3, adapter({}), FOLDER),
        Case("tensors: ranks disagree", 3, adapter({**ADAPTER, A: Tensor((3, 4))}), half),
        Case("tensors: scalar A", 3, adapter(scalar(A)), half),
        Case("tensors: scalar B", 3, adapter(scalar(B)), half),
        Case("tensors: flat A", 3, adapter({**ADAPTER, A: Tensor((8,))}), half),
        Case("tensors: B with a kernel", 3, adapter({**ADAPTER, B: Tensor((6, 2, 3, 3))}), half),
        Case("tensors: integer A", 3, adapter({**ADAPTER, A: Tensor((2, 4), dtype="I8")}), half),
        Case("tensors: integer B", 3, adapter({**ADAPTER, B: Tensor((6, 2), dtype="I32")}), half),
        Case("tensors: flat enable_lora", 3,
             adapter({**ADAPTER, B: Tensor((12,))}, enable_lora=[True, False]), half),
        Case("tensors: enable_lora off", 3,
             adapter({**ADAPTER, A: Tensor((4, 4))}, enable_lora=[False, False]), half),
        Case("tensors: NaN in A", 3, adapter({**ADAPTER, A: Tensor((2, 4), math.nan)}),
             (f"{Q}.weight",)),
        Case("tensors: infinity in B", 3, adapter({**ADAPTER, B: Tensor((6, 2), math.inf)}),
             (f"{Q}.weight",)),
        Case("tensors: one name, two prefixes", 3,
             adapter({**ADAPTER, A.removeprefix("base_model.model."): Tensor((2, 4), 9.0)}),
             ("lora_A",)),
        Case("tensors: one name, with an adapter's name", 3,
             adapter({**ADAPTER, A.replace("lora_A", "lora_A.default"): Tensor((2, 4), 9.0)}),
             ("lora_A",)),
        Case("tensors: unknown one", 4, adapter({**ADAPTER, f"{saved}.extra.scales": Tensor((2,))}),
             ("adapter", "extra.scales")),
        Case("tensors: unknown ones", 4,
             adapter({**ADAPTER, **{f"x.{i}.weight": Tensor((2,)) for i in range(5000)}}),
             ("5000",)),
        Case("tensors: unknown part of a known module", 4,
             adapter({**ADAPTER, f"base_model.model.{Q}.qzeros": Tensor((2,))}), ("qzeros",)),
        Case("tensors: unknown module", 4,
             adapter({k.replace("q_proj", "z_proj"): v for k, v in ADAPTER.items()}), ("z_proj",)),
        Case("tensors: another case", 4,
             adapter({k.replace("q_proj", "Q_Proj"): v for k, v in ADAPTER.items()}), ("Q_Proj",)),
        Case("tensors: layer 99", 4,
             adapter({k.replace("layers.0", "layers.99"): v for k, v in ADAPTER.items()}),
             ("layers.99",)),
        Case("tensors: trained on a wider model", 4, adapter({**ADAPTER, A: Tensor((2, 5))}),
             ("[6, 5]", "[6, 4]", f"{Q}.weight")),
        Case("tensors: trained on a taller model", 4, adapter({**ADAPTER, B: Tensor((7, 2))}),
             ("[7, 4]", "[6, 4]", f"{Q}.weight")),
        Case("tensors: a weight beside its factors", 3,
             adapter({**ADAPTER, f"{saved}.self_attn.q_proj.weight": Tensor((3, 3))}),
             (f"{Q}.weight",)),
        Case("tensors: a norm of another shape", 4,
             adapter({**ADAPTER, "base_model.model.model.norm.weight": Tensor((5,))}),
             ("model.norm.weight",)),
        Case("tensors: a head of another width", 4,
             adapter({**ADAPTER, "base_model.model.lm_head.weight": Tensor((8, 5))}),
             ("lm_head.weight",)),
        Case("tensors: a layer in superscript", 4,
             adapter({**ADAPTER, "base_model.model.layers.\u00b2.x.weight": Tensor((2,))}),
             ("layers.\u00b2",)),
        Case("tensors: NaN in a larger head", 3,
             adapter({**ADAPTER, "base_model.model.lm_head.weight": Tensor((9, 4), math.nan)}),
             ("lm_head.weight",)),
        Case("tensors: DoRA without magnitude", 3, adapter(ADAPTER, use_dora=True), half),
        Case("tensors: magnitude too short", 3, adapter({**ADAPTER, MAGNITUDE: Tensor((5,))}),
             half),
        Case("tensors: magnitude alone", 3, adapter({MAGNITUDE: Tensor((6,))}), half),
        Case("tensors: NaN in the magnitude", 3,
             adapter({**ADAPTER, MAGNITUDE: Tensor((6,), math.nan)}, use_dora=True),
             (f"{Q}.weight",)),
        Case("tensors: base_layer of another shape", 3,
             adapter(resized(Tensor((2, 9)), Tensor((4, 2)), Tensor((8, 4)))), ("embed_tokens",)),
        Case("tensors: base_layer of another width", 4,
             adapter(resized(Tensor((2, 8)), Tensor((5, 2)), Tensor((8, 5)))), ("embed_tokens",)),
        Case("tensors: embedding with half a pair", 3,
             adapter({f"{EMBEDDING}.lora_embedding_A": Tensor((2, 8))}), ("embed_tokens",)),
        Case("tensors: prompt in a LoRA", 3,
             adapter({**ADAPTER, "prompt_embeddings": Tensor((2, 4))}),
             ("prompt_embeddings",)),
        Case("tensors: control characters", 4,
             adapter({"\x1b[2J\r\n.lora_A.weight": Tensor((2, 4))}), ("\\x1b[2J",)),
        rows("no indices", None),
        rows("too few", [1]),
        rows("too many", [1, 2, 3]),
        rows("negative", [1, -2]),
        rows("twice", [1, 1]),
        rows("true", [0, True]),
        rows("in strings", ["1", "2"]),
        rows("a table for another module", {"lm_head": [1, 2]}),
        rows("beyond the vocabulary", [1, 8], 4),
        rows("of 300 digits", [1, 10**300], 4),
        Case("patterns without end", 8, config(rank_pattern={f"y.{i}": 3 for i in range(20_001)}),
             (FILE, "rank_pattern"), INSPECT),
        Case("token rows: scalar", 3,
             adapter({f"{EMBEDDING}.trainable_tokens_delta": Tensor(())},
                     trainable_token_indices=[]),
             ("embed_tokens",)),
        Case("token rows: too wide", 4,
             adapter({f"{EMBEDDING}.trainable_tokens_delta": Tensor((2, 5))},
                     trainable_token_indices=[1, 2]), ("embed_tokens",)),
        Case("layers repeated without end", 3, config(layer_replication=[[0, 10**9]]),
             ("layer_replication",)),
        Case("layers repeated that are not there", 4, config(layer_replication=[[0, 9]]),
             ("layer_replication",)),
    ]  # fmt: skip


def _bases() -> list[Case]:
    name = f"{Q}.weight"
    tiny = struct.pack("<24e", *[60_000.0] * 24)
    strong = {A: Tensor((2, 4), 100.0), B: Tensor((6, 2), 100.0)}
    found = [
        Case(f"base: {kind} weights", 4, base({**BASE, name: Tensor((6, 4), dtype=kind)}), (name,))
        for kind in ("I8", "U8", "I32")
    ]
    return [
        *found,
        Case("base: packed weights", 4, base({**BASE, name: Tensor((12, 1), dtype="U8")}), (Q,)),
        Case("base: bitsandbytes without its state", 3,
             base({**BASE, name: Tensor((12, 1), dtype="U8"), f"{name}.absmax": Tensor((1,))},
                  quantization_config={"quant_method": "bitsandbytes"}), (Q,)),
        Case("base: float8 with scales that do not fit", 3,
             base({**BASE, name: Tensor((6, 4), dtype="F8_E4M3"),
                   f"{name}_scale_inv": Tensor((5, 5))},
                  quantization_config={"quant_method": "fp8"}), (Q,)),
        Case("base: no tensors", 4, base({}), (Q,)),
        Case("base: NaN where it is touched", 3, base({**BASE, name: Tensor((6, 4), math.nan)}),
             (name,)),
        Case("base: two meanings", 4,
             base({k: v for k, v in BASE.items() if k != name}
                  | {name.removeprefix("model."): Tensor((6, 4)),
                     f"language_model.{name}": Tensor((6, 4))}), (name, "could mean")),
        Case("result beyond float16", 4,
             together(base({**BASE, name: Tensor((6, 4), dtype="F16", data=tiny)}),
                      adapter(strong)), (name, "float16")),
        Case("result beyond float32", 3,
             adapter({A: Tensor((2, 4), 1e30), B: Tensor((6, 2), 1e30)}), (name,)),
        Case("nothing merged", 4, adapter({**ADAPTER, B: Tensor((6, 2), 0.0)}), ("base",)),
        Case("nothing merged, alpha 0", 4, config(lora_alpha=0), ("base",)),
    ]  # fmt: skip


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("out",)  # what a test would see


def _pickle(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "adapter" / "adapter_model.safetensors").unlink()
        make(folder / "adapter" / "adapter_model.bin")

    return damage


def _plain_pickle(value: object) -> Callable[[Path], object]:
    return _pickle(lambda path: path.write_bytes(pickle.dumps(value)))


def _saved(make: Callable[[], object], **options: object) -> Callable[[Path], object]:
    """torch.save of what `make` returns; torch is imported by the few tests that need it."""

    def write(path: Path) -> None:
        import torch

        torch.save(make(), path, **options)

    return _pickle(write)


def _stride_0() -> object:
    import torch

    return {A: torch.zeros(1).expand(2**20, 2**20), B: torch.ones(6, 2)}


def _sparse() -> object:
    import torch

    return {A: torch.ones(2, 4).to_sparse(), B: torch.ones(6, 2)}


def _meta() -> object:
    import torch

    return {A: torch.empty(2**20, 2**20, device="meta"), B: torch.ones(6, 2)}


def _nested_table() -> object:
    import torch

    return {"module": {A: torch.ones(2, 4), B: torch.ones(6, 2)}}


def _list() -> object:
    import torch

    return [torch.ones(2, 4)]


def _deflated(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(1 << 24))


def _pickles() -> list[Case]:
    file = "adapter_model.bin"
    harmless = _plain_pickle({A: [1.0], B: [1.0]})
    return [
        Case("pickle: not allowed", 3, harmless, (file, "--allow-pickle")),
        Case("pickle: evil, not allowed", 3, _plain_pickle(_Evil()), (file,)),
        Case("pickle: evil", 3, _plain_pickle(_Evil()), (file,), PICKLED),
        Case("pickle: evil in a zip", 3, _saved(_Evil), (file,), PICKLED),
        Case("pickle: garbage", 3, _pickle(lambda p: p.write_bytes(b"\x80\x02garbage")), (file,),
             PICKLED),
        Case("pickle: broken zip", 3, _pickle(lambda p: p.write_bytes(b"PK\x03\x04" * 9)), (file,),
             PICKLED),
        Case("pickle: deflated zip", 3, _pickle(_deflated), (file,), PICKLED),
        Case("pickle: stride 0", 3, _saved(_stride_0), (file, A), PICKLED),
        Case("pickle: sparse", 3, _saved(_sparse), (file, A), PICKLED),
        Case("pickle: no storage", 3, _saved(_meta), (file, A), PICKLED),
        Case("pickle: no table", 3, _saved(_list), (file,), PICKLED),
        Case("pickle: table in a table", 3, _saved(_nested_table), (file, "module"), PICKLED),
    ]  # fmt: skip


def cases() -> list[Case]:
    """All of them."""
    return [
        *thinned(_settings(), 5),
        *thinned(_tensors(), 4),
        *thinned(_bases(), 4),
        *thinned(_pickles(), 3),
    ]
