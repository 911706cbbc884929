"""Tiny real Stable Diffusion 3 pipelines with random weights, and short calls of them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

import ras_dit
from ras_dit import RASConfig

REGION = RASConfig(sample_ratio=0.25, warmup_steps=2)
TEXT_LENGTH, TEXT_WIDTH, POOLED_WIDTH = 7, 32, 24


def tiny_transformer(seed: int = 0, **changes: Any) -> SD3Transformer2DModel:
    """A 3-layer SD3 transformer, width 32, every parameter re-drawn (zero-initialised layers would hide errors)."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": TEXT_WIDTH,
        "caption_projection_dim": 32,
        "pooled_projection_dim": POOLED_WIDTH,
        "pos_embed_max_size": 24,
    }
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(**{**config, **changes}).eval()
    redraw(model, seed)
    return model


def redraw(model: torch.nn.Module, seed: int, scale: float = 0.15) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def tiny_pipeline(
    seed: int = 0, scheduler: Any = None, pipeline: Any = StableDiffusion3Pipeline, **changes: Any
) -> Any:
    pipe = pipeline(
        transformer=tiny_transformer(seed, **changes),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(batch: int = 1, height: int = 8, width: int = 12, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """Arguments of a latent-output call over ``height * width`` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    call = {
        "prompt_embeds": normal(batch, TEXT_LENGTH, TEXT_WIDTH),
        "negative_prompt_embeds": normal(batch, TEXT_LENGTH, TEXT_WIDTH),
        "pooled_prompt_embeds": normal(batch, POOLED_WIDTH),
        "negative_pooled_prompt_embeds": normal(batch, POOLED_WIDTH),
        "latents": normal(batch, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_inference_steps": 10,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    return {**call, **changes}


def run(pipe: Any, **call: Any) -> torch.Tensor:
    """The latents of a call; pipelines that draw from the global generator draw the same every time."""
    torch.manual_seed(0)
    return pipe(**call).images


def tiny_vae(latent_channels: int = 16, num_levels: int = 2) -> Any:
    """An autoencoder whose latents are half as large per side, and half of that for every level above two."""
    from diffusers import AutoencoderKL

    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_levels,
        up_block_types=("UpDecoderBlock2D",) * num_levels,
        block_out_channels=(4,) + (8,) * (num_levels - 1),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def check_contract(pipe: Any, call: dict[str, Any], config: RASConfig = REGION) -> ras_dit.Trace:
    """Dense, ratio 1, region, dense again; returns the trace of the region run."""
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
        assert torch.equal(run(pipe, **call), dense)
    with ras_dit.accelerate(pipe, config) as handle:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ras_dit.RASWarning)
            warnings.simplefilter("ignore", ras_dit.AdviceWarning)
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
