"""Prompts with their seeds, from a file or of the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ras_dit.arena import Scene


def read_scenes(prompts_file: Path | None, count: int, is_embedded: bool) -> list[Scene]:
    """What to paint: all prompts of a file, or ``count`` of the embedded model's own.

    Raises:
        ValueError: no file for another model, or one that cannot be read.
    """
    from ras_dit.arena import Scene
    from ras_dit.files import read_prompts

    if prompts_file is not None:
        prompts = read_prompts(prompts_file)
        return [Scene(entry["prompt"], entry.get("seed", index)) for index, entry in enumerate(prompts)]
    if not is_embedded:
        raise ValueError("--prompts-file: got none; give one for any model but 'embedded' and 'embedded-256'.")
    from ras_dit.embedded import embedded_scenes

    scenes = enumerate(embedded_scenes(count))
    return [Scene(scene.prompt, 1000 + index, scene.subject, scene.background) for index, scene in scenes]
