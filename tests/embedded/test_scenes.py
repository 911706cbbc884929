"""The renderer is deterministic, and captions never say what the picture does not show."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ras_dit.embedded import embedded_backgrounds, embedded_prompts, embedded_subjects
from recipes.embedded_model.scenes import (
    BACKGROUNDS,
    GRID_CELLS,
    SIZES,
    SUBJECTS,
    TABLES,
    Renderer,
    Scene,
    caption,
    draw_scene,
    every_word,
    place_words,
    scene_rng,
)


def test_same_seed_same_picture(renderer: Renderer) -> None:
    picture, scene = renderer.render(3, 5)
    again, same_scene = Renderer(128).render(3, 5)
    assert scene == same_scene
    assert np.array_equal(picture, again)
    assert picture.shape == (128, 128, 3)
    assert picture.dtype == np.uint8
    assert not np.array_equal(picture, renderer.render(3, 6)[0])


def test_every_glyph_is_in_the_font(renderer: Renderer) -> None:
    for subject in range(len(SUBJECTS)):
        glyph = np.asarray(renderer._glyph(subject, 1))
        assert glyph[..., 3].mean() > 30, SUBJECTS[subject]
        assert glyph[..., :3][glyph[..., 3] > 128].std() > 5, SUBJECTS[subject]


@pytest.mark.parametrize("size", range(len(SIZES)))
def test_the_subject_is_where_the_scene_says(renderer: Renderer, size: int) -> None:
    box = round(SIZES[size][1] * GRID_CELLS) * 8
    column, row = 1, GRID_CELLS - box // 8
    heart = renderer.paint(
        Scene(SUBJECTS.index("heart"), BACKGROUNDS.index("mint"), size, column, row), scene_rng(0, 0)
    )
    reds = np.argwhere((heart[..., 0] > 200) & (heart[..., 1] < 110))
    assert reds.min(0)[0] >= 8 * row
    assert reds.min(0)[1] >= 8 * column
    assert reds.max(0)[1] < 8 * column + box
    assert reds.max(0)[1] - reds.min(0)[1] > 0.85 * box


def test_larger_pictures_show_the_same_scene(renderer: Renderer) -> None:
    small, scene = renderer.render(7, 1)
    large, large_scene = Renderer(256).render(7, 1)
    assert scene == large_scene
    reduced = large.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(reduced - small).mean() < 4


def test_captions_name_subject_and_never_contradict() -> None:
    rng = random.Random(0)
    for index in range(400):
        scene = draw_scene(scene_rng(2, index))
        text = caption(scene, rng)
        assert SUBJECTS[scene.subject] in text
        size = SIZES[scene.size][0]
        assert size == "small" or not {"small", "little"} & set(text.split())
        assert size == "big" or not {"big", "large"} & set(text.split())
        for words in ("on the left", "on the right", "at the top", "at the bottom"):
            assert words not in text or words in place_words(scene)
        others = {
            TABLES["backgrounds"][name]["phrase"] for name in BACKGROUNDS if name != BACKGROUNDS[scene.background]
        }
        assert not any(text.endswith(phrase) for phrase in others)


def test_place_words_follow_the_place() -> None:
    assert place_words(Scene(0, 0, 0, 0, 4)) == ["on the left"]
    assert place_words(Scene(0, 0, 0, 9, 9)) == ["on the right", "at the bottom"]
    assert place_words(Scene(0, 0, 0, 4, 5)) == ["in the centre"]


def test_attributes_survive_the_array() -> None:
    scene = draw_scene(scene_rng(1, 1))
    assert Scene.from_array(scene.as_array()) == scene


def test_captions_use_known_words_only() -> None:
    known, rng = set(every_word()), random.Random(1)
    for index in range(300):
        words = caption(draw_scene(scene_rng(4, index)), rng).replace(",", " ,").split()
        assert set(words) <= known


def test_tables_of_the_package() -> None:
    assert len(embedded_subjects()) == 80
    assert len(embedded_backgrounds()) >= 10
    prompts = embedded_prompts(100)
    assert prompts == embedded_prompts(200)[:100]
    assert len(set(embedded_prompts(80 * 12))) > 900
    with pytest.raises(ValueError, match="0 prompts or more"):
        embedded_prompts(-1)


def test_bad_renderer_options(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        Renderer(128, tmp_path / "none.ttf")
    with pytest.raises(ValueError, match="multiple of 16"):
        Renderer(100)
