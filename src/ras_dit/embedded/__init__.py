"""The model in the box: a small Stable Diffusion 3 pipeline trained by this project.

It paints one named subject (a Noto Color Emoji glyph) on one named background. `MODEL_CARD.md`
beside this file says how it was made and how well it follows its prompts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusion3Pipeline

__all__ = [
    "EMBEDDED_SIZES",
    "GUIDANCE_SCALE",
    "MAX_SEQUENCE_LENGTH",
    "EmbeddedScene",
    "embedded_backgrounds",
    "embedded_prompts",
    "embedded_scenes",
    "embedded_subjects",
    "load_embedded",
    "model_folder",
    "training_record",
]

EMBEDDED_SIZES = (128, 256)
"""Sizes of `load_embedded`, in pixels per side."""
GUIDANCE_SCALE = 4.0
"""Guidance that suits the embedded model."""
MAX_SEQUENCE_LENGTH = 1
"""Pass this to its calls: it has no T5, and one zero row stands for it as well as the pipeline's default of 256 does
(it was trained with counts from 1 to 256), with far fewer text tokens to compute."""

_HERE = Path(__file__).parent
_SUBJECT_STRIDE = 37  # coprime with the number of subjects, so a short list of prompts is varied


def model_folder() -> Path:
    """Return the diffusers folder that `load_embedded` reads (it may be missing in a source checkout)."""
    return _HERE / "model"


def training_record() -> Path:
    """Return the JSON record of the model's training, from which `recipes/embedded_model/start.py` goes on."""
    return _HERE / "training.json"


def scene_tables() -> dict[str, Any]:
    """Return the tables of subjects (name -> code point) and backgrounds (name -> colours and phrase)."""
    tables: dict[str, Any] = json.loads((_HERE / "scenes.json").read_text(encoding="utf-8"))
    return tables


def load_embedded(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu", *, size: int = 128
) -> StableDiffusion3Pipeline:
    """Load the model that ships with the package as an ordinary `StableDiffusion3Pipeline`.

    Args:
        dtype: type of the weights; float32 when None.
        device: where the pipeline goes.
        size: pixels per side of the pictures it paints by default: 128 (256 image tokens) or 256 (1,024 image tokens,
            at most 32 a side; other weights in the image stream, the same text encoders and autoencoder).

    Returns:
        The pipeline.

    Raises:
        ValueError: there is no model of that size.
        FileNotFoundError: the weights are not there.
    """
    if size not in EMBEDDED_SIZES:
        raise ValueError(
            f"size: got {size}; allowed: 128 or 256, the pixels a side of the pictures that the embedded model paints."
        )
    import torch
    from diffusers import StableDiffusion3Pipeline

    folder = model_folder()
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The embedded model is missing: no model_index.json in {folder}. Reinstall the package, or train the "
            "model with `python -m recipes.embedded_model.run --out runs/embedded` from the repository."
        )
    kind = torch.float32 if dtype is None else dtype
    pipeline: Any = StableDiffusion3Pipeline.from_pretrained(
        str(folder),
        dtype=kind if size == EMBEDDED_SIZES[0] else torch.float32,
        text_encoder_3=None,
        tokenizer_3=None,
        local_files_only=True,
    )
    if size != EMBEDDED_SIZES[0]:
        from ras_dit.embedded.large import enlarge_pipeline

        enlarge_pipeline(pipeline)
    return pipeline.to(device, kind)


def embedded_subjects() -> list[str]:
    """Return the names of the subjects the embedded model was trained to paint."""
    return list(scene_tables()["subjects"])


def embedded_backgrounds() -> list[str]:
    """Return the names of the backgrounds the embedded model was trained to paint."""
    return list(scene_tables()["backgrounds"])


@dataclass(frozen=True)
class EmbeddedScene:
    """A prompt and what it asks for: places in `embedded_subjects` and `embedded_backgrounds`."""

    prompt: str
    subject: int
    background: int


def embedded_prompts(n: int) -> list[str]:
    """Return `n` varied prompts the embedded model understands, always the same ones.

    Args:
        n: how many prompts, at least 0; they start to repeat after all pairs of subject and background.
    """
    return [scene.prompt for scene in embedded_scenes(n)]


def embedded_scenes(n: int) -> list[EmbeddedScene]:
    """Return what `embedded_prompts` returns, with the subject and the background that each prompt asks for."""
    if n < 0:
        raise ValueError(f"n: got {n}; allowed: 0 prompts or more.")
    tables = scene_tables()
    names, phrases = list(tables["subjects"]), [entry["phrase"] for entry in tables["backgrounds"].values()]
    scenes = []
    for index in range(n):
        lap, place = divmod(index, len(names))
        subject, background = place * _SUBJECT_STRIDE % len(names), (5 * place + lap) % len(phrases)
        scenes.append(EmbeddedScene(describe(names[subject], phrases[background]), subject, background))
    return scenes


def describe(subject: str, phrase: str) -> str:
    """Return the plain prompt for a subject with a background phrase, e.g. `an owl in the snow`."""
    if subject in ("cherries", "grapes"):
        return f"{subject} {phrase}"
    article = "an" if subject[0] in "aeio" else "a"
    return f"{article} {subject} {phrase}"
