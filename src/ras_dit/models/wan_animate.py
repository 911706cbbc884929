"""Wan 2.2 Animate: Wan with adapters through which every frame attends to its own face."""

from __future__ import annotations

import dataclasses

from ras_dit.models.plan import TokenSelect
from ras_dit.models.wan import WAN

WAN_ANIMATE = dataclasses.replace(
    WAN,
    transformer="WanAnimateTransformer3DModel",
    family="Wan 2.2 Animate",
    pipelines=("WanAnimatePipeline",),
    gather={
        "rope": {0: TokenSelect(), 1: TokenSelect()},
        "blocks.0": {"hidden_states": TokenSelect()},
        "face_adapter.*": {0: TokenSelect()},
    },
    whole={"face_adapter.*": "hidden_states"},
    linears={
        "pose_patch_embedding": "all_image",
        "face_adapter.*.to_q": "all_image",
        "face_adapter.*.to_out": "all_image",
        **WAN.linears,
    },
    caveats=("The face adapters stay dense.", "The encoder of the face video is left out of the cost."),
)
