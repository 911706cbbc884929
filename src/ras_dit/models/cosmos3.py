"""Cosmos 3: text attends to itself, causally; video tokens to text and to themselves. One video, without a batch."""

from __future__ import annotations

from typing import Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The pipeline says it."""
    frames, height, width = arguments["vision_token_shapes"][0]
    return TokenGrid(height, width, transformer.config.latent_patch_size, frames)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Sound and actions follow the video; a table of positions is found by its length."""
    if arguments.get("sound_tokens") is not None or arguments.get("action_tokens") is not None:
        return "Cosmos 3 with sound or actions is not supported: the run was dense."
    if len(arguments["vision_tokens"]) != 1:
        return "Cosmos 3 with control videos beside the one that is made is not supported: the run was dense."
    if any(side % transformer.config.latent_patch_size for side in arguments["vision_tokens"][0].shape[-2:]):
        return "Cosmos 3 with latents of an odd size is not supported: the run was dense."
    if arguments["und_len"] == grid(transformer, arguments).num_tokens:
        return "Cosmos 3 with as many text tokens as video tokens is not supported: the run was dense."
    return None


class Cosmos3Plan(TokenPlan):
    """Given frames are those that are not noisy."""

    def given_tokens(self, arguments: Arguments, grid: TokenGrid, num_extra: int = 0) -> torch.Tensor | None:
        is_given = torch.ones(1, grid.num_frames, dtype=torch.bool)
        is_given[:, arguments["vision_noisy_frame_indexes"][0].cpu()] = False
        return is_given.repeat_interleave(grid.tokens_per_frame, dim=1) if bool(is_given.any()) else None


COSMOS3 = Cosmos3Plan(
    transformer="Cosmos3OmniTransformer",
    family="Cosmos 3",
    pipelines=("Cosmos3OmniPipeline",),
    gather={
        "layers.0": {"gen_seq": TokenSelect(dim=0)},
        "layers.*": {"rotary_emb": TokenSelect(dim=0, is_common=True)},
    },
    scatter="norm_moe_gen",
    attention={"layers.*.self_attn": "joint"},
    layout="text_first",
    grid=grid,
    latents="vision_tokens",
    timestep="vision_timesteps",
    patch=lambda transformer: (1, transformer.config.latent_patch_size),
    count_others=lambda transformer, arguments, grid: arguments["und_len"],
    queries={"layers.*.self_attn": "image"},  # text attends to text alone
    linears={
        "layers.*.self_attn.add_*": "image",
        "layers.*.self_attn.to_add_out": "image",
        "layers.*.mlp_moe_gen.*": "image",
        "layers.*": "text",
        "proj_in": "all_image",
        "proj_out": "all_image",
        "time_embedder.*": "all_image",
    },
    check=check,
    caveats=("With sound, actions or control videos the run is dense.",),
)
