"""Stable Diffusion 3, 3.5 medium (dual attention) and 3.5 large: joint attention, image tokens first, no rotary."""

from __future__ import annotations

from typing import Any

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid


def num_text(pipe: Any, max_sequence_length: int) -> int:
    """Text tokens per prompt: the CLIP encoders' (side by side), then T5's, or as many zero rows without one."""
    return int(getattr(pipe, "tokenizer_max_length", 77)) + max_sequence_length


def check(transformer: Any, arguments: Any) -> str | None:
    """Places come from a table that is cropped for the picture, as in every published model."""
    if transformer.config.pos_embed_max_size:
        return None
    return "The transformer's pos_embed_max_size is None: its places are not cropped from a table, the run was dense."


SD3 = TokenPlan(
    transformer="SD3Transformer2DModel",
    family="Stable Diffusion 3 medium; 3.5 medium, large",
    pipelines=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
    ),
    gather={
        "": {"block_controlnet_hidden_states": TokenSelect()},
        "pos_embed.proj": {0: TokenSelect(is_picture=True)},
    },
    gather_methods={"pos_embed.cropped_pos_embed": TokenSelect()},
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint", "transformer_blocks.*.attn2": "image"},
    layout="image_first",
    grid=picture_grid,
    linears={
        "*.norm*": "row",
        "*.attn.add_*": "text",
        "*.attn.to_add_out": "text",
        "*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "pos_embed.proj": "all_image",
        "context_embedder": "text",
        "proj_out": "image",
    },
    text_rows={"encoder_hidden_states": 1},
    num_text=num_text,
    check=check,
    caveats=(
        "A ControlNet runs whole in every step that is not skipped.",
        "StableDiffusion3PAGPipeline is refused; a guider for perturbed attention works.",
    ),
)
