"""The K/V cache: what it holds against what the plan says, and the options that make it smaller."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

import ras_dit
from families import one_case_per_class
from ras_dit import RASConfig, attention
from ras_dit.cache import KVCache
from ras_dit.flops import keeping_layers
from ras_dit.kv_storage import KVStorage
from ras_dit.rows import RowIndex
from ras_dit.state import Generation
from tiny import inputs, run, tiny_pipeline

REGION = RASConfig(sample_ratio=0.25, warmup_steps=2)


def kept_bytes(handle: Any) -> int:
    """What the caches of the generation under way hold, memory that views keep from being freed included."""
    branches = handle._session._generation._branches.values()
    caches = [cached for branch in branches for calls in branch.layers.values() for cached in calls]
    tensors = [t for cached in caches for t in (cached.key, cached.value, cached.key_slope, cached.value_slope)]
    memory = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
    return sum({each.data_ptr(): each.nbytes() for each in memory}.values())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_cache_dtype": "float8_e4m3fn"},
        {"kv_cache_dtype": "bfloat16"},
        {"kv_cache_layers": 0.34},
        {"kv_forecast": 0.8},
        {"kv_cache_layers": 0.34, "kv_forecast": 0.8},
        {"kv_cache_layers": 0.67, "kv_cache_dtype": "float8_e5m2"},
        {"kv_forecast": 0.8, "kv_cache_dtype": "float8_e4m3fn"},
    ],
)
def test_the_plan_says_how_large_the_cache_is(options: dict[str, Any]) -> None:
    pipe = tiny_pipeline()
    seen: list[int] = []

    def look(_pipe: Any, _index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(kept_bytes(handle))
        return tensors

    with ras_dit.accelerate(pipe, REGION.replace(**options)) as handle:
        run(pipe, **inputs(batch=2), callback_on_step_end=look)
        plan = handle.plan(10, 128, 192, max_sequence_length=7 - 77)
    assert plan.cost is not None
    rows = 4  # two images, two guidance branches
    # a dense step that no region step follows keeps nothing, unless its keys and values give the next one's slopes
    assert bool(seen[0]) == ("kv_forecast" in options)
    assert set(seen[1:-1]) == {rows * plan.cost.kv_cache_bytes}
    assert seen[-1] == 0


@pytest.mark.parametrize("options", [{"kv_forecast": 0.8}, {"kv_forecast": 0.8, "kv_cache_dtype": "bfloat16"}])
def test_two_generations_of_keys_and_values_never_stand_side_by_side(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Also where the next one's slopes are measured from the last one: what is kept never exceeds the plan."""
    pipe = tiny_pipeline()
    kept: list[weakref.ref[KVCache]] = []
    most = 0
    init, captured = KVCache.__init__, attention.LayerSeam._captured

    def noted(cache: KVCache, *args: Any, **kwargs: Any) -> None:
        kept.append(weakref.ref(cache))
        init(cache, *args, **kwargs)

    def counted(seam: attention.LayerSeam, *args: Any) -> KVCache:
        nonlocal most
        cache = captured(seam, *args)
        alive = [each for each in (ref() for ref in kept) if each is not None]
        tensors = [t for each in alive for t in (each.key, each.value, each.key_slope, each.value_slope)]
        memory = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
        most = max(most, sum({each.data_ptr(): each.nbytes() for each in memory}.values()))
        return cache

    monkeypatch.setattr(KVCache, "__init__", noted)
    monkeypatch.setattr(attention.LayerSeam, "_captured", counted)
    config = REGION.replace(refresh_steps=(4, 7), **options)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs(batch=2))
        cost = handle.latest_plan.cost
    assert cost is not None
    assert most == 4 * cost.kv_cache_bytes, "two images, two guidance branches"


@pytest.mark.parametrize("preset", ["balanced", "regions"])
def test_a_handle_that_is_kept_holds_no_model_once_it_is_disabled(preset: str) -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, preset) as handle:
        run(pipe, **inputs(num_inference_steps=20))
    before = str(handle.summary())
    assert handle.plan(20, 128, 192).num_tokens == 96
    weight = weakref.ref(pipe.transformer.pos_embed.proj.weight)
    del pipe
    gc.collect()
    assert weight() is None
    assert str(handle.summary()) == before
    with pytest.raises(ValueError, match="whose pipeline is gone"):
        handle.plan(20, 128, 192)
    assert repr(handle) == "<ras_dit.Handle disabled on SD3Transformer2DModel>"


def most_kept(monkeypatch: pytest.MonkeyPatch, handle: Any, pipe: Any, call: dict[str, Any]) -> tuple[int, int]:
    """The most bytes that a run keeps between two evaluations, and the rows of the batch that they are of."""
    seen: list[tuple[int, int]] = []
    observe = Generation.observe

    def observed(generation: Generation, *given: Any) -> None:
        rows = sum(branch.num_rows for branch in generation._branches.values())
        seen.append((kept_bytes(handle), rows))
        observe(generation, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Generation, "observe", observed)
        pipe(**call)
    return max(seen)


@pytest.mark.parametrize("name", sorted(one_case_per_class()))
def test_no_model_keeps_more_than_the_plan_says_and_none_much_less(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = one_case_per_class()[name]
    pipe = case.build()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=2)) as handle:
        kept, num_rows = most_kept(monkeypatch, handle, pipe, case.call())
        cost = handle.latest_plan.cost
    assert cost is not None
    assert 0.9 <= kept / (num_rows * cost.kv_cache_bytes) <= 1


GROUPED = {"LuminaNextDiT2DModel", "Lumina2Transformer2DModel", "Krea2Transformer2DModel"} & set(one_case_per_class())


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_of_keys_that_heads_of_queries_share_one_is_kept(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = one_case_per_class()[name]
    config = RASConfig(sample_ratio=0.5, warmup_steps=2)
    pipe = case.build()
    with ras_dit.accelerate(pipe, config) as handle:
        seams = [layer for layer, _ in handle._session._attached[pipe.transformer].seams._layers.values()]
        assert {seam.heads_per_key for seam in seams} == {2}
        result = case.output(pipe(**case.call()))
    monkeypatch.setattr(attention.LayerSeam, "_own_heads", lambda self, query, key, value: (key, value))
    pipe = case.build()
    with ras_dit.accelerate(pipe, config) as handle:
        whole = case.output(pipe(**case.call()))
        kept, num_rows = most_kept(monkeypatch, handle, pipe, case.call())
        cost = handle.latest_plan.cost
    torch.testing.assert_close(result, whole, rtol=1e-5, atol=1e-5)
    assert cost is not None
    assert kept > 1.8 * num_rows * cost.kv_cache_bytes


@pytest.mark.parametrize("shape", [None, (5, 11), (2, 1, 1, 11), (2, 6, 5, 11), (2, 6, 1, 11), (2, 1, 5, 11)])
@pytest.mark.parametrize("is_additive", [False, True])
def test_grouped_attention_is_attention_with_repeated_keys(shape: tuple[int, ...] | None, is_additive: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    query, key, value = normal(2, 6, 5, 8), normal(2, 2, 11, 8), normal(2, 2, 11, 4)
    masks: list[torch.Tensor | None] = [None]
    if shape is not None:
        mask = torch.rand(shape, generator=generator) > 0.3
        masks = [torch.where(mask, normal(*shape), -torch.inf) if is_additive else mask]
        if len(shape) == 4:
            masks.append(masks[0][:, :1].expand(-1, 6, -1, -1))  # as Lumina-Next gives it
    for mask in masks:
        repeated = (tensor.repeat_interleave(3, dim=1) for tensor in (key, value))
        expected = torch.nn.functional.scaled_dot_product_attention(query, *repeated, mask, scale=0.4)
        torch.testing.assert_close(attention.grouped_attention(query, key, value, mask, scale=0.4), expected)


@pytest.mark.parametrize("forecast", [{}, {"kv_forecast": 0.8}], ids=["kept", "forecast"])
def test_eight_bit_caches_stay_close_and_other_devices_exact(forecast: dict[str, float]) -> None:
    pipe = tiny_pipeline()
    results = {}
    for name, options in {
        "plain": {},
        "float8": {"kv_cache_dtype": "float8_e4m3fn"},
        "bfloat16": {"kv_cache_dtype": "bfloat16"},
        "cpu": {"kv_cache_device": "cpu"},
        "half of the layers": {"kv_cache_layers": 0.67},
    }.items():
        with ras_dit.accelerate(pipe, REGION.replace(**options, **forecast)):  # type: ignore[arg-type]
            results[name] = run(pipe, **inputs(batch=2))
    error = {name: float((result - results["plain"]).norm()) for name, result in results.items()}
    assert error["cpu"] == 0
    assert 0 < error["bfloat16"] < error["float8"] < error["half of the layers"]
    assert error["half of the layers"] < float(results["plain"].norm())


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_rows_of_the_step_are_attended_to_as_computed(is_shared: bool, dtype: torch.dtype) -> None:
    active = torch.tensor([[1, 4]] * 2) if is_shared else torch.tensor([[1, 4], [0, 3]])
    scale = 1e5 if dtype == torch.float16 else 600  # beyond what the shorter types hold: kept at their limit
    key = scale * torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    cache = KVCache(key, key, storage=KVStorage(dtype))
    cache.aim(RowIndex(active, 5, is_shared))
    fresh = torch.randn(2, 3, 4, 4)
    merged, _ = cache.merge(fresh, fresh)
    limit = torch.finfo(dtype).max
    for row in range(2):
        assert torch.equal(merged[row, :, active[row]], fresh[row, :, :2])
        slow = [token for token in range(5) if token not in active[row]]
        assert torch.equal(merged[row, :, slow], key[row, :, slow].clamp(-limit, limit).to(dtype).float())
    assert torch.equal(merged[:, :, 5:], fresh[:, :, 2:])
    later, _ = cache.merge(fresh, fresh)
    assert torch.equal(later, merged)
    assert torch.equal(cache.key[0, :, active[0]].float(), fresh[0, :, :2].to(dtype).float())


@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_what_is_beyond_the_range_of_a_type_is_kept_at_its_limit(dtype: torch.dtype, computed: torch.dtype) -> None:
    """The limit of float16 is no number of bfloat16, which would round it up to what float16 does not have."""
    most, limit = torch.finfo(computed).max, torch.finfo(dtype).max
    stored = KVStorage(dtype).store(torch.tensor([most, -most, 1.5, -0.25], dtype=computed))
    assert stored.dtype == dtype
    assert stored.float().tolist() == [limit, -limit, 1.5, -0.25]


def test_layers_that_keep_are_spread_evenly() -> None:
    assert keeping_layers(1.0, 4) == [True] * 4
    assert keeping_layers(0.5, 4) == [False, True, False, True]
    assert keeping_layers(0.25, 8) == [False, False, False, True] * 2
    assert sum(keeping_layers(0.01, 8)) == 1


def test_a_type_that_is_that_of_computing_converts_nothing() -> None:
    key = torch.randn(1, 2, 6, 4)
    for storage in (KVStorage(torch.float32), KVStorage(device=torch.device("cpu")), KVStorage()):
        assert not KVCache(key, key, storage=storage).is_converted
    for storage in (KVStorage(torch.bfloat16), KVStorage(device=torch.device("meta"))):
        assert KVCache(key, key, storage=storage).is_converted


@pytest.mark.parametrize("is_shared", [True, False])
def test_rows_of_a_cache_elsewhere_are_moved_there_once_a_step(is_shared: bool) -> None:
    rows = RowIndex(torch.tensor([[1, 3], [0, 2]]), 4, is_shared=is_shared)
    elsewhere = torch.device("meta")
    first, second = (rows.heads_index(rows.positions(6), 2, 6, elsewhere) for _ in range(2))
    assert first is second
    assert first.device == elsewhere
    assert rows.heads_index(rows.positions(6), 2, 6, torch.device("cpu")).device.type == "cpu"


def test_of_masks_that_every_block_makes_for_all_queries_one_is_kept() -> None:
    """Chroma's would take more memory than a third of its keys and values."""
    pipe, held = one_case_per_class()["ChromaTransformer2DModel"].build(), []

    def look(module: torch.nn.Module, args: Any, output: Any) -> None:
        branches = handle._session._generation._branches.values()
        held.extend(c.mask for branch in branches for calls in branch.layers.values() for c in calls)

    pipe.transformer.register_forward_hook(look)
    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe(**one_case_per_class()["ChromaTransformer2DModel"].call())
    assert held
    assert all(mask is None or mask.shape[-2] == 1 for mask in held)
    assert any(mask is not None for mask in held)


def test_a_run_that_has_become_dense_lets_go_of_keys_and_values() -> None:
    pipe = tiny_pipeline()
    held: list[int] = []

    def refuse(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(kept_bytes(handle))
        if index == 4:
            handle._session._generation.refuse("Enough.")
        return tensors

    with pytest.warns(ras_dit.RASWarning, match="Enough"), ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs(num_inference_steps=10, callback_on_step_end=refuse))
    assert all(held[2:5])
    assert held[5:9] == [0] * 4
