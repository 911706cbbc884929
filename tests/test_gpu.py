"""The contract on a CUDA device, in bfloat16; skipped without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from tiny import REGION, inputs, run, tiny_pipeline

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(call: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to("cuda", torch.bfloat16) if isinstance(v, torch.Tensor) else v for k, v in call.items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_contract(batch: int) -> None:
    pipe = tiny_pipeline(qk_norm="rms_norm").to("cuda", torch.bfloat16)
    call = on_gpu(inputs(batch=batch))
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, ras_dit.RASConfig(sample_ratio=1.0)):
        assert torch.equal(run(pipe, **call), dense)
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **call)
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert all(step.active is None or step.active.device.type == "cpu" for step in handle.trace.steps)
    assert handle.summary().measured_speedup is not None
    assert torch.equal(run(pipe, **call), dense)


def test_the_loop_does_not_wait_for_the_device() -> None:
    pipe = tiny_pipeline().to("cuda")
    call = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in inputs().items()}
    ras_dit.enable(pipe, REGION)
    run(pipe, **call)

    def forbid(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("error" if 1 <= index < 7 else "default")
        return tensors

    try:
        run(pipe, **call, callback_on_step_end=forbid)
    finally:
        torch.cuda.set_sync_debug_mode("default")
