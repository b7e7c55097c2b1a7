"""The table of types, beside the one of the gguf package."""

import subprocess
import sys

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from adaptool.encodings.ggml import TYPES

TOO_LARGE = {"Q8_1": 40}
"""Sizes that the package states and ggml does not have (a half more than there is)."""


def test_every_type_of_the_gguf_package_is_known():
    assert {one.value for one in GGMLQuantizationType} <= set(TYPES)


@pytest.mark.parametrize("one", GGMLQuantizationType, ids=lambda one: one.name)
def test_sizes_agree_with_the_gguf_package(one):
    ours = TYPES[one.value]
    block, size = GGML_QUANT_SIZES[one]
    assert (ours.id, ours.name, ours.block) == (one.value, one.name, block)
    assert TOO_LARGE.get(ours.name, ours.size) == size


def test_the_table_and_the_mixtures_do_not_import_torch():
    program = (
        "import sys; from adaptool.encodings.ggml import encoding;"
        "from adaptool.encodings.ggml.mixtures import choose_types;"
        "assert encoding('Q4_K').size == 144; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
