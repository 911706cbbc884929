"""FramePack."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)

from families.case import FamilyCase, normals
from families.hunyuan_video import tiny_vae
from tiny import redraw

WINDOW = 3


class Pipeline(HunyuanVideoFramepackPipeline):
    """With the image encoder's part replaced."""

    def encode_image(self, image: torch.Tensor, device: torch.device, **kwargs: Any) -> torch.Tensor:
        return normals(4)(len(image), 3, 20).to(device)


def build() -> Any:
    torch.manual_seed(0)
    transformer = HunyuanVideoFramepackTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=24,
        pooled_projection_dim=20,
        rope_axes_dim=(4, 6, 6),
        has_image_proj=True,
        image_proj_dim=20,
        has_clean_x_embedder=True,
    ).eval()
    redraw(transformer, 0)
    pipe = Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=None,
        feature_extractor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    """One window; the pipeline draws its latents itself."""
    normal = normals()
    mask, negative_mask = torch.ones(batch, 9), torch.ones(batch, 9)
    mask[:, 7:], negative_mask[:, 3:] = 0, 0
    arguments = {
        "image": normals(2)(batch, 3, 16 * height, 16 * width).sigmoid(),
        "prompt_embeds": normal(batch, 9, 24),
        "pooled_prompt_embeds": normal(batch, 20),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": normal(batch, 9, 24),
        "negative_pooled_prompt_embeds": normal(batch, 20),
        "negative_prompt_attention_mask": negative_mask,
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (WINDOW - 1) + 1,
        "latent_window_size": WINDOW,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def output(result: Any) -> torch.Tensor:
    """The latents after the last window."""
    return result.frames[-1]


CASES = [
    FamilyCase("framepack", build, call, output=output, flops_tolerance=0.1),
    FamilyCase(
        "framepack-vanilla-true-cfg",
        build,
        lambda **size: call(**size, true_cfg_scale=3.0, sampling_type="vanilla"),
        num_calls=2,
        output=output,
        flops_tolerance=0.1,
    ),
]
