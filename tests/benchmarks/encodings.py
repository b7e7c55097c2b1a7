"""How long ggml's block encodings take here, beside ggml's own quantisers, and what they lose.

    python tests/benchmarks/encodings.py
    python tests/benchmarks/encodings.py Q4_K Q6_K --rounds 20 --importance

Nanoseconds of processor time per value on one thread, the least of several rounds: encoding and
decoding here, and `ggml_quantize_chunk` where xllamacpp is installed. Blocks of 65,536 values, as a
merge streams them. Errors are root mean squares relative to that of the values, which are normal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adaptool.encodings.ggml import ENCODABLE, encoding

sys.path.insert(0, str(Path(__file__).parent.parent))
from ggml import ggml_library

ROWS, WIDTH = 32, 2048


def cost(work: Callable[[], object], rounds: int) -> float:
    """The least processor time of a round, in nanoseconds per value."""
    work()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time_ns()
        work()
        work()
        best = min(best, (time.process_time_ns() - start) / 2)
    return best / (ROWS * WIDTH)


def loss(decoded: torch.Tensor, values: torch.Tensor) -> float:
    """Root mean squared error relative to the root mean square."""
    error = (decoded.view_as(values).double() - values).square().mean()
    return float((error / values.double().square().mean()).sqrt())


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", default=sorted(ENCODABLE))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--importance", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    values = 0.02 * torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(WIDTH) + 0.1 if asked.importance else None
    beside = ggml_library.is_installed()
    print(f"{'':8}{'encode':>8}{'decode':>8}{'ggml':>8}   {'error':>8}{'ggml':>9}")
    for name in asked.types:
        scheme = encoding(name)
        packed = scheme.encode(values, weights)
        line = f"{name:8}"
        line += f"{cost(lambda: scheme.encode(values, weights), asked.rounds):8.1f}"  # noqa: B023
        line += f"{cost(lambda: scheme.decode(packed), asked.rounds):8.1f}"  # noqa: B023
        theirs = ""
        if beside:
            given = None if weights is None else weights.numpy()

            def by_ggml() -> torch.Tensor:
                found = ggml_library.quantize(scheme.type.id, values.numpy(), given)  # noqa: B023
                return torch.from_numpy(found)

            line += f"{cost(by_ggml, 3):8.1f}"
            theirs = f"{loss(scheme.decode(by_ggml()), values):9.5f}"
        else:
            line += f"{'-':>8}"
        print(f"{line}   {loss(scheme.decode(packed), values):8.5f}{theirs}", flush=True)


if __name__ == "__main__":
    main()
