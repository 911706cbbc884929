"""The registry of speed cases: a pipeline, the arguments of one call, and the configs to compare with dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

import ras_dit
from ras_dit import RASConfig
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_prompts


def paper_schedule(ratio: float) -> RASConfig:
    """The schedule of the paper's SD3 runs with our selection: of 28 steps, 0-3, 12 and 20 are dense."""
    return RASConfig(sample_ratio=ratio, warmup_steps=4, refresh_steps=(12, 20))


@dataclass(frozen=True)
class Case:
    """One row group of the speed table.

    Attributes:
        title: what it is.
        make: builds the pipeline on a device.
        call: arguments of one call that ends in latents, on a device.
        configs: name -> config.
        num_steps: evaluations.
        repeats: interleaved repetitions by default.
    """

    title: str
    make: Callable[[str], Any]
    call: Callable[[Any, str], dict[str, Any]]
    configs: dict[str, RASConfig]
    num_steps: int = 28
    repeats: int = 3


def random_sd3(device: str, **dimensions: Any) -> Any:
    """A Stable Diffusion 3 pipeline of these dimensions, bf16, random weights (times do not depend on them)."""
    torch.manual_seed(0)
    with torch.device(device):
        transformer = SD3Transformer2DModel(**dimensions).to(torch.bfloat16).eval()
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **dict.fromkeys(names)
    )


def random_call(pipe: Any, device: str, *, pixels: int, num_text: int) -> dict[str, Any]:
    """One image of ``pixels`` squared with classifier-free guidance, from random text and noise."""
    config = pipe.transformer.config
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    return {
        "prompt_embeds": normal(1, num_text, config.joint_attention_dim),
        "negative_prompt_embeds": normal(1, num_text, config.joint_attention_dim),
        "pooled_prompt_embeds": normal(1, config.pooled_projection_dim),
        "negative_pooled_prompt_embeds": normal(1, config.pooled_projection_dim),
        "latents": normal(1, config.in_channels, pixels // 8, pixels // 8),
        "height": pixels,
        "width": pixels,
        "guidance_scale": 5.0,
        "output_type": "latent",
    }


def embedded_call(pipe: Any, device: str, *, batch: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "prompt": embedded_prompts(batch),
        "generator": generator,
        "guidance_scale": GUIDANCE_SCALE,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "output_type": "latent",
    }


_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_PRESETS = {name: RASConfig.preset(name) for name in ("quality", "balanced", "fast", "regions")}
_RATIOS = {f"ratio {ratio}": paper_schedule(ratio) for ratio in (0.5, 0.25, 0.125)}

CASES: dict[str, Case] = {
    "embedded": Case(
        "the embedded model, 1 image",
        make=lambda device: ras_dit.load_embedded(device=device),
        call=lambda pipe, device: embedded_call(pipe, device, batch=1),
        configs={**_RATIOS, **_PRESETS},
        repeats=7,
    ),
    "embedded-batch": Case(
        "the embedded model, batch of 8",
        make=lambda device: ras_dit.load_embedded(device=device),
        call=lambda pipe, device: embedded_call(pipe, device, batch=8),
        configs={**_RATIOS, **_PRESETS},
        repeats=3,
    ),
    "mid": Case(
        "SD3 architecture, 12 layers, width 768, 4,096 image + 333 text tokens, bf16",
        make=lambda device: random_sd3(
            device, **_SD3, num_layers=12, num_attention_heads=12, caption_projection_dim=768, qk_norm="rms_norm"
        ),
        call=lambda pipe, device: random_call(pipe, device, pixels=1024, num_text=333),
        configs={name: _RATIOS[name] for name in ("ratio 0.25", "ratio 0.125")},
        repeats=2,
    ),
    "sd3-medium": Case(
        "Stable Diffusion 3 medium's dimensions, 1024 x 1024, bf16",
        make=lambda device: random_sd3(
            device, **_SD3, num_layers=24, num_attention_heads=24, caption_projection_dim=1536
        ),
        call=lambda pipe, device: random_call(pipe, device, pixels=1024, num_text=333),
        configs={**_RATIOS, **_PRESETS},
        repeats=5,
    ),
}
