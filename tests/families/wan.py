"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}


def tiny_transformer(seed: int = 0, kind: Any = WanTransformer3DModel, **changes: Any) -> Any:
    torch.manual_seed(seed)
    transformer = kind(**{**TINY, **changes}).eval()
    redraw(transformer, seed)
    return transformer


def build(pipeline: Any = WanPipeline, transformer: dict[str, Any] | None = None, **components: Any) -> Any:
    if pipeline is WanImageToVideoPipeline:
        components = {"image_encoder": None, "image_processor": None, **components}
    pipe = pipeline(
        tokenizer=None,
        text_encoder=None,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=tiny_transformer(**(transformer or {})),
        **{"vae": None, **components},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tiny_vae() -> AutoencoderKLWan:
    torch.manual_seed(3)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return vae.eval()


def build_two() -> Any:
    """Wan 2.2 14B: a second transformer for low noise, from the fifth or so of the eight timesteps on."""
    return build(transformer_2=tiny_transformer(1), boundary_ratio=0.7)


def tiny_image_encoder() -> dict[str, Any]:
    torch.manual_seed(4)
    sizes = {"hidden_size": 20, "intermediate_size": 40, "image_size": 16, "patch_size": 8}
    encoder = CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)).eval()
    processor = CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False, do_rescale=False)
    return {"image_encoder": encoder, "image_processor": processor}


def build_image(is_2_1: bool) -> Any:
    """Wan 2.1 concatenates the image to the latents and attends to its embedding; Wan 2.2 5B puts it in their place."""
    if is_2_1:
        changes = {"in_channels": 12, "image_dim": 20, "added_kv_proj_dim": 32}
        return build(WanImageToVideoPipeline, changes, vae=tiny_vae(), **tiny_image_encoder())
    return build(WanImageToVideoPipeline, vae=tiny_vae(), expand_timesteps=True)


def build_vace() -> Any:
    changes = {"kind": WanVACETransformer3DModel, "vace_layers": [0, 2], "vace_in_channels": 8 + 64}
    return build(WanVACEPipeline, changes, vae=tiny_vae())


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, 4, FRAMES, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (FRAMES - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    image = normals(2)(1, 3, 16 * height, 16 * width).sigmoid()
    return call(batch, height, width, image=image, **changes)


def call_video(batch: int = 1, height: int = 4, width: int = 6) -> dict[str, Any]:
    arguments = call(batch, height, width, num_inference_steps=10, strength=0.8)
    del arguments["num_frames"], arguments["latents"]
    video = normals(2)(batch, 4 * (FRAMES - 1) + 1, 3, 16 * height, 16 * width)
    return {**arguments, "video": video.sigmoid(), "generator": torch.Generator().manual_seed(5)}


def call_vace(batch: int = 1, height: int = 4, width: int = 6, num_references: int = 0) -> dict[str, Any]:
    """Frames of a video, some of them masked, and pictures that the pipeline puts in front of them as frames."""
    normal = normals(2)
    frames = [Image.fromarray(page.numpy()) for page in (255 * normal(9, 16 * height, 16 * width, 3).sigmoid()).byte()]
    masks = [Image.new("L", frame.size, 255 * (index > 3)) for index, frame in enumerate(frames)]
    references = frames[:num_references] or None
    arguments = call(batch, height, width, video=frames, mask=masks, reference_images=references)
    arguments["latents"] = normal(batch, 4, FRAMES + num_references, 2 * height, 2 * width)
    return arguments


CASES = [
    FamilyCase("wan", build, call, num_calls=2),
    FamilyCase("wan-no-cfg", build, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase("wan-per-token-timesteps", lambda: build(expand_timesteps=True), call, num_calls=2),
    FamilyCase("wan2.2", build_two, call, num_calls=2),
    FamilyCase("wan-i2v", lambda: build_image(is_2_1=True), call_image, num_calls=2),
    FamilyCase("wan2.2-5b-i2v", lambda: build_image(is_2_1=False), call_image, num_calls=2),
    FamilyCase("wan-v2v", lambda: build(WanVideoToVideoPipeline, vae=tiny_vae()), call_video, num_calls=2),
    FamilyCase("wan-vace", build_vace, call_vace, num_calls=2, max_batch=1),
    FamilyCase(
        "wan-vace-references", build_vace, lambda **size: call_vace(**size, num_references=2), num_calls=2, max_batch=1
    ),
]
