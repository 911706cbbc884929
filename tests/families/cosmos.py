"""Cosmos Predict2 and Predict2.5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from families import wan
from families.case import FamilyCase, normals
from tiny import redraw

FRAMES = 3


class NoGuardrail:
    """In place of the model that looks at prompts and videos."""

    def to(self, device: Any) -> None:
        """It is moved about even without a prompt."""


def build(pipeline: Any, vae: Any = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "in_channels": 5,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "adaln_lora_dim": 8,
        "max_size": (8, 32, 32),
        "concat_padding_mask": False,  # or torchvision is needed
    }
    transformer = CosmosTransformer3DModel(**{**config, **changes}).eval()
    redraw(transformer, 0)
    if pipeline is Cosmos2_5_PredictBasePipeline:
        scheduler: Any = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    pipe = pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=scheduler,
        safety_checker=NoGuardrail(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(batch: int = 1, height: int = 4, width: int = 6, frames: int = FRAMES, **changes: Any) -> dict[str, Any]:
    normal = normals()
    arguments = {
        "prompt_embeds": normal(batch, 9, 24),
        "negative_prompt_embeds": normal(batch, 9, 24),
        "latents": normal(batch, 4, frames, 2 * height, 2 * width),
        "height": 16 * height,
        "width": 16 * width,
        "num_frames": 4 * (frames - 1) + 1,
        "num_inference_steps": 6,
        "output_type": "latent",
    }
    return {**arguments, **changes}


def call_picture(**arguments: Any) -> dict[str, Any]:
    arguments = call(**arguments, frames=1)
    arguments.pop("num_frames")
    return arguments


def call_image(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    image = normals(2)(batch, 3, 16 * height, 16 * width).sigmoid()
    return call(batch, height, width, image=image, **changes)


def call_clip(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    clip = normals(2)(batch, 3, 5, 16 * height, 16 * width).sigmoid()
    return call(batch, height, width, video=clip, num_latent_conditional_frames=1, **changes)


READS: dict[str, Any] = {"reads_sigmas": True, "flops_tolerance": 0.03}
PROJECTED = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 24,
    "encoder_hidden_states_channels": 28,
    "text_embed_dim": 28,
}


def case(name: str, build: Any, call: Any, **changes: Any) -> FamilyCase:
    return FamilyCase(name, build, call, num_calls=2, **{**READS, **changes})


CASES = [
    case("cosmos2-t2i", lambda: build(Cosmos2TextToImagePipeline, in_channels=4), call_picture),
    case(
        "cosmos2-v2w",
        lambda: build(Cosmos2VideoToWorldPipeline, wan.tiny_vae(), extra_pos_embed_type=None),
        call_image,
    ),
    case("cosmos2.5", lambda: build(Cosmos2_5_PredictBasePipeline, wan.tiny_vae(), **PROJECTED), call),
    case("cosmos2.5-v2w", lambda: build(Cosmos2_5_PredictBasePipeline, wan.tiny_vae()), call_clip, max_batch=1),
]
