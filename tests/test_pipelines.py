"""What pipelines do around the transformer: variants, schedulers, adapters, callbacks, odd calls, failures."""

from __future__ import annotations

import gc
import threading
import warnings
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGPipeline,
    UniPCMultistepScheduler,
)
from peft import LoraConfig

import ras_dit
from ras_dit import RASConfig
from tiny import inputs, redraw, run, tiny_pipeline, tiny_transformer, tiny_vae

REGION = RASConfig(sample_ratio=0.25, warmup_steps=2)
SCHEDULERS: dict[str, Any] = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler-dynamic-shift": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "euler-karras": FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
    "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "dpm++2m": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    ),
    "dpm++2s": DPMSolverSinglestepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "deis": DEISMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


def check_contract(pipe: Any, call: dict[str, Any], config: RASConfig = REGION) -> ras_dit.Trace:
    """Dense, ratio 1, region, dense again; returns the trace of the region run."""
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(run(pipe, **call), dense)
    with ras_dit.accelerate(pipe, config) as handle:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ras_dit.RASWarning)
            fast = run(pipe, **call)
        assert torch.equal(run(pipe, **call), fast), "a second run gives the same"
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert torch.equal(run(pipe, **call), dense)
    trace = handle.trace
    assert trace.notes == []
    kinds = [step.kind for step in trace.steps]
    assert kinds == ["dense"] * 2 + ["region"] * (len(kinds) - 2)
    for step in trace.steps[2:]:
        assert step.active is not None
        assert step.active.shape[1] == round(0.25 * trace.num_tokens)
        assert (step.active.diff(dim=1) > 0).all()
    return trace


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    pipe = tiny_pipeline(scheduler=SCHEDULERS[name])
    trace = check_contract(pipe, inputs(num_inference_steps=8))
    assert len(trace.steps) == (15 if name == "heun" else 8)
    sigmas = [step.sigma for step in trace.steps]
    assert sigmas == sorted(sigmas, reverse=True)


def test_img2img_starts_in_the_middle_of_the_schedule() -> None:
    pipe = StableDiffusion3Img2ImgPipeline(
        **{**tiny_pipeline(in_channels=16, out_channels=16).components, "vae": tiny_vae()}
    )
    pipe.set_progress_bar_config(disable=True)
    call = {**inputs(num_inference_steps=12), "latents": None, "strength": 0.5, "height": 32, "width": 48}
    call["image"] = torch.rand(1, 3, 32, 48)

    def seeded() -> dict[str, Any]:
        return {**call, "generator": torch.Generator().manual_seed(0)}

    dense = run(pipe, **seeded())
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **seeded())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    assert handle.trace.steps[0].sigma < 0.9
    assert (handle.trace.grid.height, handle.trace.grid.width) == (8, 12)  # type: ignore[union-attr]
    assert not torch.equal(fast, dense)
    assert torch.equal(run(pipe, **seeded()), dense)


def test_inpaint() -> None:
    pipe = StableDiffusion3InpaintPipeline(
        **{**tiny_pipeline(in_channels=16, out_channels=16).components, "vae": tiny_vae()}
    )
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 16:] = 1
    call = {**inputs(num_inference_steps=8), "latents": None, "strength": 0.75, "height": 32, "width": 48}
    call |= {"image": torch.rand(1, 3, 32, 48), "mask_image": mask}

    def seeded() -> dict[str, Any]:
        return {**call, "generator": torch.Generator().manual_seed(0)}

    dense = run(pipe, **seeded())
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **seeded())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert torch.equal(run(pipe, **seeded()), dense)


def test_controlnet() -> None:
    parts = tiny_pipeline(in_channels=16, out_channels=16).components
    torch.manual_seed(0)
    controlnet = SD3ControlNetModel.from_transformer(
        parts["transformer"], num_layers=2, num_extra_conditioning_channels=0
    ).eval()
    redraw(controlnet, seed=9)
    for name in ("image_encoder", "feature_extractor"):
        parts.pop(name, None)
    pipe = StableDiffusion3ControlNetPipeline(**{**parts, "vae": tiny_vae(), "controlnet": controlnet})
    pipe.set_progress_bar_config(disable=True)
    call = inputs(
        height=8, width=12, num_inference_steps=6, latents=torch.randn(1, 16, 16, 24), control_guidance_end=0.8
    )
    call |= {"height": 32, "width": 48, "control_image": torch.rand(1, 3, 32, 48)}
    without = run(pipe, **{**call, "controlnet_conditioning_scale": 0.0})
    trace = check_contract(pipe, call)
    assert len(trace.steps) == 6
    assert not torch.equal(run(pipe, **call), without), "the ControlNet acts"


def test_lora_follows_its_scale_at_run_time() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=4))
    redraw(pipe.transformer, seed=4)
    check_contract(pipe, inputs())
    with ras_dit.accelerate(pipe, REGION):
        full = run(pipe, **inputs())
        half = run(pipe, **inputs(), joint_attention_kwargs={"scale": 0.5})
    assert not torch.equal(full, half)


def test_lora_may_be_added_while_enabled() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION):
        before = run(pipe, **inputs())
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert not torch.equal(run(pipe, **inputs()), before)
        pipe.transformer.delete_adapters("default")
        assert torch.equal(run(pipe, **inputs()), before)


def test_ip_adapter() -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    pipe = tiny_pipeline()
    transformer = pipe.transformer
    torch.manual_seed(0)
    projection = IPAdapterTimeImageProjection(
        embed_dim=12, output_dim=32, hidden_dim=64, depth=1, dim_head=64, heads=1, num_queries=3, timestep_in_dim=32
    )
    transformer.image_proj = projection.eval()
    processors = {
        name: SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=32, ip_hidden_states_dim=32, head_dim=16, timesteps_emb_dim=64
        )
        for name in transformer.attn_processors
    }
    transformer.set_attn_processor(processors)
    redraw(transformer, seed=7)

    def call(scale: float) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(scale)
        return inputs(ip_adapter_image_embeds=torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)))

    without = run(pipe, **call(0.0))
    check_contract(pipe, call(0.7))
    assert not torch.equal(run(pipe, **call(0.7)), without)


def test_skip_layer_guidance_has_a_branch_of_its_own() -> None:
    pipe = tiny_pipeline()
    call = inputs(
        num_inference_steps=12,
        skip_guidance_layers=[1],
        skip_layer_guidance_start=0.2,
        skip_layer_guidance_stop=0.7,
        skip_layer_guidance_scale=2.0,
    )
    dense = run(pipe, **call)
    assert not torch.equal(dense, run(pipe, **inputs(num_inference_steps=12)))
    with ras_dit.accelerate(pipe, REGION) as handle, pytest.warns(ras_dit.RASWarning, match="guidance branch began"):
        fast = run(pipe, **call)
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 10
    assert len(handle.summary().notes) == 1
    assert torch.isfinite(fast).all()
    assert torch.equal(run(pipe, **call), dense)


def test_callbacks_may_end_guidance_in_the_middle() -> None:
    pipe = tiny_pipeline()

    def stop_guidance(pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            pipe._guidance_scale = 0.0
            tensors = {key: value[-1:] for key, value in tensors.items() if key != "latents"}
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(callback_on_step_end=stop_guidance, callback_on_step_end_tensor_inputs=names)
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, REGION) as handle, pytest.warns(ras_dit.RASWarning, match="batch size"):
        fast = run(pipe, **call)
    kinds = [step.kind for step in handle.trace.steps]
    assert kinds == ["dense"] * 2 + ["region"] * 3 + ["dense"] + ["region"] * 4
    assert torch.isfinite(fast).all()
    assert torch.equal(run(pipe, **call), dense)


@pytest.mark.parametrize("config", [REGION, RASConfig.reference(0.25, start_step=2, end_step=6)])
def test_images_may_leave_the_batch_in_the_middle(config: RASConfig) -> None:
    pipe = tiny_pipeline()

    def drop_one(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            tensors["latents"] = tensors["latents"][:1]
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                tensors[name] = tensors[name][::2]
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(batch=2, callback_on_step_end=drop_one, callback_on_step_end_tensor_inputs=names)
    with ras_dit.accelerate(pipe, config) as handle, pytest.warns(ras_dit.RASWarning, match="changed in the middle"):
        fast = run(pipe, **call)
    assert fast.shape[0] == 1
    assert torch.isfinite(fast).all()
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 3 + ["dense"] * 5


def test_interrupt_and_exception_leave_the_next_run_correct() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())

    def interrupt(pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index >= 4
        return tensors

    run(pipe, **inputs(callback_on_step_end=interrupt))
    assert len(handle.trace.steps) == 5
    assert torch.equal(run(pipe, **inputs()), expected)

    for error in (RuntimeError("boom"), KeyboardInterrupt()):

        def fail(
            _pipe: Any, index: int, _t: Any, tensors: dict[str, Any], error: BaseException = error
        ) -> dict[str, Any]:
            if index == 5:
                raise error
            return tensors

        with pytest.raises(type(error)):
            run(pipe, **inputs(callback_on_step_end=fail))
        assert torch.equal(run(pipe, **inputs()), expected)


def test_interrupt_inside_an_attention_layer_leaves_no_function_mode() -> None:
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    hook = pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, **inputs())
    hook.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(run(pipe, **inputs()), expected)


def test_the_transformer_called_by_hand_runs_dense() -> None:
    pipe = tiny_pipeline()
    call = inputs()
    direct = {
        "hidden_states": call["latents"],
        "timestep": torch.tensor([321.0]),
        "encoder_hidden_states": call["prompt_embeds"],
        "pooled_projections": call["pooled_prompt_embeds"],
    }

    def stop(_pipe: Any, index: int, _t: Any, _tensors: Any) -> Any:
        if index == 5:
            raise RuntimeError
        return {}

    with torch.no_grad():
        dense = pipe.transformer(**direct).sample
        ras_dit.enable(pipe, REGION)
        assert torch.equal(pipe.transformer(**direct).sample, dense)
        run(pipe, **call)
        assert torch.equal(pipe.transformer(**direct).sample, dense)
        with pytest.raises(RuntimeError):
            run(pipe, **inputs(callback_on_step_end=stop))
        assert torch.equal(pipe.transformer(**direct).sample, dense)


def test_different_calls_one_after_the_other() -> None:
    calls = [inputs(), inputs(batch=2, height=5, width=9), inputs(guidance_scale=1.0, num_inference_steps=6), inputs()]
    alone = []
    for call in calls:
        pipe = tiny_pipeline()
        ras_dit.enable(pipe, REGION)
        alone.append(run(pipe, **call))
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    for call, expected in zip(calls, alone, strict=True):
        assert torch.equal(run(pipe, **call), expected)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    both = inputs(batch=2)
    together = run(pipe, **both)
    for index in range(2):
        one = {k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in both.items()}
        assert (run(pipe, **one) - together[index : index + 1]).abs().max() < 1e-3  # batched kernels round differently


def test_two_pipelines_interleaved_and_in_threads() -> None:
    def make(seed: int) -> Any:
        return tiny_pipeline(seed, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))

    alone = []
    for seed in (0, 1):
        pipe = make(seed)
        ras_dit.enable(pipe, REGION)
        alone.append(run(pipe, **inputs(seed=seed)))
    first, second = make(0), make(1)
    ras_dit.enable(first, REGION)
    ras_dit.enable(second, REGION)
    inner: list[torch.Tensor] = []

    def nested(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            inner.append(run(second, **inputs(seed=1)))
        return tensors

    assert torch.equal(run(first, **inputs(seed=0, callback_on_step_end=nested)), alone[0])
    assert torch.equal(inner[0], alone[1])
    results: dict[int, torch.Tensor] = {}

    def work(index: int, pipe: Any) -> None:
        torch.set_num_threads(1)
        for _ in range(3):
            results[index] = run(pipe, **inputs(seed=index))

    threads = [threading.Thread(target=work, args=(i, pipe)) for i, pipe in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], alone[0])
    assert torch.equal(results[1], alone[1])


def test_a_scheduler_swapped_while_enabled_is_observed() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    first = pipe.scheduler
    run(pipe, **inputs())
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    run(pipe, **inputs())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 8
    handle.disable()
    assert "step" not in vars(first)
    assert "step" not in vars(pipe.scheduler)


def test_a_transformer_swapped_while_enabled_is_reported() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    first = pipe.transformer
    pipe.transformer = tiny_transformer(seed=1)
    with pytest.warns(ras_dit.RASWarning, match="transformer was replaced"):
        fast = run(pipe, **inputs())
    assert "replaced" in handle.trace.notes[0]
    assert torch.equal(fast, run(tiny_pipeline(1), **inputs()))
    handle.disable()
    assert "_ras_dit_handle" not in vars(first)


def test_pipelines_made_of_the_same_parts_share_it() -> None:
    pipe = tiny_pipeline(in_channels=16, out_channels=16)
    handle = ras_dit.enable(pipe, REGION)
    img2img = StableDiffusion3Img2ImgPipeline.from_pipe(pipe, vae=tiny_vae())
    img2img.set_progress_bar_config(disable=True)
    call = {**inputs(num_inference_steps=12), "latents": None, "strength": 0.5, "height": 32, "width": 48}
    run(img2img, **call, image=torch.rand(1, 3, 32, 48))
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    ras_dit.disable(img2img)
    assert not handle.is_enabled


def test_stochastic_schedulers_run_dense_and_say_so() -> None:
    pipe = tiny_pipeline(scheduler=FlowMatchLCMScheduler(shift=3.0))

    def seeded() -> dict[str, Any]:
        return inputs(generator=torch.Generator().manual_seed(0))

    torch.manual_seed(0)
    dense = run(pipe, **seeded())
    with pytest.warns(ras_dit.RASWarning, match="FlowMatchLCMScheduler adds fresh noise"):
        handle = ras_dit.enable(pipe, REGION)
    torch.manual_seed(0)
    assert torch.equal(run(pipe, **seeded()), dense)
    assert all(step.kind == "dense" for step in handle.trace.steps)
    assert "fresh noise" in str(handle.summary())


def test_nan_in_the_latents_runs_dense_and_says_so() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())

    def spoil(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            tensors["latents"] = tensors["latents"].clone()
            tensors["latents"][0, 0, 0, 0] = float("nan")
        return tensors

    with pytest.warns(ras_dit.RASWarning, match="not finite"):
        run(pipe, **inputs(callback_on_step_end=spoil))
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4 + ["dense"] * 4
    assert "not finite" in str(handle.summary())
    assert torch.equal(run(pipe, **inputs()), expected)


@pytest.mark.parametrize("steps", [5, 7, 10])
def test_short_runs(steps: int) -> None:
    pipe = tiny_pipeline()
    for config in (RASConfig(sample_ratio=0.25), RASConfig.preset("fast"), RASConfig.reference(0.25, start_step=4)):
        with ras_dit.accelerate(pipe, config) as handle:
            assert torch.isfinite(run(pipe, **inputs(num_inference_steps=steps))).all()
        assert len(handle.trace.steps) == steps
        assert any(step.kind == "region" for step in handle.trace.steps)


def test_nothing_is_kept_after_a_run_nor_after_disable() -> None:
    def key_like() -> int:
        gc.collect()
        return sum(
            isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[2:] == (96 + 7, 16) for x in gc.get_objects()
        )

    pipe = tiny_pipeline()
    held: list[int] = []

    def count(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(key_like())
        return tensors

    before = key_like()
    handle = ras_dit.enable(pipe, REGION.replace(refresh_steps=[5], end_step=7))
    run(pipe, **inputs(callback_on_step_end=count))
    layers = 2 * 3
    assert held == [before] + [before + layers] * 6 + [before] * 3

    def fail(_pipe: Any, index: int, _t: Any, _tensors: Any) -> Any:
        if index == 4:
            raise RuntimeError
        return {}

    with pytest.raises(RuntimeError):
        run(pipe, **inputs(callback_on_step_end=fail))
    handle.disable()
    assert key_like() == before


def test_skipped_steps_compute_nothing() -> None:
    pipe = tiny_pipeline()
    calls = []
    hook = pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    dense = run(pipe, **inputs())
    calls.clear()
    config = RASConfig(sample_ratio=0.25, warmup_steps=3, skip_steps=(3, 8))
    with ras_dit.accelerate(pipe, config) as handle:
        fast = run(pipe, **inputs())
    assert len(calls) == 8
    assert [handle.trace.steps[i].kind for i in (3, 4, 8)] == ["skip", "region", "skip"]
    assert handle.trace.token_steps == pytest.approx(3 + 5 * 0.25)
    assert handle.trace.steps[3].active.shape == (1, 0)  # type: ignore[union-attr]
    assert torch.isfinite(fast).all()
    hook.remove()
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(run(pipe, **inputs()), dense)


def test_unsupported_things_are_refused() -> None:
    class Custom(torch.nn.Module):
        pass

    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="supported: SD3Transformer2DModel"):
        ras_dit.enable(type("Pipe", (), {"transformer": Custom(), "scheduler": pipe.scheduler})())
    with pytest.raises(ValueError, match="U-Net"):
        ras_dit.enable(type("Pipe", (), {"unet": Custom()})())
    with pytest.raises(ValueError, match="PAG"):
        ras_dit.enable(tiny_pipeline(pipeline=StableDiffusion3PAGPipeline))
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(pipe)
    handle = ras_dit.enable(pipe, "fast")
    with pytest.raises(ValueError, match="already enabled"):
        ras_dit.enable(pipe, "fast")
    ras_dit.disable(pipe)
    with pytest.raises(ValueError, match="already disabled"):
        handle.disable()
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(pipe)
    with pytest.raises(ValueError, match="quality, balanced, fast"):
        ras_dit.enable(pipe, "fastest")


def test_refresh_steps_outside_the_run() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, RASConfig(refresh_steps=(12,)))
    with pytest.raises(ValueError, match="this run has 10 transformer evaluations"):
        handle.plan(10, 128, 192)
    with pytest.raises(ValueError, match="this run has 10 transformer evaluations"):
        run(pipe, **inputs())
    assert torch.isfinite(run(pipe, **inputs(num_inference_steps=14))).all()


def test_attention_that_cannot_be_merged_is_refused() -> None:
    class Eager:
        def __call__(
            self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
        ) -> Any:
            return hidden_states, encoder_hidden_states

    pipe = tiny_pipeline()
    pipe.transformer.set_attn_processor(Eager())
    ras_dit.enable(pipe, REGION)
    with pytest.raises(ras_dit.UnsupportedAttentionError, match=r"Eager in transformer_blocks\.0\.attn"):
        run(pipe, **inputs())


def test_fused_projections() -> None:
    pipe = tiny_pipeline(qk_norm="rms_norm")
    pipe.transformer.fuse_qkv_projections()
    check_contract(pipe, inputs())


def test_layerwise_casting() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    check_contract(pipe, inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(qk_norm="rms_norm").to(dtype)
    call = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs(batch=2).items()}
    check_contract(pipe, call)


class TestModelCpuOffload:
    """accelerate takes every hook off and puts it on again after each picture."""

    @pytest.mark.parametrize("config", [REGION, REGION.replace(skip_steps=[5])], ids=["region", "skip"])
    @pytest.mark.parametrize("is_offloaded_first", [True, False])
    def test_runs_alike(self, config: RASConfig, is_offloaded_first: bool) -> None:
        pipe = tiny_pipeline()
        dense = run(pipe, **inputs())
        with ras_dit.accelerate(pipe, config):
            expected = run(pipe, **inputs())
        if is_offloaded_first:
            pipe.enable_model_cpu_offload(device="cpu")
        handle = ras_dit.enable(pipe, config)
        if not is_offloaded_first:
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert torch.equal(run(pipe, **inputs()), expected)
            assert handle.trace.token_steps < 6
        handle.disable()
        assert torch.equal(run(pipe, **inputs()), dense)
        pipe.remove_all_hooks()
        assert (
            "forward" not in vars(pipe.transformer)
            or pipe.transformer.forward.__func__ is type(pipe.transformer).forward
        )
        assert torch.equal(run(pipe, **inputs()), dense)


def test_transformers_are_tiny_but_real() -> None:
    assert sum(parameter.numel() for parameter in tiny_transformer().parameters()) > 10_000
