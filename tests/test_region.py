"""Regions of interest: masks in, tokens out, and runs that keep to them."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchLCMScheduler,
    FluxControlInpaintPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import ras_dit
from families import all_cases
from ras_dit import RASConfig, TokenGrid
from ras_dit.importance import anchors
from ras_dit.inpainting import InpaintMask
from ras_dit.plan import build_plan
from ras_dit.region import RegionOfInterest, tokens_touched
from tiny import inputs, run, tiny_pipeline, tiny_vae


def box(height: int = 16, width: int = 24) -> torch.Tensor:
    """A mask with its lower right quarter inside."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 2 :, width // 2 :] = True
    return mask


@pytest.mark.parametrize("form", ["bool", "float", "uint8", "array", "picture", "path", "batch of one"])
def test_every_form_of_a_mask_is_the_same_region(form: str, tmp_path: Path) -> None:
    mask = box()
    picture = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    picture.save(tmp_path / "mask.png")
    forms: dict[str, Any] = {
        "bool": mask,
        "float": mask.float(),
        "uint8": mask.to(torch.uint8) * 255,
        "array": mask.numpy(),
        "picture": picture.convert("RGB"),
        "path": tmp_path / "mask.png",
        "batch of one": mask[None, None].half(),
    }
    config = RASConfig(region_of_interest=forms[form])
    assert config == RASConfig(region_of_interest=mask)
    assert RASConfig.from_json(config.to_json()) == config
    assert RASConfig.from_yaml(config.to_yaml()) == config
    assert isinstance(config.region_of_interest, RegionOfInterest)
    assert torch.equal(config.region_of_interest.to_tensor(), mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 4), "nothing inside"),
        (torch.ones(2, 3, 4), "of shape \\(2, 3, 4\\); allowed: one mask"),
        ("nowhere.png", "which is no file"),
        ({"height": 2, "width": 2, "bits": "@"}, "could not be read"),
    ],
)
def test_bad_masks_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RASConfig(region_of_interest=mask)


def test_tokens_that_a_mask_touches() -> None:
    grid = TokenGrid(2, 3, 2)
    mask = torch.zeros(1, 32, 48, dtype=torch.bool)
    mask[0, 16, 15] = True  # one pixel, first of the second row of tokens, last column of the first token
    assert tokens_touched(mask, grid).tolist() == [[False, False, False, True, False, False]]
    video = TokenGrid(2, 3, 2, num_frames=2)
    assert tokens_touched(mask, video).tolist() == [[False, False, False, True, False, False] * 2]
    with pytest.raises(ValueError, match="proportions"):
        tokens_touched(mask.transpose(1, 2), grid)


@pytest.mark.parametrize("importance", ["error", "std", "random", "round_robin"])
@pytest.mark.parametrize("batch", [1, 2])
def test_region_steps_stay_inside(importance: str, batch: int) -> None:
    pipe = tiny_pipeline()
    config = RASConfig(
        sample_ratio=0.2,
        warmup_steps=2,
        importance=importance,  # type: ignore[arg-type]
        high_ratio=0.3,
        region_of_interest=box(),
    )
    with ras_dit.accelerate(pipe, config) as handle:
        assert run(pipe, **inputs(batch=batch)).isfinite().all()
    inside = tokens_touched(box()[None], TokenGrid(8, 12, 2))[0]
    assert inside.sum() == 24
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert step.active.shape == (batch, 19)
        assert inside[step.active].all()


@pytest.mark.parametrize("importance", ["error", "std"])
def test_anchors_outside_of_a_region_are_left_alone(importance: Any) -> None:
    pipe = tiny_pipeline()
    config = RASConfig(
        sample_ratio=0.2, warmup_steps=2, importance=importance, anchor_stride=2, region_of_interest=box()
    )
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs())
    grid = TokenGrid(8, 12, 2)
    inside = tokens_touched(box()[None], grid)[0]
    for turn, step in enumerate(handle.trace.steps[2:]):
        assert step.active is not None
        assert step.active.shape == (1, 19)
        assert inside[step.active].all()
        wanted = (anchors(grid, 2, turn) & inside).nonzero().flatten()
        assert len(wanted) == 6
        assert torch.isin(wanted, step.active[0]).all()


def test_a_region_smaller_than_the_ratio_caps_it() -> None:
    plan = build_plan(RASConfig(sample_ratio=0.5, warmup_steps=1), 4, 96, num_allowed=24)
    assert [step.num_active for step in plan] == [96, 24, 24, 24]
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=2, region_of_interest=box())) as handle:
        run(pipe, **inputs())
    inside = tokens_touched(box()[None], TokenGrid(8, 12, 2))[0]
    assert handle.trace.steps[-1].active is not None
    assert handle.trace.steps[-1].active[0].tolist() == inside.nonzero().flatten().tolist()


def inpainting() -> tuple[Any, dict[str, Any]]:
    components = {**tiny_pipeline(in_channels=16, out_channels=16).components, "vae": tiny_vae()}
    pipe = StableDiffusion3InpaintPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 16:, 24:] = 1
    call = {**inputs(num_inference_steps=10), "latents": None, "strength": 1.0, "height": 32, "width": 48}
    return pipe, {**call, "image": torch.rand(1, 3, 32, 48), "mask_image": mask}


def test_the_inpainting_mask_is_picked_up_on_request() -> None:
    pipe, call = inpainting()
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **call, generator=torch.Generator().manual_seed(0))
    assert "prepare_mask_latents" not in vars(pipe)
    assert handle.summary().notes == ()
    grid = handle.trace.grid
    assert grid is not None
    inside = tokens_touched(call["mask_image"][0] > 0.5, grid)[0]
    assert 0 < inside.sum() < grid.num_tokens
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert inside[step.active].all()


def test_an_inpainting_mask_serves_one_call() -> None:
    pipe, call = inpainting()
    plain = StableDiffusion3Pipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    without = {**inputs(), "latents": None, "height": 64, "width": 16}  # the mask would not fit
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **call, generator=torch.Generator().manual_seed(0))
        with pytest.warns(ras_dit.RASWarning, match="no inpainting mask"):
            run(plain, **without, generator=torch.Generator().manual_seed(0))
        assert "no inpainting mask" in " ".join(handle.summary().notes)


@pytest.mark.parametrize("family", ["flux-inpaint", "flux-fill", "qwen-image-inpaint"])
def test_other_families_inpainting_masks_are_picked_up_too(family: str) -> None:
    case = next(case for case in all_cases() if case.name == family)
    pipe, call = case.build(), case.call(height=6, width=8)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")) as handle:
        case.output(pipe(**call))
    assert handle.summary().notes == ()
    grid = handle.trace.grid
    assert grid is not None
    inside = tokens_touched(call["mask_image"][0] > 0.5, grid)[0]
    assert inside.sum() == 5 * 7
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert inside[step.active].all()


def test_a_mask_as_the_user_gave_it_is_picked_up_too() -> None:
    """FLUX.1 Control's inpainting pipeline prepares the mask behind its `prepare_mask_latents`."""

    class Pipe:
        mask_processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_convert_grayscale=True)

        def prepare_mask_latents(self, image: Any, mask_image: Any, height: int, width: int) -> None:
            """As there, with fewer arguments."""

    parameters = inspect.signature(FluxControlInpaintPipeline.prepare_mask_latents).parameters
    assert [name for name in parameters if name in ("mask", "mask_image", "height", "width")] == [
        *("mask_image", "height", "width")
    ]
    pipe, picture = Pipe(), Image.fromarray(255 * box(32, 48).numpy().astype("uint8"))
    mask = InpaintMask(pipe)
    pipe.prepare_mask_latents(None, picture, 32, 48)
    mask.begin_run()
    found = mask.take(TokenGrid(8, 12, 2), pytest.fail)
    assert found is not None
    assert torch.equal(found[0], tokens_touched(box(32, 48)[None], TokenGrid(8, 12, 2))[0])
    mask.release()
    assert "prepare_mask_latents" not in vars(pipe)


def of_two(call: dict[str, Any], rows: slice, columns: slice) -> dict[str, Any]:
    """An inpainting call of two images, whose second mask is this part of the picture."""
    masks = torch.cat([call["mask_image"], torch.zeros(1, 1, 32, 48)])
    masks[1, :, rows, columns] = 1
    two = {**call, **inputs(batch=2), "latents": None, "height": 32, "width": 48}
    return two | {"image": call["image"].expand(2, -1, -1, -1), "mask_image": masks}


def test_the_largest_mask_of_a_batch_caps_the_plan() -> None:
    """A small one beside it must not keep the others from changing."""
    pipe, call = inpainting()
    two = of_two(call, slice(-4, None), slice(-4, None))
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **call, generator=torch.Generator().manual_seed(0))
        (alone,) = {step.num_active for step in handle.latest_plan or () if step.kind == "region"}
        run(pipe, **two, generator=torch.Generator().manual_seed(0))
    grid, active = handle.trace.grid, handle.trace.steps[-1].active
    assert grid is not None
    assert active is not None
    large, small = tokens_touched(two["mask_image"][:, 0] > 0.5, grid)
    assert small.sum() < alone
    assert active.shape == (2, alone)
    assert large[active[0]].all()
    assert small[active[1]].sum() == small.sum()


def test_a_set_that_images_share_is_chosen_from_the_masks_of_all() -> None:
    """With a ratio above what the masks touch together, all of that is computed of either image."""
    pipe, call = inpainting()
    two = of_two(call, slice(0, 4), slice(0, 4))
    config = RASConfig(sample_ratio=0.5, warmup_steps=2, region_of_interest="inpaint", shared_active_set=True)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **two, generator=torch.Generator().manual_seed(0))
    grid = handle.trace.grid
    assert grid is not None
    large, small = tokens_touched(two["mask_image"][:, 0] > 0.5, grid)
    assert not (large & small).any()
    together = (large | small).nonzero().flatten().tolist()
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert step.active.tolist() == [together, together]


def test_a_plan_made_beforehand_knows_the_mask() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.5, warmup_steps=2, region_of_interest=box())) as handle:
        run(pipe, **inputs())
        before = handle.plan(10, 128, 192, max_sequence_length=7)
    assert handle.latest_plan is not None
    assert [step.num_active for step in before] == [step.num_active for step in handle.latest_plan]
    assert before[-1].num_active == 24


def test_a_pipeline_without_a_mask_says_so() -> None:
    pipe = tiny_pipeline()
    with (
        ras_dit.accelerate(pipe, RASConfig(warmup_steps=2, region_of_interest="inpaint")) as handle,
        pytest.warns(ras_dit.RASWarning, match="no inpainting mask"),
    ):
        run(pipe, **inputs())
    assert any("no inpainting mask" in note for note in handle.summary().notes)


def test_a_mask_of_other_proportions_is_refused_before_the_first_step() -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs())
    config = RASConfig(region_of_interest=torch.ones(64, 8))
    with ras_dit.accelerate(pipe, config), pytest.raises(ValueError, match="proportions"):
        run(pipe, **inputs())
    assert torch.equal(run(pipe, **inputs()), dense)


def test_a_region_that_changes_nothing_is_said() -> None:
    """Presets that compute steps whole have no region steps to keep inside."""
    pipe = tiny_pipeline()
    plain = RASConfig(step_ratios=(1, 1, 0, 1, 0, 1, 0, 1, 0, 1))
    with ras_dit.accelerate(pipe, plain):
        expected = run(pipe, **inputs())
    with (
        ras_dit.accelerate(pipe, plain.replace(region_of_interest=box())) as handle,
        pytest.warns(ras_dit.RASWarning, match="this plan has no region steps, so it changes nothing"),
    ):
        assert torch.equal(run(pipe, **inputs()), expected)
    assert any("region_of_interest" in note for note in handle.summary().notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"foo": 1}, "region_of_interest: got foo; allowed: height, width and bits"),
        ({}, "region_of_interest: got nothing; allowed: height, width and bits"),
        ({"height": "2", "width": 2, "bits": ""}, "region_of_interest: height: got '2'; allowed: an int"),
        ({"height": 2, "width": 0, "bits": ""}, "region_of_interest: width: got 0"),
        ({"height": 2, "width": 2, "bits": 3}, "region_of_interest: bits: got int"),
    ],
)
def test_what_a_file_says_of_a_mask_is_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RASConfig.from_dict({"region_of_interest": values})


@pytest.mark.parametrize("content", [b"a fox", b"\x89PNG\r\n\x1a\n", None])
def test_masks_that_are_no_pictures_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mask.png"
    Image.new("L", (64, 64), 255).save(path)
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(ValueError, match=r"region_of_interest: got .*mask\.png', which is no picture that can be read"):
        RASConfig(region_of_interest=path)


def test_a_mask_does_not_keep_a_run_from_being_dense_for_another_reason() -> None:
    """Its reason is told, not that the mask does not fit: no token would be chosen."""
    pipe = tiny_pipeline(scheduler=FlowMatchLCMScheduler())
    config = RASConfig(region_of_interest=torch.ones(64, 8))
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs(), generator=torch.Generator().manual_seed(0))
    assert handle.summary().num_dense == handle.summary().num_steps
    assert "fresh noise" in " ".join(handle.summary().notes)


def inpaint_mask(mask: torch.Tensor, grid: TokenGrid) -> tuple[torch.Tensor | None, list[str]]:
    """Tokens of a mask that a pipeline prepares, and what was noted."""
    pipe, notes = SimpleNamespace(prepare_mask_latents=lambda mask: mask), []
    inpaint = InpaintMask(pipe)
    pipe.prepare_mask_latents(mask)
    inpaint.begin_run()
    return inpaint.take(grid, notes.append), notes


def test_a_mask_of_a_video_touches_what_any_frame_of_it_does() -> None:
    mask = torch.zeros(2, 3, 5, 8, 8)  # the first frame is given, as in image to video
    mask[0, :, 1:, :4, :4] = 1
    mask[1, :, 4, 4:, 4:] = 1
    tokens, notes = inpaint_mask(mask, TokenGrid(4, 4, 1, 2))
    assert notes == []
    assert tokens is not None
    assert tokens.shape == (2, 32)
    corner = torch.zeros(2, 4, 4, dtype=torch.bool)
    corner[:, :2, :2] = True
    assert torch.equal(tokens[0], corner.flatten())
    assert torch.equal(tokens[1], corner.flip(1, 2).flatten())


def test_an_empty_mask_is_told_of_and_leaves_all_tokens() -> None:
    tokens, notes = inpaint_mask(torch.zeros(1, 1, 8, 8), TokenGrid(4, 4, 2))
    assert tokens is None
    assert "empty" in notes[0]


def test_a_mask_of_a_call_that_failed_serves_no_other() -> None:
    pipe, call = inpainting()
    plain = StableDiffusion3Pipeline(**pipe.components)
    plain.set_progress_bar_config(disable=True)
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    without = {**inputs(), "latents": None, "height": 64, "width": 16}  # the mask would not fit
    original = {"encode": pipe.vae.encode, "progress_bar": pipe.progress_bar}
    failures = {"encode": 2, "progress_bar": 1}  # which call fails: as the masked picture is encoded, and behind that
    for name, at in failures.items():
        calls: list[str] = []

        def fail(*args: Any, name: str = name, at: int = at, calls: list[str] = calls, **options: Any) -> Any:
            calls.append(name)
            if len(calls) == at:
                raise MemoryError
            return original[name](*args, **options)

        with ras_dit.accelerate(pipe, config) as handle:
            setattr(pipe.vae if name == "encode" else pipe, name, fail)
            with pytest.raises(MemoryError):
                run(pipe, **call, generator=torch.Generator().manual_seed(0))
            with pytest.warns(ras_dit.RASWarning, match="no inpainting mask"):
                run(plain, **without, generator=torch.Generator().manual_seed(0))
            assert "no inpainting mask" in " ".join(handle.summary().notes)
        setattr(pipe.vae if name == "encode" else pipe, name, original[name])


class MaskLast:
    """The order of most inpainting pipelines. (Nothing is run of it.)"""

    def prepare_mask_latents(self, mask: torch.Tensor) -> torch.Tensor:
        return mask

    def __call__(self, mask: torch.Tensor) -> Any:
        timesteps = retrieve_timesteps(self)  # type: ignore[name-defined]  # noqa: F821
        return self.prepare_mask_latents(mask), timesteps


class MaskFirst(MaskLast):
    """That of FLUX.1 Control's."""

    def __call__(self, mask: torch.Tensor) -> Any:
        mask = self.prepare_mask_latents(mask)
        return mask, retrieve_timesteps(self)  # type: ignore[name-defined]  # noqa: F821


class HandsOn(MaskFirst):
    """A subclass that hands its call on."""

    def __call__(self, mask: torch.Tensor) -> Any:
        return super().__call__(mask)


def test_a_mask_outlasts_a_swapped_scheduler() -> None:
    pipe, call = inpainting()
    config = RASConfig(sample_ratio=0.2, warmup_steps=2, region_of_interest="inpaint")
    with ras_dit.accelerate(pipe, config) as handle:
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        run(pipe, **call, generator=torch.Generator().manual_seed(0))
    assert handle.summary().notes == ()


@pytest.mark.parametrize(
    ("kind", "events", "is_found"),
    [
        (MaskLast, "due mask begin", True),
        (MaskLast, "due due mask begin", True),  # somebody set timesteps by hand
        (MaskLast, "due mask due begin", False),  # that call failed
        (MaskFirst, "mask due begin", True),
        (HandsOn, "mask due begin", True),
        (MaskFirst, "due mask due begin", True),
        (MaskFirst, "mask due due begin", False),
        (MaskFirst, "mask due begin due begin", False),  # a mask serves one call
    ],
)
def test_whose_call_a_mask_is_of(kind: type, events: str, is_found: bool) -> None:
    pipe = kind()
    inpaint, notes = InpaintMask(pipe), []
    for event in events.split():
        if event == "due":
            inpaint.expect_run()
        elif event == "mask":
            pipe.prepare_mask_latents(torch.ones(1, 1, 8, 12))
        else:
            inpaint.begin_run()
    assert (inpaint.take(TokenGrid(4, 6, 2), notes.append) is not None) == is_found
    assert bool(notes) != is_found
    inpaint.release()
