"""OmniGen: one stream of text (and input pictures), a time token and the picture; the mask differs by query."""

from __future__ import annotations

from ras_dit.models.plan import TokenPlan, TokenSelect, picture_grid

OMNIGEN = TokenPlan(
    transformer="OmniGenTransformer2DModel",
    family="OmniGen",
    pipelines=("OmniGenPipeline",),
    gather={
        "rope": {0: TokenSelect(dim=0, stream="joint"), 1: TokenSelect(dim=0, stream="joint")},
        "layers.0": {"hidden_states": TokenSelect(stream="joint")},
    },
    scatter="norm",
    scatter_stream="joint",
    attention={"layers.*.self_attn": "joint"},
    layout="text_first",
    unbatched=("position_ids",),  # the model reads the first row's for all
    can_split=lambda arguments: not arguments["input_img_latents"],  # input pictures go by the number of their row
    grid=picture_grid,
    count_others=lambda transformer, arguments, grid: arguments["input_ids"].shape[1] + 1,  # a time token
    linears={
        "layers.*": "joint",
        "patch_embedding.output_image_proj": "all_image",
        "proj_out": "all_image",
    },
    caveats=(
        "Input pictures are part of the text: they are computed in every step.",
        "With input pictures the images of a batch share one active set, and `summary()` says so.",
    ),
)
