"""The peak of the memory that a loop takes beside the weights.

On a GPU: what PyTorch's allocator had given out at most, less what it had before. On a CPU: the same from the events of
PyTorch's CPU allocator (`allocated_peak`); scratch memory that a library takes by itself is in neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ras_dit.bench.loops import SHORT_STEPS, run_loop, short_call, short_config, weights_device
from ras_dit.config import RASConfig

HOW = {
    "cuda": "torch.cuda.max_memory_allocated over the loop, less what was allocated before",
    "cpu": "highest sum of PyTorch's CPU allocations and frees over a short loop (profiler's memory events)",
}


def short_peak(pipe: Any, call: dict[str, Any], config: RASConfig | None, num_steps: int = SHORT_STEPS) -> int | None:
    """Peak of a short loop beside what was there before, in bytes; None on a device that does not say.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments.
        config: has region steps; None runs without RAS.
        num_steps: evaluations; of those with RAS the first two are dense.
    """
    from ras_dit.engine import accelerate

    short, device_type = short_call(call, num_steps), weights_device(pipe).type
    if config is None:
        return peak_bytes(lambda: run_loop(pipe, short), device_type)
    before = allocated(device_type)
    with accelerate(pipe, short_config(config)):
        if config.static_memory:  # graphs are recorded first; keys and values are there from now on
            run_loop(pipe, short)
        return peak_bytes(lambda: run_loop(pipe, short), device_type, before)


def allocated(device_type: str) -> int:
    """Bytes that a GPU's allocator has given out by now; 0 elsewhere."""
    if device_type != "cuda":
        return 0
    import torch

    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def peak_bytes(run: Callable[[], Any], device_type: str, before: int | None = None) -> int | None:
    """Bytes that a loop had at most beside what was there before; None on a device that does not say.

    Args:
        run: the loop. On a CPU it is profiled, so give it a short one.
        device_type: ``cuda`` or ``cpu``.
        before: on a GPU, what was `allocated` before, if that was not just now.
    """
    if device_type == "cuda":
        return _cuda_peak(run, allocated(device_type) if before is None else before)
    return allocated_peak(run) if device_type == "cpu" else None


def _cuda_peak(run: Callable[[], Any], before: int) -> int:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def allocated_peak(run: Callable[[], Any]) -> int:
    """The highest sum of allocations and frees that PyTorch's CPU allocator reported while this ran."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    changes = [(event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak


def memory_row(dense_peak: int | None, peak: int | None, estimate: int) -> dict[str, Any]:
    """What RAS takes beyond a dense loop, beside what the plan says its cache holds.

    Args:
        dense_peak: of the dense loop.
        peak: of the loop with RAS.
        estimate: `Cost.kv_cache_bytes` of all rows.

    Returns:
        ``peak_bytes``, ``extra_bytes``, ``kv_cache_estimate_bytes`` and ``extra_over_estimate`` (None without a
        cache).
    """
    if peak is None or dense_peak is None:
        unknown = dict.fromkeys(("peak_bytes", "extra_bytes", "extra_over_estimate"))
        return {**unknown, "kv_cache_estimate_bytes": estimate}
    extra = peak - dense_peak
    return {
        "peak_bytes": peak,
        "extra_bytes": extra,
        "kv_cache_estimate_bytes": estimate,
        "extra_over_estimate": round(extra / estimate, 4) if estimate else None,
    }
