"""The contract on a CUDA device, in bfloat16; skipped without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from ras_dit.attention import grouped_attention
from ras_dit.bench.modes import in_mode, num_recorded, num_without_graphs
from ras_dit.cache import KVCache
from ras_dit.kernels import REFERENCE, triton_operations
from ras_dit.kv_storage import KVStorage
from ras_dit.rows import RowIndex
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
    with in_mode(pipe, "reduce-overhead"):
        for _ in range(3):  # as the benchmark does, for every repetition
            with ras_dit.accelerate(pipe, config):
                again = [run(pipe, **call) for _ in range(2)][-1]
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-3)
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


@pytest.mark.parametrize("width", [64, 72, 88, 96, 128])
@pytest.mark.parametrize("is_shared", [True, False])
def test_the_kernel_that_writes_rows_agrees_with_its_twin(width: int, is_shared: bool) -> None:
    pytest.importorskip("triton")
    active = torch.stack([torch.randperm(1000, device="cuda")[:250].sort().values for _ in range(2)])
    rows = RowIndex(active[:1].expand(2, -1) if is_shared else active, 1000, is_shared, offset=77)
    kept = torch.randn(2, 2, 3, 1077, width, device="cuda", dtype=torch.bfloat16)
    fresh = torch.randn(2, 2, 327, 3, width, device="cuda", dtype=torch.bfloat16).transpose(2, 3)
    merged = []
    for operations in (None, triton_operations()):
        cache = KVCache(kept[0].clone(), kept[1].clone(), storage=KVStorage(operations=operations))
        cache.aim(rows)
        merged.append(torch.stack(cache.merge(fresh[0], fresh[1])))
    assert torch.equal(*merged)
    assert not torch.equal(merged[0], kept)


@pytest.mark.parametrize("num_tokens", [4096, 4097, 16384, 20000])
def test_the_kernel_that_chooses_agrees_with_its_twin(num_tokens: int) -> None:
    pytest.importorskip("triton")
    scores = torch.randn(2, num_tokens, device="cuda").mul(50).round()  # with ties
    scores[0, 3], scores[1, 5] = torch.nan, -torch.inf
    chosen = triton_operations().top_k(scores, num_tokens // 4)
    assert torch.equal(chosen, REFERENCE.top_k(scores, num_tokens // 4))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_kernel_that_records_agrees_with_its_twin(depth: int) -> None:
    pytest.importorskip("triton")
    values = torch.randn(depth, 2, 1000, 64, device="cuda")
    sigmas = 0.5 + 0.1 * torch.arange(depth, device="cuda")[:, None, None] + torch.zeros(depth, 2, 1000, device="cuda")
    tokens = torch.randn(2, 1000, 64, device="cuda", dtype=torch.bfloat16)
    is_active = torch.rand(2, 1000, device="cuda") < 0.25
    found = []
    for operations in (REFERENCE, triton_operations()):
        history = values.clone(), sigmas.clone()
        filled = operations.record_and_fill(*history, tokens, is_active, 0.4, 0.4, depth - 1, 0.8, 1.0)
        found.append((filled, *history))
    (expected, *expected_history), (filled, *history) = found
    torch.testing.assert_close(filled, expected, rtol=1.6e-2, atol=1.6e-2)  # a unit in the last place of bfloat16
    for expected, other in zip(expected_history, history, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-3, atol=1e-3, equal_nan=True)
