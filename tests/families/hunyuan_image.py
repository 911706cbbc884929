"""HunyuanImage 2.1."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanImagePipeline, HunyuanImageTransformer2DModel
from diffusers.guiders import AdaptiveProjectedMixGuidance

from families.case import FamilyCase, normals
from tiny import redraw


def build(guider: Any = None, text_embed_2_dim: int | None = 20, **changes: Any) -> Any:
    torch.manual_seed(0)
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        text_embed_2_dim=text_embed_2_dim,
        rope_axes_dim=(8, 8),
        **changes,
    ).eval()
    redraw(transformer, 0)
    pipe = HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        guider=guider,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    pixels = 32  # the autoencoder makes pictures 32 times smaller, and a token is one latent pixel
    arguments: dict[str, Any] = {
        "prompt_embeds": normal(batch, 8, 24),
        "prompt_embeds_mask": torch.tensor([[1] * 6 + [0] * 2] * batch),
        "prompt_embeds_2": normal(batch, 5, 20),
        "prompt_embeds_mask_2": torch.tensor([[1] * 3 + [0] * 2] * batch),
        "latents": normal(batch, 4, height, width),
        "height": pixels * height,
        "width": pixels * width,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def with_guidance(batch: int = 1, **size: int) -> dict[str, Any]:
    normal = normals(2)
    return call(
        batch=batch,
        **size,
        negative_prompt_embeds=normal(batch, 8, 24),
        negative_prompt_embeds_mask=torch.tensor([[1] * 3 + [0] * 5] * batch),
        negative_prompt_embeds_2=normal(batch, 5, 20),
        negative_prompt_embeds_mask_2=torch.tensor([[1] * 2 + [0] * 3] * batch),
    )


def one_text(batch: int = 1, **size: int) -> dict[str, Any]:
    """The second text takes part with no valid token."""
    no_text = torch.zeros(batch, 5, dtype=torch.long)
    return call(batch=batch, **size, prompt_embeds_2=torch.zeros(batch, 5, 20), prompt_embeds_mask_2=no_text)


# The second text's embedder is 2,048 wide whatever the model, larger than all of this one. The cost model counts it for
# the first text's tokens as well.
SECOND_TEXT = 1.5

CASES = [
    FamilyCase("hunyuan-image-one-text", functools.partial(build, None, None), one_text),
    FamilyCase("hunyuan-image", functools.partial(build, None), call, flops_tolerance=SECOND_TEXT),
    FamilyCase(
        "hunyuan-image-guided",
        lambda: build(AdaptiveProjectedMixGuidance(guidance_scale=3.5, adaptive_projected_guidance_start_step=0)),
        with_guidance,
        num_calls=2,
        flops_tolerance=SECOND_TEXT,
    ),
]
