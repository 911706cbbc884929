from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ras_dit.files import save_png
from ras_dit.study import Key, Pair, Study, StudyConfig, build_study, find_pairs

NUM_PAIRS = 6


def paint(path: Path, value: int, metadata: Mapping[str, object] | None = None, side: int = 24) -> None:
    """A picture of one colour, which tells pictures apart."""
    pixels = np.full((side, side, 3), value, dtype=np.uint8)
    save_png(Image.fromarray(pixels), path, metadata)


def film(path: Path, value: int, duration: int | list[int] = 50, num_frames: int = 4, side: int = 24) -> None:
    """A video by other means than ours: red tells videos apart, green the frames."""
    frames = [Image.new("RGB", (side, side), (value, 20 * index, 90)) for index in range(num_frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=1)


def colour(name: str, index: int) -> int:
    return 10 + 20 * index + (5 if name == "ras" else 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of pictures with metadata that tell everything."""
    for name in ("ras", "dense"):
        for index in range(NUM_PAIRS):
            metadata = {"prompt": f"a fox number {index}", "seed": index, "config": {"method": name}}
            paint(tmp_path / "pictures" / name / f"{index}.png", colour(name, index), metadata)
    return tmp_path / "pictures"


@pytest.fixture
def pairs(folder: Path) -> list[Pair]:
    return find_pairs(folder, "ras", "dense")


@pytest.fixture
def study(pairs: list[Pair]) -> Study:
    return build_study(pairs, "ras", "dense", StudyConfig(num_repeats=2, num_catches=1, seed=7))


def page_data(html: str) -> dict:
    text = html.split('<script type="application/json" id="study">')[1].split("</script>")[0]
    return json.loads(text)


def ballot(key: Key, answer: Callable[[int, str], str], name: str = "", voter: int = 1, **changes: object) -> dict:
    """A ballot of one who answers ``win``, ``tie`` or ``loss`` by pair and kind of trial; ours stands on the left."""
    votes = []
    for trial in key.trials:
        ours = trial.ours or "a"
        other = "b" if ours == "a" else "a"
        choice = {"win": ours, "tie": "equal", "loss": other}[answer(trial.pair, trial.kind)]
        votes.append({"trial": trial.id, "left": ours, "choice": choice, "seconds": 2.5})
    values = {"format": "picture-study votes", "version": 1, "study": key.study, "voter": f"{voter:032x}", "name": name}
    return {**values, "saved": "2026-01-31T09:30:00.000Z", "votes": votes, **changes}
