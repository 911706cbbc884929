"""The contract on a CUDA device, in bfloat16; skipped without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from ras_dit.attention import grouped_attention
from ras_dit.bench.modes import in_mode, num_recorded, num_without_graphs
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


@pytest.mark.parametrize("options", [{}, {"importance": "random"}])
def test_the_loop_does_not_wait_for_the_device(options: dict[str, Any]) -> None:
    pipe = tiny_pipeline().to("cuda")
    call = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in inputs().items()}
    ras_dit.enable(pipe, REGION.replace(**options))
    run(pipe, **call)

    def forbid(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        torch.cuda.set_sync_debug_mode("error" if 1 <= index < 7 else "default")
        return tensors

    try:
        run(pipe, **call, callback_on_step_end=forbid)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_cuda_graphs_are_recorded_once() -> None:
    pipe = tiny_pipeline().to("cuda")
    call = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in inputs().items()}
    config = REGION.replace(static_memory=True)
    with ras_dit.accelerate(pipe, config):
        expected = run(pipe, **call)
    device, without_graphs = pipe.transformer.device, num_without_graphs()
    with in_mode(pipe, "reduce-overhead"), ras_dit.accelerate(pipe, config):
        for _ in range(3):
            run(pipe, **call)
        before = num_recorded(device)
        found = run(pipe, **call)
        assert num_recorded(device) == before + 1, "asking takes a number itself"
    assert before > 0
    assert num_without_graphs() == without_graphs
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_takes_a_fused_kernel(dtype: torch.dtype, with_mask: bool) -> None:
    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda", dtype=dtype)

    query, key, value = normal(2, 8, 64, 72), normal(2, 2, 512, 72), normal(2, 2, 512, 72)
    mask = torch.rand(2, 1, 1, 512, device="cuda") > 0.3 if with_mask else None
    repeated = (tensor.repeat_interleave(4, dim=1) for tensor in (key, value))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, mask)
    fused = [torch.nn.attention.SDPBackend.FLASH_ATTENTION, torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION]
    with torch.nn.attention.sdpa_kernel(fused):
        found = grouped_attention(query, key, value, mask)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
