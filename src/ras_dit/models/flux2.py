"""FLUX.2: joint attention, text first; modulations shared by all blocks; reference images as further tokens."""

from __future__ import annotations

from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, TokenPlan, TokenSelect, grid_of_ids


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Tokens hold 2 x 2 latent pixels, packed by the pipeline."""
    return grid_of_ids(arguments["img_ids"], patch_size=2)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """The model's own cache of reference keys changes its sequence from step to step."""
    if arguments.get("kv_cache_mode") is not None:
        return "FLUX.2's own cache of reference keys is on (kv_cache_mode): the whole run was dense."
    return None


FLUX2 = TokenPlan(
    transformer="Flux2Transformer2DModel",
    family="FLUX.2 dev, klein",
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    gather={"": {"hidden_states": TokenSelect(), "img_ids": TokenSelect()}},
    scatter="proj_out",
    attention={"transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"},
    layout="text_first",
    grid=grid,
    patch=lambda transformer: (1, 2),
    scheduler_timestep=lambda timestep: timestep * 1000,
    check=check,
    has_shared_positions=True,
    unbatched=("img_ids", "txt_ids"),
    text_rows={"encoder_hidden_states": 1, "txt_ids": -2},
    linears={
        "transformer_blocks.*.attn.add_*": "text",
        "transformer_blocks.*.attn.to_add_out": "text",
        "transformer_blocks.*.ff_context.*": "text",
        "transformer_blocks.*": "image",
        "single_transformer_blocks.*": "joint",
        "x_embedder": "image",
        "context_embedder": "text",
        "proj_out": "image",
    },
    reuses_references=True,
    caveats=(
        "Reference tokens are computed in every step, but for `reference_reuse`.",
        "Calls with its own cache of reference keys (`kv_cache_mode`, Flux2KleinKVPipeline) are dense.",
        "The distilled klein is made for few steps: of ten and fewer nothing should be left out.",
    ),
)
