"""Which picture or video is compared with which: two folders, by file name or by what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".webp")
FILE_KEYS = ("image", "mask_image", "control_image")
REQUEST_KEYS = ("prompt", "seed", "height", "width", "num_frames", "strength", *FILE_KEYS)
"""Of what `ras-dit generate` writes into a picture, what makes two of them pictures of one request."""


@dataclass(frozen=True)
class Pair:
    """Two pictures, or two videos, of one request.

    Attributes:
        name: tells the organiser which pair it is; voters never see it.
        ours: the file of the method under test.
        against: the file that it is compared with.
        prompt: what both should show, None where it is not known.
    """

    name: str
    ours: Path
    against: Path
    prompt: str | None = None


def find_pairs(folder: Path, ours: str, against: str, prompts: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of two folders of pictures or videos, sorted by name.

    Files of equal names are a pair; where the names differ, files whose metadata ask for the same prompt, seed and size
    (in a video, frames too) with the same pictures to go by. Prompts come from ``prompts``, else from the
    ``arena.json`` of an arena, else from the metadata.

    Args:
        folder: holds the two folders; the folder of an arena does.
        ours: folder (inside ``folder``, or any path) of the method under test; in an arena also a method's name.
        against: likewise, of what it is compared with.
        prompts: one for each pair, in the order of the file names.

    Raises:
        ValueError: no such folder, no pictures, a picture without partner, prompts that differ or of another number.
    """
    first, second = _resolve(folder, ours), _resolve(folder, against)
    if first.resolve() == second.resolve():
        raise ValueError(f"pairs: got the folder {str(first)!r} twice; give two.")
    pairs = _partners(_pictures(first), _pictures(second), first, second)
    if prompts is not None:
        if len(prompts) != len(pairs):
            raise ValueError(f"pairs: got {len(prompts)} prompts for {len(pairs)} pairs; give one for each.")
        return [replace(pair, prompt=prompt) for pair, prompt in zip(pairs, prompts, strict=True)]
    scenes = _arena_prompts(folder)
    return [replace(pair, prompt=scenes.get(pair.name) or _prompt(pair)) for pair in pairs]


def _resolve(folder: Path, name: str) -> Path:
    slug = re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-")  # as the arena names its folders
    for candidate in (folder / name, folder / slug):
        if name and candidate.is_dir():
            return candidate
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    allowed = f"the folders there: {', '.join(inside)}" if inside else "a folder of pictures"
    raise ValueError(f"pairs: got {name!r}, which is no folder in {folder}; allowed: {allowed}.")


def _pictures(folder: Path) -> dict[str, Path]:
    found = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and ".heatmap." not in path.name
    }
    if not found:
        raise ValueError(f"pairs: {folder} holds no pictures or videos; allowed: {', '.join(SUFFIXES)}.")
    return found


def _partners(ours: dict[str, Path], against: dict[str, Path], first: Path, second: Path) -> list[Pair]:
    if ours.keys() == against.keys():
        for name in ours:
            requests_of = [_request(ours[name]), _request(against[name])]
            if None not in requests_of and requests_of[0] != requests_of[1]:
                raise ValueError(
                    f"pairs: {ours[name]} and {against[name]} have one name, but different prompts, seeds, sizes or "
                    "pictures to go by; paint the same requests into both folders."
                )
        return [Pair(Path(name).stem, ours[name], against[name]) for name in ours]
    requests = [{name: _request(path) for name, path in found.items()} for found in (ours, against)]
    if any(request is None for found in requests for request in found.values()):
        alone = sorted(ours.keys() ^ against.keys())
        where, other = (first, second) if alone[0] in ours else (second, first)
        raise ValueError(
            f"pairs: {where / alone[0]} has no partner in {other} ({len(alone)} picture(s) without); give equal file "
            "names, or PNGs by `ras-dit generate`, which carry their prompt and seed."
        )
    by_request = [_unique(found, folder) for found, folder in zip(requests, (first, second), strict=True)]
    without = sorted(by_request[0].keys() ^ by_request[1].keys())
    if without:
        prompt, seed = without[0][:2]
        raise ValueError(
            f"pairs: the picture of {prompt!r} with seed {seed} has no partner of that prompt, seed and size, "
            f"and of the same pictures to go by ({len(without)} picture(s) without); paint the same requests into "
            f"{first} and {second}."
        )
    return [
        Pair(Path(name).stem, ours[name], against[by_request[1][request]]) for request, name in by_request[0].items()
    ]


def _unique(found: dict[str, Any], folder: Path) -> dict[tuple[str, ...], str]:
    names: dict[tuple[str, ...], str] = {}
    for name, request in found.items():
        if request in names:
            raise ValueError(
                f"pairs: {folder} holds two pictures of {request[0]!r} with seed {request[1]} ({names[request]} and "
                f"{name}); keep the pictures of one setting in a folder."
            )
        names[request] = name
    return names


def _request(path: Path) -> tuple[str, ...] | None:
    metadata = _metadata(path)
    values = tuple(metadata.get(key) for key in REQUEST_KEYS)
    return None if values[0] is None or values[1] is None else tuple(str(value) for value in values)


def _metadata(path: Path) -> dict[str, Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return dict(image.info)
    except UnidentifiedImageError as error:
        raise ValueError(f"pairs: {path} is no picture that can be read.") from error


def _prompt(pair: Pair) -> str | None:
    found = {str(prompt) for path in (pair.ours, pair.against) if (prompt := _metadata(path).get("prompt"))}
    if len(found) > 1:
        raise ValueError(f"pairs: {pair.ours} and {pair.against} are of different prompts: {sorted(found)}.")
    return found.pop() if found else None


def _arena_prompts(folder: Path) -> dict[str, str]:
    """File name -> prompt, of the scenes that an arena painted."""
    path = folder / "arena.json"
    if not path.is_file():
        return {}
    scenes = json.loads(path.read_text(encoding="utf-8"))["scenes"]
    return {f"{index:05d}": scene["prompt"] for index, scene in enumerate(scenes)}
