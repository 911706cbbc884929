"""Loading pipelines, or only as much of them as a plan needs, and painting one picture."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

EMBEDDED = {"embedded": 128, "embedded-256": 256}
"""Values of --model that mean the model in the package, and the pixels per side that it paints."""
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Picture:
    """One picture to paint; None leaves a value to the pipeline."""

    prompt: str
    seed: int = 0
    steps: int = 28
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    max_sequence_length: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; allowed: at least 1.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: got {self.seed}; allowed: an int of 64 bits.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device: got {device!r}; allowed: auto, cpu, cuda, cuda:1, mps ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: got {device!r}, but PyTorch sees no such device here; use --device cpu.")
    return device


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


def load_pipeline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """A pipeline, ready to paint, without a progress bar of its own.

    Raises:
        ValueError: a bad model, dtype or device.
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

        absent = _absent_text_encoders(DiffusionPipeline.load_config(source))
        pipe = DiffusionPipeline.from_pretrained(source, dtype=kind, **absent).to(place)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _absent_text_encoders(index: dict[str, Any]) -> dict[str, None]:
    """Text encoders that a saved pipeline does without (SD3 without its T5): they must be passed as None."""
    import diffusers

    pipeline_class = getattr(diffusers, str(index.get("_class_name")), None)
    if pipeline_class is None:
        raise ValueError(f"--model: this diffusers has no pipeline {index.get('_class_name')!r}.")
    expected = inspect.signature(pipeline_class.__init__).parameters
    names = [name for name in expected if name.startswith(("text_encoder", "tokenizer"))]
    return {name: None for name in names if not (index.get(name) or [None])[0]}


def quiet_libraries() -> None:
    """Leave the terminal to the command's own progress and messages."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pipeline_outline(model: str, dtype: str = "auto") -> Any:
    """What `ras_dit.plan_for` reads of a pipeline, from its configuration files alone: no weights are loaded.

    Raises:
        ValueError: the model has no transformer, or one of a class that diffusers does not have.
    """
    import torch

    quiet_libraries()
    import diffusers

    source = model_source(model)
    index = diffusers.DiffusionPipeline.load_config(source)
    if "transformer" not in index:
        raise ValueError(f"--model: {model!r} is a {index['_class_name']} without a transformer; see `ras-dit models`.")
    transformer_class = getattr(diffusers, index["transformer"][1], None)
    if transformer_class is None:
        raise ValueError(f"--model: this diffusers has no {index['transformer'][1]}.")
    with torch.device("meta"):
        transformer = transformer_class.from_config(transformer_class.load_config(source, subfolder="transformer"))
    vae = diffusers.AutoencoderKL.load_config(source, subfolder="vae")
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    if model in EMBEDDED:
        transformer.register_to_config(sample_size=EMBEDDED[model] // scale)
    scheduler_class = getattr(diffusers, index["scheduler"][1])
    return SimpleNamespace(
        pipeline_class=getattr(diffusers, index["_class_name"], diffusers.DiffusionPipeline),
        transformer=transformer.to(resolve_dtype(dtype, "cpu")),
        scheduler=scheduler_class.from_config(scheduler_class.load_config(source, subfolder="scheduler")),
        vae_scale_factor=scale,
        default_sample_size=transformer.config.sample_size,
        tokenizer_max_length=_tokenizer_length(source, index),
    )


def _tokenizer_length(source: str, index: dict[str, Any]) -> int:
    if not (index.get("tokenizer") or [None])[0]:
        return 77
    from transformers import AutoTokenizer

    return int(AutoTokenizer.from_pretrained(source, subfolder="tokenizer").model_max_length)


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


def paint(pipe: Any, picture: Picture, on_step: Callable[[], None] | None = None) -> Image.Image:
    """Call the pipeline for one picture. ``on_step`` is called after every denoising step, if the pipeline can."""
    import torch

    call = call_arguments(pipe, picture)
    if on_step is not None and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def report(*_: Any) -> dict[str, Any]:
            on_step()
            return {}

        call["callback_on_step_end"] = report
    generator = torch.Generator("cpu").manual_seed(picture.seed)
    result = pipe(prompt=picture.prompt, num_inference_steps=picture.steps, generator=generator, **call)
    image: Image.Image = result.images[0]
    return image


def call_arguments(pipe: Any, picture: Picture) -> dict[str, Any]:
    """What a picture asks of a pipeline's call, beside prompt, steps and seed.

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
    }
    call = {name: value for name, value in wanted.items() if value is not None}
    for name in call:
        if name not in accepted:
            raise ValueError(f"{name}: {type(pipe).__name__} has no such option.")
    return call
