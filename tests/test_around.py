"""What users put around the transformer: offload, quantised weights, guiders and modular pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines import SequentialPipelineBlocks
from diffusers.modular_pipelines.stable_diffusion_3.before_denoise import (
    StableDiffusion3PrepareLatentsStep,
    StableDiffusion3SetTimestepsStep,
)
from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3DenoiseStep
from diffusers.modular_pipelines.stable_diffusion_3.inputs import StableDiffusion3TextInputStep

import ras_dit
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


def test_quantised_weights_are_left_as_they_are() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    pipe = tiny_pipeline()
    plain = run(pipe, **inputs())
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())
    weight = pipe.transformer.transformer_blocks[0].attn.to_q.weight
    assert not torch.equal(run(pipe, **inputs()), plain)
    check_contract(pipe, inputs())
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight is weight


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
