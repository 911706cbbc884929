"""The autoencoder's stages on tiny pictures: they train, resume, keep the encoder, and encode what they should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from recipes.embedded_model.encode import encode_scenes
from recipes.embedded_model.refine import RefineSettings, refine_decoder
from recipes.embedded_model.scenes import Renderer, draw_scene, scene_rng
from recipes.embedded_model.vae import VAESettings, build_vae, psnr, train_vae, vae_loss

TINY = VAESettings(size=32, minutes=0.02, batch=2, channels=(8, 8, 8))


def test_latents_are_four_times_smaller() -> None:
    vae = build_vae(VAESettings())
    latents = vae.encode(torch.zeros(1, 3, 32, 48)).latent_dist.mean
    assert latents.shape == (1, 8, 8, 12)
    assert vae.decode(latents).sample.shape == (1, 3, 32, 48)


def test_anchor_pulls_the_first_channels_to_the_colours() -> None:
    torch.manual_seed(0)
    vae, pictures = build_vae(TINY), torch.rand(4, 3, 32, 32) * 2 - 1
    plain, _ = vae_loss(vae, pictures, VAESettings(anchor_weight=0.0, latent_noise=0.0))
    anchored, _ = vae_loss(vae, pictures, VAESettings(anchor_weight=1.0, latent_noise=0.0))
    assert anchored > plain


def test_psnr_by_hand() -> None:
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)) == pytest.approx(20.0, abs=1e-4)


def test_stages_on_tiny_pictures(renderer: Renderer, tmp_path: Path) -> None:
    folder = train_vae(tmp_path, TINY)
    assert train_vae(tmp_path, TINY) == folder  # finished: nothing is done again
    before = AutoencoderKL.from_pretrained(folder)
    assert before.config.scaling_factor > 0

    data = encode_scenes(tmp_path, 32, 5)
    assert data.latents.shape == (5, 8, 8, 8)
    assert data.latents.dtype == torch.float16
    assert data.attributes[3].tolist() == draw_scene(scene_rng(21, 3)).as_array().tolist()

    refine_decoder(tmp_path, RefineSettings(minutes=0.02))
    after = AutoencoderKL.from_pretrained(folder)
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, after.state_dict()[name]) or name.startswith("decoder."), name
    assert not torch.equal(before.decoder.conv_in.weight, after.decoder.conv_in.weight)
    assert json.loads((tmp_path / "vae_result.json").read_text())["refined_minutes"] > 0
