"""HunyuanVideo 1.5."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15ByT5TextProjection
from PIL import Image
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


def build(pipeline: Any = HunyuanVideo15Pipeline) -> Any:
    torch.manual_seed(0)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        text_embed_dim=24,
        text_embed_2_dim=20,
        image_embed_dim=12,
        rope_axes_dim=(4, 6, 6),
    ).eval()
    transformer.context_embedder_2 = HunyuanVideo15ByT5TextProjection(20, 16, 32).eval()  # 2048 wide otherwise
    redraw(transformer, 0)
    torch.manual_seed(3)
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1).eval()
    components: dict[str, Any] = {}
    if pipeline is HunyuanVideo15ImageToVideoPipeline:
        sizes = {"hidden_size": 12, "intermediate_size": 16, "image_size": 16, "patch_size": 8}
        encoder = SiglipVisionModel(SiglipVisionConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)).eval()
        processor = SiglipImageProcessor(size={"height": 16, "width": 16})
        components = {"image_encoder": encoder, "feature_extractor": processor}
    pipe = pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
        **components,
    )
    pipe.vision_num_semantic_tokens = 5  # 729 in earnest
    if components:  # pictures stay as large as they are, and are encoded in no time
        vae.encode = encoded
        pipe.video_processor.calculate_default_height_width = lambda height, width, target_size: (height, width)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encoded(frame: torch.Tensor) -> SimpleNamespace:
    """Stands in for the VAE's encoder: [B, 3, 1, H, W] to latents [B, 4, 1, H / 16, W / 16]."""
    small = torch.nn.functional.avg_pool3d(frame, (1, 16, 16))
    return SimpleNamespace(latents=torch.cat([small, small[:, :1]], dim=1))


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments: dict[str, Any] = {}
    for prefix, length in (("", 7), ("negative_", 3)):
        mask, mask_2 = torch.ones(batch, 9), torch.ones(batch, 4)
        mask[:, length:], mask_2[:, 2:] = 0, 0
        arguments[f"{prefix}prompt_embeds"] = normal(batch, 9, 24)
        arguments[f"{prefix}prompt_embeds_mask"] = mask
        arguments[f"{prefix}prompt_embeds_2"] = normal(batch, 4, 20)
        arguments[f"{prefix}prompt_embeds_mask_2"] = mask_2
    arguments |= {
        "latents": normal(batch, 4, FRAMES, height, width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    arguments = call(batch, height, width, **changes)
    page = (255 * normals(2)(arguments.pop("height"), arguments.pop("width"), 3).sigmoid()).byte()
    return {**arguments, "image": Image.fromarray(page.numpy())}


CASES = [
    FamilyCase("hunyuan-video-1.5", build, call, num_calls=2),
    FamilyCase("hunyuan-video-1.5-i2v", lambda: build(HunyuanVideo15ImageToVideoPipeline), call_image, num_calls=2),
]
