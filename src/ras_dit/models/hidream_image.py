"""HiDream-I1: joint attention, picture first, then the texts of two encoders; one text is new in every block.

Pictures that are not square are padded to the model's largest number of tokens; padding is always computed.
"""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, picture_grid


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Latents may come packed and padded already."""
    if arguments["hidden_states"].ndim != 4:
        return "HiDream with packed latents is not supported: the run was dense."
    return None


def count_others(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """The text of T5, that of Llama's last layer, that of one more layer, and padding."""
    t5, llama = (arguments[f"encoder_hidden_states_{name}"].shape[-2] for name in ("t5", "llama3"))
    return t5 + 2 * llama + count_padding(transformer, arguments, grid)


def count_padding(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """Up to the largest number of tokens, but for squares."""
    padding: int = transformer.max_seq - grid.num_tokens
    return 0 if grid.height == grid.width else padding


MASK: dict[str | int, TokenSelect] = {"hidden_states_masks": TokenSelect(stream="joint")}

HIDREAM_IMAGE = TokenPlan(
    transformer="HiDreamImageTransformer2DModel",
    family="HiDream-I1",
    pipelines=("HiDreamImagePipeline",),
    gather={
        "x_embedder": {0: TokenSelect(stream="joint")},
        "pe_embedder": {0: TokenSelect(stream="joint")},
        "double_stream_blocks.*": MASK,
        "single_stream_blocks.*": MASK,
    },
    scatter="final_layer",
    scatter_stream="joint",
    attention={"double_stream_blocks.*.block.attn1": "joint", "single_stream_blocks.*.block.attn1": "joint"},
    layout="image_first",
    grid=picture_grid,
    timestep="timesteps",
    text=("encoder_hidden_states_t5", "encoder_hidden_states_llama3"),
    count_others=count_others,
    count_padding=count_padding,
    text_rows={"encoder_hidden_states_t5": 1, "encoder_hidden_states_llama3": -2},
    num_text=lambda pipe, max_sequence_length: 3 * max_sequence_length,
    check=check,
    linears={
        "*.adaLN_modulation.*": "row",
        "double_stream_blocks.*.attn1.to_*_t": "text",
        "double_stream_blocks.*.ff_t.*": "text",
        "double_stream_blocks.*": "image",
        "single_stream_blocks.*": "joint",
        "x_embedder.*": "all_image",
        "caption_projection.*": "text",
        "final_layer.linear": "image",
    },
    caveats=(
        "Dev and Fast are made for a scheduler that adds noise at every step (FlowMatchLCMScheduler): dense.",
        "Latents that come packed (not from its pipeline) are dense.",
        "Experts may round differently for other numbers of rows: fresh keys give the dense result to 5e-6, not 0.0.",
    ),
)
