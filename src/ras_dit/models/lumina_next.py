"""Lumina-Next-T2I: self-attention with rotary tables, uncached cross-attention to the text, learned sigma.

The proportional attention scale depends on the sequence length; the one of the last dense step is kept with its keys.
"""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, picture_grid
from ras_dit.rows import sent


def cropped_table(embedder: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The part of the rotary table that the picture needs, on the device. The pipeline's table has 384 x 384 places and
    lies on the CPU: left alone, the embedder copies all of it, with the CPU waiting, and crops it then."""
    latents, table = arguments
    height, width = (size // embedder.patch_size for size in latents.shape[-2:])
    return latents, sent(table[:height, :width], latents.device)


def positions(arguments: Arguments) -> object:
    """With ``scaling_watershed`` the pipeline changes the table in the middle of a run. (Its own lies on the CPU.)"""
    table = arguments.get("image_rotary_emb")
    if not isinstance(table, torch.Tensor) or table.device.type != "cpu" or min(table.shape[:2]) < 2:
        return None
    return tuple(table[1, 1].flatten().tolist())


LUMINA_NEXT = TokenPlan(
    transformer="LuminaNextDiT2DModel",
    family="Lumina-Next-T2I",
    pipelines=("LuminaPipeline", "LuminaText2ImgPipeline"),
    gather={"patch_embedder": {0: TokenSelect(), 3: TokenSelect()}},
    scatter="norm_out",
    attention={"layers.*.attn1": "image"},
    prepare={"patch_embedder": cropped_table},
    repeated=("get_2d_rotary_pos_embed_lumina",),  # the table, made on the CPU in every step
    grid=picture_grid,
    repeats_keys=True,
    positions=positions,
    hides_nothing=True,
    linears={
        "*.norm1.*": "row",
        "layers.*.attn2.to_k": "text",
        "layers.*.attn2.to_v": "text",
        "layers.*": "image",
        "patch_embedder.*": "all_image",
        "norm_out.linear_1": "row",
        "norm_out.linear_2": "image",
    },
    cross_attention=("layers.*.attn2",),
    scheduler_timestep=lambda timestep: (1 - timestep) * 1000,
)
