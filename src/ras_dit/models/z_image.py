"""Z-Image: one joint sequence, picture first, both parts padded to multiples of 32; the noise refiner stays dense."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect

PADDED_TO = 32


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Latents come as a list of [C, F, H, W], all of one size."""
    patch_size, patch_frames = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    return TokenGrid.of_video(arguments["x"][0][None], patch_size, patch_frames)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Omni mode mixes references into the sequence in an order of its own."""
    if isinstance(arguments["x"][0], list):
        return "Z-Image's omni mode is not supported: the whole run was dense."
    return None


def count_others(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """Padding of the picture, then the longest text with its own."""

    def padded(length: int) -> int:
        return -(-length // PADDED_TO) * PADDED_TO

    longest = max(len(text) for text in arguments["cap_feats"])
    return padded(grid.num_tokens) - grid.num_tokens + padded(longest)


Z_IMAGE = TokenPlan(
    transformer="ZImageTransformer2DModel",
    family="Z-Image, Z-Image-Turbo",
    pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline", "ZImageControlNetPipeline"),
    gather={
        "": {"controlnet_block_samples": TokenSelect(stream="joint")},
        "layers.0": {"x": TokenSelect(stream="joint")},
        "layers.*": {"freqs_cis": TokenSelect(stream="joint", is_common=True)},
    },
    scatter="all_final_layer.*",
    scatter_stream="joint",
    attention={"layers.*.attention": "joint"},
    layout="image_first",
    grid=grid,
    latents="x",
    timestep="t",
    scheduler_timestep=lambda timestep: (1 - timestep) * 1000,
    text=("cap_feats",),
    count_others=count_others,
    patch=lambda transformer: (transformer.config.all_f_patch_size[0], transformer.config.all_patch_size[0]),
    check=check,
    text_rows={},
    linears={
        "*.adaLN_modulation.*": "row",
        "layers.*": "joint",
        "noise_refiner.*": "all_image",
        "context_refiner.*": "all_text",
        "cap_embedder.*": "all_text",
        "all_x_embedder.*": "all_image",
        "all_final_layer.*": "joint",
    },
    dense_attention=("noise_refiner.*.attention",),
    caveats=(
        "The two refiner layers in front of the gather stay dense.",
        "Runs in omni mode are dense.",
        "Turbo is made for few steps: of ten and fewer nothing should be left out.",
    ),
)
