"""Speed: dense and RAS interleaved in one process, medians, beside the limit that the FLOPs set.

``python -m benchmarks.run --case mid`` writes ``benchmarks/results/speed_mid.json``.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from benchmarks.cases import CASES, Case
from ras_dit import RASConfig

GROUPS = {
    "attention": ("scaled_dot_product", "flash", "fmha"),
    "linear": ("addmm", "mm", "gemm", "linear", "bmm", "matmul", "convolution", "cutlass", "nvjet"),
    "activation": ("gelu", "silu"),
    "norm": ("norm", "pow", "mean", "rsqrt", "sum"),
    "moving rows": ("copy", "cat", "index", "gather", "scatter", "clone", "where", "sort", "topk"),
}


def timed(pipe: Any, call: dict[str, Any], device: str) -> float:
    """Seconds of one call, the generator rewound first."""
    if generator := call.get("generator"):
        generator.manual_seed(0)
    _synchronize(device)
    started = time.perf_counter()
    with torch.no_grad():
        pipe(**call)
    _synchronize(device)
    return time.perf_counter() - started


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def check_equivalence(pipe: Any, call: dict[str, Any]) -> None:
    """No figure without it: at ratio 1 the same run is bit-equal, and a region run differs and is finite."""
    short = {**call, "num_inference_steps": 4}

    def latents() -> torch.Tensor:
        if generator := short.get("generator"):
            generator.manual_seed(0)
        return pipe(**short).images

    dense = latents()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        if not torch.equal(latents(), dense):
            raise SystemExit("benchmark: ratio 1 is not bit-equal to the dense run; no figures.")
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=1)):
        region = latents()
    if torch.equal(region, dense) or not torch.isfinite(region).all():
        raise SystemExit("benchmark: the region run equals the dense one or is not finite; no figures.")


def measure(case: Case, device: str, repeats: int, num_steps: int) -> list[dict[str, Any]]:
    """One row per config, dense first; every repetition runs all of them once, in turn."""
    pipe = case.make(device)
    pipe.set_progress_bar_config(disable=True)
    call = {**case.call(pipe, device), "num_inference_steps": num_steps}
    check_equivalence(pipe, call)
    seconds: dict[str, list[float]] = {name: [] for name in ("dense", *case.configs)}
    handles: dict[str, Any] = {}
    for repetition in tqdm(range(repeats), desc=case.title):
        for name in tqdm(seconds, leave=False):
            if name == "dense":
                seconds[name].append(timed(pipe, call, device))
                continue
            with ras_dit.accelerate(pipe, case.configs[name]) as handle:
                seconds[name].append(timed(pipe, call, device))
            handles[name] = handle
        if repetition == 0 and repeats > 2:
            for times in seconds.values():
                times.clear()  # the first round warms up
    dense = statistics.median(seconds["dense"])
    rows = [{"name": "dense", "seconds": seconds["dense"], "median": dense, "speedup": 1.0}]
    for name, config in case.configs.items():
        rows.append(_row(name, config, seconds[name], dense, handles[name]))
    for row in rows:
        row["steps"] = num_steps
    if device == "cpu":
        rows[0]["profile"] = profile(pipe, call, None)
        rows[-1]["profile"] = profile(pipe, call, case.configs[rows[-1]["name"]])
    return rows


def _row(name: str, config: RASConfig, seconds: list[float], dense: float, handle: Any) -> dict[str, Any]:
    plan, trace = handle._session.plan, handle.trace
    steps = {kind: [s.seconds for s in trace.steps if s.kind == kind] for kind in ("dense", "region")}
    dense_step, region_step = (statistics.median(times) if times else None for times in steps.values())
    counts = [step.num_active for step in plan if step.kind == "region"]
    speedup = dense / statistics.median(seconds)
    return {
        "name": name,
        "config": config.to_dict(),
        "seconds": seconds,
        "median": statistics.median(seconds),
        "speedup": speedup,
        "limit": plan.speedup_limit,
        "share_of_limit": speedup / plan.speedup_limit,
        "token_steps": plan.token_steps,
        "dense_step": dense_step,
        "region_step": region_step,
        "num_active": counts[0] if counts else None,
        "num_tokens": plan.num_tokens,
        "kv_cache_bytes_per_row": plan.cost.kv_cache_bytes,
    }


def profile(pipe: Any, call: dict[str, Any], config: RASConfig | None) -> dict[str, float]:
    """Milliseconds per kind of operation of the last transformer call of a 3-step run (CPU)."""
    spans: list[Any] = []
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    calls = {"n": 0}

    def before(*_: Any) -> None:
        calls["n"] += 1
        if calls["n"] == 3:
            profiler.__enter__()
            spans.append(time.perf_counter())

    def after(*_: Any) -> None:
        if calls["n"] == 3:
            spans.append(time.perf_counter())
            profiler.__exit__(None, None, None)

    short = {**call, "num_inference_steps": 3}
    chosen = None if config is None else config.replace(warmup_steps=1, refresh_steps=(), refresh_every=None)
    handle = None if chosen is None else ras_dit.enable(pipe, chosen)
    hooks = [pipe.transformer.register_forward_pre_hook(before), pipe.transformer.register_forward_hook(after)]
    try:
        timed(pipe, short, "cpu")
    finally:
        for hook in hooks:
            hook.remove()
        if handle is not None:
            handle.disable()
    wall = (spans[1] - spans[0]) * 1e3
    groups = dict.fromkeys(GROUPS, 0.0) | {"other": 0.0}
    for event in profiler.key_averages():
        name = next((group for group, words in GROUPS.items() if any(w in event.key for w in words)), "other")
        groups[name] += event.self_cpu_time_total / 1e3
    return {name: round(value, 3) for name, value in groups.items()} | {"wall": round(wall, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="default: those that fit this machine")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="interleaved repetitions (the first of 3 or more warms up)")
    parser.add_argument("--steps", type=int, help="evaluations, for a quick look")
    arguments = parser.parse_args()
    warnings.simplefilter("error", ras_dit.RASWarning)
    names = arguments.case or [name for name in CASES if name != "sd3-medium" or arguments.device == "cuda"]
    for name in names:
        case = CASES[name]
        repeats, num_steps = arguments.repeats or case.repeats, arguments.steps or case.num_steps
        rows = measure(case, arguments.device, repeats, num_steps)
        for row in rows:
            limit = "" if row["name"] == "dense" else f"  limit {row['limit']:.2f}x  {row['share_of_limit']:.0%} of it"
            print(f"{row['name']:<14} {row['median']:8.3f} s  {row['speedup']:.2f}x{limit}")
        if arguments.steps is None:
            device = {"device": arguments.device, "repeats": repeats, "case": name, "title": case.title}
            suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
            print("wrote", record.write(f"speed_{name}{suffix}", {**record.environment(), **device, "rows": rows}).name)


if __name__ == "__main__":
    main()
