"""HunyuanVideo."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build(pipeline: Any = HunyuanVideoPipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "text_embed_dim": 24,
        "pooled_projection_dim": 20,
        "rope_axes_dim": (4, 6, 6),
    }
    transformer = HunyuanVideoTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    is_text = pipeline is HunyuanVideoPipeline
    pipe = pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=None if is_text else tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        **({} if is_text else {"image_processor": None}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae() -> AutoencoderKLHunyuanVideo:
    torch.manual_seed(3)
    widths = (4, 4, 4, 4)
    vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=widths, layers_per_block=1, norm_num_groups=2)
    return vae.eval()


def build_image(kind: str) -> Any:
    changes = {"in_channels": 9, "guidance_embeds": False} if kind == "latent_concat" else {}
    return build(HunyuanVideoImageToVideoPipeline, image_condition_type=kind, **changes)


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_pooled_prompt_embeds": normal(batch, 20),
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    image = normals(2)(batch, 3, 16 * height, 16 * width).sigmoid()
    return call(batch, height, width, image=image, true_cfg_scale=3.0, **changes)


CASES = [
    FamilyCase("hunyuan-video", build, call),
    FamilyCase("hunyuan-video-true-cfg", build, lambda **size: call(**size, true_cfg_scale=3.0), num_calls=2),
    FamilyCase("hunyuan-video-i2v-concat", lambda: build_image("latent_concat"), call_image, num_calls=2),
    FamilyCase("hunyuan-video-i2v-replace", lambda: build_image("token_replace"), call_image, num_calls=2),
]
