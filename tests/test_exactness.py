"""What must hold bit for bit: idle hooks, ratio 1, undo, and the noise of slow tokens (others: test_families.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from checks import fingerprint
from ras_dit import RASConfig
from tiny import inputs, run, tiny_pipeline

REGION = RASConfig(sample_ratio=0.3, warmup_steps=2, refresh_steps=(6,))

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3.5-large": {"qk_norm": "rms_norm"},
    "sd3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
CALLS: dict[str, dict[str, Any]] = {
    "cfg": {},
    "no-cfg": {"guidance_scale": 1.0},
    "batch": {"batch": 3},
    "tall": {"height": 14, "width": 5},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("call", CALLS)
def test_ratio_one_and_undo_are_bit_equal(architecture: str, call: str) -> None:
    pipe = tiny_pipeline(**ARCHITECTURES[architecture])
    dense = run(pipe, **inputs(**CALLS[call]))
    before = fingerprint(pipe)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)) as handle:
        assert torch.equal(run(pipe, **inputs(**CALLS[call])), dense)
    assert all(step.kind == "dense" and step.active is None for step in handle.trace.steps)
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **inputs(**CALLS[call]))
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert [step.kind for step in handle.trace.steps] == [step.kind for step in handle.plan(10, 128, 192)]
    assert fingerprint(pipe) == before
    assert torch.equal(run(pipe, **inputs(**CALLS[call])), dense)


def test_a_run_without_region_steps_is_bit_equal() -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs(num_inference_steps=3))
    ras_dit.enable(pipe, RASConfig(sample_ratio=0.5, warmup_steps=4))
    with pytest.warns(ras_dit.RASWarning, match="all of them dense"):
        assert torch.equal(run(pipe, **inputs(num_inference_steps=3)), dense)


@torch.no_grad()
def test_slow_tokens_keep_their_noise_at_order_zero() -> None:
    pipe = tiny_pipeline()
    call = inputs(guidance_scale=1.0, num_inference_steps=4)
    outputs: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
    config = RASConfig(sample_ratio=0.5, warmup_steps=1, forecast_order=0)
    with ras_dit.accelerate(pipe, config) as handle:
        hook.remove()  # registered before: it saw the gathered output; register behind RAS instead
        hook = pipe.transformer.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
        run(pipe, **call)
    hook.remove()
    grid = ras_dit.TokenGrid(8, 12, 2)
    for index in (1, 2, 3):
        active = handle.trace.steps[index].active
        assert active is not None
        slow = torch.ones(96, dtype=torch.bool)
        slow[active[0]] = False
        now, before = grid.patchify(outputs[index])[0], grid.patchify(outputs[index - 1])[0]
        assert torch.equal(now[slow], before[slow])
        assert not torch.equal(now[~slow], before[~slow])


@pytest.mark.parametrize("importance", ["error", "std", "l2norm", "random", "round_robin"])
def test_error_falls_to_zero_as_the_ratio_goes_to_one(importance: str) -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs(guidance_scale=1.0))
    errors = []
    for ratio in (0.1, 0.5, 0.9, 0.99):
        config = RASConfig(sample_ratio=ratio, warmup_steps=2, importance=importance)  # type: ignore[arg-type]
        with ras_dit.accelerate(pipe, config):
            errors.append(float((run(pipe, **inputs(guidance_scale=1.0)) - dense).norm() / dense.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert errors[-1] > 0
