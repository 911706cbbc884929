"""FramePack: HunyuanVideo one window of frames after the other; earlier frames stand in front of it, at three sizes."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.hunyuan_video import HUNYUAN_VIDEO
from ras_dit.models.plan import Arguments, TokenPlan

HISTORY = {"latents_clean": (1, 2), "latents_history_2x": (2, 4), "latents_history_4x": (4, 8)}
"""Arguments with earlier frames -> latent frames and pixels per token side; sides are padded to multiples of them."""


def num_history(arguments: Arguments) -> int:
    """Tokens of earlier frames."""
    count = 0
    for name, (patch_frames, patch_size) in HISTORY.items():
        if arguments.get(name) is not None:
            frames, height, width = arguments[name].shape[-3:]
            count += -(-frames // patch_frames) * -(-height // patch_size) * -(-width // patch_size)
    return count


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The window."""
    config, latents = transformer.config, arguments["hidden_states"]
    frames, height, width = latents.shape[-3:]
    p, f = config.patch_size, config.patch_size_t
    return TokenGrid(height // p, width // p, p, frames // f, f, num_before=num_history(arguments))


def count_others(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """Text, image prompt, and tokens of earlier frames: in double blocks text layers are as large as the picture's."""
    texts = (arguments["encoder_hidden_states"], arguments["image_embeds"])
    return num_history(arguments) + sum(text.shape[1] for text in texts)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """The position tables of earlier frames are made by the same module; their length tells them from the window's."""
    of_window = len(arguments["indices_latents"])
    if any(len(arguments[name]) == of_window for name in arguments if name.startswith("indices_latents_")):
        return f"FramePack with a window of {of_window} frames is not supported: the run was dense."
    return None


HUNYUAN_VIDEO_FRAMEPACK = TokenPlan(
    transformer="HunyuanVideoFramepackTransformer3DModel",
    family="FramePack",
    pipelines=("HunyuanVideoFramepackPipeline",),
    gather=HUNYUAN_VIDEO.gather,
    scatter="single_transformer_blocks.-1",
    scatter_stream="joint",
    attention=HUNYUAN_VIDEO.attention,
    layout="image_first",
    grid=grid,
    patch=HUNYUAN_VIDEO.patch,
    count_others=count_others,
    linears={**HUNYUAN_VIDEO.linears, "image_projection.*": "text", "proj_out": "all_image"},
    check=check,
    can_split=None,  # of one video the model cuts the padding off the text, of several it masks it
    caveats=(
        "Earlier frames are computed in every step.",
        "The videos of a batch share one active set, and `summary()` says so.",
    ),
)
