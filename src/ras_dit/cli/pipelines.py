"""Loading pipelines, or only as much of them as a plan needs."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.cli.call_checks import check_call
from ras_dit.errors import WeightsTooLargeError, is_out_of_memory

if TYPE_CHECKING:
    import torch

EMBEDDED = {"embedded": 128, "embedded-256": 256}
"""Values of --model that mean the model in the package, and the pixels per side that it paints."""
DTYPES = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("none", "model", "sequential")


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
    """A torch type from ``auto`` (bfloat16 on a CUDA device, else float32) or its name."""
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"--dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}.")
    if dtype == "auto":
        return torch.bfloat16 if device.startswith("cuda") else torch.float32
    kind = getattr(torch, dtype)
    assert isinstance(kind, torch.dtype)
    return kind


def load_pipeline(
    model: str,
    dtype: str = "auto",
    device: str = "auto",
    *,
    allows_video: bool = False,
    check: Callable[[Any], None] = check_call,
    offload: str = "none",
) -> Any:
    """A pipeline, ready to paint, without a progress bar of its own.

    Args:
        model: one in the box, a folder or a hub id.
        dtype: of its weights.
        device: where it goes.
        allows_video: whether it may make video.
        check: is given its class, and refuses one that cannot be called with what the command gives.
        offload: of `OFFLOADS`: how much of the weights the device holds at a time.

    Raises:
        ValueError: a bad model, dtype, device or offload; a model that makes video where that is not asked for, or that
            needs what the command does not give. Weights are loaded after that.
        OSError: files are missing.
        ImportError: a library that the pipeline needs is.
        WeightsTooLargeError: the device's memory does not hold them.
    """
    source = model_source(model)
    place = resolve_device(device)
    _check_offload(offload, place)
    kind = resolve_dtype(dtype, place)
    quiet_libraries()
    from diffusers import DiffusionPipeline

    index = DiffusionPipeline.load_config(source)
    if not allows_video and makes_video(_pipeline_class(index)):
        raise ValueError(
            f"--model: {model!r} is a {index['_class_name']}, which makes video; this command is for pictures. Use "
            "ras-dit generate or compare, or the library: ras_dit.enable(pipe, ...)."
        )
    check(_pipeline_class(index))
    if model in EMBEDDED:
        from ras_dit.embedded import load_embedded

        pipe: Any = load_embedded(dtype=kind, size=EMBEDDED[model])
    else:
        pipe = DiffusionPipeline.from_pretrained(source, dtype=kind, **_absent_text_encoders(index))
    _put(pipe, place, offload)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _check_offload(offload: str, device: str) -> None:
    if offload not in OFFLOADS:
        raise ValueError(f"--offload: got {offload!r}; allowed: {', '.join(OFFLOADS)}.")
    if offload != "none" and device == "cpu":
        raise ValueError(
            f"--offload: got {offload!r} on the device 'cpu', where all weights lie anyway; leave it out, or give "
            "--device cuda."
        )


def _put(pipe: Any, device: str, offload: str) -> None:
    """Put a pipeline on a device, or as much of it at a time as is asked for."""
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        else:
            pipe.to(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsTooLargeError(
            f"out of memory while the weights were put on {device!r}: {first_line} Give --offload model (the device "
            "holds one part of the pipeline at a time) or --offload sequential (one layer at a time, and slow), or "
            "--dtype bfloat16."
        ) from error


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
        raise ValueError(
            f"--model: this diffusers ({diffusers.__version__}) has no pipeline {index.get('_class_name')!r}: upgrade "
            "it, or give another model."
        )
    getattr(found, "load_config", None)  # what stands for one whose libraries are missing says which
    return found


def quiet_libraries() -> None:
    """Leave the terminal to the command's own progress and messages."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def pipeline_outline(model: str, dtype: str = "auto", device: str = "auto") -> Any:
    """A pipeline as `ras_dit.plan_for` reads it, from its configuration files alone: no weights are loaded.

    Its own constructor says how its autoencoder scales and how large its pictures are; text encoders are left out.

    Args:
        model: one in the box, a folder or a hub id.
        dtype: of its weights.
        device: that ``auto`` among dtypes goes by; it need not be here.

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
    parts["transformer"].to(resolve_dtype(dtype, resolve_device("auto") if device == "auto" else device))
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
        raise ValueError(
            f"--model: this diffusers ({diffusers.__version__}) has no {class_name}: upgrade it, or give another model."
        )
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
