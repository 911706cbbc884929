"""Stable Diffusion 3 and 3.5 (tests/test_exactness.py and test_pipelines.py have more of it)."""

from __future__ import annotations

from typing import Any

from families.case import FamilyCase
from tiny import inputs, tiny_pipeline


def call(batch: int = 1, height: int = 4, width: int = 6, **changes: Any) -> dict[str, Any]:
    return inputs(batch=batch, height=height, width=width, num_inference_steps=6, **changes)


CASES = [
    FamilyCase("sd3", tiny_pipeline, call),
    FamilyCase("sd3-no-cfg", tiny_pipeline, lambda **size: call(**size, guidance_scale=1.0)),
    FamilyCase("sd3.5-large", lambda: tiny_pipeline(qk_norm="rms_norm"), call),
    FamilyCase("sd3.5-medium", lambda: tiny_pipeline(qk_norm="rms_norm", dual_attention_layers=(0, 1)), call),
]
