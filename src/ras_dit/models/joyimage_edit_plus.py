"""JoyImage Edit Plus: joint attention; the picture's patches, those of reference pictures, then text under a mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.joyimage import JOYIMAGE
from ras_dit.models.plan import Arguments, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The picture is the first of every row's parts; all rows have one of the same size."""
    frames, height, width = arguments["shape_list"][0][0]
    patch_frames, patch_size, _ = transformer.config.patch_size
    return TokenGrid(height, width, patch_size, frames, patch_frames)


JOYIMAGE_EDIT_PLUS = replace(
    JOYIMAGE,
    transformer="JoyImageEditPlusTransformer3DModel",
    family="JoyImage Edit Plus",
    pipelines=("JoyImageEditPlusPipeline",),
    gather={
        "double_blocks.0": {"hidden_states": TokenSelect()},
        "double_blocks.*": {"image_rotary_emb": TokenSelect(is_common=True)},
    },
    grid=grid,
    text_rows={"encoder_hidden_states": 1, "encoder_hidden_states_mask": 1},
)
