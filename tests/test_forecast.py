"""Forecasts of keys and values, and steps of second order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler

import ras_dit
from families import hunyuan_image
from ras_dit import RASConfig
from ras_dit.cache import KVCache
from ras_dit.kv_forecast import KVProgress
from ras_dit.kv_storage import KVStorage
from ras_dit.rows import RowIndex
from ras_dit.seams import PatchedMethod
from ras_dit.selection import membership
from tiny import REGION, inputs, run, tiny_pipeline

ROWS, HEADS, TOKENS, TEXT, WIDTH = 2, 3, 8, 4, 5
LENGTH = TOKENS + TEXT


@pytest.mark.parametrize("is_converted", [False, True], ids=["kept as computed", "kept on a device"])
@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("offset", [0, TEXT, torch.tensor([1, 3])], ids=["image first", "text first", "by row"])
def test_keys_that_move_linearly_are_forecast_exactly(
    is_shared: bool, offset: int | torch.Tensor, is_converted: bool
) -> None:
    """Two dense steps give the slopes; region steps and one more dense step follow, at uneven distances."""
    generator = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, ROWS, HEADS, LENGTH, WIDTH, generator=generator, dtype=torch.float64)

    def at(sigma: float) -> torch.Tensor:
        return start + sigma * slope

    first, second = RowIndex(torch.tensor([[0, 3, 5]]).expand(ROWS, -1), TOKENS, True), None
    if not is_shared:
        first = RowIndex(torch.tensor([[0, 3, 5], [1, 2, 7]]), TOKENS, False)
        second = RowIndex(torch.tensor([[1, 3], [0, 2]]), TOKENS, False)
    whole = RowIndex(torch.arange(TOKENS).expand(ROWS, -1), TOKENS, True).at(offset)
    progress = KVProgress(ROWS, TOKENS, 1.0, start.device)
    progress.since, progress.gap, progress.followed = (
        each.double() for each in (progress.since, progress.gap, progress.followed)
    )
    storage = KVStorage(device=torch.device("cpu")) if is_converted else KVStorage()
    cache = KVCache(at(1.0), -at(1.0), storage=storage)
    cache.begin_slopes()
    for rows, now in ((None, 0.9), (first, 0.7), (second or first, 0.65), (None, 0.4), (first, 0.3)):
        advance = progress.advance(now, damping=1.0, reach=None)
        progress.record(now, None if rows is None else membership(rows.active, TOKENS))
        if rows is None:
            cache.aim_whole(advance, whole)
            cache.refill(at(now), -at(now), None, None, forecasts=True)
            continue
        placed = rows.at(offset)
        cache.aim(placed, advance)
        index = placed.positions(LENGTH)[:, None, :, None].expand(-1, HEADS, -1, WIDTH)
        key, value = cache.merge(at(now).gather(2, index), -at(now).gather(2, index))
        torch.testing.assert_close(key, at(now), atol=1e-7, rtol=0)
        torch.testing.assert_close(value, -at(now), atol=1e-7, rtol=0)


def test_damping_scales_the_slope_and_fresh_rows_learn_theirs() -> None:
    kept = torch.zeros(1, 1, 2, 1)
    cache = KVCache(kept.clone(), kept.clone())
    cache.begin_slopes()
    progress = KVProgress(1, 2, 1.0, kept.device)
    whole = RowIndex(torch.arange(2)[None], 2, True)
    cache.aim_whole(progress.advance(0.9, 0.5, reach=1.0), whole)
    progress.record(0.9)
    cache.refill(kept + 1.0, kept + 1.0, None, None, forecasts=True)
    assert cache.key_slope is not None
    assert cache.key_slope.flatten().tolist() == pytest.approx([-10.0, -10.0])
    cache.aim(RowIndex(torch.tensor([[1]]), 2, True), progress.advance(0.8, 0.5, reach=1.0))
    key, _ = cache.merge(kept[:, :, :1] + 3.0, kept[:, :, :1] + 3.0)
    assert key.flatten().tolist() == pytest.approx([1.5, 3.0]), "half of the slope; the computed value"
    assert cache.key_slope.flatten().tolist() == pytest.approx([-10.0, -20.0]), "(3 - 1) / -0.1"


def test_keys_follow_their_slope_no_farther_than_it_was_measured() -> None:
    progress = KVProgress(1, 3, 1.0, torch.device("cpu"))
    first = progress.advance(0.9, 0.5, reach=2.0)
    assert first.change.tolist() == [[0.0] * 3], "no slope was measured yet"
    progress.record(0.9)
    second = progress.advance(0.8, 0.5, reach=2.0)
    torch.testing.assert_close(second.change, torch.full((1, 3), -0.05))
    progress.record(0.8, torch.tensor([[True, False, False]]))
    third = progress.advance(0.6, 0.5, reach=2.0)
    torch.testing.assert_close(third.change, torch.tensor([[-0.1, -0.05, -0.05]]), msg="0.2 of the 0.3 that passed")
    torch.testing.assert_close(third.followed, torch.tensor([[0.5, 1 / 3, 1 / 3]]))
    torch.testing.assert_close(third.per_sigma, torch.tensor([[-5.0, -10 / 3, -10 / 3]]))
    progress.record(0.6, torch.tensor([[False, False, True]]))
    assert progress.advance(0.6, 0.5, reach=2.0).change[0, 2] == 0
    fourth = progress.advance(0.1, 0.5, reach=2.0)
    torch.testing.assert_close(fourth.change, torch.tensor([[0.0, 0.0, -0.25]]), msg="the last may go 0.6 far")
    torch.testing.assert_close(fourth.followed[0], torch.tensor([0.1 / 0.7, 0.1 / 0.8, 0.5]))


def test_keys_catch_up_where_their_forecast_begins_late() -> None:
    progress = KVProgress(1, 1, 1.0, torch.device("cpu"))
    progress.advance(0.9, 0.0, reach=None)
    progress.record(0.9)
    assert progress.advance(0.8, 0.0, reach=None).change.item() == 0
    assert progress.advance(0.7, 0.5, reach=None).change.item() == pytest.approx(-0.1), "half of all that passed"


def test_tokens_computed_twice_at_a_noise_level_keep_their_slope() -> None:
    progress = KVProgress(1, 1, 1.0, torch.device("cpu"))
    progress.advance(0.5, 0.8, reach=1.0)
    progress.record(0.5)
    again = progress.advance(0.5, 0.8, reach=1.0)
    assert (again.change.item(), again.followed.item(), again.per_sigma.item()) == (0, 1, 0)
    progress.record(0.5)
    assert progress.advance(0.25, 0.8, reach=1.0).change.item() == pytest.approx(-0.2)


def test_forecasts_of_keys_change_the_region_steps_alone() -> None:
    pipe = tiny_pipeline()
    call = inputs(batch=2)
    seen: dict[float, list[torch.Tensor]] = {}
    for kv_forecast in (0.0, 0.8):

        def keep(_pipe: Any, _i: int, _t: Any, tensors: dict[str, Any], now: float = kv_forecast) -> dict[str, Any]:
            seen.setdefault(now, []).append(tensors["latents"].clone())
            return tensors

        with ras_dit.accelerate(pipe, REGION.replace(kv_forecast=kv_forecast)) as handle:
            run(pipe, **call, callback_on_step_end=keep)
            assert handle.summary().notes == ()
    is_same = [torch.equal(a, b) for a, b in zip(seen[0.0], seen[0.8], strict=True)]
    assert is_same == [True] * 2 + [False] * 8
    assert seen[0.8][-1].isfinite().all()


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_second_order_steps_are_adams_bashforth(guidance_scale: float) -> None:
    pipe = tiny_pipeline()
    call = inputs(guidance_scale=guidance_scale)
    latents, noises = [call["latents"]], []

    def keep(_pipe: Any, _i: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"].clone())
        return tensors

    transformer_forward = pipe.transformer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = transformer_forward(*args, **kwargs)
        unconditional, conditional = result[0].chunk(2) if guidance_scale > 1 else (result[0], result[0])
        noises.append(unconditional + guidance_scale * (conditional - unconditional))
        return result

    pipe.transformer.forward = forward
    config = RASConfig(sample_ratio=0.25, warmup_steps=6, solver_order=2)
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **call, callback_on_step_end=keep)
        assert handle.summary().notes == ()
    sigmas = pipe.scheduler.sigmas.tolist()
    for i in range(6):
        step, mean = sigmas[i + 1] - sigmas[i], noises[i]
        if i:
            mean = mean + step / 2 * (noises[i] - noises[i - 1]) / (sigmas[i] - sigmas[i - 1])
        torch.testing.assert_close(latents[i + 1], latents[i] + step * mean, atol=1e-4, rtol=1e-5)
    plain = run(tiny_pipeline(), **call)
    assert not torch.equal(latents[-1], plain)


def test_second_order_steps_are_closer_to_the_converged_run() -> None:
    """On the embedded model; every step computes all tokens but the last one."""
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)

    def paint(steps: int, config: RASConfig | None = None) -> torch.Tensor:
        call = {"prompt": "a fox in the snow", "guidance_scale": 3.0, "max_sequence_length": 1, "output_type": "latent"}
        generator = torch.Generator().manual_seed(3)
        if config is None:
            return pipe(**call, num_inference_steps=steps, generator=generator).images
        with ras_dit.accelerate(pipe, config):
            return pipe(**call, num_inference_steps=steps, generator=generator).images

    converged = paint(40)
    errors = [
        (paint(10, RASConfig(sample_ratio=0.9, warmup_steps=9, solver_order=order)) - converged).square().mean()
        for order in (1, 2)
    ]
    assert errors[1] < errors[0]


def test_other_schedulers_take_noise_as_it_is_and_say_so() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with ras_dit.accelerate(pipe, REGION):
        plain = run(pipe, **inputs())
    with (
        ras_dit.accelerate(pipe, REGION.replace(solver_order=2)) as handle,
        pytest.warns(ras_dit.RASWarning, match="need FlowMatchEulerDiscreteScheduler, this is UniPC"),
    ):
        assert torch.equal(run(pipe, **inputs()), plain)
    assert len(handle.summary().notes) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forecasts_stay_finite_with_heun_skips_and_half_precision(dtype: torch.dtype) -> None:
    """Heun evaluates twice at one noise level: no sigma passes between, and no slope can be learned from that."""
    pipe = tiny_pipeline().to(dtype)
    call = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs(batch=2).items()}
    if dtype == torch.float32:  # diffusers' Heun makes the latents float32, which a transformer in half cannot take
        pipe.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    config = REGION.replace(kv_forecast=1.0, skip_steps=(5, 6), refresh_steps=(9,))
    with ras_dit.accelerate(pipe, config) as handle:
        assert run(pipe, **call).isfinite().all()
        assert run(pipe, **call).isfinite().all()
    assert [step.kind for step in handle.trace.steps][4:10] == ["region", "skip", "skip", "region", "region", "dense"]
    assert handle.summary().notes == ()


def test_forecasts_of_keys_come_nearer_to_fresh_ones() -> None:
    """On inputs that move alike whatever the noise, tokens of region steps are nearer to those of dense steps the
    better the other tokens' keys and values are known."""
    pipe, call = tiny_pipeline(), inputs(batch=2, num_inference_steps=12)
    for parameter in pipe.transformer.time_text_embed.timestep_embedder.parameters():
        parameter.data.zero_()  # random ones make every step another model's
    missed: dict[float | None, float] = {}
    dense: list[torch.Tensor] = []
    for kv_forecast in (None, 0.0, 0.5, 1.0):
        config = RASConfig(sample_ratio=0.25, warmup_steps=2, importance="random", kv_forecast=kv_forecast or 0.0)
        config = config.dense if kv_forecast is None else config
        with moving_along_a_line(pipe), ras_dit.accelerate(pipe, config) as handle:
            seen: list[torch.Tensor] = []
            hook = pipe.transformer.register_forward_hook(lambda *call, into=seen: into.append(call[-1][0].clone()))
            run(pipe, **call)
            hook.remove()
        if kv_forecast is None:
            dense = seen
            continue
        grid = handle.trace.grid
        assert grid is not None
        errors = []
        for step, ours, theirs in zip(handle.trace.steps, seen, dense, strict=True):
            if step.kind == "region":
                assert step.active is not None
                active = step.active.repeat(2, 1)[..., None]
                difference = (grid.patchify(ours) - grid.patchify(theirs)).take_along_dim(active, 1)
                errors.append(float(difference.square().mean()))
        missed[kv_forecast] = sum(errors) / len(errors)
    assert missed[1.0] < missed[0.5] < missed[0.0]
    assert missed[1.0] < 0.8 * missed[0.0]


@contextmanager
def moving_along_a_line(pipe: Any) -> Iterator[None]:
    """A scheduler that moves the latents by the same line in sigma whatever the noise."""

    def step(original: Any) -> Any:
        def along(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            at = int((pipe.scheduler.timesteps == timestep).nonzero()[0])
            passed = pipe.scheduler.sigmas[at + 1] - pipe.scheduler.sigmas[at]
            direction = 0.3 * torch.randn(sample.shape, generator=torch.Generator().manual_seed(5))
            return (sample + passed * direction,)

        return along

    patch = PatchedMethod(pipe.scheduler, "step", step)
    try:
        yield
    finally:
        patch.release()


@pytest.mark.parametrize(
    "midway",
    [{}, {"forecast_midpoint": True}, {"solver_order": 2}],
    ids=["beginning", "middle", "second order"],
)
def test_the_forecast_is_of_the_steps_beginning_or_of_its_middle(midway: dict[str, Any]) -> None:
    """A skipped step's noise, by hand, of noise that hears nothing of the latents."""
    pipe, call = tiny_pipeline(), inputs(num_inference_steps=8, guidance_scale=1.0)
    pattern = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    computed: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def forward(hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        at = timestep.flatten()[0] / 1000
        computed.append((pattern[0] + at**2 * pattern[1]).expand_as(hidden_states).clone())
        return (computed[-1].clone(),)

    pipe.transformer.forward = forward
    config = RASConfig(
        step_ratios=(1, 1, 1, 0, 1, 1, 1, 1),
        forecast_order=1,
        forecast_damping=0.7,
        forecast_reach=None,
        **midway,
    )
    with ras_dit.accelerate(pipe, config) as handle:
        hook = pipe.transformer.register_forward_hook(lambda *called: seen.append(called[-1][0].clone()))
        run(pipe, **call)
        hook.remove()
    assert handle.trace.steps[3].kind == "skip"
    sigmas = pipe.scheduler.sigmas
    at = (sigmas[3] + sigmas[4]) / 2 if midway else sigmas[3]
    slope = (computed[2] - computed[1]) / (sigmas[2] - sigmas[1])
    assert torch.allclose(seen[3], computed[2] + 0.7 * slope * (at - sigmas[2]), atol=1e-5)


def test_a_mean_velocity_is_not_taken_for_one_at_a_point() -> None:
    """Distilled transformers that predict the mean of a whole step (``use_meanflow``)."""
    pipe, call = hunyuan_image.build(use_meanflow=True), hunyuan_image.call(height=6, width=8)
    plain = RASConfig(sample_ratio=0.25, warmup_steps=2)
    with ras_dit.accelerate(pipe, plain):
        expected = pipe(**call).images
    with ras_dit.accelerate(pipe, plain.replace(solver_order=2)) as handle:
        assert torch.equal(pipe(**call).images, expected)
    assert any("use_meanflow" in note for note in handle.summary().notes)
