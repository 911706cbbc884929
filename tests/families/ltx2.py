"""LTX-2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ImageToVideoPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


class Video:
    """What the pipeline asks of the video VAE when it neither encodes nor decodes."""

    config = SimpleNamespace(scaling_factor=1.0)
    spatial_compression_ratio = 32
    temporal_compression_ratio = 8
    latents_mean = torch.zeros(8)
    latents_std = torch.ones(8)


class Sound:
    """What the pipeline asks of the audio VAE when it does not decode."""

    config = SimpleNamespace(mel_bins=8, latent_channels=4, sample_rate=16000, mel_hop_length=160)
    mel_compression_ratio = 4
    temporal_compression_ratio = 4
    latents_mean = torch.zeros(8)
    latents_std = torch.ones(8)


class Connectors:
    """In place of the models between the text encoder and the transformer."""

    def __call__(self, prompt: torch.Tensor, mask: torch.Tensor, padding_side: str) -> tuple[torch.Tensor, ...]:
        return prompt, prompt.flip(1), mask


def build(pipeline: Any = LTX2Pipeline, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "cross_attention_dim": 48,
        "audio_in_channels": 8,
        "audio_out_channels": 8,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 3,
        "caption_channels": 24,
    }
    transformer = LTX2VideoTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    pipe = pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1),
        vae=None,
        audio_vae=None,
        text_encoder=None,
        tokenizer=None,
        connectors=None,
        transformer=transformer,
        vocoder=None,
    )
    pipe.vae, pipe.audio_vae, pipe.connectors = Video(), Sound(), Connectors()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": negative_mask,
        "latents": normal(batch, 8, FRAMES, height, width),
        "audio_latents": normal(batch, 4, 5, 2),
        "height": 32 * height,
        "width": 32 * width,
        "num_frames": 8 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "spatio_temporal_guidance_blocks": [1],
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    return call(batch, height, width, image=normals(2)(batch, 3, 32 * height, 32 * width).sigmoid(), **changes)


PLAIN: dict[str, Any] = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}
SPLIT: dict[str, Any] = {
    "rope_type": "split",
    "perturbed_attn": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "gated_attn": True,
    "audio_gated_attn": True,
    "use_prompt_embeddings": False,
    "caption_channels": 48,
}

CASES = [
    FamilyCase("ltx2", build, lambda **size: call(**size, **PLAIN)),
    FamilyCase("ltx2-all-guidance", build, call, num_calls=3),
    FamilyCase(
        "ltx2-i2v",
        lambda: build(LTX2ImageToVideoPipeline),
        lambda **size: call_image(**size, **PLAIN),
    ),
]
