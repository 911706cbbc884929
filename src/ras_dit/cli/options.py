"""Command-line options: those derived from RASConfig's fields, and those that several commands share."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from ras_dit.config import RASConfig
from ras_dit.presets import PRESETS
from ras_dit.region import RegionOfInterest

IMPORTANT, TINKER = "Important", "To tinker with"
RENAMED = {"seed": "selection_seed"}  # --seed is the picture's

Prompt = Annotated[str, typer.Argument(help="What to paint.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", help="'embedded', 'embedded-256' (models in the box), a folder, or a hub id."),
]
Seed = Annotated[int, typer.Option("--seed", "-s", help="Seed of the starting noise.")]
Height = Annotated[int | None, typer.Option(help="Of the picture, in pixels; the model's default without it.")]
Width = Annotated[int | None, typer.Option(help="Of the picture, in pixels; the model's default without it.")]
Frames = Annotated[int | None, typer.Option(help="Of a video; the model's default without it.")]
FPS = Annotated[int, typer.Option(min=1, max=240, help="Frames per second that a video is shown at.")]
Steps = Annotated[int, typer.Option(help="Denoising steps; 28 for every model, whatever its pipeline's default.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance; without it 4 for a model in the box, else the pipeline's."),
]
TrueCFG = Annotated[
    float | None,
    typer.Option(
        "--true-cfg-scale",
        help="Classifier-free guidance of FLUX.1, Qwen-Image and HunyuanVideo, whose --guidance is for "
        "guidance-distilled models; needs --negative-prompt.",
    ),
]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What not to paint.")]
ImageFile = Annotated[
    Path | None,
    typer.Option("--image", help="For pipelines that take a picture: to edit, to begin with, or to set in motion."),
]
MaskImage = Annotated[
    Path | None,
    typer.Option("--mask-image", help="For inpainting pipelines: white is painted, black stays as in --image."),
]
ControlImage = Annotated[
    Path | None, typer.Option("--control-image", help="For pipelines with a ControlNet: edges, depth, a pose ...")
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Of img2img and inpainting: the share of the steps that is taken, 1 paints over all of --image. (Of LTX's "
        "conditions: how firmly the picture holds.) The pipeline's default without it."
    ),
]
DType = Annotated[
    str, typer.Option(help="auto (bfloat16 on a CUDA device, else float32), float32, float16 or bfloat16.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
LPIPSWeights = Annotated[
    Path | None, typer.Option(help="For LPIPS: torchvision's VGG16 or AlexNet; in torch hub's cache without it.")
]
Offload = Annotated[
    str,
    typer.Option(
        help="For weights larger than a GPU: none, model (its memory holds one part of the pipeline at a time) or "
        "sequential (one layer at a time, and slow)."
    ),
]


def flag_of(field_name: str) -> str:
    """The flag of a RASConfig field, such as ``--sample-ratio``."""
    return "--" + RENAMED.get(field_name, field_name).replace("_", "-")


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--preset``, ``--config`` and one flag per RASConfig field.

    The command's parameter ``config`` is left out of its flags and receives the finished `RASConfig`: the preset
    (balanced without one) or the file, then the single flags over it.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "config"]
    extra = [_preset_parameter(), _file_parameter(), *map(_field_parameter, dataclasses.fields(RASConfig))]

    def run(**values: Any) -> None:
        preset, path = values.pop("preset"), values.pop("config_file")
        flags = {f.name: values.pop(RENAMED.get(f.name, f.name)) for f in dataclasses.fields(RASConfig)}
        command(**values, config=build_config(preset, path, flags))

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *extra]]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def build_config(preset: str | None, path: Path | None, flags: dict[str, str | None]) -> RASConfig:
    """The config of a command line.

    Args:
        preset: a preset's name; None takes ``balanced`` when there is no file either.
        path: a .json or .yaml file.
        flags: field name -> what was written after its flag; None where the flag was not given.

    Raises:
        ValueError: both a preset and a file, or a value that RASConfig refuses.
    """
    if preset is not None and path is not None:
        raise ValueError(f"--preset and --config: got {preset!r} and {str(path)!r}; give one of them.")
    base = RASConfig.load(path) if path is not None else RASConfig.preset(preset or "balanced")
    kinds = get_type_hints(RASConfig)
    given = {name: _parse(name, value, kinds[name]) for name, value in flags.items() if value is not None}
    return base.replace(**given) if given else base


def _parse(name: str, value: str, kind: Any) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if get_origin(kind) is Literal:
        return value
    if value.lower() == "none" and _is_optional(kind):
        return None
    if not _takes_numbers(kind):
        return value
    if get_origin(kind) is tuple:
        return tuple(_number(name, word, kind) for word in value.split(",") if word.strip() not in ("", "none"))
    return _number(name, value, kind)


def _number(name: str, text: str, kind: Any) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{flag_of(name)}: got {text!r}; allowed: {_metavar(kind)}.") from None


def _takes_numbers(kind: Any) -> bool:
    return get_origin(kind) is tuple or any(k in (int, float) for k in (get_args(kind) or (kind,)))


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _metavar(kind: Any) -> str:
    if kind is bool:
        return "true|false"
    if get_origin(kind) is Literal:
        return "NAME"
    if get_origin(kind) is tuple:
        return "SHARE,SHARE" if get_args(kind)[0] is float else "STEP,STEP"
    if not _takes_numbers(kind):
        return "MASK|inpaint" if RegionOfInterest in get_args(kind) else "NAME|none"
    numbers = [k for k in (get_args(kind) or (kind,)) if k in (int, float)]
    word = "NUMBER" if float in numbers else "INT"
    return f"{word}|none" if _is_optional(kind) else word


def _field_parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = get_type_hints(RASConfig)[field.name]
    panel = IMPORTANT if field.metadata["important"] else TINKER
    option = typer.Option(
        flag_of(field.name),
        metavar=_metavar(kind),
        help=f"{field.metadata['help']} RASConfig's default: {_written(field.default)}.",
        rich_help_panel=panel,
    )
    return _keyword(RENAMED.get(field.name, field.name), Annotated[str | None, option])


def _written(default: Any) -> str:
    """A default as its flag takes it."""
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default is None or default == () else str(default)


def _preset_parameter() -> inspect.Parameter:
    text = f"Start from a preset: {', '.join(PRESETS)} (balanced, unless --config is given). Single flags go over it; "
    text += "one of the plan, such as --sample-ratio, takes the place of the preset's whole plan."
    return _keyword(
        "preset", Annotated[str | None, typer.Option("--preset", "-p", help=text, rich_help_panel=IMPORTANT)]
    )


def _file_parameter() -> inspect.Parameter:
    text = "Start from a config file (.json, .yaml) instead."
    option = typer.Option("--config", "-c", help=text, rich_help_panel=IMPORTANT)
    return _keyword("config_file", Annotated[Path | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
