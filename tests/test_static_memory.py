"""Keys and values that stay at their addresses, as CUDA graphs need: same pictures, same memory, freed on disable."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from checks import compiling
from families import one_case_per_class, wan
from families.case import FamilyCase
from ras_dit import Handle, RASConfig
from ras_dit.cache import KVCache
from tiny import inputs, run, tiny_pipeline

CONFIG = RASConfig(sample_ratio=0.25, warmup_steps=2, refresh_steps=(5,))
CASES = {
    name: case
    for name, case in dict(one_case_per_class()).items()
    if name in ("FluxTransformer2DModel", "LuminaNextDiT2DModel", "Lumina2Transformer2DModel", "WanTransformer3DModel")
}


def addresses(handle: Handle) -> list[int]:
    """Where keys, values and slopes lie after a run."""
    found = []
    for layers in handle._session._memory.values():
        for cached in (cached for caches in layers.values() for cached in caches):
            tensors = (cached.key, cached.value, cached.key_slope, cached.value_slope)
            found += [tensor.data_ptr() for tensor in tensors if tensor is not None and tensor.numel()]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_forecast": 0.8, "forecast_order": 1},
        {"kv_cache_dtype": "float8_e4m3fn"},
        {"kv_cache_dtype": "bfloat16", "kv_forecast": 0.8},
        {"kv_cache_layers": 0.5},
        {"text_reuse": True},
        {"warmup_steps": 1},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_addresses_stay_and_pictures_are_the_same(options: dict[str, Any]) -> None:
    pipe, config = tiny_pipeline(), CONFIG.replace(**options)
    calls = [inputs(batch=2, seed=seed) for seed in (1, 2)]
    with ras_dit.accelerate(pipe, config):
        expected = [run(pipe, **call) for call in calls]
    with ras_dit.accelerate(pipe, config.replace(static_memory=True)) as handle:
        first = run(pipe, **calls[0])
        before = addresses(handle)
        second = run(pipe, **calls[1])
        assert addresses(handle) == before
    assert before
    assert torch.equal(first, expected[0])
    assert torch.equal(second, expected[1]), "nothing of the first run is left in the second"


@pytest.mark.parametrize("name", CASES)
def test_other_families(name: str) -> None:
    case: FamilyCase = CASES[name]
    pipe = case.build()

    def picture() -> torch.Tensor:
        torch.manual_seed(0)
        return case.output(pipe(**case.call(batch=1, height=6, width=8)))

    with ras_dit.accelerate(pipe, CONFIG):
        expected = picture()
    with ras_dit.accelerate(pipe, CONFIG.replace(static_memory=True)) as handle:
        assert torch.equal(picture(), expected)
        before = addresses(handle)
        assert torch.equal(picture(), expected)
        assert before
        assert addresses(handle) == before


def test_two_transformers_keep_memory_each() -> None:
    case = next(case for case in wan.CASES if case.name == "wan2.2")
    pipe = case.build()

    def picture() -> torch.Tensor:
        torch.manual_seed(0)
        return case.output(pipe(**case.call(batch=1, height=6, width=8)))

    config = CONFIG.replace(warmup_steps=1, refresh_every=2, refresh_steps=())
    with ras_dit.accelerate(pipe, config):
        expected = picture()
    with ras_dit.accelerate(pipe, config.replace(static_memory=True)) as handle:
        assert torch.equal(picture(), expected)
        assert {source[0] for _, source in handle._session._memory} == {pipe.transformer, pipe.transformer_2}
        before = addresses(handle)
        assert torch.equal(picture(), expected)
        assert sorted(addresses(handle)) == sorted(before)


def test_another_size_gets_other_memory() -> None:
    pipe = tiny_pipeline()
    calls = [inputs(batch=1), inputs(batch=2), inputs(batch=1, height=6)]
    with ras_dit.accelerate(pipe, CONFIG):
        expected = [run(pipe, **call) for call in calls]
    with ras_dit.accelerate(pipe, CONFIG.replace(static_memory=True)):
        for call, picture in zip(calls, expected, strict=True):
            assert torch.equal(run(pipe, **call), picture)


def test_disable_frees_it() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, CONFIG.replace(static_memory=True))
    run(pipe, **inputs())
    (layers,) = handle._session._memory.values()
    kept = [weakref.ref(cached.key) for caches in layers.values() for cached in caches]
    del layers
    assert all(reference() is not None for reference in kept)
    handle.disable()
    gc.collect()
    assert kept
    assert all(reference() is None for reference in kept)


@torch.no_grad()
def test_blocks_compile_whole_and_once() -> None:
    """The first kept keys are written into memory that is there before the block runs: no output of it is kept."""
    pipe, call = tiny_pipeline(), inputs()
    config = CONFIG.replace(static_memory=True, kv_forecast=0.8, warmup_steps=3)
    with ras_dit.accelerate(pipe, config):
        expected = run(pipe, **call)
    counter = CompileCounterWithBackend("aot_eager")
    with compiling():
        for block in pipe.transformer.transformer_blocks:
            block.compile(fullgraph=True, backend=counter)
        with ras_dit.accelerate(pipe, config) as handle:
            assert torch.allclose(run(pipe, **call), expected, atol=1e-4)
            before, num_graphs = addresses(handle), counter.frame_count
            assert torch.allclose(run(pipe, **call), expected, atol=1e-4)
            assert counter.frame_count == num_graphs
            assert addresses(handle) == before


def test_a_skipped_step_before_the_first_kept_one_does_not_lose_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is reserved for keys and values as dense steps before showed them, so none has to be moved."""
    moved: list[KVCache] = []
    original = KVCache.settle
    monkeypatch.setattr(KVCache, "settle", lambda self: (moved.append(self), original(self)))
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.25, warmup_steps=2, skip_steps=(2,), refresh_steps=(3,), static_memory=True)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs())
    assert [step.kind for step in handle.trace.steps][:5] == ["dense", "dense", "skip", "dense", "region"]
    assert not moved
