"""Renderer of captioned scenes: one Noto Color Emoji glyph on one named background.

A scene is drawn from `(seed, index)` alone, so any picture can be rendered again. Glyph sizes come in
three steps and places are snapped to the transformer's patch grid: the same glyph then always meets the
patches in the same way, which a model trained for an hour learns far faster than continuous placement.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ras_dit.embedded import describe, scene_tables

DEFAULT_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109  # the only size of the font's colour bitmaps
SIZES: tuple[tuple[str, float], ...] = (("small", 0.4375), ("medium", 0.5625), ("big", 0.6875))
SIZE_SHARES = (0.1, 0.45, 0.45)
COLUMN_SHARES = (0.2, 0.6, 0.2)  # left, centre, right
GRID_CELLS = 16  # places per side of the picture, the transformer's token grid
GRAIN_STD = 1.5  # in 8-bit levels
COLOUR_JITTER = 7  # in 8-bit levels

TABLES = scene_tables()
SUBJECTS: tuple[str, ...] = tuple(TABLES["subjects"])
BACKGROUNDS: tuple[str, ...] = tuple(TABLES["backgrounds"])


@dataclass(frozen=True)
class Scene:
    """What a picture shows; indices into SUBJECTS, BACKGROUNDS and SIZES, places in grid cells."""

    subject: int
    background: int
    size: int
    column: int
    row: int

    def as_array(self) -> np.ndarray:
        """Return the five attributes as int16 [5]."""
        return np.array([self.subject, self.background, self.size, self.column, self.row], dtype=np.int16)

    @classmethod
    def from_array(cls, attributes: np.ndarray) -> Scene:
        """Build a scene from int [5]."""
        return cls(*(int(value) for value in attributes))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw the attributes of one scene."""
    size = int(rng.choice(len(SIZES), p=SIZE_SHARES))
    free = GRID_CELLS - round(SIZES[size][1] * GRID_CELLS)
    return Scene(
        subject=int(rng.integers(len(SUBJECTS))),
        background=int(rng.integers(len(BACKGROUNDS))),
        size=size,
        column=int(rng.choice((0, free // 2, free), p=COLUMN_SHARES)),
        row=free // 2,
    )


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator that decides everything about picture `index` of a set."""
    return np.random.default_rng([seed, index])


class Renderer:
    """Draws scenes as square RGB pictures.

    Args:
        size: pixels per side, a multiple of GRID_CELLS.
        font: path of NotoColorEmoji.ttf.
    """

    def __init__(self, size: int = 128, font: Path = DEFAULT_FONT) -> None:
        if size % GRID_CELLS:
            raise ValueError(f"size is {size}; it must be a multiple of {GRID_CELLS}, the number of places per side.")
        if not Path(font).is_file():
            raise FileNotFoundError(
                f"No font at {font}. Install the Debian package fonts-noto-color-emoji or pass --font."
            )
        self.size = size
        self._font = ImageFont.truetype(str(font), BITMAP_SIZE)
        self._glyph = lru_cache(maxsize=None)(self._draw_glyph)

    def render(self, seed: int, index: int) -> tuple[np.ndarray, Scene]:
        """Return picture `index` of set `seed` as uint8 [size, size, 3] and its scene."""
        rng = scene_rng(seed, index)
        scene = draw_scene(rng)
        return self.paint(scene, rng), scene

    def paint(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Paint a scene; `rng` decides only colours, relief and grain. Returns uint8 [size, size, 3]."""
        picture = Image.fromarray(_to_bytes(self._background(BACKGROUNDS[scene.background], rng)))
        glyph = self._glyph(scene.subject, scene.size)
        cell = self.size // GRID_CELLS
        box = round(SIZES[scene.size][1] * GRID_CELLS) * cell
        x = scene.column * cell + (box - glyph.width) // 2
        y = scene.row * cell + (box - glyph.height) // 2
        picture.paste(glyph, (x, y), glyph)
        grain = rng.standard_normal((self.size, self.size, 1), dtype=np.float32) * GRAIN_STD
        return _to_bytes(np.asarray(picture, dtype=np.float32) + grain)

    def _draw_glyph(self, subject: int, size: int) -> Image.Image:
        """Return the glyph as RGBA, its longer side filling the scene's box."""
        canvas = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE))
        character = chr(int(TABLES["subjects"][SUBJECTS[subject]], 16))
        ImageDraw.Draw(canvas).text((20, 20), character, font=self._font, embedded_color=True)
        glyph = canvas.crop(canvas.getbbox())
        box = round(SIZES[size][1] * GRID_CELLS) * (self.size // GRID_CELLS)
        scale = box / max(glyph.size)
        shape = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
        return glyph.resize(shape, Image.Resampling.LANCZOS)

    def _background(self, name: str, rng: np.random.Generator) -> np.ndarray:
        """Return float32 [size, size, 3], 0..255: a gradient, with ground below a soft wavy line if it has one."""
        table = TABLES["backgrounds"][name]
        jitter = rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, size=(1, 3)).astype(np.float32)
        y = np.linspace(0, 1, self.size, dtype=np.float32)[:, None]
        x = np.linspace(0, 1, self.size, dtype=np.float32)
        upper = _gradient(table["top"], table["bottom"], y) + jitter  # [size, 3]
        canvas = np.repeat(upper[:, None, :], self.size, axis=1)
        if name == "night":
            self._add_stars(canvas, rng)
        horizon, phase = rng.uniform(0.58, 0.72), rng.uniform(0, 2 * np.pi)
        frequency = rng.uniform(4, 7) if table["relief"] == "hills" else rng.uniform(14, 18)
        height = 0.04 if table["relief"] == "hills" else 0.012
        line = horizon + height * np.sin(frequency * x + phase)  # [size]
        if table["ground"] is not None:
            lower = _gradient(*table["ground"], (y - horizon) / (1 - horizon)) + jitter
            weight = np.clip((y - line[None, :]) * self.size / 2 + 0.5, 0, 1)[..., None]
            canvas = canvas * (1 - weight) + lower[:, None, :] * weight
        return canvas

    def _add_stars(self, canvas: np.ndarray, rng: np.random.Generator) -> None:
        """Put a dozen small stars into the upper half of `canvas`, in place."""
        dot = max(1, self.size // 64)
        for _ in range(12):
            row, column = rng.integers(self.size // 2), rng.integers(self.size - dot)
            canvas[row : row + dot, column : column + dot] = rng.uniform(170, 250)


def _gradient(first: list[int], last: list[int], position: np.ndarray) -> np.ndarray:
    """Blend two colours by `position` [N, 1] clipped to 0..1; returns float32 [N, 3]."""
    start, end = np.array(first, dtype=np.float32), np.array(last, dtype=np.float32)
    weight = np.clip(position, 0, 1)
    return start * (1 - weight) + end * weight


def _to_bytes(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def place_words(scene: Scene) -> list[str]:
    """Return the words that say where the subject is: none, one or two of left/right and top/bottom, or centre."""
    free = GRID_CELLS - round(SIZES[scene.size][1] * GRID_CELLS)
    across, down = scene.column / free, scene.row / free
    words = []
    if abs(across - 0.5) > 0.25:
        words.append("on the left" if across < 0.5 else "on the right")
    if abs(down - 0.5) > 0.25:
        words.append("at the top" if down < 0.5 else "at the bottom")
    return words or ["in the centre"]


STYLES: tuple[str, ...] = ("", "", "", "", "", "a picture of ", "a photo of ", "a drawing of ", "an emoji of ")


def caption(scene: Scene, rng: random.Random) -> str:
    """Word a scene in one of several ways; size and place are named only sometimes, and never wrongly."""
    subject = SUBJECTS[scene.subject]
    table = TABLES["backgrounds"][BACKGROUNDS[scene.background]]
    size_name = SIZES[scene.size][0]
    if rng.random() < 0.3 and size_name != "medium":
        subject = f"{rng.choice(('small', 'little') if size_name == 'small' else ('big', 'large'))} {subject}"
    place = f" {rng.choice(place_words(scene))}" if rng.random() < 0.3 else ""
    wordings: tuple[Callable[[], str], ...] = (
        lambda: describe(subject + place, table["phrase"]),
        lambda: rng.choice(STYLES) + describe(subject + place, table["phrase"]),
        lambda: f"{subject}{place} {table['phrase']}",
        lambda: f"{table['word']} scene with {describe(subject, '').strip()}{place}",
        lambda: f"{describe(subject, '').strip()}{place} on a {table['word']} background",
        lambda: f"{subject}{place}, {table['word']}",
        lambda: describe(subject, "").strip() + place,
        lambda: f"the {subject}{place} {table['phrase']}",
    )
    weights = (6, 3, 2, 2, 2, 1, 1, 1)
    return rng.choices(wordings, weights)[0]()


def every_word() -> list[str]:
    """Return all words a caption may hold, and a few harmless companions, sorted."""
    tables = TABLES["backgrounds"]
    text = " ".join([*SUBJECTS, *BACKGROUNDS, *STYLES, *(t["phrase"] + " " + t["word"] for t in tables.values())])
    text += " small little medium big large on the left right at top bottom in centre center middle a an the of with"
    text += " scene background and under over beautiful cute nice one emoji image painting view very sunny ocean field"
    text += " , ."
    return sorted(set(text.split()))
