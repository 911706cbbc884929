"""One picture or video: what is asked for, and the call of a pipeline that it makes."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.cli.pipelines import EMBEDDED, makes_video

if TYPE_CHECKING:
    from PIL import Image

    from ras_dit.config import RASConfig
    from ras_dit.trace import Trace

LATER = ("num_frames", "true_cfg_scale", "image")
"""Fields that `Picture.to_dict` leaves out where they are None, so that pictures are called what they always were."""


@dataclass(frozen=True)
class Picture:
    """One picture (or video) to paint; None leaves a value to the pipeline.

    Attributes:
        image: a file: the picture to edit, to begin with or to move.
        guidance: ``guidance_scale`` of the call: classifier-free guidance, or what guidance-distilled models have
            instead.
        true_cfg_scale: of the pipelines that have both; it needs a negative prompt.
    """

    prompt: str
    seed: int = 0
    steps: int = 28
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    image: Path | None = None
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; allowed: at least 1.")
        for name, unit in (("height", " of pixels"), ("width", " of pixels"), ("num_frames", "")):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}: got {size}; allowed: a number{unit}, at least 1.")
        for name in ("guidance", "true_cfg_scale"):
            scale = getattr(self, name)
            if scale is not None and not math.isfinite(scale):
                raise ValueError(f"{name}: got {scale}; allowed: a finite number.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: got {self.seed}; allowed: an int of 64 bits.")
        if self.image is not None:
            read_image(self.image)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, without those of `LATER` that are None. Of an image the name and a digest of what it holds."""
        fields = {name: value for name, value in asdict(self).items() if name not in LATER or value is not None}
        if self.image is not None:
            digest = hashlib.sha256(self.image.read_bytes()).hexdigest()
            fields["image"] = {"file": self.image.name, "sha256": digest}
        return fields


def read_image(path: Path, mode: str = "RGB") -> Image.Image:
    """The picture in a file, turned as its EXIF data say.

    Raises:
        ValueError: no such file, or none that Pillow can read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"image: got {str(path)!r}, which is no file.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"image: got {str(path)!r}, which cannot be read as a picture ({error}).") from error


def resolved(pipe: Any, model: str, picture: Picture) -> Picture:
    """The picture with what a call will use where it leaves the choice: the embedded model's values, or the pipeline's.

    The embedded model has no T5; a single zero row stands for it, instead of the pipeline's 256.

    Raises:
        ValueError: guidance that this pipeline would not heed.
    """
    if model in EMBEDDED:
        from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH

        guidance: float | None = GUIDANCE_SCALE
        picture = replace(picture, max_sequence_length=picture.max_sequence_length or MAX_SEQUENCE_LENGTH)
    else:
        if picture.guidance is not None and picture.guidance <= 1 and _ignores_guidance(pipe):
            picture = replace(picture, guidance=None)  # it asks for none
        _check_guidance(pipe, picture)
        parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
        guidance = None if parameter is None or _ignores_guidance(pipe) else parameter.default
    return picture if picture.guidance is not None else replace(picture, guidance=guidance)


def _check_guidance(pipe: Any, picture: Picture) -> None:
    """Refuse what a pipeline with two kinds of guidance would leave unheeded without a word."""
    if not _has_two_guidances(pipe):
        return
    name = type(pipe).__name__
    default = inspect.signature(pipe.__call__).parameters["true_cfg_scale"].default
    scale = default if picture.true_cfg_scale is None else picture.true_cfg_scale
    if picture.guidance is not None and _ignores_guidance(pipe):
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


def _ignores_guidance(pipe: Any) -> bool:
    return _has_two_guidances(pipe) and getattr(pipe.transformer.config, "guidance_embeds", None) is False


def paint(pipe: Any, picture: Picture, on_step: Callable[[], None] | None = None) -> list[Image.Image]:
    """Call the pipeline for one picture or video.

    Args:
        pipe: for pictures or for video.
        picture: what to paint.
        on_step: called after every denoising step, if the pipeline can.

    Returns:
        The picture alone, its layers (Qwen-Image-Layered), or the frames of the video.
    """
    import torch

    from ras_dit.remarks import RASWarning

    call, is_video = call_arguments(pipe, picture), makes_video(type(pipe))
    if is_video:
        call["output_type"] = "pil"  # most of them give arrays otherwise
    if on_step is not None and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def report(*_: Any) -> dict[str, Any]:
            on_step()
            return {}

        call["callback_on_step_end"] = report
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    result = pipe(prompt=picture.prompt, num_inference_steps=picture.steps, generator=generator, **call)
    if any(getattr(result, sound, None) is not None for sound in ("audio", "sound")):
        warnings.warn(f"{type(pipe).__name__} makes sound, too; only the video is kept.", RASWarning, stacklevel=2)
    every = result[0]  # its first field, whatever it is called (Kandinsky: image)
    if is_video and not isinstance(every[0], list):
        return list(every)  # the frames of the only video (Cosmos 3)
    painted: Image.Image | list[Image.Image] = every[0]
    return painted if isinstance(painted, list) else [painted]


def save_painted(
    painted: Sequence[Image.Image], path: Path, is_video: bool, metadata: Mapping[str, Any], fps: int
) -> list[Path]:
    """Write a picture, a video (an animated PNG), or layers, each as a picture of its own.

    Args:
        painted: what `paint` returned.
        path: of the picture or video; layers have ``-layer0``, ``-layer1`` ... in their names.
        is_video: several are frames.
        metadata: for the text chunks.
        fps: of a video.

    Returns:
        The files. The first one is written last: where it is, all are.
    """
    from ras_dit.files import save_png

    if is_video or len(painted) == 1:
        save_png(painted, path, metadata, fps)
        return [path]
    places = [layer_path(path, number) for number in range(len(painted))]
    for layer, place in reversed(list(zip(painted, places, strict=True))):
        save_png(layer, place, metadata)
    return places


def layer_path(path: Path, number: int) -> Path:
    """Where a layer of a picture is written."""
    return path.with_name(f"{path.stem}-layer{number}{path.suffix}")


def painted_maps(trace: Trace, painted: Sequence[Image.Image], is_video: bool) -> list[Image.Image]:
    """The heat map of everything painted; the tokens of layers come after those of the whole picture."""
    if is_video or len(painted) == 1:
        return trace.heatmaps(painted)
    return trace.heatmaps([painted[0], *painted])[1:]


def _mode_of(pipe: Any) -> str:
    """What kind of picture a pipeline takes (Qwen-Image-Layered: one with transparency)."""
    config = getattr(getattr(pipe, "vae", None), "config", None)
    return "RGBA" if getattr(config, "input_channels", 3) == 4 else "RGB"


def call_arguments(pipe: Any, picture: Picture) -> dict[str, Any]:
    """What a picture or video asks of a pipeline's call, beside prompt, steps and seed.

    Raises:
        ValueError: the pipeline has no such option.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    wanted: dict[str, Any] = {
        "negative_prompt": picture.negative_prompt,
        "guidance_scale": picture.guidance,
        "true_cfg_scale": picture.true_cfg_scale,
        "height": picture.height,
        "width": picture.width,
        "max_sequence_length": picture.max_sequence_length,
        "num_frames": picture.num_frames,
        "image": None if picture.image is None else read_image(picture.image, _mode_of(pipe)),
    }
    call = {name: value for name, value in wanted.items() if value is not None}
    for name in call:
        if name not in accepted:
            raise ValueError(f"{name}: {type(pipe).__name__} has no such option.")
    return call


def check_picture(pipe: Any, picture: Picture, config: RASConfig | None) -> None:
    """Refuse what a run would stumble over, as far as that can be told before it.

    Args:
        pipe: that will paint it.
        picture: as `resolved` gives it.
        config: of RAS; None is a dense run.

    Raises:
        ValueError: an option or a size that the pipeline does not have, or a step of the config outside the run.
    """
    from ras_dit.plan import build_plan

    call = call_arguments(pipe, picture)
    _check_size(pipe, picture, call)
    if config is not None:
        order = getattr(pipe.scheduler, "order", 1)
        build_plan(config, picture.steps * order - (order - 1), num_tokens=4096)  # the steps are checked, not those


def _check_size(pipe: Any, picture: Picture, call: Mapping[str, Any]) -> None:
    """Refuse a size that neither fits the token grid nor is rounded by the pipeline, as FLUX's does."""
    from ras_dit.models import token_plan_of
    from ras_dit.models.sizes import grid_for_size

    height, width = picture.height or picture.width, picture.width or picture.height
    if height is None or getattr(pipe, "transformer", None) is None:
        return
    try:
        grid_for_size(pipe, token_plan_of(pipe.transformer), picture.height, picture.width, 1)
    except ValueError as error:
        if _refuses(pipe, {**call, "prompt": picture.prompt, "height": height, "width": width}):
            raise error


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
