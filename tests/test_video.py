"""What is peculiar to videos: a second transformer, given first frames, what the scheduler is shown of them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, Cosmos2TextToImagePipeline

import ras_dit
from families import anyflow, cogvideox, cosmos, cosmos3, hunyuan_video, joyimage, kandinsky5, ltx, ltx2, wan
from families.case import normals
from ras_dit import RASConfig, build_plan
from ras_dit.geometry import TokenGrid
from ras_dit.models.cosmos import COSMOS
from ras_dit.models.ltx import grid_of_coordinates
from ras_dit.schedule import first_of_second


def test_a_second_transformer_begins_dense() -> None:
    """By the plan, so that nothing has to be said; keys and values of the first one are never read in it."""
    pipe = wan.build_two()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**wan.call())
    timesteps = pipe.scheduler.timesteps
    second = int((timesteps < 700).nonzero()[0])
    assert 3 < second < len(timesteps) - 1
    kinds = ["region"] * len(timesteps)
    kinds[0] = kinds[1] = kinds[second] = "dense"
    assert [step.kind for step in handle.trace.steps] == kinds
    assert handle.summary().notes == ()


def test_what_was_learned_of_the_first_transformer_says_nothing_of_the_second() -> None:
    """Its first noise has no slope yet: the next tokens are those whose noise is largest."""
    pipe = wan.build_two()
    noises: list[torch.Tensor] = []
    step = pipe.scheduler.step

    def recording(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any) -> Any:
        noises.append(model_output.clone())
        return step(model_output, timestep, sample, **kwargs)

    pipe.scheduler.step = recording
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**wan.call())
    second = int((pipe.scheduler.timesteps < 700).nonzero()[0])
    trace = handle.trace
    norms = trace.grid.patchify(noises[second]).norm(dim=-1)
    chosen = trace.steps[second + 1].active
    assert chosen is not None
    assert torch.equal(chosen, norms.topk(chosen.shape[1]).indices.sort().values)


def test_a_second_transformer_is_of_one_pipeline_at_a_time() -> None:
    pipe, other = wan.build_two(), wan.build_two()
    other.transformer_2 = pipe.transformer_2
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2))
    with pytest.raises(ValueError, match="already enabled"):
        ras_dit.enable(other)
    handle.disable()
    ras_dit.enable(other).disable()
    assert not [
        name for each in (pipe, pipe.transformer, pipe.transformer_2) for name in vars(each) if "ras_dit" in name
    ]


def test_an_unplanned_change_of_the_transformer_is_dense_once() -> None:
    pipe = wan.build_two()
    timesteps: list[float] = []

    def change(pipe: object, index: int, timestep: torch.Tensor, values: dict[str, object]) -> dict[str, object]:
        timesteps.append(float(timestep))
        if index == 4:
            pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer  # type: ignore[attr-defined]
        return values

    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe.register_to_config(boundary_ratio=None)
        with pytest.warns(ras_dit.RASWarning, match="began"):
            pipe(**wan.call(num_inference_steps=8), callback_on_step_end=change)
        assert [step.kind[0] for step in handle.trace.steps] == list("ddrrrdrr")
        pipe.transformer, pipe.transformer_2 = pipe.transformer_2, pipe.transformer


def test_where_the_second_transformer_begins() -> None:
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([1000.0, 900.0, 600.0, 300.0]), config=SimpleNamespace(num_train_timesteps=1000)
    )

    def begin(boundary: float | None, first: int = 0, second: object = "transformer") -> int | None:
        pipe = SimpleNamespace(config={"boundary_ratio": boundary}, transformer_2=second)
        return first_of_second(pipe, scheduler, first)

    assert begin(0.875) == 2
    assert begin(0.6) == 3
    assert begin(0.875, first=1) == 1
    assert begin(0.875, first=3) == 0
    assert begin(0.1) is None
    assert begin(None) is None
    assert begin(0.875, second=None) is None


def test_a_dense_step_besides_those_of_the_config() -> None:
    def kinds(config: RASConfig, dense_step: int) -> str:
        return "".join(step.kind[0] for step in build_plan(config, 8, 100, dense_step=dense_step))

    assert kinds(RASConfig(warmup_steps=2, skip_steps=(4, 6)), 4) == "ddrrdrsr"
    assert kinds(RASConfig(warmup_steps=2, refresh_steps=(5,)), 3) == "ddrdrdrr"
    assert kinds(RASConfig.reference(0.5, start_step=2, reset_steps=(6,)), 4) == "ddrrdrdr"


def test_a_given_first_frame_is_in_every_step() -> None:
    pipe = hunyuan_video.build_image("token_replace")
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**hunyuan_video.call_image(height=4, width=6))
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert step.active[0, :24].tolist() == list(range(24))
        assert step.active.shape[1] == 24 + 48 // 4


@pytest.mark.parametrize("importance", ["error", "std", "random"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        (ltx, "ltx-i2v"),
        (ltx, "ltx-condition-first"),
        (wan, "wan2.2-5b-i2v"),
        (cosmos3, "cosmos3-i2v"),
        (kandinsky5, "kandinsky5-i2v"),
        (anyflow, "anyflow-given-frame"),
    ],
)
def test_given_tokens_are_computed_in_dense_steps_only(family: Any, name: str, importance: str) -> None:
    """Whatever noise they have is thrown away by the pipeline; some are not even shown to the scheduler."""
    case = next(case for case in family.CASES if case.name == name)
    pipe = case.build()
    config = RASConfig(sample_ratio=0.25, warmup_steps=2, importance=importance)  # type: ignore[arg-type]
    with ras_dit.accelerate(pipe, config) as handle:
        pipe(**case.call(height=4, width=6))
    assert len(handle.trace.steps) > 4
    for step in handle.trace.steps[2:]:
        assert step.active is not None
        assert step.active.shape[1] == handle.trace.num_tokens // 4
        assert int(step.active.min()) >= 24


def test_text_beside_positions_that_are_added_is_not_reused() -> None:
    """CogVideoX-5B-I2V has rotary positions and learned ones, which are added to text and picture in one."""
    pipe = cogvideox.build(CogVideoXImageToVideoPipeline, in_channels=8, use_learned_positional_embeddings=True)
    with pytest.raises(ValueError, match="text_reuse"):
        ras_dit.enable(pipe, RASConfig(text_reuse=True))
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe(**cogvideox.call_image())
    assert handle.summary().num_dense == 2


@pytest.mark.parametrize("channel_dim", [1, 2, 4])
@pytest.mark.parametrize("num_channels", [2, 16])
def test_given_frames_are_counted_whatever_the_number_of_channels(channel_dim: int, num_channels: int) -> None:
    grid = TokenGrid(2, 3, 2, 5, channel_dim=channel_dim)
    for num_frames, num_given in ((5, 0), (4, 6), (3, 12)):
        noise = torch.zeros(1, num_channels, num_frames, 4, 6).movedim(1, channel_dim)
        assert grid.count_given(noise) == num_given
    assert grid.count_given(torch.zeros(1, 30, 8)) == 0


def test_frames_that_are_not_given_may_all_be_chosen() -> None:
    """Text to video with more frames than channels."""
    case = next(case for case in kandinsky5.CASES if case.name == "kandinsky5")
    pipe = case.build()
    call = kandinsky5.call(height=4, width=6, frames=9)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2, importance="random")) as handle:
        pipe(**call)
    chosen = torch.cat([step.active.flatten() for step in handle.trace.steps if step.active is not None])
    assert handle.trace.grid is not None
    assert handle.trace.grid.num_frames == 9
    assert set(range(9)) == set((chosen // handle.trace.grid.tokens_per_frame).tolist())


def test_conditions_in_front_of_the_grid_are_always_computed() -> None:
    """Their noise counts where a condition is weak: it is that of the step, in its place."""
    case = next(case for case in ltx.CASES if case.name == "ltx-condition-later")
    pipe = case.build()
    outputs: list[torch.Tensor] = []
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        hook = pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0].clone()))
        pipe(**case.call(height=4, width=6))
        hook.remove()
    assert handle.trace.grid == TokenGrid(4, 6, 1, 3, num_before=48)
    for before, after in itertools.pairwise(outputs[2:]):
        assert outputs[0].shape[1] == 5 * 24
        assert not (before[:, :48] == after[:, :48]).all(dim=-1).any()
    summary = handle.summary()
    assert summary.notes == ()
    assert ras_dit.Trace.from_json(handle.trace.to_json()).grid == handle.trace.grid


def test_noise_of_a_sequence_with_conditions_in_front() -> None:
    grid = TokenGrid(2, 3, 1, 2, num_before=4)
    noise = normals()(2, 4 + 12 + 5, 7)
    tokens = grid.patchify(noise)
    assert torch.equal(tokens, noise[:, 4:16])
    back = grid.unpatchify(tokens, noise.shape)
    assert torch.equal(back[:, 4:16], tokens)
    assert (back[:, :4] == 0).all()
    assert (back[:, 16:] == 0).all()
    assert back.shape == noise.shape


@pytest.mark.parametrize("num_before", [0, 1, 2])
def test_a_grid_from_coordinates(num_before: int) -> None:
    times = torch.tensor([*[24.0, 40.0][:num_before], 0.0, 1.0, 9.0]) / 25
    rows, columns = 32.0 * torch.arange(4), 32.0 * torch.arange(6)
    coordinates = torch.stack([axis.flatten() for axis in torch.meshgrid(times, rows, columns, indexing="ij")])
    assert grid_of_coordinates(coordinates, 1, 1) == TokenGrid(4, 6, 1, 3, num_before=24 * num_before)


@pytest.mark.parametrize("is_object", [False, True])
def test_sound_is_carried_on_in_skipped_steps(is_object: bool) -> None:
    """By hand, as the video's noise is: not as the last computed step left it."""
    case = next(case for case in ltx2.CASES if case.name == "ltx2")
    pipe, seen = case.build(), []
    if is_object:
        pipe.transformer.__class__ = type("WithObjects", (type(pipe.transformer),), {"__call__": returning_tuples})
    config = RASConfig(step_ratios=(1, 1, 1, 0, 1, 1), forecast_order=1, forecast_damping=0.7, forecast_reach=None)
    with ras_dit.accelerate(pipe, config) as handle:
        hook = pipe.transformer.register_forward_hook(lambda *called: seen.append(sound_of(called[-1])))
        pipe(**case.call(height=6, width=8))
        hook.remove()
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 3 + ["skip"] + ["dense"] * 2
    first, second, skipped = (seen[case.num_calls * index] for index in (1, 2, 3))
    sigmas = pipe.scheduler.sigmas
    slope = (second - first) / (sigmas[2] - sigmas[1])
    assert not torch.allclose(skipped, second, atol=1e-3)
    assert torch.allclose(skipped, second + 0.7 * slope * (sigmas[3] - sigmas[2]), atol=1e-4)


def sound_of(output: Any) -> torch.Tensor:
    return (output[1] if isinstance(output, tuple) else output.audio_sample).clone()


def returning_tuples(transformer: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    """The transformer is asked for an object, the pipeline is given its parts."""
    output = torch.nn.Module.__call__(transformer, *args, **{**kwargs, "return_dict": True})
    return output.sample, output.audio_sample


@torch.no_grad()
def test_a_transformer_that_returns_the_noise_itself() -> None:
    """Kandinsky 5's does without ``return_dict``, which its pipelines always ask for."""
    case = next(case for case in kandinsky5.CASES if case.name == "kandinsky5")
    pipe, call = case.build(), case.call(height=6, width=8)
    config = RASConfig(step_ratios=(1, 1, 0.25, 0, 1, 1))
    with ras_dit.accelerate(pipe, config):
        expected = case.output(pipe(**call))

    def bare(transformer: Any, *args: Any, **kwargs: Any) -> Any:
        noise = torch.nn.Module.__call__(transformer, *args, **{**kwargs, "return_dict": False})
        assert isinstance(noise, torch.Tensor)
        return SimpleNamespace(sample=noise)

    pipe.transformer.__class__ = type("Bare", (type(pipe.transformer),), {"__call__": bare})
    with ras_dit.accelerate(pipe, config) as handle:
        assert torch.equal(case.output(pipe(**call)), expected)
    assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "region", "skip", "dense", "dense"]


def test_a_second_transformer_that_is_swapped_is_reported() -> None:
    pipe = wan.build_two()
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=0.25, warmup_steps=2)) as handle:
        pipe.transformer_2 = wan.tiny_transformer(2)
        with pytest.warns(ras_dit.RASWarning, match="replaced after `enable`"):
            pipe(**wan.call())
    assert handle.summary().num_dense == handle.summary().num_steps
    assert any("replaced" in note for note in handle.summary().notes)


def test_levels_in_a_short_type_belong_to_their_evaluation() -> None:
    """Cosmos hands its transformer the noise level itself. In bfloat16 the first ones are one and the same."""
    scheduler = cosmos.build(Cosmos2TextToImagePipeline, in_channels=4).scheduler
    scheduler.set_timesteps(35)
    levels = scheduler.sigmas[:-1] / (1 + scheduler.sigmas[:-1]) if scheduler.sigmas[0] > 1 else scheduler.sigmas[:-1]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = levels.to(dtype)
        assert all(COSMOS.is_due(scheduler, level.expand(2), index) for index, level in enumerate(given))
        assert not COSMOS.is_due(scheduler, given[20].expand(2), 3)


def test_text_beside_a_pictures_context_is_counted() -> None:
    text, context = torch.zeros(1, 9, 24), torch.zeros(1, 5, 24)
    grid = TokenGrid(4, 6, 2)
    counted = [COSMOS.count_text(None, {"encoder_hidden_states": given}, grid) for given in (text, (text, context))]
    assert counted == [9, 9]


def test_tables_of_picture_and_text_that_cannot_be_told_apart() -> None:
    case = next(case for case in joyimage.CASES if case.name == "joyimage-mrope")
    pipe = case.build()
    call = case.call(height=4, width=4)
    texts = {name: value for name, value in call.items() if "prompt_embeds" in name and "mask" not in name}
    for name, text in texts.items():
        call[name] = text.repeat(1, 4, 1)[:, :32]
        call[f"{name}_mask"] = torch.ones(1, 32)
    config = RASConfig(sample_ratio=0.25, warmup_steps=2)
    told = pytest.warns(ras_dit.RASWarning, match="as many text tokens as image tokens")
    with told, ras_dit.accelerate(pipe, config) as handle:
        assert case.output(pipe(**call)).isfinite().all()
    assert handle.summary().num_dense == handle.summary().num_steps
