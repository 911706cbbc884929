"""How fast bf16 linear layers are by their number of rows, in one call and in several: why region steps on a CPU split
them.

``python -m benchmarks.cpu_linear`` writes ``benchmarks/results/cpu_linear.json``.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional

from benchmarks import record
from ras_dit.cpu_layers import PARTS, in_parts

SHAPES = ((768, 768), (768, 3072), (3072, 768))  # in, out: the layers of the mid-size model
ROWS = (333, 666, 1024, 1536, 2048, 4096, 8192)  # text 666; image 1,024 at ratio .125, 2,048 at .25, 8,192 dense
REPEATS = 31


@torch.no_grad()
def rates(rows: int, inputs: int, outputs: int) -> dict[str, float]:
    """10^12 FLOP per second of one layer by its number of calls, from median times taken in turns."""
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    weight, bias = torch.randn(outputs, inputs, dtype=torch.bfloat16), torch.randn(outputs, dtype=torch.bfloat16)

    def layer(part: torch.Tensor) -> torch.Tensor:
        return functional.linear(part, weight, bias)

    seconds: dict[int, list[float]] = {num_parts: [] for num_parts in PARTS}
    for _ in range(REPEATS):
        for num_parts in PARTS:
            start = time.perf_counter()
            layer(x) if num_parts == 1 else in_parts(layer, x, num_parts)
            seconds[num_parts].append(time.perf_counter() - start)
    flops = 2 * rows * inputs * outputs
    return {str(num_parts): flops / statistics.median(times) / 1e12 for num_parts, times in seconds.items()}


def main() -> None:
    torch.manual_seed(0)
    table = [
        {"in": inputs, "out": outputs, "rates": {str(rows): rates(rows, inputs, outputs) for rows in ROWS}}
        for inputs, outputs in SHAPES
    ]
    for row in table:
        print(row["in"], row["out"])
        for rows, by_parts in row["rates"].items():
            print(f"{rows:>8} rows", {parts: round(value, 2) for parts, value in by_parts.items()})
    print("wrote", record.write("cpu_linear", {**record.environment(), "layers": table}).name)


if __name__ == "__main__":
    main()
