"""Loading pipelines, or only as much of them as a plan needs, and painting one picture or video."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

EMBEDDED = {"embedded": 128, "embedded-256": 256}
"""Values of --model that mean the model in the package, and the pixels per side that it paints."""
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Picture:
    """One picture (or video) to paint; None leaves a value to the pipeline."""

    prompt: str
    seed: int = 0
    steps: int = 28
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    max_sequence_length: int | None = None
    num_frames: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; allowed: at least 1.")
        for name, unit in (("height", " of pixels"), ("width", " of pixels"), ("num_frames", "")):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}: got {size}; allowed: a number{unit}, at least 1.")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance: got {self.guidance}; allowed: a finite number.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: got {self.seed}; allowed: an int of 64 bits.")

    def to_dict(self) -> dict[str, Any]:
        """Its fields; ``num_frames`` only where it is given, so that pictures are called what they always were."""
        return {name: value for name, value in asdict(self).items() if name != "num_frames" or value is not None}


def model_source(model: str) -> str:
    """The folder or hub id that a --model means.

    Raises:
        ValueError: a folder without a pipeline, or neither a folder nor a hub id.
        FileNotFoundError: the embedded model is not there.
    """
    if model in EMBEDDED:
        from ras_dit.embedded import model_folder

        folder = model_folder()
        if not (folder / "model_index.json").is_file():
            raise FileNotFoundError(
                f"The embedded model is missing: no model_index.json in {folder}. Reinstall the package, or give "
                "--model a diffusers folder."
            )
        return str(folder)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(
                f"--model: the folder {model!r} has no model_index.json; give a diffusers pipeline folder."
            )
        return str(path)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        raise ValueError(
            f"--model: got {model!r}; allowed: {', '.join(map(repr, EMBEDDED))}, an existing folder, or a hub id "
            "(owner/name)."
        )
    return model


def resolve_device(device: str) -> str:
    """A torch device from ``auto`` or its name."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device: got {device!r}; allowed: auto, cpu, cuda, cuda:1, mps ...") from error
    if place.type != "cpu" and (place.index or 0) >= _num_devices(place.type):
        raise ValueError(f"--device: got {device!r}, but PyTorch sees no such device here; use --device cpu.")
    return device


def _num_devices(kind: str) -> int:
    """How many devices of a kind (cuda, mps, xpu ...) PyTorch sees; 0 of one that it can only name."""
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module: Any = getattr(torch, kind, None)
    return int(module.device_count()) if hasattr(module, "is_available") and module.is_available() else 0


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """A torch type from ``auto`` (bfloat16 on a GPU, else float32) or its name."""
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"--dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}.")
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)
    return kind


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto", *, allows_video: bool = False) -> Any:
    """A pipeline, ready to paint, without a progress bar of its own.

    Raises:
        ValueError: a bad model, dtype or device, or one that makes video where that is not asked for.
        OSError: files are missing.
    """
    source = model_source(model)
    place = resolve_device(device)
    kind = resolve_dtype(dtype, place)
    quiet_libraries()
    if model in EMBEDDED:
        from ras_dit.embedded import load_embedded

        pipe: Any = load_embedded(dtype=kind, device=place, size=EMBEDDED[model])
    else:
        from diffusers import DiffusionPipeline

        index = DiffusionPipeline.load_config(source)
        if not allows_video and makes_video(_pipeline_class(index)):
            raise ValueError(
                f"--model: {model!r} is a {index['_class_name']}, which makes video; this command is for pictures. Use "
                "ras-dit generate or compare, or the library: ras_dit.enable(pipe, ...)."
            )
        absent = _absent_text_encoders(index)
        pipe = DiffusionPipeline.from_pretrained(source, dtype=kind, **absent).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _absent_text_encoders(index: dict[str, Any]) -> dict[str, None]:
    """Text encoders that a saved pipeline does without (SD3 without its T5): they must be passed as None."""
    expected = inspect.signature(_pipeline_class(index).__init__).parameters
    names = [name for name in expected if name.startswith(("text_encoder", "tokenizer"))]
    return {name: None for name in names if not (index.get(name) or [None])[0]}


def makes_video(pipeline_class: type) -> bool:
    """Whether a pipeline gives frames, by the outputs that its module knows."""
    from diffusers.utils import BaseOutput

    known = vars(sys.modules[pipeline_class.__module__]).values()
    outputs = [kind for kind in known if inspect.isclass(kind) and issubclass(kind, BaseOutput)]
    return any(name in getattr(kind, "__annotations__", {}) for kind in outputs for name in ("frames", "video"))


def _pipeline_class(index: dict[str, Any]) -> Any:
    import diffusers

    found = getattr(diffusers, str(index.get("_class_name")), None)
    if found is None:
        raise ValueError(f"--model: this diffusers has no pipeline {index.get('_class_name')!r}.")
    return found


def quiet_libraries() -> None:
    """Leave the terminal to the command's own progress and messages."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pipeline_outline(model: str, dtype: str = "auto") -> Any:
    """A pipeline as `ras_dit.plan_for` reads it, from its configuration files alone: no weights are loaded.

    Its own constructor says how its autoencoder scales and how large its pictures are; text encoders are left out.

    Raises:
        ValueError: the model has no transformer, or a part of a class that diffusers does not have.
    """
    import torch

    quiet_libraries()
    import diffusers

    source = model_source(model)
    index = diffusers.DiffusionPipeline.load_config(source)
    pipeline_class = _pipeline_class(index)
    if not _saved_class(index, "transformer"):
        raise ValueError(f"--model: {model!r} is a {index['_class_name']} without a transformer; see `ras-dit models`.")
    expected = inspect.signature(pipeline_class.__init__).parameters
    given = {name: value for name, value in index.items() if name in expected and not _is_component(value)}
    parts: dict[str, Any] = {
        name: None for name, parameter in expected.items() if name != "self" and parameter.default is parameter.empty
    }
    with torch.device("meta"):
        parts |= {
            name: _outlined(source, index, name) for name in ("transformer", "vae", "controlnet") if name in index
        }
    parts["transformer"].to(resolve_dtype(dtype, resolve_device("auto")))
    if model in EMBEDDED:
        scale = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
        parts["transformer"].register_to_config(sample_size=EMBEDDED[model] // scale)
    parts["scheduler"] = _outlined(source, index, "scheduler")
    if "safety_checker" in expected:  # without one, Cosmos would load its own
        parts |= {name: torch.nn.Module() for name in ("safety_checker", "feature_extractor") if name in expected}
    pipe = pipeline_class(**{**parts, **given})
    if hasattr(pipe, "tokenizer_max_length") and (length := _tokenizer_length(source, index)):
        pipe.tokenizer_max_length = length
    return pipe


def _outlined(source: str, index: dict[str, Any], name: str) -> Any:
    """A part of a saved pipeline by its configuration, None where it has none."""
    import diffusers

    class_name = _saved_class(index, name)
    if not class_name:
        return None
    kind = getattr(diffusers, class_name, None)
    if kind is None:
        raise ValueError(f"--model: this diffusers has no {class_name}.")
    return kind.from_config(kind.load_config(source, subfolder=name))


def _is_component(value: Any) -> bool:
    """Whether an entry of a pipeline's index names a part, as [library, class] ([None, None] for none)."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, (str, type(None))) for v in value)


def _saved_class(index: dict[str, Any], name: str) -> str | None:
    return index[name][1] if _is_component(index.get(name)) else None


def _tokenizer_length(source: str, index: dict[str, Any]) -> int | None:
    """The longest text of the first tokenizer, in tokens; None if its configuration does not say."""
    if not _saved_class(index, "tokenizer"):
        return None
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    length = get_tokenizer_config(source, subfolder="tokenizer").get("model_max_length")
    return None if length is None else int(length)


def resolved(pipe: Any, model: str, picture: Picture) -> Picture:
    """The picture with what a call will use where it leaves the choice: the embedded model's values, or the pipeline's.

    The embedded model has no T5; a single zero row stands for it, instead of the pipeline's 256.
    """
    if model in EMBEDDED:
        from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH

        guidance: float | None = GUIDANCE_SCALE
        picture = replace(picture, max_sequence_length=picture.max_sequence_length or MAX_SEQUENCE_LENGTH)
    else:
        parameter = inspect.signature(pipe.__call__).parameters.get("guidance_scale")
        guidance = None if parameter is None else parameter.default
    return picture if picture.guidance is not None else replace(picture, guidance=guidance)


def paint(pipe: Any, picture: Picture, on_step: Callable[[], None] | None = None) -> list[Image.Image]:
    """Call the pipeline for one picture or video.

    Args:
        pipe: for pictures or for video.
        picture: what to paint.
        on_step: called after every denoising step, if the pipeline can.

    Returns:
        The picture alone, or the frames of the video.
    """
    import torch

    call = call_arguments(pipe, picture)
    if makes_video(type(pipe)):
        call["output_type"] = "pil"  # most of them give arrays otherwise
    if on_step is not None and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def report(*_: Any) -> dict[str, Any]:
            on_step()
            return {}

        call["callback_on_step_end"] = report
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    result = pipe(prompt=picture.prompt, num_inference_steps=picture.steps, generator=generator, **call)
    painted: Image.Image | list[Image.Image] = result[0][0]  # its first field, whatever it is called (Kandinsky: image)
    return painted if isinstance(painted, list) else [painted]


def call_arguments(pipe: Any, picture: Picture) -> dict[str, Any]:
    """What a picture or video asks of a pipeline's call, beside prompt, steps and seed.

    Raises:
        ValueError: the pipeline has no such option.
    """
    accepted = inspect.signature(pipe.__call__).parameters
    wanted: dict[str, Any] = {
        "negative_prompt": picture.negative_prompt,
        "guidance_scale": picture.guidance,
        "height": picture.height,
        "width": picture.width,
        "max_sequence_length": picture.max_sequence_length,
        "num_frames": picture.num_frames,
    }
    call = {name: value for name, value in wanted.items() if value is not None}
    for name in call:
        if name not in accepted:
            raise ValueError(f"{name}: {type(pipe).__name__} has no such option.")
    return call
