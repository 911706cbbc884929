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
    ConsisIDTransformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # by its file: that needs no OpenCV

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
        "num_inference_steps": 6,
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


def build_consisid(has_face: bool) -> Any:
    torch.manual_seed(0)
    face: dict[str, Any] = {
        "is_train_face": True,
        "cross_attn_dim_head": 8,
        "cross_attn_num_heads": 2,
        "LFE_id_dim": 16,
        "LFE_vit_dim": 16,
        "LFE_depth": 5,
        "LFE_dim_head": 8,
        "LFE_num_heads": 2,
        "LFE_num_id_token": 2,
        "LFE_num_querie": 4,
        "LFE_output_dim": 32,
        "LFE_ff_mult": 1,
    }
    transformer = ConsisIDTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=24,
        num_layers=4,
        max_text_seq_length=9,
        use_rotary_positional_embeddings=True,
        **(face if has_face else {}),
    ).eval()
    redraw(transformer, 0)
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    parts = {"tokenizer": None, "text_encoder": None, "vae": tiny_vae()}
    pipe = ConsisIDPipeline(**parts, transformer=transformer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_face(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    normal = normals(6)
    rows = 2 * batch
    identity = {"id_cond": normal(rows, 16), "id_vit_hidden": [normal(rows, 3, 16) for _ in range(5)]}
    return call_image(batch, height, width, **identity)


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
    FamilyCase("consisid", lambda: build_consisid(has_face=False), call_image),
    FamilyCase("consisid-face", lambda: build_consisid(has_face=True), call_face),
    FamilyCase("cogvideox-v2v", functools.partial(build, CogVideoXVideoToVideoPipeline), call_video),
]
