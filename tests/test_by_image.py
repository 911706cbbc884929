"""Region steps image by image: as good as all at once, and every image of a batch as it is alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from checks import compiling
from families import all_cases
from families.case import FamilyCase
from ras_dit import RASConfig
from ras_dit.by_image import count_images, joined, of_image
from ras_dit.cache import KVCache, rows_alone
from ras_dit.calls import Call
from ras_dit.models import TOKEN_PLANS, token_plan_of
from ras_dit.trace import Trace
from tiny import inputs, run, tiny_pipeline

CONFIG = RASConfig(sample_ratio=0.25, warmup_steps=2, refresh_steps=(4,))
CASES = {case.name: case for case in all_cases()}


def call_of(num_rows: int, num_images: int) -> Call:
    """A region step of so many rows, as far as its arguments are concerned."""
    rows: Any = SimpleNamespace(active=torch.zeros(num_rows, 1, dtype=torch.long))
    return Call("region", None, rows, None, False, None, 4, num_images=num_images)  # type: ignore[arg-type]


def test_the_rows_of_an_image_are_its_guidance_rows() -> None:
    call, latents = call_of(4, 2), torch.arange(8).view(4, 2)
    second = [[2, 3], [6, 7]]
    assert of_image(call, 1, latents).tolist() == second
    nested = of_image(call, 1, (latents, [latents]))
    assert (nested[0].tolist(), nested[1][0].tolist()) == (second, second)
    assert of_image(call, 1, {"residuals": latents})["residuals"].tolist() == second
    assert of_image(call, 1, ["a", "b", "c", "d"]) == ["b", "d"], "one entry per row"
    assert of_image(call, 1, [[(1, 4, 4)], [(1, 4, 6)], [(1, 4, 4)], [(1, 4, 6)]]) == [[(1, 4, 6)], [(1, 4, 6)]]


@pytest.mark.parametrize("sizes", [[[(1, 4, 6)]], [[(1, 4, 6), (1, 4, 6), (1, 2, 2)]], [(1, 4, 6)]])
def test_a_size_is_no_list_with_an_entry_per_row(sizes: Any) -> None:
    """Qwen-Image's pipelines give sizes (frames, height, width) per prompt, of which there are fewer than pictures."""
    assert of_image(call_of(3, 3), 1, sizes) == sizes


@pytest.mark.parametrize("value", [None, 2.5, "scale", [1, 2], torch.zeros(()), torch.zeros(1, 4), torch.zeros(3, 4)])
def test_what_has_no_batch_is_of_all_images(value: Any) -> None:
    given = of_image(call_of(4, 2), 0, value)
    assert given is value or given == value


def test_tensors_beside_each_other_are_no_batch() -> None:
    """Residuals of as many ControlNet blocks as the batch has rows."""
    blocks = [torch.full((2, 3), float(number)) for number in range(2)]
    first, second = of_image(call_of(2, 2), 0, blocks)
    assert (first.shape, second.shape) == ((1, 3), (1, 3))
    assert (float(first[0, 0]), float(second[0, 0])) == (0.0, 1.0)


def test_outputs_come_back_in_their_order() -> None:
    whole = torch.arange(12).view(6, 2)
    call = call_of(6, 3)
    parts = [of_image(call, image, whole) for image in range(3)]
    assert torch.equal(joined(parts), whole)
    assert torch.equal(joined([(part,) for part in parts])[0], whole)
    listed = joined([list(part.unbind()) for part in parts])
    assert torch.equal(torch.stack(listed), whole)


@pytest.mark.parametrize(("num_images", "num_repeats"), [(1, 1), (1, 2), (3, 1), (2, 2), (2, 3), (5, 2)])
def test_images_are_counted_by_their_latents(num_images: int, num_repeats: int) -> None:
    latents = torch.randn(num_images, 3, generator=torch.Generator().manual_seed(0))
    assert count_images(latents.repeat(num_repeats, 1), 3) == num_images
    assert count_images(latents.repeat(num_repeats, 1), 1) == num_images * num_repeats


def test_keys_of_an_image_are_written_in_the_batch() -> None:
    key, value = torch.zeros(4, 2, 3, 5), torch.zeros(4, 2, 3, 5)
    mask = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 1, 3)
    cached = KVCache(key, value, mask)
    part = cached.of_rows(slice(1, None, 2))
    part.key.fill_(1.0)
    assert cached.key[:, 0, 0, 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert part.mask is not None
    assert part.mask[:, 0, 0, 0].tolist() == [1.0, 3.0]
    alone = [KVCache(key[:1], value[:1]) for _ in range(4)]
    assert rows_alone([cached], 4) == [None]
    assert rows_alone(alone, 4) == [0, 1, 2, 3]
    assert rows_alone(alone[:1], 1) == [None], "of one row, all of them"


# ---------------------------------------------------------------------- against all images at once


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes Stable Diffusion 3 a model that computes one image after the other."""

    def apply() -> None:
        plan = replace(TOKEN_PLANS["SD3Transformer2DModel"], has_shared_positions=True)
        monkeypatch.setitem(TOKEN_PLANS, "SD3Transformer2DModel", plan)

    return apply


def counted(pipe: Any, blocks: str = "transformer_blocks") -> tuple[list[int], Any]:
    """Batch sizes of the first block's calls, and the hook that counts them."""
    seen: list[int] = []
    block = getattr(pipe.transformer, blocks)[0]
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs.get("hidden_states", args[0] if args else None))),
        with_kwargs=True,
    )
    return seen, hook


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_forecast": 0.8, "forecast_order": 1},
        {"kv_cache_dtype": "float8_e4m3fn"},
        {"kv_cache_dtype": "bfloat16", "kv_forecast": 0.8},
        {"kv_cache_layers": 0.5},
        {"text_reuse": True},
        {"skip_steps": (3,), "forecast_order": 1},
        {"static_memory": True},
        {"static_memory": True, "kv_forecast": 0.8},
        {"importance": "std"},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
@torch.no_grad()
def test_one_after_the_other_gives_what_all_at_once_gives(options: dict[str, Any], split: Any) -> None:
    config, call = CONFIG.replace(**options), inputs(batch=3)
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, config) as handle:
        expected, sets = run(pipe, **call), active_sets(handle.trace)
    split()
    with ras_dit.accelerate(pipe, config) as handle:
        seen, hook = counted(pipe)
        difference = (run(pipe, **call) - expected).abs().max()
        hook.remove()
    assert difference < (0.05 if "kv_cache_dtype" in options else 1e-5), "a short type rounds a hair the other way"
    assert sets, "there were region steps"
    assert any(not torch.equal(each[0], each[1]) for each in sets), "the images' sets differ"
    for found, each in zip(active_sets(handle.trace), sets, strict=True):
        assert torch.equal(found, each)
    assert set(seen) == {6, 2}, "dense steps of three images in two guidance rows, and one image at a time"


def active_sets(trace: Trace) -> list[torch.Tensor]:
    return [step.active for step in trace.steps if step.kind == "region" and step.active is not None]


@torch.no_grad()
def test_one_set_for_all_if_asked_for(split: Any) -> None:
    """It is the set of the mean score, whichever way the model could go; and they go through the model together."""
    config, call, pipe = CONFIG.replace(shared_active_set=True), inputs(batch=2), tiny_pipeline()
    pictures = []
    for prepare in (lambda: None, split):
        prepare()
        with ras_dit.accelerate(pipe, config) as handle:
            seen, hook = counted(pipe)
            pictures.append(run(pipe, **call))
            hook.remove()
        assert set(seen) == {4}
        assert all(torch.equal(each[0], each[1]) for each in active_sets(handle.trace))
        assert not handle.summary().notes
    assert torch.equal(*pictures)


# ---------------------------------------------------------------------- an image of a batch is what it is alone

ALONE = ["flux", "flux-true-cfg", "flux2", "qwen-image", "hunyuan-dit", "hunyuan-video", "mochi", "cogview4", "krea2"]


def rows_of(call: dict[str, Any], image: int) -> dict[str, Any]:
    """The arguments of one image of a pipeline's call: rows of its tensors."""
    return {
        name: value[image : image + 1] if isinstance(value, torch.Tensor) and len(value) == 2 else value
        for name, value in call.items()
    }


@pytest.mark.parametrize("name", [name for name in ALONE if name in CASES])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kv_forecast": 0.8},
        {"static_memory": True, "kv_cache_layers": 0.5},
        {"kv_cache_dtype": "float16", "skip_steps": (3,), "forecast_order": 1},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
@torch.no_grad()
def test_an_image_of_a_batch_is_what_it_is_alone(name: str, options: dict[str, Any]) -> None:
    case: FamilyCase = CASES[name]
    pipe, config = case.build(), CONFIG.replace(**options)
    assert not token_plan_of(pipe.transformer).has_batched_positions
    call = case.call(batch=2, height=6, width=4)
    with ras_dit.accelerate(pipe, config) as handle:
        both, sets = case.output(pipe(**call)), active_sets(handle.trace)
        for image in range(2):
            alone = case.output(pipe(**rows_of(call, image)))
            own = active_sets(handle.trace)
            assert [each[0].tolist() for each in own] == [each[image].tolist() for each in sets]
            # what is kept in 16 bits may round a hair the other way
            atol = 5e-3 if "kv_cache_dtype" in options else 1e-4
            assert torch.allclose(alone[0], both[image], atol=atol)
    assert any(not torch.equal(each[0], each[1]) for each in sets), "the images' sets differ"


@torch.no_grad()
def test_compiled_blocks_are_compiled_once_for_an_image() -> None:
    case = CASES["flux"]
    pipe, call = case.build(), case.call(batch=3, height=6, width=4)
    with ras_dit.accelerate(pipe, CONFIG):
        expected = case.output(pipe(**call))
    counter = CompileCounterWithBackend("aot_eager")
    with compiling():
        for block in (*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks):
            block.compile(fullgraph=True, backend=counter)
        for is_static in (False, True):
            with ras_dit.accelerate(pipe, CONFIG.replace(static_memory=is_static)):
                assert torch.allclose(case.output(pipe(**call)), expected, atol=1e-4)
                num_graphs = counter.frame_count
                assert torch.allclose(case.output(pipe(**call)), expected, atol=1e-4)
                assert counter.frame_count == num_graphs, "nothing is compiled again for a second run"


@torch.no_grad()
def test_pictures_to_edit_that_go_by_the_number_of_their_row_share_one_set() -> None:
    case = CASES["omnigen-edit"]
    pipe = case.build()
    with ras_dit.accelerate(pipe, CONFIG) as handle:
        pipe(**case.call(batch=2, height=6, width=4))
    sets = active_sets(handle.trace)
    assert sets
    assert all(torch.equal(each[0], each[1]) for each in sets)
    assert any("share one active set" in note for note in handle.summary().notes)


def test_the_prediction_counts_a_call_per_image() -> None:
    pipe = CASES["flux"].build()

    def predicted(num_images: int, **options: Any) -> float:
        plan = ras_dit.plan_for(pipe, CONFIG.replace(**options), 28, 512, 512, 8, num_images=num_images)
        assert plan.predicted_speedup is not None
        return plan.predicted_speedup

    assert predicted(4) < predicted(4, shared_active_set=True)
    assert predicted(1) == predicted(1, shared_active_set=True)


@torch.no_grad()
def test_a_run_is_predicted_like_its_plan() -> None:
    case = CASES["flux"]
    pipe, call = case.build(), case.call(batch=3, height=8, width=8)
    with ras_dit.accelerate(pipe, CONFIG) as handle:
        pipe(**call)
        planned = handle.plan(6, 128, 128, 8, num_images=3)
    assert handle.latest_plan is not None
    assert handle.latest_plan.predicted_speedup == pytest.approx(planned.predicted_speedup)


@torch.no_grad()
def test_slow_images_in_turn_are_told_of_one_set_for_all() -> None:
    case = CASES["flux"]
    pipe, call = case.build(), case.call(batch=3, height=6, width=4)
    told = []
    for options, size in (({}, 3), ({}, 1), ({"shared_active_set": True}, 3)):
        with ras_dit.accelerate(pipe, CONFIG.replace(**options)) as handle:
            pipe(**{**call, **case.call(batch=size, height=6, width=4)})
        told.append([advice for advice in handle.summary().advice if "shared_active_set=True" in advice])
    assert [len(advice) for advice in told] == [1, 0, 0], "a tiny model pays for calls, not for FLOPs"
    assert "the 3 images one after the other" in told[0][0]


@pytest.mark.parametrize("name", ["flux", "flux2-references", "cogview4", "krea2"])
@torch.no_grad()
def test_what_is_reused_is_reused_image_by_image(name: str) -> None:
    case: FamilyCase = CASES[name]
    pipe = case.build()
    plan = token_plan_of(pipe.transformer)
    config = CONFIG.replace(text_reuse=True, reference_reuse=plan.reuses_references)
    size = min(2, case.max_batch)
    call = case.call(batch=size, height=6, width=4)
    with ras_dit.accelerate(pipe, config):
        both = case.output(pipe(**call))
        for image in range(size):
            alone = case.output(pipe(**rows_of(call, image)))
            assert torch.allclose(alone[0], both[image], atol=1e-4)


@torch.no_grad()
def test_several_images_of_one_prompt() -> None:
    """Qwen-Image's pipeline gives one size for all of them."""
    case = CASES["qwen-image"]
    pipe, call = case.build(), case.call(batch=1, height=6, width=4)
    call["latents"] = torch.randn(3, *call["latents"].shape[1:], generator=torch.Generator().manual_seed(0))
    with ras_dit.accelerate(pipe, CONFIG) as handle:
        three = case.output(pipe(**call, num_images_per_prompt=3))
        sets = active_sets(handle.trace)
        for image in range(3):
            alone = case.output(pipe(**{**call, "latents": call["latents"][image : image + 1]}))
            assert torch.allclose(alone[0], three[image], atol=1e-4)
    assert any(not torch.equal(each[0], each[1]) for each in sets)


@torch.no_grad()
def test_an_error_in_one_image_leaves_the_next_run_well() -> None:
    case = CASES["flux"]
    pipe, call = case.build(), case.call(batch=2, height=6, width=4)
    with ras_dit.accelerate(pipe, CONFIG):
        expected = case.output(pipe(**call))
        calls = []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 4:  # two dense steps, the first image of a region step, and its second
                raise MemoryError

        hook = pipe.transformer.proj_out.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            pipe(**call)
        hook.remove()
        assert torch.equal(case.output(pipe(**call)), expected)


@torch.no_grad()
def test_guidance_may_end_midway(split: Any) -> None:
    pipe, pictures = tiny_pipeline(), []

    def stop_guidance(pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            pipe._guidance_scale = 0.0
            tensors = {name: value[len(value) // 2 :] for name, value in tensors.items() if name != "latents"}
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(batch=2, callback_on_step_end=stop_guidance, callback_on_step_end_tensor_inputs=names)
    for prepare in (lambda: None, split):
        prepare()
        with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)):
            seen, hook = counted(pipe)
            with pytest.warns(ras_dit.RASWarning, match="batch size"):
                pictures.append(run(pipe, **call))
            hook.remove()
    assert torch.allclose(*pictures, atol=1e-5)
    assert set(seen) == {4, 2, 1}


@torch.no_grad()
def test_every_image_keeps_to_its_own_mask() -> None:
    case = CASES["flux-inpaint"]
    pipe, call = case.build(), case.call(batch=2, height=6, width=8)
    call["mask_image"] = torch.zeros(2, 1, *call["mask_image"].shape[-2:])
    third = call["mask_image"].shape[-2] // 3
    call["mask_image"][0, :, :third] = 1
    call["mask_image"][1, :, -third:] = 1
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    with ras_dit.accelerate(pipe, config) as handle:
        pipe(**call)
    assert handle.summary().notes == ()
    sets = active_sets(handle.trace)
    assert sets
    for active in sets:
        assert int(active[0].max()) < 16, "the first two rows of tokens"
        assert int(active[1].min()) >= 32, "the last two"


@torch.no_grad()
def test_layers_that_are_offloaded_one_by_one_are_moved_once_for_all_images() -> None:
    case = CASES["flux"]
    pipe, call = case.build(), case.call(batch=2, height=6, width=4)
    apply_group_offloading(pipe.transformer, torch.device("cpu"), torch.device("cpu"), "block_level", 1)
    with ras_dit.accelerate(pipe, CONFIG) as handle:
        seen, hook = counted(pipe)
        pipe(**call)
        hook.remove()
    assert set(seen) == {2}
    assert any("share one active set" in note for note in handle.summary().notes)
