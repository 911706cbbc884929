"""The speed cases: models by their published dimensions, and the ones that ship or were made up to fit a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ras_dit.bench.architectures import Dimensions, Size
from ras_dit.bench.cases import DTYPES, Case, Schedule
from ras_dit.presets import PRESETS

_SD3: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_MEDIUM = Dimensions(
    "sd3",
    {**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    Size(1024, 1024),
    333,
    "transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers; 77 CLIP and 256 T5 tokens",
)
_TEXT = {"text reuse": {"text_reuse": True}}
_TWO_CALLS = "classifier-free guidance, two calls"
_PRESETS = tuple(PRESETS)

_CASES: tuple[Case, ...] = (
    Case(
        "embedded",
        "the embedded model, 1 image",
        None,
        presets=_PRESETS,
        repeats=7,
        dtype="float32",
        fits_cpu=True,
        sizes=(),
    ),
    Case(
        "embedded-batch",
        "the embedded model, batch of 8",
        None,
        batch=8,
        presets=_PRESETS,
        repeats=3,
        dtype="float32",
        fits_cpu=True,
        sizes=(),
    ),
    Case(
        "embedded-256",
        "the embedded model at 256 x 256, 1 image",
        None,
        presets=_PRESETS,
        repeats=3,
        dtype="float32",
        fits_cpu=True,
        sizes=(),
        embedded_size=256,
    ),
    Case(
        "mid",
        "SD3 architecture, 12 layers, width 768",
        replace(
            _MEDIUM,
            arguments={
                **_SD3,
                "num_layers": 12,
                "num_attention_heads": 12,
                "caption_projection_dim": 768,
                "qk_norm": "rms_norm",
            },
            source="half of Stable Diffusion 3 medium's layers and width; no published model",
        ),
        ratios=(0.25, 0.125),
        repeats=3,
        fits_cpu=True,
        sizes=("256", "512", "1024"),
    ),
    Case(
        "sd3-medium",
        "Stable Diffusion 3 medium's dimensions",
        _MEDIUM,
        presets=_PRESETS,
        variants=_TEXT,
    ),
    Case(
        "sd3-medium-2048",
        "Stable Diffusion 3 medium's dimensions",
        replace(_MEDIUM, size=Size(2048, 2048)),
        repeats=3,
        sizes=(),
    ),
    Case(
        "sd3.5-large",
        "Stable Diffusion 3.5 large's dimensions",
        replace(
            _MEDIUM,
            arguments={
                **_SD3,
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "qk_norm": "rms_norm",
            },
            source="transformer/config.json of stabilityai/stable-diffusion-3.5-large; 77 CLIP and 256 T5 tokens",
        ),
        variants=_TEXT,
        sizes=("512", "1024", "2048"),
    ),
    Case(
        "lumina-next",
        "Lumina-Next's dimensions (2B)",
        Dimensions(
            "lumina-next",
            {
                "hidden_size": 2304,
                "num_layers": 24,
                "num_attention_heads": 32,
                "num_kv_heads": 8,
                "in_channels": 4,
                "cross_attention_dim": 2048,
                "qk_norm": True,
                "learn_sigma": True,
            },
            Size(1024, 1024),
            256,
            "transformer/config.json of Alpha-VLLM/Lumina-Next-SFT-diffusers",
        ),
        schedule=Schedule(30, (12, 22)),
    ),
    Case(
        "flux-dev",
        "FLUX.1 dev's dimensions",
        Dimensions(
            "flux",
            {"guidance_embeds": True},
            Size(1024, 1024),
            512,
            "FluxTransformer2DModel's defaults, with guidance_embeds as in black-forest-labs/FLUX.1-dev",
        ),
        guidance="distilled guidance, one row",
        variants=_TEXT,
        sizes=("512", "1024", "2048"),
    ),
    Case(
        "flux-kontext",
        "FLUX.1 Kontext's dimensions, an edit of one picture",
        Dimensions(
            "flux-kontext",
            {"guidance_embeds": True},
            Size(1024, 1024),
            512,
            "FluxTransformer2DModel's defaults, with guidance_embeds as in black-forest-labs/FLUX.1-Kontext-dev",
        ),
        guidance="distilled guidance, one row",
        ratios=(0.25, 0.125),
        variants={
            "reference reuse": {"reference_reuse": True},
            "text and reference reuse": {"text_reuse": True, "reference_reuse": True},
        },
        repeats=3,
        sizes=("512", "1024"),
    ),
    Case(
        "qwen-image",
        "Qwen-Image's dimensions",
        Dimensions(
            "qwen-image", {}, Size(1024, 1024), 512, "QwenImageTransformer2DModel's defaults, those of Qwen/Qwen-Image"
        ),
        guidance=_TWO_CALLS,
        variants=_TEXT,
        repeats=3,
        sizes=("512", "1024"),
    ),
    Case(
        "wan-1.3b",
        "Wan 2.1's 1.3B dimensions",
        Dimensions(
            "wan",
            {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
            Size(480, 832, 81),
            512,
            "transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ),
        guidance=_TWO_CALLS,
        repeats=3,
        sizes=("480x832x9", "480x832x33", "480x832x81"),
    ),
)

CASES: dict[str, Case] = {case.name: case for case in _CASES}


def case_named(name: str) -> Case:
    """A case by its name, or by the one that `Case.resized`, `at_depth`, `in_dtype`, `with_kernels` or `tiny` gave it.

    Raises:
        ValueError: there is no such case.
    """
    if name in CASES:
        return CASES[name]
    base, _, last = name.rpartition("-")
    if not base:
        raise ValueError(f"--case: got {name!r}; allowed: {', '.join(CASES)}.")
    try:
        case = case_named(base)
        if last == "kernels":
            return case.with_kernels()
        if last == "tiny":
            return case.tiny()
        if last in DTYPES:
            return case.in_dtype(last)
        if last.startswith("depth"):
            return case.at_depth(float(last.removeprefix("depth")))
        return case.resized(Size.parse(last, case.size))
    except ValueError as error:
        raise ValueError(f"--case: got {name!r}; allowed: {', '.join(CASES)}.") from error


def chosen_cases(
    names: tuple[str, ...],
    device: str,
    dtype: str | None = None,
    size: str | None = None,
    depth: float | None = None,
) -> list[Case]:
    """The cases of these names; without one, all of them on a GPU, and on a CPU those that it can do in minutes.

    Args:
        names: of cases.
        device: to run on.
        dtype: instead of the cases' own; None leaves that.
        size: of the picture or video, likewise, as `Size.parse` reads it.
        depth: share of the blocks; None for all.

    Without names, the model in the box is left out where it cannot be had as asked.

    Raises:
        ValueError: there is no such case, type, size or share.
    """
    if names:
        found = [case_named(name) for name in dict.fromkeys(names)]
    else:
        found = [case for case in CASES.values() if case.fits_cpu or device != "cpu"]
        is_whole = size is None and depth is None
        found = [case for case in found if case.dimensions or (is_whole and dtype in (None, case.dtype))]
    if size is not None:
        found = [case.resized(Size.parse(size, case.size, "--size")) for case in found]
    if depth is not None:
        found = [case.at_depth(depth) for case in found]
    return found if dtype is None else [case.in_dtype(dtype) for case in found]
