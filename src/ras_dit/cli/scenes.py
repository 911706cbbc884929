"""Prompts with their seeds, from a file or of the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ras_dit.arena import Scene


def read_scenes(prompts_file: Path | None, count: int, is_embedded: bool, first_seed: int | None = None) -> list[Scene]:
    """What to paint: all prompts of a file, or ``count`` of the embedded model's own.

    Args:
        prompts_file: prompts, with seeds where they are given; what else `ras-dit generate` reads there is refused.
        count: of the embedded model's own prompts.
        is_embedded: whether it is that model.
        first_seed: of the first prompt without a seed of its own, the others count on; None is 0 for a file, 1000 for
            the embedded model's prompts.

    Raises:
        ValueError: no file for another model, one that cannot be read, or a seed that is too large.
    """
    from ras_dit.arena import Scene
    from ras_dit.cli.call_checks import check_seed
    from ras_dit.cli.prompts import numbered_prompts

    if prompts_file is not None:
        found: list[Scene] = []
        for number, entry in numbered_prompts(prompts_file, ("prompt", "seed")).items():
            place = f"--prompts-file: {prompts_file}, line {number}: " if "seed" in entry else ""
            found.append(Scene(entry["prompt"], entry.get("seed", (first_seed or 0) + len(found))))
            check_seed(found[-1].seed, place)
        return found
    if not is_embedded:
        raise ValueError("--prompts-file: got none; give one for any model but 'embedded' and 'embedded-256'.")
    from ras_dit.embedded import embedded_scenes

    first = 1000 if first_seed is None else first_seed
    check_seed(first)
    check_seed(first + count - 1)
    scenes = enumerate(embedded_scenes(count))
    return [Scene(scene.prompt, first + index, scene.subject, scene.background) for index, scene in scenes]
