"""FLUX.1 and its relatives (Chroma, LongCat-Image, Ovis-Image, Bria, Bria FIBO): joint attention, text first, in
double- and single-stream blocks; tokens carry position ids.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ras_dit.geometry import TokenGrid
from ras_dit.models.plan import Arguments, FlopStream, Stream, TokenPlan, TokenSelect, grid_of_ids


def grid(transformer: Any, arguments: Arguments) -> TokenGrid:
    """Tokens hold 2 x 2 latent pixels, packed by the pipeline."""
    return grid_of_ids(arguments["img_ids"], patch_size=2)


def check(transformer: Any, arguments: Arguments) -> str | None:
    """Position ids may have a batch dimension in diffusers, which warns of it."""
    if arguments["img_ids"].ndim != 2:
        return "img_ids with a batch dimension are not supported: the run was dense. Pass them as [tokens, 3]."
    return None


GATHER: dict[str, dict[str | int, TokenSelect]] = {
    "": {
        "hidden_states": TokenSelect(),
        "img_ids": TokenSelect(dim=0),
        "controlnet_block_samples": TokenSelect(),
        "controlnet_single_block_samples": TokenSelect(),
    }
}
ATTENTION: dict[str, Stream] = {"transformer_blocks.*.attn": "joint", "single_transformer_blocks.*.attn": "joint"}
LINEARS: dict[str, FlopStream] = {
    "*.norm*": "row",
    "transformer_blocks.*.attn.add_*": "text",
    "transformer_blocks.*.attn.to_add_out": "text",
    "transformer_blocks.*.ff_context.*": "text",
    "transformer_blocks.*": "image",
    "single_transformer_blocks.*": "joint",
    "x_embedder": "image",
    "context_embedder": "text",
    "proj_out": "image",
}

FLUX = TokenPlan(
    transformer="FluxTransformer2DModel",
    family="FLUX.1 dev, schnell, Kontext, Fill, Krea",
    pipelines=(
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxFillPipeline",
        "FluxKontextPipeline",
        "FluxControlPipeline",
        "FluxControlNetPipeline",
    ),
    gather=GATHER,
    scatter="proj_out",
    attention=ATTENTION,
    layout="text_first",
    grid=grid,
    patch=lambda transformer: (1, 2),
    scheduler_timestep=lambda timestep: timestep * 1000,
    linears=LINEARS,
    text_rows={"encoder_hidden_states": 1, "txt_ids": 0},
    reuses_references=True,
    check=check,
    caveats=(
        "Reference tokens (Kontext) are computed in every step, but for `reference_reuse`.",
        "schnell is made for few steps: of ten and fewer nothing should be left out.",
    ),
)

CHROMA = replace(
    FLUX,
    transformer="ChromaTransformer2DModel",
    family="Chroma",
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline"),
    text_rows={"encoder_hidden_states": 1, "txt_ids": 0},  # its attention mask covers the image, too, and stays whole
    mask_query=0,  # every block makes one for all queries of its own
    reuses_references=False,
    caveats=(
        "Its modulations come from one network of their own, worked out once per row, which the cost leaves out.",
    ),
)

LONGCAT_IMAGE = replace(
    FLUX,
    transformer="LongCatImageTransformer2DModel",
    family="LongCat-Image",
    pipelines=("LongCatImagePipeline",),
    reuses_references=False,
    caveats=(),
)

OVIS_IMAGE = replace(
    FLUX,
    transformer="OvisImageTransformer2DModel",
    family="Ovis-Image",
    pipelines=("OvisImagePipeline",),
    reuses_references=False,
    caveats=(),
)

BRIA = replace(
    FLUX,
    transformer="BriaTransformer2DModel",
    family="Bria 3.2",
    pipelines=("BriaPipeline",),
    reuses_references=False,
    scheduler_timestep=lambda timestep: timestep,
    caveats=(),
)

BRIA_FIBO = replace(
    BRIA,
    text_rows={"encoder_hidden_states": 1, "txt_ids": 0, "text_encoder_layers": 1},
    transformer="BriaFiboTransformer2DModel",
    family="Bria FIBO",
    pipelines=("BriaFiboPipeline",),
    grid=lambda transformer, arguments: grid_of_ids(arguments["img_ids"], patch_size=1),
    patch=lambda transformer: (1, 1),
    linears={"caption_projection.*": "text", **LINEARS},
)
