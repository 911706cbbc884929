"""LTX-Video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build(pipeline: Any = LTXPipeline, vae: Any = None, **scheduler: Any) -> Any:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=24,
    ).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler or {"use_dynamic_shifting": True, "shift_terminal": 0.1}),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def build_condition() -> Any:
    torch.manual_seed(3)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    return build(LTXConditionPipeline, vae.eval(), shift=1.0)


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, FRAMES * height * width, 8),
        "height": 32 * height,
        "width": 32 * width,
        "num_frames": 8 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    return call(batch, height, width, image=normals(2)(batch, 3, 32 * height, 32 * width).sigmoid(), **changes)


def call_condition(
    batch: int = 1, height: int = 4, width: int = 6, at: tuple[int, ...] = (), strength: float = 1.0, **changes: Any
) -> dict[str, Any]:
    """Images given for some frames; those of later frames stand in front of the grid."""
    normal = normals(2)
    arguments = call(batch, height, width, generator=torch.Generator().manual_seed(5), **changes)
    del arguments["latents"]
    if at:
        arguments["image"] = [normal(batch, 3, 32 * height, 32 * width).sigmoid() for _ in at]
        arguments["video"] = [None for _ in at]
        arguments.update(frame_index=list(at), strength=[strength for _ in at], image_cond_noise_scale=0.0)
    return arguments


CASES = [
    FamilyCase("ltx", build, call),
    FamilyCase("ltx-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase("ltx-rescaled", build, lambda **size: call(**size, guidance_rescale=0.7)),
    FamilyCase("ltx-i2v", lambda: build(LTXImageToVideoPipeline), call_image),
    FamilyCase("ltx-condition", build_condition, call_condition),
    FamilyCase("ltx-condition-first", build_condition, lambda **size: call_condition(**size, at=(0,))),
    FamilyCase(
        "ltx-condition-later",
        build_condition,
        lambda **size: call_condition(**size, at=(0, 8, 16), strength=0.9, guidance_scale=1.0),
    ),
]
