"""Bria FIBO 2: gist tokens made of the text, then the picture, in one stream; refiner layers see the picture only."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, picture_grid


def gist_counts(transformer: Any, arguments: Arguments) -> list[int]:
    """Gist tokens of every row of the batch: as many as the length of its text asks for."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    config, text = transformer.config, arguments["encoder_hidden_states"]
    mask = arguments.get("encoder_attention_mask")
    lengths = [text.shape[2]] * len(text) if mask is None else mask.sum(dim=1).tolist()
    counts: list[int] = compute_gist_count(
        lengths,
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )
    return counts


def num_gists(transformer: Any, arguments: Arguments, grid: TokenGrid) -> int:
    """All rows are padded to the longest."""
    return max(gist_counts(transformer, arguments))


def check(transformer: Any, arguments: Arguments) -> str | None:
    """The picture's rows are cut out of the stream by their number, which only works where they stand last."""
    if arguments.get("context_latents"):
        return "Bria FIBO 2 with pictures to edit is not supported: the run was dense."
    if len(set(gist_counts(transformer, arguments))) > 1:
        return "Bria FIBO 2 with prompts of different length in a batch is not supported: the run was dense."
    return None


BRIA_FIBO2 = TokenPlan(
    transformer="BriaFibo2Transformer2DModel",
    family="Bria FIBO 2",
    pipelines=("BriaFibo2Pipeline",),
    gather={
        "x_embedder": {0: TokenSelect()},
        "noise_refiner.*": {"freqs_cis": TokenSelect()},
        "layers.*": {"freqs_cis": TokenSelect(stream="joint", is_common=True)},
    },
    scatter="final_layer",
    attention={"noise_refiner.*.attention": "image", "layers.*.attention": "joint"},
    layout="text_first",
    grid=picture_grid,
    scheduler_timestep=lambda timestep: timestep * 1000,
    has_shared_positions=True,  # the table has a batch of one
    count_others=num_gists,
    num_text=lambda pipe, max_sequence_length: pipe.transformer.config.max_num_gist_tokens,
    linears={
        "*adaLN_modulation*": "row",
        "noise_refiner.*": "image",
        "layers.*.cross_attention.to_[kv]": "text",
        "layers.*": "joint",
        "perceiver.*": "text",
        "x_embedder": "all_image",
        "final_layer.linear": "image",
    },
    cross_attention=("layers.*.cross_attention",),
    check=check,
    caveats=(
        "With pictures to edit, or prompts of different length in a batch, the run is dense.",
        "The cost counts as many text tokens as the model makes of them for its joint layers.",
    ),
)
