from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ras_dit
from families import mochi, prx, wan, z_image
from ras_dit import PRESETS, RASConfig, build_plan
from ras_dit.flops import Layers, plan_cost, step_work
from ras_dit.models.sd3 import SD3
from test_config import configs
from tiny import inputs, run, tiny_pipeline, tiny_transformer


def kinds(config: RASConfig, num_steps: int) -> str:
    return "".join(step.kind[0] for step in build_plan(config, num_steps, 100))


def test_kinds() -> None:
    assert kinds(RASConfig(warmup_steps=2, refresh_steps=(5,)), 8) == "ddrrrdrr"
    assert kinds(RASConfig(warmup_steps=0.25, refresh_steps=(0.5,)), 8) == "ddrrdrrr"
    assert kinds(RASConfig(warmup_steps=2, refresh_every=3), 9) == "ddrrdrrdr"
    assert kinds(RASConfig(warmup_steps=2, end_step=4), 8) == "ddrrrddd"
    assert kinds(RASConfig(warmup_steps=2, skip_steps=(3, 5)), 8) == "ddrsrsrr"
    assert kinds(RASConfig(sample_ratio=1.0, warmup_steps=0), 3) == "ddd"
    assert kinds(RASConfig(warmup_steps=9), 3) == "ddd"


def test_shares_of_a_run_stay_inside_it() -> None:
    assert kinds(RASConfig(warmup_steps=0.01), 8) == "drrrrrrr", "the first evaluation is always computed whole"
    assert kinds(RASConfig(warmup_steps=1, refresh_steps=(0.99,)), 8) == "drrrrrrd"


def test_keys_and_values_are_kept_only_where_a_region_step_reads_them() -> None:
    plan = build_plan(RASConfig(warmup_steps=3, refresh_steps=(4, 5), skip_steps=(6,), end_step=7), 10, 100)
    assert "".join(step.kind[0] for step in plan) == "dddrddsrdd"
    assert [step.index for step in plan if step.captures] == [2, 5]


def test_counts() -> None:
    plan = build_plan(RASConfig(sample_ratio=0.5, final_sample_ratio=0.1, warmup_steps=1), 6, 200)
    assert [step.num_active for step in plan] == [200, 100, 80, 60, 40, 20]
    plan = build_plan(RASConfig(sample_ratio=0.13, warmup_steps=1, token_multiple=64), 2, 256)
    assert plan[1].num_active == 64
    assert build_plan(RASConfig(sample_ratio=0.001, warmup_steps=1), 2, 20)[1].num_active == 1


@given(configs, st.integers(61, 80), st.integers(1, 500))
def test_invariants(config: RASConfig, num_steps: int, num_tokens: int) -> None:
    plan = build_plan(config, num_steps, num_tokens)
    assert [step.index for step in plan] == list(range(num_steps))
    assert plan[0].kind == "dense"
    for step in plan:
        assert 1 <= step.num_active <= num_tokens
        assert (step.kind == "dense") == (step.num_active == num_tokens)
        assert step.selects == (step.kind == "region")
    for step in plan:
        if step.kind == "region":
            before = [s for s in plan.steps[: step.index] if s.kind == "dense"]
            assert before[-1].captures
    assert str(plan).count("\n") >= num_steps


def test_reference_counts_of_the_recorded_runs() -> None:
    plan = build_plan(RASConfig.reference(0.5, end_step=10, reset_steps=(7,), high_ratio=0.3), 14, 256)
    assert [step.num_active for step in plan] == [256] * 4 + [129] * 3 + [256] + [129] * 3 + [256] * 3
    assert [step.index for step in plan if step.selects] == [4, 5, 6, 8, 9]
    assert [step.index for step in plan if step.captures] == [3, 7]
    config = RASConfig.reference(0.5, reset_steps=(10,), skip_num_step=64, skip_num_step_length=4)
    plan = build_plan(config, 16, 256)
    assert [step.num_active for step in plan] == [256] * 4 + [192] * 4 + [128] * 2 + [256, 128] + [64] * 4


def test_the_papers_token_steps() -> None:
    for ratio, expected in ((0.5, 17.0), (0.25, 11.5), (0.125, 8.75)):
        plan = build_plan(RASConfig.reference(ratio, reset_steps=(12, 20)), 28, 4096)
        assert plan.token_steps == expected
    assert build_plan(RASConfig.reference(0.125, reset_steps=(12, 20)), 28, 4096).speedup_limit == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RASConfig(refresh_steps=(12,)), "refresh_steps: got 12, but this run has 10"),
        (RASConfig(skip_steps=(10,)), "skip_steps: got 10"),
        (RASConfig(skip_steps=(2,)), "inside the warm-up"),
        (RASConfig(skip_steps=(6,), refresh_steps=(6,)), "either dense or skipped"),
        (RASConfig.reference(end_step=11), "end_step: got 11"),
        (RASConfig.reference(reset_steps=(11,)), "refresh_steps: got 11"),
        (RASConfig.reference(skip_num_step=640, skip_num_step_length=2), "smaller skip_num_step"),
    ],
)
def test_steps_outside_the_run_are_refused(config: RASConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_plan(config, 10, 256)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("num_steps", [6, 8, 10, 20, 28, 50])
def test_presets_scale_with_the_run(preset: str, num_steps: int) -> None:
    plan = build_plan(PRESETS[preset], num_steps, 1024)
    long = build_plan(PRESETS[preset], 28, 1024)
    assert plan.speedup_limit > 1.3 if num_steps >= 10 else plan.has_savings
    assert plan.speedup_limit < 1.15 * long.speedup_limit, "a short run does not save more"


@pytest.mark.parametrize("changes", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}])
def test_flops_agree_with_torchs_counter(changes: dict[str, object]) -> None:
    transformer = tiny_transformer(**changes)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(
            hidden_states=torch.randn(1, 4, 16, 24),
            timestep=torch.tensor([500.0]),
            encoder_hidden_states=torch.randn(1, 7, 32),
            pooled_projections=torch.randn(1, 24),
        )
    work = step_work(Layers.of(SD3, transformer), 96, 96, 7)
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_flops_of_a_region_step_agree_with_torchs_counter() -> None:
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.25, warmup_steps=2)
    with ras_dit.accelerate(pipe, config), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(pipe, **inputs(guidance_scale=1.0))
    cost = plan_cost(build_plan(config, 10, 96), SD3, Layers.of(SD3, pipe.transformer), 7)
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert cost.kv_cache_bytes == 2 * 3 * (96 + 7) * 32 * 4


def counted_cost(handle: ras_dit.Handle, pipe: Any, **changes: Any) -> float:
    """FLOPs of a run, which torch counts as we do."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(pipe, **inputs(guidance_scale=1.0, **changes))
    assert handle.latest_plan is not None
    assert handle.latest_plan.cost is not None
    total = handle.latest_plan.cost.total_flops
    assert total == pytest.approx(counter.get_total_flops(), rel=1e-9)
    return total


def test_layers_are_read_again_when_they_are_others() -> None:
    pipe = tiny_pipeline()
    transformer = pipe.transformer
    layers = Layers.of(SD3, transformer)
    assert layers.updated(SD3, transformer) is layers
    transformer.to(torch.float16)
    assert layers.updated(SD3, transformer).dtype == torch.float16
    transformer.to(torch.float32)
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2))
    plain = counted_cost(handle, pipe)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "add_k_proj", "to_add_out", "proj_out"]))
    adapted = counted_cost(handle, pipe)
    assert adapted > plain
    transformer.add_adapter(LoraConfig(r=4, target_modules=["to_add_out"]), "second")
    assert plain < counted_cost(handle, pipe) < adapted, "only the second one is active"
    transformer.set_adapters(["default", "second"])
    assert counted_cost(handle, pipe) > adapted
    transformer.disable_adapters()
    assert counted_cost(handle, pipe) == plain
    assert Layers.of(SD3, transformer).num_leaves == layers.num_leaves
    transformer.enable_adapters()
    transformer.fuse_lora()
    assert counted_cost(handle, pipe) == plain
    transformer.unfuse_lora()
    transformer.unload_lora()
    transformer.fuse_qkv_projections()
    assert counted_cost(handle, pipe) == plain


def test_the_handle_plans_before_anything_runs() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=0.25))
    plan = handle.plan(28, 128, 192)
    assert plan.num_tokens == 96
    assert plan.cost is not None
    assert 1 < plan.speedup_limit < len(plan) / plan.token_steps
    assert handle.plan(28).num_tokens == 64
    with pytest.raises(ValueError, match="height: got 100; allowed: multiples of 16"):
        handle.plan(28, 100, 192)
    assert str(handle.summary()) == "RAS: nothing has run yet."
    run(pipe, **inputs())
    assert "10 evaluations, 4 dense" in str(handle.summary())
    assert handle.summary().measured_speedup is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": 0, "width": 0}, "height: got 0; allowed: an int of at least 1"),
        ({"height": -16}, "height: got -16"),
        ({"width": 32.0}, "width: got 32.0"),
        ({"num_inference_steps": "28"}, "num_inference_steps: got '28'; allowed: an int"),
        ({"num_inference_steps": None}, "num_inference_steps: got None"),
        ({"num_inference_steps": 0}, "num_inference_steps: got 0"),
        ({"num_inference_steps": True}, "num_inference_steps: got True"),
        ({"num_images": 0}, "num_images: got 0"),
        ({"num_frames": 0}, "num_frames: got 0"),
    ],
)
def test_a_plan_of_no_call_is_refused(call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ras_dit.plan_for(tiny_pipeline(), RASConfig(), **call)


def test_sizes_that_cannot_be_told_are_asked_for() -> None:
    with pytest.raises(ValueError, match="height: got none, and the default of ZImagePipeline cannot be told"):
        ras_dit.plan_for(z_image.build(), RASConfig())
    with pytest.raises(ValueError, match="num_frames: got none, and the default of WanVideoToVideoPipeline"):
        ras_dit.plan_for(wan.build(WanVideoToVideoPipeline), RASConfig())
    assert ras_dit.plan_for(mochi.build(), RASConfig()).num_tokens == 30 * 53 * 4, (
        "19 frames of 848 x 480, 6 to a latent"
    )
    assert ras_dit.plan_for(prx.build(), RASConfig()).num_tokens == 32 * 32, "512 pixels, not latents"


@pytest.mark.parametrize(("num_tokens", "num_active"), [(256, 52), (1008, 205), (1024, 256), (4096, 832), (3600, 768)])
def test_large_grids_are_computed_in_multiples_of_64(num_tokens: int, num_active: int) -> None:
    """Of 3,600 tokens 731 are a share of 0.203; 768 is the next multiple of 64."""
    config = RASConfig(sample_ratio=0.203, warmup_steps=1)
    assert build_plan(config, 2, num_tokens)[1].num_active == num_active
    exact = round(0.203 * num_tokens)
    assert build_plan(config.replace(token_multiple=1), 2, num_tokens)[1].num_active == exact
