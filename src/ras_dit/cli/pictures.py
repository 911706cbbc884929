"""One picture or video: what is asked for, and the call of a pipeline that it makes."""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.cli.call_checks import FLAGS, LISTS, check_guidance, check_seed, check_takes, ignores_guidance
from ras_dit.cli.pipelines import EMBEDDED, makes_video

if TYPE_CHECKING:
    from PIL import Image

LATER = ("num_frames", "true_cfg_scale", "strength", *FLAGS)
"""Fields that `Picture.to_dict` leaves out where they are None, so that pictures are called what they always were."""
MODES = {"mask_image": "L"}
"""Kinds of pictures that are not RGB."""
ARGUMENTS = {
    "negative_prompt": "negative_prompt",
    "guidance": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "height": "height",
    "width": "width",
    "max_sequence_length": "max_sequence_length",
    "num_frames": "num_frames",
    "strength": "strength",
}
"""Fields of `Picture`, beside prompt, seed, steps and files, and the arguments of a pipeline's call that take them."""


@dataclass(frozen=True)
class Picture:
    """One picture (or video) to paint; None leaves a value to the pipeline.

    Attributes:
        image: a file: the picture to edit, to begin with or to move.
        mask_image: a file: white is what an inpainting pipeline paints.
        control_image: a file: what a ControlNet, or a model like one, goes by.
        guidance: ``guidance_scale`` of the call: classifier-free guidance, or what guidance-distilled models have
            instead.
        true_cfg_scale: of the pipelines that have both; it needs a negative prompt.
        strength: of img2img and inpainting: the share of the steps that is taken, 1 from noise alone.
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
    mask_image: Path | None = None
    control_image: Path | None = None
    strength: float | None = None

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
        if self.strength is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength: got {self.strength}; allowed: above 0, at most 1.")
        check_seed(self.seed)
        for name in self.gives:
            read_image(getattr(self, name), MODES.get(name, "RGB"), name)

    @property
    def gives(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(name for name in FLAGS if getattr(self, name) is not None)

    def to_dict(self) -> dict[str, Any]:
        """Its fields, without those of `LATER` that are None. Of a file the name and a digest of what it holds."""
        fields = {name: value for name, value in asdict(self).items() if name not in LATER or value is not None}
        for name in self.gives:
            path = fields[name]
            fields[name] = {"file": path.name, "sha256": _digest(path, _stamp(path))}
        return fields


def read_image(path: Path, mode: str = "RGB", name: str = "image") -> Image.Image:
    """The picture in a file, turned as its EXIF data say; ``name`` is what errors call it.

    Raises:
        ValueError: no such file, or none that Pillow can read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return _decoded(path, mode, _stamp(path)).copy()
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{name}: got {str(path)!r}, which is no file.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise ValueError(f"{name}: got {str(path)!r}, which cannot be read as a picture ({error}).") from error


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes where a file does."""
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size


@lru_cache(maxsize=8)  # one picture serves many prompts and seeds, and is looked at several times for each
def _decoded(path: Path, mode: str, stamp: tuple[int, ...]) -> Image.Image:
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert(mode)


@lru_cache(maxsize=64)
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
        if picture.guidance is not None and picture.guidance <= 1 and ignores_guidance(pipe):
            picture = replace(picture, guidance=None)  # it asks for none
        check_guidance(pipe, picture)
        parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
        guidance = None if parameter is None or ignores_guidance(pipe) else parameter.default
    return picture if picture.guidance is not None else replace(picture, guidance=guidance)


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


def _mode_of(pipe: Any, name: str) -> str:
    """What kind of picture a pipeline takes (Qwen-Image-Layered: one with transparency)."""
    config = getattr(getattr(pipe, "vae", None), "config", None)
    has_alpha = name == "image" and getattr(config, "input_channels", 3) == 4
    return "RGBA" if has_alpha else MODES.get(name, "RGB")


def call_arguments(pipe: Any, picture: Picture) -> dict[str, Any]:
    """What a picture or video asks of a pipeline's call, beside prompt, steps and seed.

    Raises:
        ValueError: the pipeline has no such option.
    """
    wanted = {argument: getattr(picture, name) for name, argument in ARGUMENTS.items()}
    call = {check_takes(name, type(pipe)): value for name, value in wanted.items() if value is not None}
    for name in picture.gives:
        argument = check_takes(name, type(pipe))
        image = read_image(getattr(picture, name), _mode_of(pipe, name), name)
        call[argument] = [image] if argument in LISTS else image
    return call
