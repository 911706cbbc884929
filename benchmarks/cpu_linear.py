"""How fast bf16 linear layers are by their number of rows: why region steps on a CPU miss their FLOP share.

``python -m benchmarks.cpu_linear`` writes ``benchmarks/results/cpu_linear.json``.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional

from benchmarks import record

SHAPES = ((768, 768), (768, 3072), (3072, 768))  # in, out: the layers of the mid-size model
ROWS = (333, 666, 1024, 1536, 2048, 4096, 8192)  # text 666; image 1,024 at ratio .125, 2,048 at .25, 8,192 dense
REPEATS = 31


@torch.no_grad()
def rate(rows: int, inputs: int, outputs: int) -> float:
    """10^12 FLOP per second of one layer, from the median time."""
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    weight, bias = torch.randn(outputs, inputs, dtype=torch.bfloat16), torch.randn(outputs, dtype=torch.bfloat16)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        functional.linear(x, weight, bias)
        seconds.append(time.perf_counter() - start)
    return 2 * rows * inputs * outputs / statistics.median(seconds) / 1e12


def main() -> None:
    torch.manual_seed(0)
    table = [
        {"in": inputs, "out": outputs, "rates": {str(rows): rate(rows, inputs, outputs) for rows in ROWS}}
        for inputs, outputs in SHAPES
    ]
    for row in table:
        print(row["in"], row["out"], {rows: round(value, 2) for rows, value in row["rates"].items()})
    print("wrote", record.write("cpu_linear", {**record.environment(), "layers": table}).name)


if __name__ == "__main__":
    main()
