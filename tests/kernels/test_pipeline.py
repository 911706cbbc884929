"""A whole pipeline with kernels against the same without."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from kernels.tensors import DEVICE
from ras_dit import RASConfig
from tiny import inputs, run, tiny_pipeline

ROUNDING = 1e-4  # of latents near 1, over ten steps


def runs(config: RASConfig, batch: int, **changes: Any) -> tuple[list[Any], list[torch.Tensor]]:
    """Traces and latents with torch and with kernels."""
    pipe = tiny_pipeline(**changes).to(DEVICE)
    call = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in inputs(batch=batch).items()}
    traces, latents = [], []
    for choice in ("torch", "triton"):
        with ras_dit.accelerate(pipe, config.replace(kernels=choice)) as handle:
            latents.append(run(pipe, **call))
        traces.append(handle.trace)
    return traces, latents


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        ({}, 2),
        ({"forecast_order": 2, "forecast_damping": 0.8, "skip_steps": (6,), "kv_forecast": 0.8}, 1),
        ({"solver_order": 2, "forecast_order": 1, "text_reuse": True}, 2),
        ({"neighbor_update": 0.5, "forecast_order": 1, "kv_cache_dtype": "bfloat16"}, 1),
        ({"score_filter": "blur", "anchor_stride": 3, "kv_cache_layers": 0.5}, 2),
        ({"importance": "std", "refresh_tolerance": 10.0}, 1),
    ],
    ids=lambda value: ",".join(value) or "defaults" if isinstance(value, dict) else str(value),
)
def test_kernels_give_the_same_trace_and_latents(options: dict[str, Any], batch: int) -> None:
    traces, latents = runs(RASConfig(sample_ratio=0.25, warmup_steps=3, **options), batch)
    assert traces[0].notes == traces[1].notes
    assert [step.kind for step in traces[0].steps] == [step.kind for step in traces[1].steps]
    assert "region" in [step.kind for step in traces[1].steps]
    for expected, step in zip(traces[0].steps, traces[1].steps, strict=True):
        assert (expected.active is None) == (step.active is None)
        assert expected.active is None or torch.equal(step.active, expected.active)
    torch.testing.assert_close(latents[1], latents[0], rtol=ROUNDING, atol=ROUNDING)


def test_the_reference_rules_take_the_merge_alone() -> None:
    traces, latents = runs(RASConfig.reference(sample_ratio=0.5, start_step=3), 2)
    assert all(torch.equal(a.active, b.active) for a, b in zip(*(t.steps[3:] for t in traces), strict=True))
    torch.testing.assert_close(latents[1], latents[0], rtol=ROUNDING, atol=ROUNDING)


def test_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of those wired in is called in a run of the defaults, and none without being asked for."""
    from ras_dit.kernels import triton_choice, triton_history, triton_merge

    seen: list[str] = []
    homes = {
        triton_merge: ("merge_rows",),
        triton_choice: ("predicted_error", "top_k"),
        triton_history: ("record_and_fill",),
    }
    for module, names in homes.items():
        for name in names:
            original = getattr(module, name)

            def counting(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
                seen.append(name)
                return original(*args, **kwargs)

            monkeypatch.setattr(module, name, counting)
    pipe = tiny_pipeline().to(DEVICE)
    call = {key: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for key, x in inputs().items()}
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=3)):
        run(pipe, **call)
    assert seen == []
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=3, kernels="triton")):
        run(pipe, **call)
    counts = {name: seen.count(name) for names in homes.values() for name in names}
    assert counts == {"merge_rows": 7 * 3, "predicted_error": 7, "top_k": 7, "record_and_fill": 7}
