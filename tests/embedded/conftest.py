"""Micro models and the renderer for the tests of the embedded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from recipes.embedded_model.model import TrainSettings
from recipes.embedded_model.scenes import DEFAULT_FONT, Renderer, draw_scene, every_word, scene_rng
from recipes.embedded_model.text import write_tokenizer
from recipes.embedded_model.train import EncodedScenes

MICRO = TrainSettings(steps=4, batch=2, width=64, layers=2, text_width=64, text_steps=2, warmup_steps=1)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """The recipe's tokenizer, written and read back."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), every_word())


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    """A renderer at the recipe's size; skips where the font is not installed."""
    if not Path(DEFAULT_FONT).is_file():
        pytest.skip("needs the Debian package fonts-noto-color-emoji")
    return Renderer(128)


@pytest.fixture(scope="session")
def encoded_scenes() -> EncodedScenes:
    """Random latents with real scene attributes."""
    generator = torch.Generator().manual_seed(0)
    attributes = np.stack([draw_scene(scene_rng(1, index)).as_array() for index in range(8)])
    return EncodedScenes(torch.randn(8, 8, 8, 8, generator=generator).half(), attributes)
