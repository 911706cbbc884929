"""Lumina-Image 2.0: one joint sequence, text first, whose text length differs from row to row."""

from __future__ import annotations

import torch

from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, picture_grid


def joint_offset(arguments: Arguments) -> torch.Tensor:
    """The picture follows the valid text tokens of its row at once; padding stands at the end."""
    lengths: torch.Tensor = arguments["encoder_attention_mask"].sum(dim=1)
    return lengths


LUMINA2 = TokenPlan(
    transformer="Lumina2Transformer2DModel",
    family="Lumina-Image 2.0",
    pipelines=("Lumina2Pipeline",),
    gather={
        "layers.0": {"hidden_states": TokenSelect(stream="joint")},
        "layers.*": {"image_rotary_emb": TokenSelect(stream="joint", is_common=True)},
    },
    scatter="norm_out",
    scatter_stream="joint",
    attention={"layers.*.attn": "joint"},
    layout="text_first",
    grid=picture_grid,
    scheduler_timestep=lambda timestep: (1 - timestep) * 1000,
    joint_offset=joint_offset,
    count_unpadded=lambda arguments: int(joint_offset(arguments).max()),
    repeats_keys=True,
    linears={
        "*.norm1.*": "row",
        "layers.*": "joint",
        "noise_refiner.*": "all_image",
        "context_refiner.*": "text",
        "x_embedder": "all_image",
        "time_caption_embed.caption_embedder.*": "text",
        "norm_out.linear_1": "row",
        "norm_out.linear_2": "joint",
    },
    caveats=("The two refiner layers in front of the gather stay dense; the cost leaves out their attention.",),
)
