"""What the call of a class of pipelines takes, needs and heeds."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ras_dit.cli.pictures import Picture

FLAGS = {"image": "--image", "mask_image": "--mask-image", "control_image": "--control-image"}
"""Pictures that `ras-dit generate` and `compare` hand to a call."""
NEEDED = (*FLAGS, "control_mask", "control_video", "video", "id_cond", "id_vit_hidden")
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
LISTS = ("images", "input_images")
"""What calls name a list of pictures that have no ``image`` (JoyImageEditPlusPipeline, OmniGenPipeline)."""


def check_call(pipeline_class: Any, gives: Collection[str] = ()) -> None:
    """Refuse a pipeline that cannot be called with a prompt and what a command gives beside it.

    Args:
        pipeline_class: of the pipeline.
        gives: names of `FLAGS`.

    Raises:
        ValueError: says what it needs, and how that can be given, or what it does not take.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters
    name = pipeline_class.__name__
    library = "use the library: ras_dit.enable(pipe, ...), then call it as always."
    if "prompt" not in parameters:
        raise ValueError(f"--model: a {name} takes no prompt; {library}")
    for one in gives:
        check_takes(one, pipeline_class)
    needed = sorted({one for one in parameters if _is_needed(name, parameters[one])} - {"self", "prompt", *gives})
    *flags, last = FLAGS.values()
    if needed and set(needed) <= set(FLAGS):
        asked = " and ".join(FLAGS[one] for one in needed)
        library = f"give {asked} to ras-dit generate or compare (other commands take no picture), or {library}"
    elif needed:
        library = f"the command line takes a prompt, {', '.join(flags)} and {last} alone; {library}"
    if needed:
        raise ValueError(f"--model: a {name} needs {' and '.join(needed)}, which was not given; {library}")


def check_takes(option: str, pipeline_class: Any) -> str:
    """The argument of a pipeline's call that takes an option: the one of its name, or of `LISTS` for ``image``.

    Raises:
        ValueError: there is none.
    """
    parameters = inspect.signature(pipeline_class.__call__).parameters
    for name in (option, *(LISTS if option == "image" else ())):
        if name in parameters:
            return name
    raise ValueError(f"{option}: {pipeline_class.__name__} has no such option; leave it out.")


def _is_needed(pipeline: str, parameter: inspect.Parameter) -> bool:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        return False
    if parameter.default is parameter.empty:
        return True
    return parameter.name in NEEDED and pipeline not in OPTIONAL.get(parameter.name, ())


def check_seed(seed: int, place: str = "") -> None:
    """Refuse a seed that PyTorch does not take; ``place`` says where it was given."""
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{place}seed: got {seed}; allowed: an int of 64 bits.")


def check_guidance(pipe: Any, picture: Picture) -> None:
    """Refuse what a pipeline with two kinds of guidance would leave unheeded without a word."""
    from ras_dit.models.sizes import has_two_guidances

    if not has_two_guidances(pipe):
        return
    name = type(pipe).__name__
    default = inspect.signature(pipe.__call__).parameters["true_cfg_scale"].default
    scale = default if picture.true_cfg_scale is None else picture.true_cfg_scale
    if picture.guidance is not None and ignores_guidance(pipe):
        raise ValueError(
            f"guidance: got {picture.guidance}, which this {name} does not heed, for its model is not "
            "guidance-distilled; give --true-cfg-scale, and --negative-prompt (' ' will do)."
        )
    if picture.negative_prompt is not None and scale <= 1:
        raise ValueError(
            f"negative_prompt: a {name} heeds it with a true_cfg_scale above 1 only, got {scale}; add "
            "--true-cfg-scale 4."
        )
    if picture.negative_prompt is None and picture.true_cfg_scale is not None and scale > 1:
        raise ValueError(
            f"true_cfg_scale: got {scale}, which a {name} heeds with a negative prompt only; add --negative-prompt "
            "(' ' will do)."
        )


def ignores_guidance(pipe: Any) -> bool:
    """Whether a pipeline does nothing with its ``guidance_scale``."""
    from ras_dit.models.sizes import has_two_guidances

    return has_two_guidances(pipe) and getattr(pipe.transformer.config, "guidance_embeds", None) is False
