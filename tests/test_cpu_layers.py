"""Layers on a CPU in as many calls as are fastest: the same rows, in region steps only, and undone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from checks import compiling
from ras_dit import cpu_layers
from ras_dit.cpu_layers import CPULayers, fastest, in_parts
from tiny import REGION, inputs, run, tiny_pipeline

CPU = torch.device("cpu")
# bfloat16 has 8 bits; the sum over 64 inputs is rounded once
BF16 = {"rtol": 2**-7, "atol": 2**-6}


class Counted(nn.Linear):
    """Notes how many rows it is called with. Not a plain layer: `CPULayers` leaves it alone."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        vars(self).setdefault("seen", []).append(rows.shape[0])
        return super().forward(rows)


def layers_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch, parts: int) -> CPULayers:
    """Every size counts as large, and is fastest in this many calls."""
    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
    monkeypatch.setattr(cpu_layers, "fastest", lambda layer, rows: parts)
    return CPULayers(model, lambda name: "image")


def half_pipeline() -> tuple[Any, dict[str, Any]]:
    pipe = tiny_pipeline().to(torch.bfloat16)
    return pipe, {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in inputs().items()}


@pytest.mark.parametrize("num_parts", [2, 3, 4, 9])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_parts_are_the_whole(num_parts: int, rows: int) -> None:
    layer = Counted(8, 5)
    given = torch.randn(rows, 8)
    result = in_parts(layer, given, num_parts)
    assert sum(layer.seen) == rows
    assert len(layer.seen) == num_parts
    assert torch.allclose(result, nn.functional.linear(given, layer.weight, layer.bias), atol=1e-6)


def test_the_fastest_number_of_calls_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that charges every call by its rows: half the rows take a fifth of the time, a quarter no less."""
    clock = {"now": 0.0}
    monkeypatch.setattr(cpu_layers.time, "perf_counter", lambda: clock["now"])

    def layer(rows: torch.Tensor) -> torch.Tensor:
        clock["now"] += {64: 10.0, 32: 2.0, 16: 2.0}[rows.shape[0]]
        return rows

    assert fastest(layer, torch.zeros(64, 1)) == 2


@torch.no_grad()
def test_rows_are_split_in_region_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = nn.Linear(64, 32).bfloat16(), []
    given = torch.randn(2, 10, 64).bfloat16()
    whole = layer(given)
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda rows: calls.append(rows.numel() // 64) or forward(rows))
    layers = layers_of(layer, monkeypatch, parts=4)
    assert torch.equal(layer(given), whole)
    layers.aim({"image": 20}, CPU)
    assert torch.allclose(layer(given), whole, **BF16)
    layers.clear()
    assert torch.equal(layer(given), whole)
    assert calls == [20, 5, 5, 5, 5, 20]
    assert layers.parts == {(20, 64, 32): 4}
    layers.close()
    layer(given)
    assert calls == [20, 5, 5, 5, 5, 20, 20]


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(64, 32),
        nn.Conv2d(4, 8, 2, 2),
        Counted(64, 32).bfloat16(),
        nn.Conv2d(4, 8, 3).bfloat16(),
        nn.LayerNorm(64).bfloat16(),
    ],
    ids=["32 bits", "patches in 32 bits", "subclass", "convolution with overlap", "norm"],
)
def test_other_layers_are_left_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    layers_of(model, monkeypatch, parts=2)
    assert "forward" not in vars(model)


@torch.no_grad()
def test_deterministic_algorithms_small_layers_and_other_streams_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of(nn.Linear(64, 32).bfloat16(), monkeypatch, parts=2)
    torch.use_deterministic_algorithms(True)
    try:
        layers.aim({"image": 8}, CPU)
    finally:
        torch.use_deterministic_algorithms(False)
    layers.aim({"text": 8}, CPU)
    layers.aim({"image": 8}, torch.device("cuda"))  # offloaded weights are still on the CPU at this point
    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 1e12)
    layers.aim({"image": 8}, CPU)
    assert layers.parts == {}
    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
    layers.aim({"image": 8}, CPU)
    assert layers.parts[8, 64, 32] == 2


@torch.no_grad()
def test_patch_embeddings_take_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = nn.Conv2d(4, 64, 2, stride=2).bfloat16()
    picture = torch.randn(2, 4, 16, 16).bfloat16()
    plain = embed(picture)
    layers = layers_of(embed, monkeypatch, parts=1)
    assert embed(picture).is_contiguous()
    layers.aim({}, CPU)
    result = embed(picture)
    assert torch.allclose(result, plain, **BF16)
    assert result.flatten(2).transpose(1, 2).is_contiguous(), "rows of tokens, without a copy"
    layers.close()
    assert "forward" not in vars(embed)


def test_streams_are_counted_as_the_layers_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer that is split is handed as many rows as were timed for it."""
    seen: set[tuple[int, int, int]] = set()

    def watched(layer: Any, rows: torch.Tensor, num_parts: int) -> torch.Tensor:
        result = layer(rows)
        seen.add((rows.shape[0], rows.shape[1], result.shape[1]))
        return result

    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
    monkeypatch.setattr(cpu_layers, "fastest", lambda layer, rows: 2)
    monkeypatch.setattr(cpu_layers, "in_parts", watched)
    for config in (REGION, REGION.replace(text_reuse=True)):
        seen.clear()
        pipe, call = half_pipeline()
        with ras_dit.accelerate(pipe, config) as handle:
            run(pipe, **call)
            parts = handle._session._attached[pipe.transformer].cpu_layers.parts
        assert seen <= set(parts)
        assert len(seen) >= 3


@torch.no_grad()
def test_split_layers_compile_with_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
    monkeypatch.setattr(cpu_layers, "fastest", lambda layer, rows: 2)
    pipe, call = half_pipeline()
    counter = CompileCounterWithBackend("aot_eager")
    with compiling():
        with ras_dit.accelerate(pipe, REGION):
            expected = run(pipe, **call)
        for block in pipe.transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=counter)
        with ras_dit.accelerate(pipe, REGION):
            assert torch.allclose(run(pipe, **call).float(), expected.float(), rtol=0.1, atol=0.1)
            num_graphs = counter.frame_count
            run(pipe, **call)
            assert counter.frame_count == num_graphs > 0


def test_a_run_with_split_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture but for rounding, no layer touched by dense steps, and everything undone."""
    pipe, call = half_pipeline()
    monkeypatch.setattr(cpu_layers, "fastest", lambda layer, rows: 3)
    with ras_dit.accelerate(pipe, REGION) as handle:
        whole = run(pipe, **call)
        assert handle._session._attached[pipe.transformer].cpu_layers.parts == {}, "tiny layers stay whole"
        monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
        split = run(pipe, **call)
        parts = handle._session._attached[pipe.transformer].cpu_layers.parts
    num_active = 24 * len(call["prompt_embeds"]) * 2
    assert {rows for rows, _, _ in parts} == {num_active, 7 * 2}, "image and text; modulation has no rows of tokens"
    assert torch.allclose(split.float(), whole.float(), rtol=0.1, atol=0.1)
    with ras_dit.accelerate(pipe, ras_dit.RASConfig(sample_ratio=1.0)):
        dense = run(pipe, **call)
    assert torch.equal(dense, run(pipe, **call))
    assert all("forward" not in vars(module) for module in pipe.transformer.modules())


def test_layers_are_timed_once_however_often_a_picture_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed is the picture, not the timing of its layers."""
    timed: list[int] = []
    monkeypatch.setattr(cpu_layers, "MIN_FLOPS", 0)
    monkeypatch.setattr(cpu_layers, "fastest", lambda forward, rows: timed.append(len(rows)) or 1)
    pipe, known = tiny_pipeline(), {}
    pipe.transformer.bfloat16()
    call = {name: value.bfloat16() if isinstance(value, torch.Tensor) else value for name, value in inputs().items()}
    counts = []
    for _ in range(2):
        with torch.no_grad(), ras_dit.accelerate(pipe, REGION) as handle:
            handle._session.layer_timings.update(known)
            run(pipe, **call)
            known = handle._session.layer_timings
        counts.append(len(timed))
    assert counts[0] > 0
    assert counts[1] == counts[0]
