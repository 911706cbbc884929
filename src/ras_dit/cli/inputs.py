"""What a pipeline's call needs beside a prompt: known from its class, before any weights are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

PICTURES = ("image", "mask_image", "control_image", "control_video", "video")
"""Arguments of calls that default to None, and that most pipelines cannot do without all the same."""
OPTIONAL = {
    "image": (
        "BriaFibo2Pipeline",
        "BriaFiboEditPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "Cosmos3OmniPipeline",
        "Flux2KleinKVPipeline",
        "Flux2KleinPipeline",
        "Flux2Pipeline",
        "FluxKontextPipeline",
        "GlmImagePipeline",
        "HeliosPipeline",
        "HeliosPyramidPipeline",
        "JoyImageEditPipeline",
        "Kandinsky6TI2VAPipeline",
        "LTXConditionPipeline",
        "QwenImage21Pipeline",
        "ZImageOmniPipeline",
    ),
    "video": (
        "AnyFlowFARPipeline",
        "AnyFlowPipeline",
        "Cosmos2VideoToWorldPipeline",
        "Cosmos2_5_PredictBasePipeline",
        "Cosmos3OmniPipeline",
        "CosmosVideoToWorldPipeline",
        "HeliosPipeline",
        "HeliosPyramidPipeline",
        "LTXConditionPipeline",
        "WanVACEPipeline",
    ),
}
"""Pipelines that do without (some of them go by the picture alone)."""


def check_call(pipeline_class: Any, gives: Sequence[str]) -> None:
    """Refuse a pipeline that cannot be called with a prompt and what a command gives beside it.

    Raises:
        ValueError: says what it needs, and how that can be given.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters
    name = pipeline_class.__name__
    library = "use the library: ras_dit.enable(pipe, ...), then call it as always."
    if "prompt" not in parameters:
        raise ValueError(f"--model: a {name} takes no prompt; {library}")
    needed = sorted({one for one in parameters if _is_needed(name, parameters[one])} - {"self", "prompt", *gives})
    if needed == ["image"]:
        library = f"give --image to ras-dit generate or compare (other commands take no picture), or {library}"
    elif needed:
        library = f"the command line takes a prompt and --image alone; {library}"
    if needed:
        raise ValueError(f"--model: a {name} needs {' and '.join(needed)}, which was not given; {library}")


def _is_needed(pipeline: str, parameter: inspect.Parameter) -> bool:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return False
    if parameter.default is parameter.empty:
        return True
    return parameter.name in PICTURES and pipeline not in OPTIONAL.get(parameter.name, ())
