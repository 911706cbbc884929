"""What a pipeline's call needs and takes: by its class before weights are loaded, the rest before it paints."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ras_dit.cli.pictures import Picture
    from ras_dit.config import RASConfig

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
ROUNDING = (
    "EasyAnimateControlPipeline",
    "EasyAnimateInpaintPipeline",
    "EasyAnimatePipeline",
    "Krea2Pipeline",
)
"""Pipelines that round a size before they check it."""
STRICT = (
    "AllegroPipeline",
    "CogVideoX",
    "CogView3",
    "ConsisID",
    "JoyImageEditPlus",
    "MochiPipeline",
    "OmniGenPipeline",
    "ZImage",
)
"""How names of pipelines begin that fail at a size off the token grid, though their own check lets it pass."""
FITS = 1024
"""Pixels, a multiple of any token's: a side that was not given, of `STRICT`."""
PLACEHOLDER = "<img><|image_1|></img>"
"""Where in a prompt OmniGen reads the picture."""


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
    if not _has_two_guidances(pipe):
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


def _has_two_guidances(pipe: Any) -> bool:
    """Whether classifier-free guidance is ``true_cfg_scale``, and ``guidance_scale`` what a distilled model is told."""
    parameters = inspect.signature(pipe.__call__).parameters
    return "true_cfg_scale" in parameters and not hasattr(type(pipe), "do_classifier_free_guidance")


def ignores_guidance(pipe: Any) -> bool:
    """Whether a pipeline does nothing with its ``guidance_scale``."""
    return _has_two_guidances(pipe) and getattr(pipe.transformer.config, "guidance_embeds", None) is False


def check_picture(pipe: Any, picture: Picture, config: RASConfig | None) -> None:
    """Refuse what a run would stumble over, as far as that can be told before it.

    Args:
        pipe: that will paint it.
        picture: as `ras_dit.cli.pictures.resolved` gives it.
        config: of RAS; None is a dense run.

    Raises:
        ValueError: an option or a size that the pipeline does not have, a prompt that does not say where the picture
            belongs, or a step of the config outside the run.
    """
    from ras_dit.cli.pictures import call_arguments
    from ras_dit.plan import build_plan

    _check_placeholder(pipe, picture)
    _check_size(pipe, picture, call_arguments(pipe, picture))
    if config is None:
        return
    if config.rules == "reference":
        config = config.replace(skip_num_step=0, skip_num_step_length=0)  # how many may be dropped goes by the tokens
    build_plan(config, num_evaluations(pipe, picture.steps), num_tokens=4096)  # the steps are checked, not those


def num_evaluations(pipe: Any, steps: int) -> int:
    """How often a call of so many steps evaluates its transformer for the whole picture, as far as can be told before
    it."""
    order = getattr(pipe.scheduler, "order", 1)
    return _num_steps(pipe, steps) * order - (order - 1)


def _num_steps(pipe: Any, steps: int) -> int:
    """How many of its steps a call takes: with a ``strength`` below 1 it begins later (``get_timesteps``)."""
    parameter = inspect.signature(pipe.__call__).parameters.get("strength")
    strength = None if parameter is None else parameter.default
    if not isinstance(strength, float) or strength >= 1:
        return steps
    return steps - int(max(steps - steps * strength, 0))


def _check_placeholder(pipe: Any, picture: Picture) -> None:
    """Refuse a picture for OmniGen that the prompt gives no place."""
    name = type(pipe).__name__
    if name == "OmniGenPipeline" and picture.image is not None and PLACEHOLDER not in picture.prompt:
        raise ValueError(
            f"prompt: got {picture.prompt!r}; allowed (of an {name} with --image): texts that hold {PLACEHOLDER}; put "
            "it where the picture belongs."
        )


def _check_size(pipe: Any, picture: Picture, call: Mapping[str, Any]) -> None:
    """Refuse a size that neither fits the token grid nor is rounded by the pipeline, as FLUX's and Krea 2's do."""
    from ras_dit.models import token_plan_of
    from ras_dit.models.sizes import grid_for_size

    height, width = picture.height or picture.width, picture.width or picture.height
    if height is None or getattr(pipe, "transformer", None) is None or _rounds(pipe):
        return
    token_plan = token_plan_of(pipe.transformer)
    if type(pipe).__name__.startswith(STRICT):
        grid_for_size(pipe, token_plan, picture.height or FITS, picture.width or FITS, 1)
        return
    try:
        grid_for_size(pipe, token_plan, picture.height, picture.width, 1)
    except ValueError as error:
        if _refuses(pipe, {**call, "prompt": picture.prompt, "height": height, "width": width}):
            raise error


def _rounds(pipe: Any) -> bool:
    binning = "use_resolution_binning"  # to the sizes that a model was trained on
    return type(pipe).__name__ in ROUNDING or binning in inspect.signature(pipe.__call__).parameters


def _refuses(pipe: Any, call: Mapping[str, Any]) -> bool:
    """Whether a pipeline's own check of its arguments says no; what it is not told has the default of a call."""
    if not hasattr(pipe, "check_inputs"):
        return False
    defaults = {name: one.default for name, one in inspect.signature(pipe.__call__).parameters.items()}
    names = inspect.signature(pipe.check_inputs).parameters
    try:
        pipe.check_inputs(**{name: call.get(name, defaults.get(name)) for name in names})
    except ValueError:
        return True
    except Exception:  # some are told what a call has worked out by then
        return False
    return False
