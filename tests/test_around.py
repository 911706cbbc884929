"""What users put around the transformer: offload, quantised weights, guiders and modular pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from diffusers import LayerSkipConfig, SmoothedEnergyGuidanceConfig
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_3.before_denoise import (
    StableDiffusion3PrepareLatentsStep,
    StableDiffusion3SetTimestepsStep,
)
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from diffusers.modular_pipelines.stable_diffusion_3.inputs import StableDiffusion3TextInputStep
from diffusers.modular_pipelines.wan.before_denoise import (
    WanPrepareLatentsStep,
    WanSetTimestepsStep,
    WanTextInputStep,
)
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from diffusers.modular_pipelines.z_image.modular_blocks_z_image import ZImageCoreDenoiseStep

import ras_dit
from checks import moving_by, recorded
from families import flux, wan, z_image
from ras_dit import RASConfig
from tiny import REGION, check_contract, inputs, run, tiny_pipeline

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("is_first", [True, False], ids=["offload first", "RAS first"])
def test_group_offload(kind: str, is_first: bool) -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, REGION):
        fast = run(pipe, **inputs())
    groups = 1 if kind == "block_level" else None
    options = {"onload_device": CPU, "offload_device": CPU, "offload_type": kind, "num_blocks_per_group": groups}
    if is_first:
        pipe.transformer.enable_group_offload(**options)
    handle = ras_dit.enable(pipe, REGION)
    if not is_first:
        pipe.transformer.enable_group_offload(**options)
    assert torch.equal(run(pipe, **inputs()), fast)
    handle.disable()
    assert torch.equal(run(pipe, **inputs()), dense)


@pytest.mark.parametrize("is_first", [True, False], ids=["offload first", "RAS first"])
def test_sequential_offload(is_first: bool) -> None:
    """What `enable_sequential_cpu_offload` does to the transformer: every module's weights come and go with its call.

    (The pipeline's method itself asks for an accelerator.)
    """
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, REGION):
        fast = run(pipe, **inputs())
    if is_first:
        cpu_offload(pipe.transformer, CPU, offload_buffers=True)
    handle = ras_dit.enable(pipe, REGION)
    if not is_first:
        cpu_offload(pipe.transformer, CPU, offload_buffers=True)
    assert pipe.transformer.proj_out.weight.device.type == "meta"
    assert torch.equal(run(pipe, **inputs()), fast)
    handle.disable()
    assert torch.equal(run(pipe, **inputs()), dense)
    remove_hook_from_module(pipe.transformer, recurse=True)
    assert torch.equal(run(pipe, **inputs()), dense)
    for module in pipe.transformer.modules():
        assert getattr(module.forward, "__func__", None) is type(module).forward


def test_quantised_weights_are_left_as_they_are() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipe = tiny_pipeline()
    plain = run(pipe, **inputs())
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert not torch.equal(run(pipe, **inputs()), plain)
    check_contract(pipe, inputs())
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight is weight


def test_four_bit_linears_of_bitsandbytes() -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    pipe = tiny_pipeline()
    plain = run(pipe, **inputs())
    for module in list(pipe.transformer.transformer_blocks.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear:
                four_bit = nn.Linear4bit(
                    child.in_features, child.out_features, child.bias is not None, torch.float32, quant_type="nf4"
                )
                four_bit.load_state_dict(child.state_dict())
                setattr(module, name, four_bit.to("cpu"))
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.uint8
    packed = weight.clone()
    assert not torch.equal(run(pipe, **inputs()), plain)
    check_contract(pipe, inputs())
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight is weight
    assert torch.equal(weight, packed)


def modular(guider: Any) -> tuple[Any, Any]:
    """A modular pipeline whose guider calls the transformer once per branch, and a call of it."""
    blocks = SequentialPipelineBlocks.from_blocks_dict(
        {
            "text": StableDiffusion3TextInputStep(),
            "timesteps": StableDiffusion3SetTimestepsStep(),
            "latents": StableDiffusion3PrepareLatentsStep(),
            "denoise": StableDiffusion3DenoiseStep(),
        }
    )
    pipe = blocks.init_pipeline()
    components = tiny_pipeline()
    pipe.update_components(transformer=components.transformer, scheduler=components.scheduler, guider=guider)
    call = {name: value for name, value in inputs().items() if name not in ("guidance_scale", "output_type")}
    return pipe, lambda: pipe(**{**call, "latents": call["latents"].clone()}, output="latents")


@pytest.mark.parametrize("guider", [ClassifierFreeGuidance, AdaptiveProjectedGuidance])
def test_modular_pipelines_and_their_guiders(guider: Any) -> None:
    pipe, go = modular(guider(guidance_scale=4.0))
    dense = go()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(go(), dense)
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = go()
    assert fast.isfinite().all()
    assert not torch.equal(fast, dense)
    assert handle.summary().notes == ()
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 8
    assert torch.equal(go(), dense)


def three_calls(name: str) -> tuple[Any, Any]:
    """A modular pipeline whose guider adds a third call in which a layer, or its attention, is left out."""
    if name == "skipped layer":
        blocks: Any = SequentialPipelineBlocks.from_blocks_dict(
            {
                "text": WanTextInputStep(),
                "timesteps": WanSetTimestepsStep(),
                "latents": WanPrepareLatentsStep(),
                "denoise": WanDenoiseStep(),
            }
        )
        family, skipped = wan, LayerSkipConfig(indices=[1], fqn="blocks")
        guider: Any = SkipLayerGuidance(
            guidance_scale=4.0, skip_layer_config=skipped, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        )
    elif name == "skipped attention":
        blocks, family = ZImageCoreDenoiseStep(), z_image
        skipped = LayerSkipConfig(indices=[0], fqn="layers", skip_attention=True, skip_ff=False)
        guider = SkipLayerGuidance(
            guidance_scale=4.0, skip_layer_config=skipped, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        )
    else:
        blocks, family = ZImageCoreDenoiseStep(), z_image
        skipped = LayerSkipConfig(
            indices=[1], fqn="layers", skip_attention=False, skip_ff=False, skip_attention_scores=True
        )
        guider = PerturbedAttentionGuidance(
            guidance_scale=4.0,
            perturbed_guidance_config=skipped,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
        )
    pipe, components = blocks.init_pipeline(), family.build()
    pipe.update_components(transformer=components.transformer, scheduler=components.scheduler, guider=guider)
    pipe.set_progress_bar_config(disable=True)
    call = family.call(height=6, width=8, num_inference_steps=8)
    call = {name: value for name, value in call.items() if name not in ("guidance_scale", "output_type")}
    return pipe, lambda: pipe(**{**call, "latents": call["latents"].clone()}, output="latents")


@pytest.mark.parametrize("name", ["skipped layer", "skipped attention", "perturbed attention"])
def test_guiders_that_make_three_calls(name: str) -> None:
    pipe, go = three_calls(name)
    dense = go()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(go(), dense)
    with ras_dit.accelerate(pipe, REGION) as handle:
        assert go().isfinite().all()
    assert handle.summary().notes == ()
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 6
    assert torch.equal(go(), dense)
    config = RASConfig(sample_ratio=0.3, warmup_steps=2, importance="random", token_multiple=16)
    with moving_by(pipe, 1.0), ras_dit.accelerate(pipe, config), recorded(pipe) as noises:
        go()
    assert len(noises) == 2 + 3 * 7, "the third call begins with the second evaluation"
    for index, noise in enumerate(noises[2:]):
        assert torch.equal(noise, noises[2 + index % 3]), f"call {index + 2}"


def test_guidance_that_blurs_queries_runs_dense() -> None:
    """It takes the tokens of an attention module for a whole picture."""
    pipe, go = three_calls("skipped layer")
    blurred = SmoothedEnergyGuidanceConfig(indices=[1], fqn="blocks")
    pipe.update_components(guider=SmoothedEnergyGuidance(guidance_scale=4.0, seg_guidance_config=blurred))
    dense = go()
    with (
        ras_dit.accelerate(pipe, REGION) as handle,
        pytest.warns(ras_dit.RASWarning, match="SmoothedEnergyGuidance"),
    ):
        assert torch.equal(go(), dense)
    assert any("SmoothedEnergyGuidance" in note for note in handle.summary().notes)


def test_guidance_over_a_part_of_the_run() -> None:
    """A branch that comes late is computed dense once, and the summary says so."""
    pipe, go = modular(ClassifierFreeGuidance(guidance_scale=4.0, start=0.4, stop=0.8))
    dense = go()
    with (
        ras_dit.accelerate(pipe, REGION) as handle,
        pytest.warns(ras_dit.RASWarning, match="A guidance branch began"),
    ):
        assert go().isfinite().all()
    assert any("A guidance branch began" in note for note in handle.summary().notes)
    assert torch.equal(go(), dense)


def test_keys_of_guidance_that_has_ended_are_let_go() -> None:
    pipe, go = modular(ClassifierFreeGuidance(guidance_scale=4.0, stop=0.5))
    counts = []
    with ras_dit.accelerate(pipe, REGION) as handle:
        generation: Any = None

        def look(*_: Any) -> None:
            nonlocal generation
            generation = handle._session._generation
            counts.append(sum(bool(branch.layers) for branch in generation._branches.values()))

        hook = pipe.transformer.register_forward_hook(look)
        go()
        hook.remove()
    assert max(counts) == 2
    assert counts[-1] == 1


@pytest.fixture
def flux_pipe() -> Iterator[Any]:
    """A FLUX.1 pipeline on the native backend. diffusers makes a pipeline's backend that of all others as well."""
    pipe = flux.build()
    pipe.transformer.set_attention_backend("native")
    yield pipe
    pipe.transformer.set_attention_backend("native")


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_native_attention_backends(flux_pipe: Any, backend: str) -> None:
    pipe = flux_pipe
    pipe.transformer.set_attention_backend(backend)
    call = flux.call(height=6, width=8)
    dense = pipe(**call).images
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(pipe(**call).images, dense)
    with ras_dit.accelerate(pipe, REGION) as handle:
        assert pipe(**call).images.isfinite().all()
    assert handle.summary().token_steps == pytest.approx(2 + 4 * 0.25)
    assert handle.summary().notes == ()
    assert torch.equal(pipe(**call).images, dense)


def test_a_backend_that_keys_cannot_be_merged_into_is_refused_and_leaves_the_pipeline_well(flux_pipe: Any) -> None:
    pipe = flux_pipe
    call = flux.call(height=6, width=8)
    dense = pipe(**call).images
    pipe.transformer.set_attention_backend("flex")
    told = pytest.warns(ras_dit.RASWarning, match="backend 'flex': region steps will raise")
    with told, ras_dit.accelerate(pipe, REGION), pytest.raises(ValueError, match="set_attention_backend"):
        pipe(**call)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ras_dit.RASWarning)
        ras_dit.enable(pipe, preset="balanced").disable()  # has no region steps
    pipe.transformer.set_attention_backend("native")
    assert torch.equal(pipe(**call).images, dense)
    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe(**call)
    assert handle.summary().notes == ()
