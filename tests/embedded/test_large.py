"""The model of 256 x 256: a difference in 4 bits that comes back, the right positions, and training that resumes."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

import ras_dit
from ras_dit.cli.pipelines import pipeline_outline
from ras_dit.embedded import load_embedded, model_folder
from ras_dit.embedded.classifier import WEIGHTS, load_classifier
from ras_dit.embedded.large import LARGE_WEIGHTS, enlarge_transformer, large_positions, load_difference, save_difference
from recipes.embedded_model import enlarge
from recipes.embedded_model.checkpoint import write_json
from recipes.embedded_model.enlarge import Enlarger, EnlargeSettings, cut_windows
from recipes.embedded_model.evaluate import all_cases
from recipes.embedded_model.model import PromptToVelocity
from recipes.embedded_model.scenes import draw_scene, scene_rng
from recipes.embedded_model.train import EncodedScenes, draw_batch

from .conftest import MICRO

BF16 = 2.0**-8  # relative rounding of bfloat16
STEP = 7 / 16  # in 4 bits it is 7, times a scale of 1/16, exactly
needs_model = pytest.mark.skipif(
    not (model_folder() / "model_index.json").is_file() or not LARGE_WEIGHTS.is_file(),
    reason="the embedded model's weights are not in this checkout",
)


@pytest.fixture(scope="module")
def large_scenes() -> EncodedScenes:
    """Random latents of 64 x 64 with real scene attributes."""
    attributes = np.stack([draw_scene(scene_rng(2, index)).as_array() for index in range(4)])
    return EncodedScenes(torch.randn(4, 8, 64, 64, generator=torch.Generator().manual_seed(0)).half(), attributes)


def test_a_difference_comes_back_within_half_a_step_of_its_group(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (6, 32), "convolution": (16, 2, 2, 2), "odd": (5, 7), "vector": (6,)}
    old = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    new = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in old.items()}
    new["matrix"][2] = old["matrix"][2]  # a group that did not change
    save_difference(old, new, tmp_path / "d.safetensors")
    found = load_difference(tmp_path / "d.safetensors")
    assert set(found) == set(shapes)
    for name in ("matrix", "convolution"):
        wanted = (new[name] - old[name]).view(-1, 32)
        step = wanted.abs().amax(1, keepdim=True) / 7
        error = (found[name].view(-1, 32) - wanted).abs()
        assert (error <= (0.5 + 7 * BF16) * step + 1e-9).all()  # the scale itself is rounded to bfloat16
        assert error.max() > 0.1 * step.max()
    for name in ("odd", "vector"):
        torch.testing.assert_close(found[name], new[name] - old[name], rtol=BF16, atol=1e-9)


@needs_model
def test_every_other_token_stands_where_one_of_the_small_model_stands() -> None:
    small = load_embedded().transformer.pos_embed
    side = small.pos_embed_max_size
    table = small.pos_embed[0].unflatten(0, (side, side))
    start = (side - 16) // 2
    wanted = table[start : start + 16, start : start + 16]
    found = large_positions(table.shape[-1]).unflatten(0, (32, 32))[::2, ::2]
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=BF16)


@needs_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_large_model_paints_with_and_without_regions(dtype: torch.dtype) -> None:
    pipe = load_embedded(dtype, size=256)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.sample_size == 64
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {dtype}
    call = {"max_sequence_length": 1, "guidance_scale": 1.0, "output_type": "np"}
    with ras_dit.accelerate(pipe, ras_dit.RASConfig(step_ratios=(1.0, 0.25))):
        picture = pipe("a fox", num_inference_steps=2, generator=torch.Generator().manual_seed(0), **call).images
    assert picture.shape == (1, 256, 256, 3)
    assert np.isfinite(picture).all()
    assert pipe("a fox", height=128, width=256, num_inference_steps=1, **call).images.shape == (1, 128, 256, 3)


@needs_model
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the classifier's weights are not in this checkout")
def test_large_samples_are_recognised() -> None:
    pipe = load_embedded(size=256)
    pipe.set_progress_bar_config(disable=True)
    cases = all_cases(1)[::40]
    pictures = pipe(
        [case.prompt for case in cases],
        num_inference_steps=8,
        guidance_scale=4.0,
        max_sequence_length=1,
        generator=[torch.Generator().manual_seed(case.seed) for case in cases],
        output_type="pt",
    ).images
    logits = load_classifier()(pictures.float() * 2 - 1)
    assert logits.subject.argmax(1).tolist() == [case.subject for case in cases]


@needs_model
def test_a_saved_large_model_loads_again(tmp_path: Path) -> None:
    transformer = load_embedded(size=256).transformer
    transformer.save_pretrained(tmp_path)
    again = type(transformer).from_pretrained(tmp_path)
    assert torch.equal(again.pos_embed.pos_embed, transformer.pos_embed.pos_embed)
    assert again.config.sample_size == 64


def test_other_sizes_and_missing_weights_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="128 or 256"):
        load_embedded(size=192)
    with pytest.raises(FileNotFoundError, match="enlarge"):
        load_difference(tmp_path / "none.safetensors")


@needs_model
def test_a_plan_knows_the_size() -> None:
    plans = [ras_dit.plan_for(pipeline_outline(name), ras_dit.RASConfig(), 28) for name in ("embedded", "embedded-256")]
    assert [plan.num_tokens for plan in plans] == [256, 1024]


def test_windows_are_cut_with_their_positions(large_scenes: EncodedScenes) -> None:
    batch = draw_batch(large_scenes, 3, MICRO)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    batch.latents[:] = (rows * 32 + columns).repeat_interleave(2, 0).repeat_interleave(2, 1)
    windows, places = cut_windows(batch, torch.stack([rows, columns], -1), torch.Generator().manual_seed(1))
    assert windows.latents.shape == windows.noise.shape == (2, 8, 32, 32)
    numbers = windows.latents[:, 0, ::2, ::2].flatten(1)  # each token's latents hold its number
    assert torch.equal(numbers.long(), places[..., 0] * 32 + places[..., 1])
    assert not torch.equal(places[0], places[1])


def test_resumed_training_equals_uninterrupted_and_leaves_the_text_stream(
    tmp_path: Path, large_scenes: EncodedScenes, tokenizer: CLIPTokenizer
) -> None:
    settings = EnlargeSettings(whole_batch=1, window_batch=2)

    def start(folder: str) -> Enlarger:
        torch.manual_seed(0)
        return Enlarger(tmp_path / folder, large_scenes, PromptToVelocity(tokenizer, 32, MICRO), settings)

    whole, first = start("whole"), start("parts")
    before = {name: value.clone() for name, value in whole.model.transformer.state_dict().items()}
    kinds = [whole.take_step(0.0)[0] for _ in range(4)]
    assert kinds == ["whole", "window", "whole", "window"]
    for _ in range(2):
        first.take_step(0.0)
    first.save()
    second = start("parts")
    assert second.step == 2
    for _ in range(2):
        second.take_step(0.0)
    resumed = second.average.transformer.state_dict()
    for name, expected in whole.average.transformer.state_dict().items():
        assert torch.equal(expected, resumed[name]), name
    changed = {
        name for name, value in whole.model.transformer.state_dict().items() if not torch.equal(value, before[name])
    }
    assert "proj_out.weight" in changed
    assert not [name for name in changed if "context" in name or "add_" in name]


@needs_model
def test_enlarging_adds_the_difference_once(tmp_path: Path) -> None:
    transformer = load_embedded().transformer
    name = "transformer_blocks.0.ff.net.2.weight"
    old = transformer.state_dict()[name].clone()
    save_difference({name: old}, {name: old + STEP}, tmp_path / "d.safetensors")
    enlarge_transformer(transformer, tmp_path / "d.safetensors")
    torch.testing.assert_close(transformer.state_dict()[name], old + STEP)


def test_a_new_run_goes_on_from_what_is_shipped_and_an_old_one_from_itself(
    tmp_path: Path, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "large" / "difference.safetensors"
    model = PromptToVelocity(tokenizer, 32, MICRO)
    name = "transformer_blocks.0.ff.net.2.weight"
    old = model.transformer.state_dict()[name].clone()
    save_difference({name: old}, {name: old + STEP}, shipped)
    write_json({"sittings": [{"minutes": 3.0}]}, shipped.with_name("training.json"))
    monkeypatch.setattr(enlarge, "LARGE_WEIGHTS", shipped)
    monkeypatch.setattr(enlarge, "LARGE_RECORD", shipped.with_name("training.json"))
    monkeypatch.setattr(enlarge, "load_difference", lambda: load_difference(shipped))

    (tmp_path / "new").mkdir()
    for _ in range(2):  # interrupted before it saved anything, it starts from there once more
        again = copy.deepcopy(model)
        assert enlarge.go_on_from_shipped(again, tmp_path / "new") == [{"minutes": 3.0}]
        torch.testing.assert_close(again.transformer.state_dict()[name], old + STEP)
    (tmp_path / "new" / "enlarge.pt").touch()
    assert enlarge.go_on_from_shipped(model, tmp_path / "new") == [{"minutes": 3.0}], "its checkpoint holds the weights"
    assert torch.equal(model.transformer.state_dict()[name], old)

    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "enlarge.pt").touch()
    assert enlarge.go_on_from_shipped(model, tmp_path / "old") == [], "begun before anything was shipped"


@needs_model
def test_everything_embedded_is_small_enough_for_the_package() -> None:
    sizes = [file.stat().st_size for file in LARGE_WEIGHTS.parent.parent.rglob("*") if file.is_file()]
    assert LARGE_WEIGHTS.stat().st_size < 6e6
    assert sum(sizes) < 48e6
