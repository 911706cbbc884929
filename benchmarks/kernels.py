"""Which Triton kernels win: each against what the library runs without it, at the sizes of real models.

``python -m benchmarks.kernels`` on a CUDA device prints a table and writes ``benchmarks/results/kernels_cuda.json``;
what it has so far lies in ``outputs/bench/kernels_cuda.json`` (``--folder``), and is not measured again. A case
whose kernel does not agree with its twin gets no figures. ``--only merge_rows`` measures the cases whose name begins
so, into that file alone. ``--device cpu`` runs tiny cases under Triton's interpreter, to see that this file works; it
measures nothing and writes nothing.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks import record
from ras_dit import importance, selection
from ras_dit.bench import environment
from ras_dit.cache import KVCache
from ras_dit.files import save_text
from ras_dit.forecast import TokenHistory
from ras_dit.kernels import REFERENCE, Operations, Tile
from ras_dit.kv_storage import KVStorage
from ras_dit.rows import RowIndex, as_words

Run = Callable[[], Any]
FOLDER = Path("outputs/bench")
ROUNDS = 100
WARM_UPS = 10
MARGIN = 0.97  # a kernel stays if it takes at most this share of the best other way
TILES = tuple(
    Tile(rows, columns, depth, 8 if rows * columns > 8192 else 4, stages)
    for rows, columns, depth, stages in ((128, 256, 64, 3), (128, 128, 64, 3), (128, 128, 32, 4), (64, 128, 64, 4))
)


@dataclass(frozen=True)
class Size:
    """Dimensions of a model's call.

    Attributes:
        name: of the model.
        num_heads: attention heads H.
        head_width: d.
        num_tokens: image tokens N.
        num_text: text tokens.
        token_width: guided noise per token.
        noise_width: noise per token as the transformer gives it (Lumina-Next's has a learned variance beside it).
        batch: rows of the transformer's batch R.
        is_turned: its attention has rotary tables.
        queries_per_key: heads of queries that share one of keys, of which H are kept.
    """

    name: str
    num_heads: int
    head_width: int
    num_tokens: int
    num_text: int
    token_width: int
    noise_width: int
    batch: int = 2
    is_turned: bool = False
    queries_per_key: int = 1

    @property
    def width(self) -> int:
        return self.num_heads * self.queries_per_key * self.head_width


REAL = (
    Size("SD3-medium", 24, 64, 4096, 333, 64, 64),
    Size("FLUX.1", 24, 128, 4096, 512, 64, 64, is_turned=True),
    Size("Lumina-Next", 8, 72, 4096, 0, 16, 32, is_turned=True, queries_per_key=4),
)
TINY = (Size("tiny", 2, 8, 24, 3, 8, 16, is_turned=True),)
RATIOS = (0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Case:
    """One operation at one size: ways to compute it, and a way to see what came out.

    Attributes:
        kernel: its name.
        what: the size.
        ratio: share of the tokens that are active.
        ways: name of a way -> runs it; ``kernel`` is one of them, or several kernels with a tile each.
        result: runs a way on fresh buffers and returns what it wrote.
        is_exact: nothing is rounded on the way.
    """

    kernel: str
    what: str
    ratio: float
    ways: dict[str, Run]
    result: Callable[[str], torch.Tensor]
    is_exact: bool = False


class Inputs:
    """Random tensors of one size, and active sets, which differ by row of the batch or are one for all."""

    def __init__(self, size: Size, ratio: float, device: str, dtype: torch.dtype, is_shared: bool = False) -> None:
        self.size, self.ratio, self.device, self.dtype, self.is_shared = size, ratio, device, dtype, is_shared
        self.generator = torch.Generator(device).manual_seed(0)
        self.num_active = round(ratio * size.num_tokens)
        noise = torch.rand(size.batch, size.num_tokens, generator=self.generator, device=device)
        noise = noise[:1].expand_as(noise) if is_shared else noise
        self.active = noise.argsort(dim=1)[:, : self.num_active].sort(dim=1).values  # [R, K]
        self.is_active = torch.zeros_like(noise, dtype=torch.bool).scatter_(1, self.active, True)

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype or self.dtype)


def merge_case(inputs: Inputs, operations: Operations) -> Case:
    """Fresh keys and values into the cache, by the cache's own code: with the kernel, and without."""
    size = inputs.size
    rows = RowIndex(inputs.active, size.num_tokens, inputs.is_shared, offset=size.num_text)
    length, num_rows = size.num_text + size.num_tokens, size.num_text + inputs.num_active
    num_repeated = size.num_heads * size.queries_per_key
    shape = (size.batch, num_rows, num_repeated, size.head_width)
    key, value = (inputs.normal(*shape).transpose(1, 2)[:, :: size.queries_per_key] for _ in range(2))
    if not size.is_turned:  # joined with the text's, without a rotary embedding behind it
        key, value = key.contiguous(), value.contiguous()
    kept = [inputs.normal(size.batch, size.num_heads, length, size.head_width) for _ in range(2)]
    ways: dict[str, Run] = {}
    caches: dict[str, KVCache] = {}
    for name, chosen in (("torch", None), ("kernel", operations), ("twin", REFERENCE)):
        cache = caches[name] = KVCache(*(tensor.clone() for tensor in kept), storage=KVStorage(operations=chosen))
        cache.aim(rows)
        if name != "twin":
            ways[name] = _bound(cache.merge, key, value)

    def by_elements(full: torch.Tensor, fresh: torch.Tensor, index: torch.Tensor) -> None:
        if inputs.is_shared:
            full.index_copy_(2, index, fresh)
        else:
            full.view(-1, size.head_width).index_copy_(0, index, fresh.reshape(-1, size.head_width))

    own = caches["torch"]
    ways["torch by elements"] = lambda: [  # instead of 64-bit words
        by_elements(full, fresh, own.index) for full, fresh in ((own.key, key), (own.value, value))
    ]

    def result(way: str) -> torch.Tensor:
        cache = caches[way]
        for tensor in (cache.key, cache.value):
            tensor.fill_(math.nan)
        return torch.stack(cache.merge(key, value))

    name = "merge_rows" if inputs.is_shared else "merge_rows, a set per image"
    return Case(name, size.name, inputs.ratio, ways, result, is_exact=True)


def fused_case(inputs: Inputs, operations: Operations) -> Case:
    """Fresh keys and values into the cache, and the keys' norm and rotary embedding on the way."""
    size = inputs.size
    length, num_rows = size.num_text + size.num_tokens, size.num_text + inputs.num_active
    shape = (size.batch, num_rows, size.num_heads, size.head_width)
    key, value = (inputs.normal(*shape).transpose(1, 2) for _ in range(2))  # as a projection leaves them
    text = torch.arange(size.num_text, device=inputs.device).expand(size.batch, -1)
    positions = torch.cat([text, inputs.active + size.num_text], dim=1)
    angles = inputs.normal(num_rows, size.head_width, dtype=torch.float32)
    options: dict[str, Any] = {"norm_eps": 1e-6, "norm_weight": inputs.normal(size.head_width)}
    if size.is_turned:
        options.update(cos=angles.cos(), sin=angles.sin())
    kept = [inputs.normal(size.batch, size.num_heads, length, size.head_width) for _ in range(2)]
    flat = _flat(positions, size.num_heads, length)

    def torch_way(kept_key: torch.Tensor, kept_value: torch.Tensor) -> None:
        """One index_copy each, the index laid out once a step."""
        for full, rows in ((kept_key, _prepared(key, options)), (kept_value, value)):
            full, rows = as_words(full, rows)
            full.view(-1, full.shape[-1]).index_copy_(0, flat, rows.reshape(-1, full.shape[-1]))

    compiled = _compiled(torch_way, inputs.device)
    functions: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
        "torch": torch_way,
        "torch compiled": compiled,
        "kernel": lambda k, v: operations.merge_rows(k, v, key, value, positions, **options),
        "twin": lambda k, v: REFERENCE.merge_rows(k, v, key, value, positions, **options),
    }

    def result(way: str) -> torch.Tensor:
        buffers = [torch.full_like(tensor, math.nan) for tensor in kept]
        functions[way](*buffers)
        return torch.stack(buffers)

    ways = {name: _bound(function, *kept) for name, function in functions.items() if name != "twin"}
    return Case("merge_rows with norm and RoPE", size.name, inputs.ratio, ways, result)


def _prepared(key: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Normalised and turned keys as a model's attention makes them."""
    key = functional.rms_norm(key, key.shape[-1:], options["norm_weight"], options["norm_eps"])
    if "cos" not in options:
        return key
    real, imaginary = key.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (key.float() * options["cos"] + turned.float() * options["sin"]).to(key.dtype)


def _flat(positions: torch.Tensor, num_heads: int, length: int) -> torch.Tensor:
    """Row numbers in [R * H * length] rows."""
    starts = torch.arange(len(positions) * num_heads, device=positions.device) * length
    return (positions[:, None, :] + starts.view(len(positions), num_heads, 1)).reshape(-1)


def linear_case(inputs: Inputs, operations: Operations, expansion: int) -> Case:
    """The paper's kernel against a matrix product of the library and a scatter."""
    size = inputs.size
    outputs = expansion * size.width
    x = inputs.normal(size.batch, inputs.num_active, size.width)
    weight, bias = inputs.normal(outputs, size.width) / size.width**0.5, inputs.normal(outputs)
    out = inputs.normal(size.batch, size.num_tokens, outputs)
    flat = _flat(inputs.active, 1, size.num_tokens)

    def torch_way(full: torch.Tensor) -> None:
        rows = functional.linear(x, weight, bias)
        full.view(-1, outputs).index_copy_(0, flat, rows.view(-1, outputs))

    functions: dict[str, Callable[[torch.Tensor], Any]] = {
        "torch": torch_way,
        "torch compiled": _compiled(torch_way, inputs.device),
        "twin": lambda full: REFERENCE.linear_scatter(x, weight, bias, inputs.active, full),
    }
    for number, tile in enumerate(TILES if inputs.device == "cuda" else (Tile(16, 16, 16, 1, 1),)):
        functions[f"kernel {number}"] = lambda full, tile=tile: operations.linear_scatter(
            x, weight, bias, inputs.active, full, tile=tile
        )

    def result(way: str) -> torch.Tensor:
        full = torch.full_like(out, math.nan)
        functions[way](full)
        return full

    ways = {name: _bound(function, out) for name, function in functions.items() if name != "twin"}
    return Case(f"linear_scatter x{expansion}", size.name, inputs.ratio, ways, result)


def top_k_case(inputs: Inputs, operations: Operations) -> Case:
    """The best K of scores that are there."""
    size = inputs.size
    scores = inputs.normal(size.batch, size.num_tokens, dtype=torch.float32).abs()
    functions = {
        name: _bound(chosen.top_k, scores, inputs.num_active)
        for name, chosen in (("torch", REFERENCE), ("kernel", operations), ("twin", REFERENCE))
    }
    ways = {name: function for name, function in functions.items() if name != "twin"}
    return Case("top_k", size.name, inputs.ratio, ways, lambda way: functions[way](), is_exact=True)


def score_case(inputs: Inputs, operations: Operations) -> Case:
    """Predicted error of every token, and the best K."""
    size = inputs.size
    values = inputs.normal(2, size.batch, size.num_tokens, size.token_width, dtype=torch.float32)
    sigmas = torch.full((2, size.batch, size.num_tokens), 0.5, device=inputs.device)
    sigmas[1] += 0.1

    history = TokenHistory(depth=2)
    history.values, history.sigmas = values, sigmas
    functions = {
        "torch": lambda: selection.top_k(importance.predicted_error(history, 0.4), inputs.num_active),
        "kernel": lambda: operations.top_k(operations.predicted_error(values, sigmas, 0.4), inputs.num_active),
    }

    def result(way: str) -> torch.Tensor:
        if way == "kernel":  # sums in another order move scores by a rounding: the scores have to agree, and the choice
            scores = operations.predicted_error(values, sigmas, 0.4)  # made of them
            chosen = operations.top_k(scores, inputs.num_active)
            assert torch.equal(chosen, REFERENCE.top_k(scores, inputs.num_active)), "top_k differs from its twin"
            return scores
        return REFERENCE.predicted_error(values, sigmas, 0.4)

    return Case("predicted_error and top_k", size.name, inputs.ratio, functions, result)


def history_case(inputs: Inputs, operations: Operations) -> Case:
    """A region step's noise into the history, a forecast of first order for the others, as presets have it."""
    size = inputs.size
    values = inputs.normal(2, size.batch, size.num_tokens, size.noise_width, dtype=torch.float32)
    sigmas = torch.full((2, size.batch, size.num_tokens), 0.5, device=inputs.device)
    sigmas += 0.1 * torch.arange(2, device=inputs.device)[:, None, None]
    tokens = inputs.normal(size.batch, size.num_tokens, size.noise_width)
    options = {"sigma": 0.4, "at": 0.4, "order": 1, "damping": 0.8, "reach": 1.0}

    def by(chosen: Operations) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        return lambda v, s: chosen.record_and_fill(v, s, tokens, inputs.is_active, **options)

    def torch_way(v: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """As the sampler does it without a kernel: into memory of its own."""
        history = TokenHistory(depth=2)
        history.values, history.sigmas = v, s
        filled = history.forecast(0.4, order=1, damping=0.8, reach=1.0)
        history.record(tokens, 0.4, inputs.is_active)
        return torch.where(inputs.is_active[..., None], tokens, filled.to(tokens.dtype))

    functions = {"torch": torch_way, "kernel": by(operations), "twin": by(REFERENCE)}

    def result(way: str) -> torch.Tensor:
        buffers = values.clone(), sigmas.clone()
        return torch.cat([functions[way](*buffers).float().flatten(), *(part.flatten() for part in buffers)])

    begin = sigmas.clone()

    def anew(function: Callable[..., Any]) -> Run:
        """A second record at one sigma would move nothing on; putting the sigmas back costs every way the same."""
        return lambda: (sigmas.copy_(begin), function(values, sigmas))

    ways = {name: anew(function) for name, function in functions.items() if name != "twin"}
    return Case("record_and_fill", size.name, inputs.ratio, ways, result)


def _bound(function: Callable[..., Any], *arguments: torch.Tensor) -> Run:
    return lambda: function(*arguments)


def _compiled(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Compiled on a GPU; on a CPU there is nothing to be learned from it."""
    return torch.compile(function, dynamic=False) if device == "cuda" else function


Maker = Callable[[Inputs, Operations], Case]
MAKERS: dict[str, tuple[Maker, bool]] = {
    "merge_rows": (merge_case, True),
    "merge_rows, a set per image": (merge_case, False),
    "top_k": (top_k_case, False),
    "predicted_error and top_k": (score_case, False),
    "record_and_fill": (history_case, False),
    "merge_rows with norm and RoPE": (fused_case, False),
    "linear_scatter x1": (functools.partial(linear_case, expansion=1), False),
    "linear_scatter x4": (functools.partial(linear_case, expansion=4), False),
}
"""Cases by their name, those that decide most first, and whether all images have one set."""


def cases(device: str, operations: Operations, only: str = "") -> list[Callable[[], Case]]:
    """Makers of all cases whose name begins so, so that one is on the device at a time."""
    sizes, dtype = (REAL, torch.bfloat16) if device == "cuda" else (TINY, torch.float32)
    made: list[Callable[[], Case]] = []
    for name, (maker, is_shared) in MAKERS.items():
        for size in sizes if name.startswith(only) else ():
            if maker is fused_case and size.queries_per_key > 1:  # Lumina-Next's norm is over all heads
                continue
            for ratio in RATIOS:

                def make(
                    size: Size = size, ratio: float = ratio, maker: Maker = maker, is_shared: bool = is_shared
                ) -> Case:
                    return maker(Inputs(size, ratio, device, dtype, is_shared), operations)

                made.append(make)
    return made


def why_wrong(case: Case) -> str | None:
    """Where a kernel does not agree with its twin; None if all do."""
    expected = case.result("twin" if case.kernel != "predicted_error and top_k" else "torch")
    for name in case.ways:
        if not name.startswith("kernel"):
            continue
        try:
            tolerance = 0.0 if case.is_exact else 2e-2
            torch.testing.assert_close(case.result(name), expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        except Exception as error:  # a tile that does not fit this device's shared memory, for one
            return f"{name}: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
    return None


HIDDEN = 2_000_000
"""Cycles for which the device sleeps in front of a way, about a millisecond: its launches are all queued by then."""


def milliseconds(ways: dict[str, Run]) -> dict[str, float]:
    """Time of every way on the device, in turns; caches are swept in between."""
    sweep = torch.empty(128 * 2**20, dtype=torch.uint8, device="cuda")
    for run in ways.values():
        for _ in range(WARM_UPS):
            run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            sweep.zero_()
            torch.cuda._sleep(HIDDEN)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: middle(values) for name, values in times.items()}


def middle(values: list[float]) -> float:
    """The mean of the middle half: finer than a median where the clock counts in half microseconds."""
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def host_milliseconds(ways: dict[str, Run]) -> dict[str, float]:
    """Median time of every way on the host, which waits for nothing: what it costs to launch."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, run in ways.items():
            torch.cuda.synchronize()
            begin = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def verdicts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """``stays`` for a kernel that wins on the device over everything else in every case of its name (up to a comma),
    costs the host as little as torch does, and is right in all, else ``goes``."""
    found: dict[str, str] = {}
    for row in rows:
        times = row.get("milliseconds", {})
        own_names = [name for name in times if name.startswith("kernel")]
        own = [times[name] for name in own_names]
        others = [time for name, time in times.items() if not name.startswith("kernel")]
        wins = row["wrong"] is None and bool(own) and min(own) <= MARGIN * min(others)
        host = row.get("host milliseconds", {})
        wins = wins and (not host or MARGIN * host[min(own_names, key=lambda name: times[name])] <= host["torch"])
        name = row["kernel"].split(",")[0]
        found[name] = "stays" if wins and found.get(name) != "goes" else "goes"
    return found


def table(rows: list[dict[str, Any]], found: dict[str, str]) -> str:
    """Milliseconds of every case, and the verdict per kernel."""
    lines = ["| kernel | model | ratio | milliseconds |", "|---|---|---|---|"]
    for row in rows:
        times = row.get("milliseconds", {})
        host = row.get("host milliseconds", {})
        text = ", ".join(f"{name} {one:.4f} (host {host.get(name, math.nan):.4f})" for name, one in times.items())
        text = text or f"none: {row['wrong'] or 'not timed'}"
        lines.append(f"| {row['kernel']} | {row['model']} | {row['ratio']} | {text} |")
    return "\n".join(lines + [""] + [f"{name}: {verdict}" for name, verdict in found.items()])


def measure(
    device: str, operations: Operations, only: str = "", finished: list[dict[str, Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """Every case: whether its kernel is right and, on a GPU, how long each way takes. What is finished is not measured
    again."""
    known = {(row["kernel"], row["model"], row["ratio"]): row for row in finished or []}
    for make in cases(device, operations, only):
        torch.compiler.reset()  # else the shapes of the cases before use up the graphs that a function may have
        case = make()
        if (row := known.get((case.kernel, case.what, case.ratio))) is not None:
            yield row
            continue
        row = {"kernel": case.kernel, "model": case.what, "ratio": case.ratio, "wrong": why_wrong(case)}
        ways = runnable(case.ways, row) if row["wrong"] is None else {}
        if device == "cuda" and row["wrong"] is None:
            row["milliseconds"], row["host milliseconds"] = milliseconds(ways), host_milliseconds(ways)
        yield row


def runnable(ways: dict[str, Run], row: dict[str, Any]) -> dict[str, Run]:
    """The ways that run here; why others do not is noted in the row. Of a kernel's that is wrong, of a rival's not."""
    found = {}
    for name, run in ways.items():
        try:
            run()
            found[name] = run
        except Exception as error:  # one way of one case: the others are measured all the same
            reason = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            row["wrong" if name.startswith("kernel") or name == "torch" else "left out"] = reason
    return found


def finished_cases(path: Path, claim: dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier run measured with the same code on the same machine. Where something failed, which may have been
    the machine's fault, it is measured again."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = found["cases"] if found.get("claim") == claim else []
    return [row for row in rows if row["wrong"] is None and "left out" not in row]


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help=f"cases whose name begins so, of {', '.join(MAKERS)}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="what is finished, to go on with")
    given = parser.parse_args(arguments)
    device = given.device
    if not any(name.startswith(given.only) for name in MAKERS):
        parser.error(f"--only: got {given.only!r}; allowed: the beginning of {', '.join(MAKERS)}")
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    elif not torch.cuda.is_available():
        raise SystemExit("benchmarks.kernels: got no CUDA device; allowed: --device cpu, to try the script out.")
    from ras_dit.kernels import triton_operations

    sizes = {size.name: asdict(size) for size in REAL}
    constants = {"triton": version("triton"), "sizes": sizes, "tiles": [asdict(tile) for tile in TILES]}
    part = given.folder / "kernels_cuda.json"
    own_hash = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    claim = json.loads(json.dumps({**environment(device), **constants, "benchmark": own_hash}))
    rows = finished_cases(part, claim) if device == "cuda" else []
    for row in measure(device, triton_operations(), given.only, list(rows)):
        if row not in rows:
            rows.append(row)
        if device == "cuda":
            print(table([row], {}), flush=True)
            save_text(json.dumps({"claim": claim, "cases": rows}, indent=1), part)
    if device == "cpu":
        print("\n".join(f"{row['kernel']}, ratio {row['ratio']}: {row['wrong'] or 'agrees'}" for row in rows))
        print("Nothing was timed and nothing was written: that takes a CUDA device.")
        if any(row["wrong"] for row in rows):
            raise SystemExit(1)
        return
    found = verdicts(rows)
    print(table(rows, found))
    if not given.only:
        result = {**constants, "verdicts": found, "cases": rows}
        print("wrote", record.write("kernels_cuda", {**record.environment(device), **result}).name)


if __name__ == "__main__":
    main()
