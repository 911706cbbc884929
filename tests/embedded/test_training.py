"""Training: the same text path as the pipeline, exact counting of zero rows, exact resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from torch import nn
from transformers import CLIPTokenizer

from recipes.embedded_model.checkpoint import Stopwatch
from recipes.embedded_model.export import crop_positions
from recipes.embedded_model.model import PromptToVelocity, TrainSettings
from recipes.embedded_model.train import (
    EncodedScenes,
    Optimizers,
    Trainer,
    draw_batch,
    learning_rate,
)

from .conftest import MICRO

FP32_TOLERANCE = 1e-5  # one summation order against another, activations of order one
PROMPTS = ["a fox in the snow", ""]


def randomise(model: nn.Module) -> None:
    """Give every parameter a value, so that no path is silently zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.08, generator=generator)


@pytest.fixture
def model(tokenizer: CLIPTokenizer) -> PromptToVelocity:
    torch.manual_seed(0)
    model = PromptToVelocity(tokenizer, 8, MICRO)
    randomise(model)
    return model.eval()


@torch.no_grad()
def test_text_equals_the_pipelines(model: PromptToVelocity, tokenizer: CLIPTokenizer) -> None:
    pipeline = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)),
        text_encoder=model.text.first,
        tokenizer=tokenizer,
        text_encoder_2=model.text.second,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    tokens, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS[0], None, None, max_sequence_length=7)
    ours = model.text(PROMPTS, num_zero_rows=7)
    close = {"atol": FP32_TOLERANCE, "rtol": FP32_TOLERANCE}
    torch.testing.assert_close(ours.tokens, torch.cat([tokens, negative]), **close)
    torch.testing.assert_close(ours.pooled, torch.cat([pooled, negative_pooled]), **close)


@torch.no_grad()
@pytest.mark.parametrize("zero_rows", [1, 16, 256])
def test_one_counted_row_equals_many_rows(model: PromptToVelocity, zero_rows: int) -> None:
    noisy = torch.randn(2, 8, 8, 6, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.3, 0.9])
    full = model.text(PROMPTS, num_zero_rows=zero_rows)
    model.transformer.set_attn_processor(JointAttnProcessor2_0())
    expected = model.transformer(noisy, full.tokens, full.pooled, 1000 * sigma, return_dict=False)[0]
    model.transformer.set_attn_processor(model.attention)
    counted = model(noisy, sigma, PROMPTS, zero_rows)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(counted, expected, atol=FP32_TOLERANCE, rtol=FP32_TOLERANCE)


def test_resumed_training_equals_uninterrupted(
    tmp_path: Path, encoded_scenes: EncodedScenes, tokenizer: CLIPTokenizer
) -> None:
    whole = Trainer(tmp_path / "whole", encoded_scenes, tokenizer, MICRO)
    assert whole.run()
    first = Trainer(tmp_path / "parts", encoded_scenes, tokenizer, MICRO)
    for _ in range(2):
        first.take_step(first.done)
    first.save()
    second = Trainer(tmp_path / "parts", encoded_scenes, tokenizer, MICRO)
    assert second.step == 2
    assert second.run()
    resumed = second.average.state_dict()
    for name, expected in whole.average.state_dict().items():
        assert torch.equal(expected, resumed[name]), name


def test_average_differs_from_model_and_both_move(
    tmp_path: Path, encoded_scenes: EncodedScenes, tokenizer: CLIPTokenizer
) -> None:
    trainer = Trainer(tmp_path, encoded_scenes, tokenizer, MICRO)
    assert not [
        name for name, one in trainer.model.text.named_parameters() if one.requires_grad or one.grad is not None
    ]
    before = trainer.model.transformer.proj_out.weight.clone()
    trainer.run()
    assert not torch.equal(trainer.model.transformer.proj_out.weight, before)
    assert not torch.equal(trainer.model.transformer.proj_out.weight, trainer.average.transformer.proj_out.weight)


def test_batches_depend_on_their_number_alone(encoded_scenes: EncodedScenes) -> None:
    one, same, other = (draw_batch(encoded_scenes, number, MICRO) for number in (3, 3, 4))
    assert one.prompts == same.prompts
    assert torch.equal(one.noise, same.noise)
    assert not torch.equal(one.noise, other.noise)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_steps=10, decay_from=0.5)
    assert learning_rate(0, 0.0, settings) == pytest.approx(0.1)
    assert learning_rate(100, 0.4, settings) == 1.0
    assert learning_rate(100, 0.75, settings) == pytest.approx(0.5)
    assert learning_rate(100, 1.01, settings) == 0.0


def test_optimizers_share_out_all_parameters(tokenizer: CLIPTokenizer) -> None:
    model = PromptToVelocity(tokenizer, 8, MICRO)
    parts = Optimizers(model, MICRO).parts
    counted = sum(p.numel() for part in parts for group in part.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())


def test_stopwatch_does_not_count_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 500.0])
    monkeypatch.setattr("recipes.embedded_model.checkpoint.time.monotonic", lambda: next(times))
    watch = Stopwatch()
    assert watch.tick() == 2.0
    assert watch.tick() == 2.0 + Stopwatch.LONGEST_STEP


@torch.no_grad()
def test_cropped_positions_change_nothing_that_fits(model: PromptToVelocity) -> None:
    noisy = torch.randn(1, 8, 16, 12, generator=torch.Generator().manual_seed(3))
    inputs = model.text(["a fox"], num_zero_rows=2)
    before = model.transformer(noisy, inputs.tokens, inputs.pooled, torch.tensor([500.0]), return_dict=False)[0]
    crop_positions(model.transformer, 8)
    after = model.transformer(noisy, inputs.tokens, inputs.pooled, torch.tensor([500.0]), return_dict=False)[0]
    assert torch.equal(before, after)
    assert model.transformer.config.pos_embed_max_size == 8


def test_transformer_is_a_plain_sd3(tokenizer: CLIPTokenizer) -> None:
    model = PromptToVelocity(tokenizer, 8, replace(MICRO, layers=3))
    assert isinstance(model.transformer, SD3Transformer2DModel)
    assert model.transformer.config.qk_norm == "rms_norm"
