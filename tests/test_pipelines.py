"""What pipelines do around the transformer: variants, schedulers, adapters, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    UniPCMultistepScheduler,
)
from peft import LoraConfig, get_peft_model_state_dict

import ras_dit
from ras_dit.flops import Layers
from ras_dit.models.sd3 import SD3
from tiny import REGION, check_contract, inputs, redraw, run, tiny_pipeline, tiny_vae

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


def test_lora_follows_its_scale_at_run_time() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=4))
    redraw(pipe.transformer, seed=4)
    check_contract(pipe, inputs())
    with ras_dit.accelerate(pipe, REGION):
        full = run(pipe, **inputs())
        half = run(pipe, **inputs(), joint_attention_kwargs={"scale": 0.5})
    assert not torch.equal(full, half)


def test_lora_loaded_from_a_file_fused_and_unfused(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=weights)

    pipe = tiny_pipeline()
    plain = run(pipe, **inputs())
    pipe.load_lora_weights(tmp_path)
    loaded = run(pipe, **inputs())
    assert not torch.equal(loaded, plain)
    check_contract(pipe, inputs())
    with ras_dit.accelerate(pipe, REGION):
        fast = run(pipe, **inputs())
        pipe.fuse_lora()
        assert torch.allclose(run(pipe, **inputs()), fast, atol=1e-3)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    assert torch.allclose(run(pipe, **inputs()), plain, atol=1e-4)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    check_contract(pipe, inputs())


def test_lora_may_be_added_while_enabled() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION):
        before = run(pipe, **inputs())
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert not torch.equal(run(pipe, **inputs()), before)
        pipe.transformer.delete_adapters("default")
        assert torch.equal(run(pipe, **inputs()), before)


@pytest.mark.parametrize("layer", ["proj_out", "context_embedder"])
def test_lora_of_the_first_and_the_last_layer_may_come_and_go_while_enabled(layer: str) -> None:
    """peft puts a module of its own in the layer's place, around which rows have to be put back."""
    pipe = tiny_pipeline()
    adapter = LoraConfig(r=2, target_modules=[layer], init_lora_weights=False)
    with ras_dit.accelerate(pipe, REGION):
        before = run(pipe, **inputs())
        torch.manual_seed(0)
        pipe.transformer.add_adapter(adapter)
        during = run(pipe, **inputs())
        assert not torch.equal(during, before)
    with ras_dit.accelerate(pipe, REGION):  # the hooks are put in with the adapter there
        assert torch.equal(run(pipe, **inputs()), during)
        pipe.transformer.delete_adapters("default")
        pipe.unload_lora_weights()
        assert type(pipe.transformer.get_submodule(layer)) is torch.nn.Linear
        assert torch.equal(run(pipe, **inputs()), before)
    assert not pipe.transformer.get_submodule(layer)._forward_hooks


def with_ip_adapter() -> tuple[Any, dict[str, Any]]:
    """A pipeline with an image prompt, and a call of it."""
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
    return pipe, inputs(ip_adapter_image_embeds=torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)))


def test_ip_adapter() -> None:
    pipe, arguments = with_ip_adapter()

    def call(scale: float) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(scale)
        return arguments

    without = run(pipe, **call(0.0))
    check_contract(pipe, call(0.7))
    assert not torch.equal(run(pipe, **call(0.7)), without)
    adapted, plain = (Layers.of(SD3, each.transformer).linears for each in (pipe, tiny_pipeline()))
    added = adapted[:]
    for layer in plain:
        added.remove(layer)
    assert {stream for _, _, stream in added} == {"row"}, "the adapter's layers do not work on the picture"
    with ras_dit.accelerate(pipe, REGION.replace(text_reuse=True)) as handle:  # no text in its second call
        assert torch.isfinite(run(pipe, **call(0.7))).all()
    assert handle.summary().num_dense < 10
    assert not handle.summary().notes


@pytest.mark.parametrize("scales", [(0.0, 0.7), (0.7, 0.0)])
def test_an_ip_adapter_may_be_switched_in_the_middle(scales: tuple[float, float]) -> None:
    """At scale 0 its attention call is not made at all."""
    pipe, call = with_ip_adapter()

    def switch(pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            pipe.set_ip_adapter_scale(scales[1])
        return tensors

    call["callback_on_step_end"] = switch
    pipe.set_ip_adapter_scale(scales[0])
    with ras_dit.accelerate(pipe, REGION) as handle, pytest.warns(ras_dit.RASWarning, match="switched on or off"):
        assert run(pipe, **call).isfinite().all()
    assert [step.kind for step in handle.trace.steps] == [*["dense"] * 2, *["region"] * 3, "dense", *["region"] * 4]


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
