"""How fast bf16 linear layers are by their number of rows, in one call and in several: why region steps on a CPU split
them.

``python -m benchmarks.cpu_linear`` writes ``benchmarks/results/cpu_linear.json``, with ``--machine avx512_bf16``
``cpu_linear_avx512_bf16.json``. Two ways that the library does not take are timed as well: oneDNN's product that adds
the bias itself (``fused``), and the same with weights laid out for it beforehand (``packed``), which takes their memory
once more.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks import record
from ras_dit.cpu_layers import PARTS, in_parts

SHAPES = ((768, 768), (768, 3072), (3072, 768))  # in, out: the layers of the mid-size model
ROWS = (333, 666, 1024, 1536, 2048, 4096, 8192)  # text 666; image 1,024 at ratio .125, 2,048 at .25, 8,192 dense
REPEATS = 31


@torch.no_grad()
def rates(rows: int, inputs: int, outputs: int) -> dict[str, float]:
    """10^12 FLOP per second of one layer by its number of calls, and ``fused`` and ``packed`` in one, from median times
    taken in turns."""
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    weight, bias = torch.randn(outputs, inputs, dtype=torch.bfloat16), torch.randn(outputs, dtype=torch.bfloat16)

    def layer(part: torch.Tensor) -> torch.Tensor:
        return functional.linear(part, weight, bias)

    def product(weights: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")

    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "1": lambda: layer(x),
        **{str(num_parts): functools.partial(in_parts, layer, x, num_parts) for num_parts in PARTS[1:]},
        "fused": product(weight),
        "packed": product(packed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        torch.testing.assert_close(way(), layer(x), rtol=0.02, atol=0.02)
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    flops = 2 * rows * inputs * outputs
    return {name: flops / statistics.median(times) / 1e12 for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machine", help="ends the name of the result, beside that of another kind of machine")
    machine = parser.parse_args().machine
    torch.manual_seed(0)
    table = [
        {"in": inputs, "out": outputs, "rates": {str(rows): rates(rows, inputs, outputs) for rows in ROWS}}
        for inputs, outputs in SHAPES
    ]
    for row in table:
        print(row["in"], row["out"])
        for rows, by_parts in row["rates"].items():
            print(f"{rows:>8} rows", {parts: round(value, 2) for parts, value in by_parts.items()})
    name = "_".join(filter(None, ("cpu_linear", machine)))
    print("wrote", record.write(name, {**record.environment(), "layers": table}).name)


if __name__ == "__main__":
    main()
