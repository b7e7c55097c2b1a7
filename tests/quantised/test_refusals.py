"""Quantised checkpoints that lie, lack parts, or are of a scheme that is not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from adaptool.encodings.checkpoints import dequantised
from adaptool.errors import CorruptInputError, IncompatibleError
from tests.quantised.storing import Tensors, checkpoint, opened

STATE = "m.weight.quant_state.bitsandbytes__nf4"
HUGE = 1 << 40


def state(**changes: Any) -> torch.Tensor:
    content = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5, **changes,
    }  # fmt: skip
    return octets(json.dumps({k: v for k, v in content.items() if v != "gone"}).encode())


def octets(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def nf4() -> Tensors:
    from adaptool.encodings.checkpoints.fourbits import table_of

    return {
        "m.weight": torch.zeros(1024, 1, dtype=torch.uint8),
        "m.weight.absmax": torch.zeros(32, dtype=torch.uint8),
        "m.weight.quant_map": table_of("nf4").clone(),
        "m.weight.nested_absmax": torch.ones(1),
        "m.weight.nested_quant_map": torch.linspace(-1, 1, 256),
        STATE: state(),
    }


def int8() -> Tensors:
    return {
        "m.weight": torch.zeros(8, 16, dtype=torch.int8), "m.SCB": torch.ones(8),
        "m.weight_format": torch.tensor(0, dtype=torch.uint8),
    }  # fmt: skip


def fp8() -> Tensors:
    return {"m.weight": torch.zeros(8, 16).to(torch.float8_e4m3fn),
            "m.weight_scale_inv": torch.ones(1, 1)}  # fmt: skip


def gptq() -> Tensors:
    return {
        "m.qweight": torch.zeros(4, 8, dtype=torch.int32), "m.scales": torch.ones(1, 8),
        "m.qzeros": torch.zeros(1, 1, dtype=torch.int32),
        "m.g_idx": torch.zeros(32, dtype=torch.int32),
    }  # fmt: skip


def awq() -> Tensors:
    return {
        "m.qweight": torch.zeros(32, 2, dtype=torch.int32), "m.scales": torch.ones(1, 16),
        "m.qzeros": torch.zeros(1, 2, dtype=torch.int32),
    }  # fmt: skip


def mxfp4() -> Tensors:
    return {"e.w_blocks": torch.zeros(2, 4, 3, 16, dtype=torch.uint8),
            "e.w_scales": torch.zeros(2, 4, 3, dtype=torch.uint8)}  # fmt: skip


def packed() -> Tensors:
    return {
        "m.weight_packed": torch.zeros(8, 4, dtype=torch.int32), "m.weight_scale": torch.ones(8, 1),
        "m.weight_shape": torch.tensor([8, 32]),
    }  # fmt: skip


def nvfp4() -> Tensors:
    return {
        "m.weight_packed": torch.zeros(8, 16, dtype=torch.uint8),
        "m.weight_scale": torch.ones(8, 2).to(torch.float8_e4m3fn),
        "m.weight_global_scale": torch.ones(1),
    }  # fmt: skip


GOOD: dict[str, tuple[str, Callable[[], Tensors]]] = {
    "nf4": ("bitsandbytes", nf4), "int8": ("bitsandbytes", int8), "fp8": ("fp8", fp8),
    "gptq": ("gptq", gptq), "awq": ("awq", awq), "mxfp4": ("mxfp4", mxfp4),
    "packed": ("compressed-tensors", packed), "nvfp4": ("compressed-tensors", nvfp4),
}  # fmt: skip

OPTIONAL = {"m.weight_format", "m.g_idx", "m.weight_global_scale", "m.weight.nested_absmax"}


@pytest.mark.parametrize("name", GOOD)
def test_the_good_ones_open(name: str) -> None:
    method, make = GOOD[name]
    found = opened(make(), method)
    assert len(found.weights) == 1
    for weight in found.weights.values():
        assert weight.decoded.values().shape == weight.value.shape


@pytest.mark.parametrize("part", [(n, part) for n, (_, make) in GOOD.items() for part in make()])
def test_a_part_that_is_gone(part: tuple[str, str]) -> None:
    method, make = GOOD[part[0]]
    tensors = make()
    del tensors[part[1]]
    if part[1] in OPTIONAL - {"m.weight.nested_absmax", "m.weight_global_scale"}:
        assert opened(tensors, method).weights
        return
    with pytest.raises(CorruptInputError):
        opened(tensors, method)


@pytest.mark.parametrize("part", [(n, part) for n, (_, make) in GOOD.items() for part in make()])
@pytest.mark.parametrize("how", ["longer", "empty", "complex", "deep"])
def test_a_part_of_another_shape_or_type(part: tuple[str, str], how: str) -> None:
    method, make = GOOD[part[0]]
    tensors = make()
    before = tensors[part[1]]
    if how == "longer" and part in (("fp8", "m.weight"), ("awq", "m.qweight")):
        return  # a smaller weight under the same scales
    tensors[part[1]] = {
        "longer": torch.zeros(3, *before.shape[1:], dtype=before.dtype),
        "empty": torch.zeros(0, *before.shape[1:], dtype=before.dtype),
        "complex": torch.zeros(before.shape, dtype=torch.complex64),
        "deep": before.reshape(1, 1, *before.shape, 1),
    }[how]
    with pytest.raises(CorruptInputError):
        opened(tensors, method)


@pytest.mark.parametrize(
    "bad",
    [
        state(blocksize=0), state(blocksize=-64), state(blocksize=63), state(blocksize=HUGE),
        state(blocksize=True), state(blocksize="64"), state(blocksize="gone"),
        state(shape=[32]), state(shape=[]), state(shape=[HUGE, HUGE]), state(shape=[-32, -64]),
        state(shape="32x64"), state(shape=[32.0, 64]), state(shape="gone"), state(shape=[[32, 64]]),
        state(dtype="int8"), state(dtype=None), state(quant_type="fp4"), state(quant_type=[]),
        state(nested_blocksize=1), state(nested_blocksize=3), state(nested_offset=None),
        state(nested_offset=float("nan")), state(nested_offset="0"),
        octets(b"[]"), octets(b"{"), octets(b"\xff\xfe"), octets(b"[" * 3000), octets(b" " * 5000),
        octets(b""),
    ],
)  # fmt: skip
def test_absurd_quant_states(bad: torch.Tensor) -> None:
    with pytest.raises(CorruptInputError, match=r"m\.weight"):
        opened({**nf4(), STATE: bad}, "bitsandbytes")


def test_another_table() -> None:
    tensors = nf4()
    tensors["m.weight.quant_map"][3] = 7.0
    with pytest.raises(CorruptInputError, match="table of nf4"):
        opened(tensors, "bitsandbytes")


def test_another_order_of_rows() -> None:
    tensors = {**int8(), "m.weight_format": torch.tensor(1, dtype=torch.uint8)}
    with pytest.raises(CorruptInputError, match="weight_format"):
        opened(tensors, "bitsandbytes")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gptq", {"bits": 5}), ("gptq", {"bits": -4}), ("gptq", {"bits": "4"}),
        ("gptq", {"bits": True}), ("gptq", {"group_size": 0}), ("gptq", {"group_size": -32}),
        ("gptq", {"group_size": 1}), ("gptq", {"group_size": [128]}),
        ("awq", {"group_size": -2}), ("awq", {"group_size": 16}),
        ("fp8", {"weight_block_size": [0, 128]}), ("fp8", {"weight_block_size": [-1, 1]}),
        ("fp8", {"weight_block_size": "128"}), ("fp8", {"weight_block_size": [128]}),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(name: str, settings: dict[str, Any]) -> None:
    method, make = GOOD[name]
    with pytest.raises(CorruptInputError):
        opened(make(), method, **settings)


def test_shapes_that_words_do_not_hold() -> None:
    for bad in ([8, HUGE], [8, -32], [-8, 32], [9, 32], [8, 0], [8, 65]):
        with pytest.raises(CorruptInputError, match="weight_shape"):
            opened({**packed(), "m.weight_shape": torch.tensor(bad)}, "compressed-tensors")


def test_what_belongs_to_no_weight_is_refused_by_name() -> None:
    for name, (method, make) in GOOD.items():
        side = next(
            part for part in reversed(make()) if part not in ("m.weight", "m.weight_format")
        )
        stray = f"stray{side[1:]}"
        with pytest.raises(CorruptInputError, match="stray"):
            opened({**make(), stray: torch.zeros(2, 2, dtype=torch.int16)}, method)
        assert name


def test_codes_without_scales_are_refused() -> None:
    with pytest.raises(CorruptInputError, match=r"n\.weight: int8 without scales"):
        opened({**int8(), "n.weight": torch.zeros(4, 4, dtype=torch.int8)}, "bitsandbytes")


def test_a_weight_stored_twice() -> None:
    with pytest.raises(CorruptInputError, match="twice"):
        opened({**gptq(), "m.weight": torch.zeros(8, 32)}, "gptq")


@pytest.mark.parametrize("method", ["hqq", "aqlm", "torchao", "quark", "../gptq", "_x", "None"])
def test_unknown_schemes_are_named(method: str) -> None:
    with pytest.raises(IncompatibleError, match=r"known: .*bitsandbytes") as caught:
        opened({}, method)
    assert caught.value.code == "UNKNOWN_QUANTISATION"
    assert repr(method) in caught.value.message


def test_a_plain_checkpoint_is_returned_as_it_is() -> None:
    plain = checkpoint({"m.weight": torch.ones(2, 2)}, dtype="bfloat16")
    assert dequantised(plain) is plain
