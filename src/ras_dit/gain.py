"""Will it help? The time of a plan predicted from the model's own layers, the batch, and the rates of the device.

FLOPs alone promise too much to small models and pictures: every operation has a fixed cost that does not shrink with
the tokens, and a region step moves rows about in every attention layer. The prediction is arithmetic on constants (on
measured ones only if `DeviceRates.measured` is asked for), so that the same call is predicted alike every time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from ras_dit.config import RASConfig
from ras_dit.flops import Layers
from ras_dit.plan import Cost, Plan, StepKind, Work

SMALL_GAIN = 1.05
"""A predicted speed-up below this is not worth an approximation."""
OPERATIONS_PER_MODULE = 2.5
"""Operations of an evaluation per module without children, as counted on Stable Diffusion 3's blocks (2.1 without norms
of queries and keys, 2.6 with them)."""


@dataclass(frozen=True)
class Load:
    """What has to be paid for in a time; the rates of `DeviceRates` are its prices.

    Attributes:
        linear_flops: of linear and convolution layers.
        attention_flops: of attention.
        moved_bytes: read and written in the device's memory.
        transferred_bytes: carried between host and device.
        operations: calls of kernels.
        region_layers: attention layers of region steps.
        steps: evaluations, with what the loop does around the transformer.
    """

    linear_flops: float = 0.0
    attention_flops: float = 0.0
    moved_bytes: float = 0.0
    transferred_bytes: float = 0.0
    operations: float = 0.0
    region_layers: float = 0.0
    steps: float = 0.0


@dataclass(frozen=True)
class DeviceRates:
    """What a device is taken to do, as a denoising loop sees it (not what its data sheet says).

    Attributes:
        linear_flops: FLOP per second of linear layers.
        attention_flops: FLOP per second of attention.
        bandwidth: bytes per second of its memory.
        transfer: bytes per second between host and device.
        operation: seconds that every operation costs, however small: a launch, on a GPU.
        region_layer: seconds that a region step adds in every attention layer, beside the bytes it moves.
        step: seconds per evaluation that scheduler, guidance and choice of tokens take.
        runs_ahead: operations are launched ahead of the device's work, so that a call takes the longer of the two.
    """

    linear_flops: float
    attention_flops: float
    bandwidth: float
    transfer: float
    operation: float
    region_layer: float
    step: float
    runs_ahead: bool = False

    def seconds(self, load: Load) -> float:
        """Predicted time of a load."""
        work = (
            load.linear_flops / self.linear_flops
            + load.attention_flops / self.attention_flops
            + load.moved_bytes / self.bandwidth
            + load.transferred_bytes / self.transfer
        )
        fixed = load.operations * self.operation + load.region_layers * self.region_layer
        return load.steps * self.step + (max(work, fixed) if self.runs_ahead else work + fixed)

    @classmethod
    def of(cls, device: torch.device | str, dtype: torch.dtype = torch.float32) -> DeviceRates:
        """The constants of a kind of device; every device of the kind has the same, and so has every number of threads.

        Args:
            device: a CPU, or anything else, which is taken for a GPU. Of ``meta`` it is a GPU's if there is one.
            dtype: the transformer computes in; 16 bits or less make one class.
        """
        kind, is_half = torch.device(device).type, dtype.itemsize <= 2
        if kind == "meta":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind == "cpu":
            return CPU_HALF if is_half else CPU_SINGLE
        return GPU_HALF if is_half else GPU_SINGLE

    @classmethod
    def measured(cls, device: torch.device | str, dtype: torch.dtype = torch.float32, width: int = 1536) -> DeviceRates:
        """The rates of this very device, taken in well under a second. They differ from one time to the next.

        Args:
            device: to measure on.
            dtype: of the layers.
            width: channels of the model.
        """
        known, device = cls.of(device, dtype), torch.device(device)
        num_rows, num_heads = 512 if device.type == "cpu" else 4096, max(1, width // 64)
        weight = torch.ones(width, width, device=device, dtype=dtype)
        rows = torch.ones(num_rows, width, device=device, dtype=dtype)
        heads = torch.ones(1, num_heads, num_rows, 64, device=device, dtype=dtype)
        with torch.no_grad():
            operation = _seconds_of(
                lambda: functional.layer_norm(rows[:1], (width,)), device, num_calls=50, is_queued=known.runs_ahead
            )
            for_linear = _seconds_of(lambda: functional.linear(rows, weight), device)
            for_attention = _seconds_of(lambda: functional.scaled_dot_product_attention(heads, heads, heads), device)
            for_copy = _seconds_of(rows.clone, device)
        scale = operation / known.operation
        return replace(
            known,
            linear_flops=2 * num_rows * width**2 / for_linear,
            attention_flops=4 * num_rows**2 * 64 * num_heads / for_attention,
            bandwidth=2 * rows.nbytes / for_copy,
            operation=operation,
            region_layer=known.region_layer * scale,
            step=known.step * scale,
        )


# Fitted to benchmarks/results/speed_*.json by `python -m benchmarks.fit_gain` (two threads, AMX for 16 bits).
CPU_SINGLE = DeviceRates(
    linear_flops=2.3e11,
    attention_flops=6.8e11,
    bandwidth=1.1e10,
    transfer=1.1e10,
    operation=9.1e-6,
    region_layer=1.3e-3,
    step=1.5e-3,
)
CPU_HALF = replace(CPU_SINGLE, linear_flops=8.8e11, attention_flops=8.5e11)

# Assumed, not measured: a data-centre GPU in eager mode.
GPU_HALF = DeviceRates(
    linear_flops=2.5e14,
    attention_flops=2.0e14,
    bandwidth=1.0e12,
    transfer=2.0e10,
    operation=7.0e-6,
    region_layer=1.0e-4,
    step=1.0e-3,
    runs_ahead=True,
)
GPU_SINGLE = replace(GPU_HALF, linear_flops=3.0e13, attention_flops=2.0e13)


def _seconds_of(
    operation: Callable[[], Any], device: torch.device, num_calls: int = 1, is_queued: bool = False
) -> float:
    """The least seconds of a call; of the launch alone if it is queued."""
    operation()
    best = float("inf")
    for _ in range(3):
        _wait(device)
        started = time.perf_counter()
        for _ in range(num_calls):
            operation()
        if not is_queued:
            _wait(device)
        best = min(best, (time.perf_counter() - started) / num_calls)
    return max(best, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


# ---------------------------------------------------------------------- from a plan to its time


@dataclass(frozen=True)
class Model:
    """What the prediction has to know of a transformer beside its FLOPs.

    Attributes:
        num_operations: of an evaluation.
        num_layers: attention modules.
        element_size: bytes of a number.
        device: it runs on.
        dtype: of its parameters.
    """

    num_operations: float
    num_layers: int
    element_size: int
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, layers: Layers, device: torch.device) -> Model:
        """Of a transformer's layers; ``device`` is where it runs (offloaded weights lie elsewhere in between)."""
        num_operations, dtype = OPERATIONS_PER_MODULE * layers.num_leaves, layers.dtype
        return cls(num_operations, len(layers.attention), dtype.itemsize, device, dtype)


def with_prediction(
    plan: Plan, config: RASConfig, model: Model, num_rows: int, rates: DeviceRates | None = None, num_parts: int = 1
) -> Plan:
    """A plan whose cost says how long its steps will take.

    Args:
        plan: with its cost.
        config: its cache options move bytes.
        model: see there.
        num_rows: rows R of the transformer's batch: images times guidance rows of one call.
        rates: of the device; None takes the constants of its kind.
        num_parts: images that region steps compute one after the other (`ras_dit.by_image`).
    """
    cost = plan.cost
    assert cost is not None
    rates = rates or DeviceRates.of(model.device, model.dtype)
    loads = {
        count: evaluation_load(
            config, cost, model, num_rows, "dense" if count == plan.num_tokens else "region", work, num_parts
        )
        for count, work in cost.work_of.items()
    }
    loads[0] = Load(steps=1)
    seconds = {count: rates.seconds(load) for count, load in loads.items()}
    capture = rates.seconds(capture_load(config, cost, num_rows))
    return replace(plan, cost=replace(cost, seconds_of=seconds, capture_seconds=capture, num_rows=num_rows))


def evaluation_load(
    config: RASConfig, cost: Cost, model: Model, num_rows: int, kind: StepKind, work: Work, num_parts: int = 1
) -> Load:
    """What one evaluation that computes tokens has to pay for, all rows of the batch; region steps in parts."""
    moved, transferred, num_calls, layers = work.num_moved * model.element_size, 0.0, 1, 0
    if kind == "region":
        num_calls, layers = num_parts, num_parts * model.num_layers
        moved += _moved_of_cache(config, cost, work)
        transferred = cost.kv_cache_bytes if config.kv_cache_device and model.device.type != "cpu" else 0.0
    return Load(
        linear_flops=num_rows * work.linear_flops,
        attention_flops=num_rows * work.attention_flops,
        moved_bytes=num_rows * moved,
        transferred_bytes=num_rows * transferred,
        operations=num_calls * model.num_operations,
        region_layers=layers,
        steps=1,
    )


def _moved_of_cache(config: RASConfig, cost: Cost, work: Work) -> float:
    """Bytes of keys and values that a region step reads and writes beside attention, one row of the batch."""
    dense = max(cost.work_of.values(), key=lambda each: each.num_moved)
    size = cost.kv_cache_bytes / (2 if config.kv_forecast else 1)  # keys and values, without their slopes
    moved = 2 * size * work.num_moved / dense.num_moved  # fresh rows: read, and written into the cache
    if config.kv_forecast:
        moved += 3 * size + moved  # kept rows and slopes read, kept rows written; the slopes of fresh rows learned
    if config.kv_cache_dtype is not None or config.kv_cache_device is not None:
        moved += 3 * size  # all of it converted: read in the short type, written in the long one
    return moved


def capture_load(config: RASConfig, cost: Cost, num_rows: int) -> Load:
    """What a dense evaluation pays for besides if its keys and values are kept: they are taken as they are, unless they
    are converted, or their slopes learned."""
    if config.kv_forecast:
        return Load(moved_bytes=4 * cost.kv_cache_bytes * num_rows)
    is_copied = config.kv_cache_dtype is not None or config.kv_cache_device is not None
    return Load(moved_bytes=2.0 * cost.kv_cache_bytes * num_rows if is_copied else 0.0)


# ---------------------------------------------------------------------- what to tell the user


def is_small(plan: Plan) -> bool:
    """Whether a plan that leaves something out is predicted to gain less than is worth while."""
    predicted = plan.predicted_speedup
    return plan.has_savings and predicted is not None and predicted < SMALL_GAIN


def why_small(plan: Plan) -> str:
    """The predicted gain of a plan, the reason, and what to do about it."""
    predicted = f"predicted speed-up {plan.predicted_speedup:.2f}x (limit by FLOPs {plan.speedup_limit:.2f}x)"
    if plan.speedup_limit < SMALL_GAIN:
        return f"{predicted}: the plan leaves little out. Take a smaller sample_ratio, fewer dense steps or more steps."
    return (
        f"{predicted}: model, picture or batch are so small that the fixed cost of every operation outweighs what "
        "region steps leave out. Take a larger batch, or a preset that skips whole steps ('balanced')."
    )
