"""JoyImage Edit: joint attention, picture first, then reference pictures, then text."""

from __future__ import annotations

import dataclasses
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Latents are [R, items, C, F, H, W]; the last item is sampled, and comes first in the sequence."""
    patch_frames, patch_size, _ = transformer.config.patch_size
    latents = arguments["hidden_states"]
    if latents.ndim != 6:
        return TokenGrid.of_video(latents, patch_size, patch_frames)
    return dataclasses.replace(TokenGrid.of_video(latents[:, -1], patch_size, patch_frames), has_items=True)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """The tables of picture and text come side by side and are told apart by their length."""
    own = grid(transformer, arguments)
    count = own.num_tokens + own.count_references(arguments["hidden_states"])
    if transformer.config.rope_type == "mrope" and arguments["encoder_hidden_states"].shape[1] == count:
        return f"JoyImage with as many text tokens as image tokens ({count}) is not supported: the run was dense."
    return None


JOYIMAGE = TokenPlan(
    transformer="JoyImageEditTransformer3DModel",
    family="JoyImage Edit",
    pipelines=("JoyImageEditPipeline",),
    gather={
        "double_blocks.0": {"hidden_states": TokenSelect()},
        "double_blocks.*": {"image_rotary_emb": TokenSelect(dim=0, is_common=True)},
    },
    scatter="proj_out",
    attention={"double_blocks.*.attn": "joint"},
    layout="image_first",
    grid=grid,
    check=check,
    patch=lambda transformer: tuple(transformer.config.patch_size[:2]),
    text_rows={"encoder_hidden_states": 1},
    linears={
        "double_blocks.*.attn.txt_*": "text",
        "double_blocks.*.txt_mlp.*": "text",
        "double_blocks.*": "image",
        "img_in": "all_image",
        "condition_embedder.text_embedder.*": "text",
        "proj_out": "image",
    },
    reuses_references=True,
    caveats=("Reference tokens are computed in every step, but for `reference_reuse`.",),
)
