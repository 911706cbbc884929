"""What was painted, as files: pictures, videos, layers, and the maps of where the compute went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from ras_dit.trace import Trace


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
