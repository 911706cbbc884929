"""Qwen-Image: joint attention, text first under a padding mask; edit pipelines append reference tokens."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The pipeline passes (frames, rows, columns) of the picture or of every layer, then those of the references."""
    shapes = arguments["img_shapes"][0]
    if transformer.config.use_layer3d_rope:  # the layers, all of one size, then the picture that is taken apart
        return TokenGrid(shapes[0][1], shapes[0][2], 2, len(shapes) - 1)
    frames, height, width = shapes[0] if isinstance(shapes[0], (tuple, list)) else shapes
    return TokenGrid(height, width, 2, frames)


QWEN_IMAGE = TokenPlan(
    transformer="QwenImageTransformer2DModel",
    family="Qwen-Image, Qwen-Image-Edit, -Layered",
    pipelines=(
        "QwenImagePipeline",
        "QwenImageImg2ImgPipeline",
        "QwenImageInpaintPipeline",
        "QwenImageControlNetPipeline",
        "QwenImageEditPipeline",
        "QwenImageEditPlusPipeline",
        "QwenImageLayeredPipeline",
    ),
    gather={
        "": {"hidden_states": TokenSelect(), "controlnet_block_samples": TokenSelect()},
        "pos_embed": {0: TokenSelect(dim=0)},
        "transformer_blocks.*": {"modulate_index": TokenSelect(is_common=True)},  # one of two timesteps (Edit-2511)
    },
    gather_if={"transformer_blocks.*": "zero_cond_t"},
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint"},
    layout="text_first",
    grid=grid,
    patch=lambda transformer: (1, 2),
    scheduler_timestep=lambda timestep: timestep * 1000,
    text_rows={"encoder_hidden_states": 1, "encoder_hidden_states_mask": None},
    linears={
        "transformer_blocks.*.img_mod.*": "row",
        "transformer_blocks.*.txt_mod.*": "row",
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.txt_mlp.*": "text",
        "transformer_blocks.*": "image",
        "img_in": "image",
        "txt_in": "text",
        "proj_out": "image",
    },
    reuses_references=True,
    caveats=("Reference tokens are computed in every step, but for `reference_reuse`.",),
)
