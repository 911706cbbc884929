"""HunyuanImage 2.1: joint attention, picture first, then the texts of two encoders under a padding mask."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """The patch is (rows, columns)."""
    return TokenGrid.of_latents(arguments["hidden_states"], transformer.config.patch_size[-1])


def check(transformer: Any, arguments: Arguments) -> str | None:
    """The refiner works on latents with frames."""
    if arguments["hidden_states"].ndim != 4:
        return "HunyuanImage's refiner (latents with frames) is not supported: the whole run was dense."
    return None


def count_others(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """Tokens of the first text, and of the second if the model has a place for it."""
    names = ["encoder_hidden_states"]
    if transformer.context_embedder_2 is not None:
        names.append("encoder_hidden_states_2")
    return sum(arguments[name].shape[1] for name in names if arguments.get(name) is not None)


HUNYUAN_IMAGE = TokenPlan(
    transformer="HunyuanImageTransformer2DModel",
    family="HunyuanImage 2.1",
    pipelines=("HunyuanImagePipeline",),
    gather={
        "x_embedder": {0: TokenSelect()},
        "rope": {0: TokenSelect(dim=0), 1: TokenSelect(dim=0)},
    },
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"},
    layout="image_first",
    grid=grid,
    check=check,
    patch=lambda transformer: (1, transformer.config.patch_size[-1]),
    count_others=count_others,
    text_entry="transformer_blocks.0",
    text_rows={"encoder_hidden_states": 1},
    min_text=1,
    linears={
        "context_embedder.time_text_embed.*": "row",
        "context_embedder.token_refiner.refiner_blocks.*.norm_out.*": "row",
        "context_embedder*": "all_text",
        "*.norm*": "row",
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "single_transformer_blocks.*": "joint",
        "x_embedder.*": "all_image",
        "proj_out": "image",
    },
)
