"""What goes wrong: interrupts, exceptions, changes in the middle of a run, and things RAS cannot do."""

from __future__ import annotations

import types
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    FlowMatchLCMScheduler,
    StableDiffusion3PAGPipeline,
)

import ras_dit
from ras_dit import RASConfig, TokenGrid
from ras_dit.attention import LayerSeam
from ras_dit.cache import KVCache
from ras_dit.chooser import TokenChooser
from ras_dit.plan import Plan, StepPlan
from ras_dit.rows import RowIndex
from ras_dit.schedule import why_stochastic, why_stochastic_step
from ras_dit.state import Generation
from tiny import REGION, TEXT_LENGTH, TEXT_WIDTH, inputs, run, tiny_pipeline, tiny_transformer


def test_callbacks_may_end_guidance_in_the_middle() -> None:
    pipe = tiny_pipeline()

    def stop_guidance(pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            pipe._guidance_scale = 0.0
            tensors = {key: value[-1:] for key, value in tensors.items() if key != "latents"}
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(callback_on_step_end=stop_guidance, callback_on_step_end_tensor_inputs=names)
    dense = run(pipe, **call)
    with ras_dit.accelerate(pipe, REGION) as handle, pytest.warns(ras_dit.RASWarning, match="batch size"):
        fast = run(pipe, **call)
    kinds = [step.kind for step in handle.trace.steps]
    assert kinds == ["dense"] * 2 + ["region"] * 3 + ["dense"] + ["region"] * 4
    assert torch.isfinite(fast).all()
    assert torch.equal(run(pipe, **call), dense)


@pytest.mark.parametrize("config", [REGION, RASConfig.reference(0.25, start_step=2, end_step=6)])
def test_images_may_leave_the_batch_in_the_middle(config: RASConfig) -> None:
    pipe = tiny_pipeline()

    def drop_one(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            tensors["latents"] = tensors["latents"][:1]
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                tensors[name] = tensors[name][::2]
        return tensors

    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(batch=2, callback_on_step_end=drop_one, callback_on_step_end_tensor_inputs=names)
    with ras_dit.accelerate(pipe, config) as handle, pytest.warns(ras_dit.RASWarning, match="changed in the middle"):
        fast = run(pipe, **call)
    assert fast.shape[0] == 1
    assert torch.isfinite(fast).all()
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 3 + ["dense"] * 5


@pytest.mark.parametrize(
    "config",
    [
        REGION,
        REGION.replace(sample_ratio=1.0, skip_steps=(5, 7)),
        REGION.replace(solver_order=2),
        RASConfig(sample_ratio=1.0, solver_order=2),
        RASConfig(warmup_steps=99, solver_order=2),
    ],
)
def test_latents_may_change_their_size_in_the_middle(config: RASConfig) -> None:
    """As progressive resolution does: what is left of the run is dense."""
    pipe = tiny_pipeline()

    def enlarge(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            tensors["latents"] = torch.nn.functional.interpolate(tensors["latents"], scale_factor=2)
        return tensors

    call = inputs(height=4, width=6, callback_on_step_end=enlarge)
    with (
        ras_dit.accelerate(pipe, config) as handle,
        pytest.warns(ras_dit.RASWarning, match="The size of the latents changed in the middle of the run"),
    ):
        fast = run(pipe, **call)
    assert fast.shape[-2:] == (16, 24)
    assert fast.isfinite().all()
    assert [step.kind for step in handle.trace.steps[5:]] == ["dense"] * 5


LONGER = "The length of the text changed in the middle of the run: one step was dense."
PADDED = "The transformer's batch is no multiple of the number of images: its steps were dense."
UNSELECTED = "No selection was made before the first region step: it was dense."


@pytest.mark.parametrize("is_anew", [False, True], ids=["laid out once", "laid out anew for every call"])
def test_the_text_may_change_its_length_in_the_middle(is_anew: bool) -> None:
    """Keys and values of the old length serve no step with the new one, whether or not the text is known as another."""
    pipe = tiny_pipeline()
    longer = torch.randn(2, TEXT_LENGTH + 2, TEXT_WIDTH, generator=torch.Generator().manual_seed(2))

    def lengthen(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds": longer} if index == 4 else tensors

    def anew(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].clone()}

    call = inputs(callback_on_step_end=lengthen, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with ras_dit.accelerate(pipe, REGION) as handle:
        if is_anew:
            pipe.transformer.register_forward_pre_hook(anew, with_kwargs=True, prepend=True)
        with pytest.warns(ras_dit.RASWarning, match="length of the text"):
            assert run(pipe, **call).isfinite().all()
    assert [step.kind[0] for step in handle.trace.steps] == list("ddrrrdrrrr")
    assert handle.summary().notes == (LONGER,)


def test_rows_that_belong_to_no_image_leave_the_run_dense() -> None:
    """As somebody may add them to a batch, so that few sizes occur, and cut them off again."""
    pipe, call = tiny_pipeline(), inputs(batch=2)

    def pad(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {
            name: torch.cat([value, value[:1]]) if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }

    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe.transformer.register_forward_pre_hook(pad, with_kwargs=True, prepend=True)
        pipe.transformer.register_forward_hook(lambda module, args, output: (output[0][:-1],))
        with pytest.warns(ras_dit.RASWarning, match="no multiple of the number of images"):
            padded = run(pipe, **call)
    assert [(step.kind, step.num_rows) for step in handle.trace.steps] == [("dense", 5)] * 10
    assert handle.summary().notes == (PADDED,)
    assert torch.equal(run(pipe, **call), padded), "as without RAS"


def test_a_region_step_is_dense_that_nothing_was_selected_for() -> None:
    """No plan of ours begins its region steps with an older set."""
    grid, noise, sigmas = TokenGrid(1, 4, 1), torch.ones(1, 1, 1, 4), [1.0, 0.5, 0.0]
    plan = Plan((StepPlan(0, "dense", 4, captures=True), StepPlan(1, "region", 2, selects=False)), grid.num_tokens)
    notes: list[str] = []
    chooser = TokenChooser(REGION, plan, grid, sigmas, notes.append)
    generation = Generation(REGION, plan, grid, sigmas, sigmas, notes.append, chooser)
    for _ in plan:
        call = generation.begin_call(1, noise.device)
        assert generation.end_call(call, noise) is None, "as it was computed"
        generation.observe(noise, noise)
    assert [step.kind for step in generation.trace.steps] == ["dense", "dense"]
    assert notes == [UNSELECTED]


def leaving(*at: int) -> Any:
    """A callback that takes the last image out of the batch after each of these evaluations."""

    def drop_one(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in at:
            count = len(tensors["latents"])
            tensors["latents"] = tensors["latents"][:-1]
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                tensors[name] = torch.cat([half[:-1] for half in tensors[name].split(count)])
        return tensors

    return drop_one


@pytest.mark.parametrize("config", [REGION, REGION.replace(solver_order=2), RASConfig.preset("balanced")])
def test_images_may_leave_the_batch_one_after_the_other(config: RASConfig) -> None:
    """Nothing is carried from step to step after the first has left: the second must not meet what was."""
    pipe = tiny_pipeline()
    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(batch=4, callback_on_step_end=leaving(4, 6), callback_on_step_end_tensor_inputs=names)
    with ras_dit.accelerate(pipe, config) as handle, pytest.warns(ras_dit.RASWarning, match="changed in the middle"):
        fast = run(pipe, **call)
    assert fast.shape[0] == 2
    assert torch.isfinite(fast).all()
    assert [step.kind for step in handle.trace.steps[5:]] == ["dense"] * 5


def test_images_may_leave_a_run_with_a_fitted_forecast() -> None:
    pipe = tiny_pipeline()
    names = ["latents", "prompt_embeds", "pooled_prompt_embeds"]
    call = inputs(batch=3, callback_on_step_end=leaving(4), callback_on_step_end_tensor_inputs=names)
    config = REGION.replace(forecast_fit=(0.1, 0.0, 0.0, 0.0) * 10)
    with ras_dit.accelerate(pipe, config), pytest.warns(ras_dit.RASWarning, match="changed in the middle"):
        fast = run(pipe, **call)
    assert fast.shape[0] == 2
    assert torch.isfinite(fast).all()


def test_interrupt_and_exception_leave_the_next_run_correct() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())

    def interrupt(pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = index >= 4
        return tensors

    run(pipe, **inputs(callback_on_step_end=interrupt))
    assert len(handle.trace.steps) == 5
    assert handle.summary().notes == ("The run was cut short after 5 of 10 evaluations.",)
    assert torch.equal(run(pipe, **inputs()), expected)

    for error in (RuntimeError("boom"), KeyboardInterrupt()):

        def fail(
            _pipe: Any, index: int, _t: Any, tensors: dict[str, Any], error: BaseException = error
        ) -> dict[str, Any]:
            if index == 5:
                raise error
            return tensors

        with pytest.raises(type(error)):
            run(pipe, **inputs(callback_on_step_end=fail))
        assert torch.equal(run(pipe, **inputs()), expected)


def test_interrupt_inside_an_attention_layer_leaves_no_function_mode() -> None:
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt

    hook = pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, **inputs())
    hook.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(run(pipe, **inputs()), expected)


def test_the_transformer_called_by_hand_runs_dense() -> None:
    pipe = tiny_pipeline()
    call = inputs()
    direct = {
        "hidden_states": call["latents"],
        "timestep": torch.tensor([321.0]),
        "encoder_hidden_states": call["prompt_embeds"],
        "pooled_projections": call["pooled_prompt_embeds"],
    }

    def stop(_pipe: Any, index: int, _t: Any, _tensors: Any) -> Any:
        if index == 5:
            raise RuntimeError
        return {}

    with torch.no_grad():
        dense = pipe.transformer(**direct).sample
        ras_dit.enable(pipe, REGION)
        assert torch.equal(pipe.transformer(**direct).sample, dense)
        run(pipe, **call)
        assert torch.equal(pipe.transformer(**direct).sample, dense)
        with pytest.raises(RuntimeError):
            run(pipe, **inputs(callback_on_step_end=stop))
        assert torch.equal(pipe.transformer(**direct).sample, dense)


def test_a_transformer_swapped_while_enabled_is_reported() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    first = pipe.transformer
    pipe.transformer = tiny_transformer(seed=1)
    with pytest.warns(ras_dit.RASWarning, match="transformer was replaced"):
        fast = run(pipe, **inputs())
    assert "replaced" in handle.trace.notes[0]
    assert torch.equal(fast, run(tiny_pipeline(1), **inputs()))
    handle.disable()
    assert "_ras_dit_handle" not in vars(first)


@pytest.mark.parametrize(
    "name",
    [
        "LCMScheduler",
        "FlowMatchLCMScheduler",
        "SCMScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverSDEScheduler",
        "TCDScheduler",
        "DDPMScheduler",
        "SASolverScheduler",
        "CosineDPMSolverMultistepScheduler",
        "CogVideoXDPMScheduler",
        "HeliosDMDScheduler",
    ],
)
def test_stochastic_schedulers_are_known_by_their_names(name: str) -> None:
    kind = getattr(diffusers, name)
    if "torchsde" in getattr(kind, "_backends", ()):  # diffusers' stand-in for a class that needs it
        kind = type(name, (diffusers.FlowMatchEulerDiscreteScheduler,), {})
    assert why_stochastic(kind()) == f"{name} adds fresh noise at every step"


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DDIMScheduler"])
def test_other_schedulers_are_not_taken_for_stochastic_ones(name: str) -> None:
    assert why_stochastic(getattr(diffusers, name)()) is None


def test_options_make_a_scheduler_stochastic() -> None:
    euler, solver = diffusers.FlowMatchEulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler
    reason = "adds fresh noise at every step"
    assert why_stochastic(solver()) is None
    assert why_stochastic(solver(algorithm_type="sde-dpmsolver++")) == (
        f"DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++' {reason}"
    )
    assert why_stochastic(euler(stochastic_sampling=True)) == (
        f"FlowMatchEulerDiscreteScheduler with stochastic_sampling=True {reason}"
    )
    assert why_stochastic_step({"eta": 0.0, "s_churn": 0.5}) == f"s_churn=0.5 {reason}"
    assert why_stochastic_step({"eta": 0.3}) == f"eta=0.3 {reason}"
    assert why_stochastic_step({"eta": 0.0, "s_churn": 0.0, "sample": torch.ones(2)}) is None


def test_stochastic_schedulers_run_dense_and_say_so() -> None:
    pipe = tiny_pipeline(scheduler=FlowMatchLCMScheduler(shift=3.0))

    def seeded() -> dict[str, Any]:
        return inputs(generator=torch.Generator().manual_seed(0))

    torch.manual_seed(0)
    dense = run(pipe, **seeded())
    with pytest.warns(ras_dit.RASWarning, match="FlowMatchLCMScheduler adds fresh noise"):
        handle = ras_dit.enable(pipe, REGION)
    torch.manual_seed(0)
    assert torch.equal(run(pipe, **seeded()), dense)
    assert all(step.kind == "dense" for step in handle.trace.steps)
    assert "fresh noise" in str(handle.summary())


def test_nan_in_the_latents_runs_dense_and_says_so() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    expected = run(pipe, **inputs())

    def spoil(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            tensors["latents"] = tensors["latents"].clone()
            tensors["latents"][0, 0, 0, 0] = float("nan")
        return tensors

    with pytest.warns(ras_dit.RASWarning, match="not finite"):
        run(pipe, **inputs(callback_on_step_end=spoil))
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4 + ["dense"] * 4
    assert "not finite" in str(handle.summary())
    assert torch.equal(run(pipe, **inputs()), expected)


def test_a_subclass_with_blocks_of_its_own_is_refused() -> None:
    """Quantised engines put all blocks into one module: no row list would reach their attention."""

    class Engine(diffusers.SD3Transformer2DModel):
        pass

    pipe = tiny_pipeline()
    pipe.transformer.__class__ = Engine
    ras_dit.enable(pipe, "regions").disable()
    pipe.transformer.transformer_blocks = torch.nn.ModuleList(
        [torch.nn.Sequential(*pipe.transformer.transformer_blocks)]
    )
    for preset in ("balanced", "regions"):
        with pytest.raises(
            ValueError, match=r"got Engine, a SD3Transformer2DModel with other blocks.*transformer_blocks"
        ):
            ras_dit.enable(pipe, preset)


def test_unsupported_things_are_refused() -> None:
    class Custom(torch.nn.Module):
        pass

    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match="supported: SD3Transformer2DModel"):
        ras_dit.enable(type("Pipe", (), {"transformer": Custom(), "scheduler": pipe.scheduler})())
    with pytest.raises(ValueError, match="U-Net"):
        ras_dit.enable(type("Pipe", (), {"unet": Custom()})())
    with pytest.raises(ValueError, match="PAG"):
        ras_dit.enable(tiny_pipeline(pipeline=StableDiffusion3PAGPipeline))
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(pipe)
    handle = ras_dit.enable(pipe, "fast")
    with pytest.raises(ValueError, match="already enabled"):
        ras_dit.enable(pipe, "fast")
    ras_dit.disable(pipe)
    with pytest.raises(ValueError, match="already disabled"):
        handle.disable()
    with pytest.raises(ValueError, match="not enabled"):
        ras_dit.disable(pipe)
    with pytest.raises(ValueError, match="quality, balanced, fast"):
        ras_dit.enable(pipe, "fastest")


def test_refresh_steps_outside_the_run() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, RASConfig(refresh_steps=(12,)))
    with pytest.raises(ValueError, match="this run has 10 transformer evaluations"):
        handle.plan(10, 128, 192)
    with pytest.warns(ras_dit.RASWarning, match="refresh_steps: 12: left out, for this run has 10 evaluations"):
        run(pipe, **inputs())
    assert torch.isfinite(run(pipe, **inputs(num_inference_steps=14))).all()


def test_attention_that_cannot_be_merged_is_refused() -> None:
    class Eager:
        def __call__(
            self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
        ) -> Any:
            return hidden_states, encoder_hidden_states

    pipe = tiny_pipeline()
    pipe.transformer.set_attn_processor(Eager())
    ras_dit.enable(pipe, REGION)
    with pytest.raises(ras_dit.UnsupportedAttentionError, match=r"Eager in transformer_blocks\.0\.attn"):
        run(pipe, **inputs())


@pytest.mark.parametrize(
    ("num_before", "num_keys", "is_causal", "message"),
    [
        (1, 4, False, "a module made more attention calls than in the last dense step"),
        (0, 4, True, "got causal attention over image tokens"),
        (0, 3, False, "3 keys fewer than in the last dense step, expected 2"),
    ],
)
def test_attention_that_is_not_that_of_the_last_dense_step_is_refused(
    num_before: int, num_keys: int, is_causal: bool, message: str
) -> None:
    """Two of four tokens are computed, and two of text."""
    cached = KVCache(torch.zeros(1, 2, 6, 4), torch.zeros(1, 2, 6, 4))
    cached.aim(RowIndex(torch.tensor([[1, 3]]), 4, is_shared=True))
    seam, rows = LayerSeam(), torch.ones(1, 2, 4, 4)
    seam.aim("region", [cached])
    for _ in range(num_before):
        assert seam.attend(rows, rows, rows).shape == rows.shape
    keys = rows[:, :, :num_keys]
    with pytest.raises(ras_dit.UnsupportedAttentionError, match=message):
        seam.attend(rows, keys, keys, is_causal=is_causal)


def test_models_that_mix_all_tokens_are_refused_with_the_reason() -> None:
    from diffusers import SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=8,
    )
    pipe = types.SimpleNamespace(transformer=transformer, scheduler=tiny_pipeline().scheduler)
    with pytest.raises(ValueError, match=r"got SanaTransformer2DModel; .*linear attention .* convolutions"):
        ras_dit.enable(pipe)


def test_an_unknown_class_hears_of_the_nearest_one() -> None:
    class FluxTransformer3DModel(torch.nn.Module):
        pass

    pipe = types.SimpleNamespace(transformer=FluxTransformer3DModel(), scheduler=tiny_pipeline().scheduler)
    with pytest.raises(ValueError, match=r"nearest supported one is FluxTransformer2DModel.*docs/adding-a-model\.md"):
        ras_dit.enable(pipe)
