"""CogVideoX and CogVideoX 1.5."""

from __future__ import annotations

import functools
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
)

from families.case import FamilyCase, normals
from tiny import redraw


def build(pipeline: Any = CogVideoXPipeline, scheduler: Any = CogVideoXDDIMScheduler, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 24,
        "num_layers": 3,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 9,
        "use_rotary_positional_embeddings": True,
    }
    transformer = CogVideoXTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None if pipeline is CogVideoXPipeline else tiny_vae(),
        transformer=transformer,
        scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae() -> AutoencoderKLCogVideoX:
    torch.manual_seed(3)
    vae = AutoencoderKLCogVideoX(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    return vae.eval()


def call(batch: int = 1, height: int = 4, width: int = 6, frames: int = 3, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, frames, 4, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    image = normals(2)(batch, 3, 16 * height, 16 * width).sigmoid()
    return call(batch, height, width, image=image, generator=torch.Generator().manual_seed(5), **changes)


def call_video(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    arguments = call(batch, height, width, num_inference_steps=10, strength=0.8)
    del arguments["num_frames"], arguments["latents"]
    video = normals(2)(batch, 9, 3, 16 * height, 16 * width).sigmoid()
    return {**arguments, "video": video, "generator": torch.Generator().manual_seed(5)}


NEWER: dict[str, Any] = {"patch_size_t": 2, "patch_bias": False, "sample_height": 16, "sample_width": 16}

CASES = [
    FamilyCase("cogvideox", build, call),
    FamilyCase("cogvideox-2b-no-rotary", functools.partial(build, use_rotary_positional_embeddings=False), call),
    FamilyCase("cogvideox-dynamic-cfg", build, lambda **size: call(**size, use_dynamic_cfg=True)),
    FamilyCase(
        "cogvideox1.5",
        functools.partial(build, **NEWER),
        lambda **size: call(**size, frames=4, guidance_scale=1.0),
    ),
    FamilyCase(
        "cogvideox-i2v",
        functools.partial(build, CogVideoXImageToVideoPipeline, in_channels=8, use_learned_positional_embeddings=False),
        call_image,
    ),
    FamilyCase(
        "cogvideox1.5-i2v",
        functools.partial(build, CogVideoXImageToVideoPipeline, in_channels=8, ofs_embed_dim=8, **NEWER),
        lambda **size: call_image(**size, frames=4),
    ),
    FamilyCase("cogvideox-v2v", functools.partial(build, CogVideoXVideoToVideoPipeline), call_video),
]
