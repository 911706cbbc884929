"""Stable Diffusion 3, 3.5 medium (dual attention) and 3.5 large: joint attention, image tokens first, no rotary."""

from __future__ import annotations

from typing import Any

from ras_dit.models.plan import AttentionShape, TokenPlan, TokenSelect


def step_flops(transformer: Any, num_active: int, num_tokens: int, num_text: int) -> float:
    """Multiply-adds times two of one evaluation for one row of the batch.

    Linear layers and attention of the blocks, patch embedding and output projection; norms and activations are left
    out. Modulation layers work once per row and are counted. Source: JointTransformerBlock in diffusers.
    """
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    patch = config.patch_size**2
    layers, dual = config.num_layers, len(config.dual_attention_layers or ())
    keys = num_tokens + num_text
    image_linear = 12 * width * width * num_active  # q, k, v, out: 4; feed-forward: 8
    text_linear = 12 * width * width * num_text
    joint_attention = 2 * (num_active + num_text) * keys * width
    modulation = 12 * width * width
    total = layers * (image_linear + text_linear + joint_attention + modulation)
    total -= (
        9 * width * width * num_text + 4 * width * width
    )  # the last block only reads the text: no out, no feed-forward
    total += dual * (4 * width * width * num_active + 2 * num_active * num_tokens * width + 3 * width * width)
    total += num_tokens * patch * config.in_channels * width + num_active * width * patch * config.out_channels
    total += num_text * config.joint_attention_dim * config.caption_projection_dim
    total += (256 + config.pooled_projection_dim + 4 * width) * width  # time and pooled text embeddings, last norm
    return 2.0 * total


def num_text(pipe: Any, max_sequence_length: int) -> int:
    """Text tokens per prompt: the CLIP encoders' (side by side), then T5's, or as many zero rows without one."""
    return int(getattr(pipe, "tokenizer_max_length", 77)) + max_sequence_length


def attention_shape(transformer: Any) -> AttentionShape:
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    return AttentionShape(config.num_layers + len(config.dual_attention_layers or ()), width, width)


SD3 = TokenPlan(
    transformer="SD3Transformer2DModel",
    family="Stable Diffusion 3 medium; 3.5 medium, large",
    pipelines=(
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
    ),
    gather={
        "": {"block_controlnet_hidden_states": TokenSelect(dim=1)},
        "transformer_blocks.0": {"hidden_states": TokenSelect(dim=1)},
    },
    scatter="proj_out",
    attention=("transformer_blocks.*.attn", "transformer_blocks.*.attn2"),
    layout="image_first",
    patch_size=lambda transformer: transformer.config.patch_size,
    step_flops=step_flops,
    attention_shape=attention_shape,
    num_text=num_text,
    caveats=("A ControlNet itself runs dense.", "Perturbed-attention guidance (PAG) is refused."),
)
