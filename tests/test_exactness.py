"""What must hold bit for bit: idle hooks, ratio 1, undo, and region steps over fresh keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ras_dit
from ras_dit import RASConfig
from tiny import inputs, run, tiny_pipeline

REGION = RASConfig(sample_ratio=0.3, warmup_steps=2, refresh_steps=(6,))

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3.5-large": {"qk_norm": "rms_norm"},
    "sd3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
}
CALLS: dict[str, dict[str, Any]] = {
    "cfg": {},
    "no-cfg": {"guidance_scale": 1.0},
    "batch": {"batch": 3},
    "tall": {"height": 14, "width": 5},
}


def fingerprint(pipe: Any) -> dict[str, Any]:
    """Every attribute and hook of every module, the scheduler and the pipeline."""
    modules = {
        name: (
            sorted(vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            id(module.forward.__func__),
        )
        for name, module in pipe.transformer.named_modules()
    }
    return {"modules": modules, "scheduler": sorted(vars(pipe.scheduler)), "pipe": sorted(vars(pipe))}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("call", CALLS)
def test_ratio_one_and_undo_are_bit_equal(architecture: str, call: str) -> None:
    pipe = tiny_pipeline(**ARCHITECTURES[architecture])
    dense = run(pipe, **inputs(**CALLS[call]))
    before = fingerprint(pipe)
    with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)) as handle:
        assert torch.equal(run(pipe, **inputs(**CALLS[call])), dense)
    assert all(step.kind == "dense" and step.active is None for step in handle.trace.steps)
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **inputs(**CALLS[call]))
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert [step.kind for step in handle.trace.steps] == [step.kind for step in handle.plan(10, 128, 192)]
    assert fingerprint(pipe) == before
    assert torch.equal(run(pipe, **inputs(**CALLS[call])), dense)


def test_a_run_without_region_steps_is_bit_equal() -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs(num_inference_steps=3))
    ras_dit.enable(pipe, RASConfig(sample_ratio=0.5, warmup_steps=4))
    with pytest.warns(ras_dit.RASWarning, match="all of them dense"):
        assert torch.equal(run(pipe, **inputs(num_inference_steps=3)), dense)


def two_evaluations(pipe: Any, batch: int, second_offset: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A dense evaluation, then a region one on the same input (moved by an offset): outputs and active ids."""
    call = inputs(batch=batch)
    handle = ras_dit.enable(pipe, RASConfig(sample_ratio=0.4, warmup_steps=1, importance="random"))
    pipe.scheduler.set_timesteps(3)
    pipe.scheduler.timesteps[1] = pipe.scheduler.timesteps[0]  # the same timestep again, so that only tokens differ
    text = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])
    pooled = torch.cat([call["negative_pooled_prompt_embeds"], call["pooled_prompt_embeds"]])
    outputs = []
    for index, latents in enumerate((call["latents"], call["latents"] + second_offset)):
        outputs.append(
            pipe.transformer(
                hidden_states=latents.repeat(2, 1, 1, 1),
                timestep=pipe.scheduler.timesteps[index].expand(2 * batch),
                encoder_hidden_states=text,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        )
        pipe.scheduler.step(outputs[-1][:batch], pipe.scheduler.timesteps[index], latents)
    active = handle.trace.steps[1].active
    assert active is not None
    handle.disable()
    return outputs[0], outputs[1], active


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_fresh_keys_and_values_give_the_dense_tokens(architecture: str, batch: int) -> None:
    pipe = tiny_pipeline(**ARCHITECTURES[architecture])
    dense, region, active = two_evaluations(pipe, batch, second_offset=0.0)
    grid = ras_dit.TokenGrid(8, 12, 2)
    ids = active.repeat(2, 1)[..., None].expand(-1, -1, 16)
    assert active.shape == (batch, 38)
    if batch == 2:
        assert not torch.equal(active[0], active[1]), "every image has a set of its own"
    difference = grid.patchify(dense).gather(1, ids) - grid.patchify(region).gather(1, ids)
    assert difference.abs().max() == 0.0


@torch.no_grad()
def test_stale_keys_and_values_differ() -> None:
    pipe = tiny_pipeline()
    moved = two_evaluations(pipe, 1, second_offset=0.5)[1]
    with_fresh = two_evaluations(pipe, 1, second_offset=0.0)[1]
    assert not torch.equal(moved, with_fresh)


@torch.no_grad()
def test_slow_tokens_keep_their_noise_at_order_zero() -> None:
    pipe = tiny_pipeline()
    call = inputs(guidance_scale=1.0, num_inference_steps=4)
    outputs: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
    config = RASConfig(sample_ratio=0.5, warmup_steps=1, forecast_order=0)
    with ras_dit.accelerate(pipe, config) as handle:
        hook.remove()  # registered before: it saw the gathered output; register behind RAS instead
        hook = pipe.transformer.register_forward_hook(lambda _m, _a, output: outputs.append(output[0]))
        run(pipe, **call)
    hook.remove()
    grid = ras_dit.TokenGrid(8, 12, 2)
    for index in (1, 2, 3):
        active = handle.trace.steps[index].active
        assert active is not None
        slow = torch.ones(96, dtype=torch.bool)
        slow[active[0]] = False
        now, before = grid.patchify(outputs[index])[0], grid.patchify(outputs[index - 1])[0]
        assert torch.equal(now[slow], before[slow])
        assert not torch.equal(now[~slow], before[~slow])


@pytest.mark.parametrize("importance", ["error", "std", "l2norm", "random", "round_robin"])
def test_error_falls_to_zero_as_the_ratio_goes_to_one(importance: str) -> None:
    pipe = tiny_pipeline()
    dense = run(pipe, **inputs(guidance_scale=1.0))
    errors = []
    for ratio in (0.1, 0.5, 0.9, 0.99):
        config = RASConfig(sample_ratio=ratio, warmup_steps=2, importance=importance)  # type: ignore[arg-type]
        with ras_dit.accelerate(pipe, config):
            errors.append(float((run(pipe, **inputs(guidance_scale=1.0)) - dense).norm() / dense.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4
    assert errors[-1] > 0
