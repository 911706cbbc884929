"""ControlNets: computed in full beside a transformer in regions, left out where it is, called late where it must be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)
from diffusers.models.controlnets.controlnet_sd3 import SD3MultiControlNetModel

import ras_dit
from checks import recorded
from families import all_cases
from ras_dit import RASConfig
from ras_dit.controlnets import IdleControlNet
from ras_dit.models.qwen_image import QWEN_IMAGE
from ras_dit.models.sd3 import SD3
from ras_dit.pipeline import controlnet_of
from ras_dit.state import Generation
from tiny import check_contract, inputs, redraw, run, tiny_pipeline, tiny_vae


def with_controlnet() -> tuple[Any, dict[str, Any]]:
    """A pipeline and a call of it."""
    parts = tiny_pipeline(in_channels=16, out_channels=16).components
    torch.manual_seed(0)
    controlnet = SD3ControlNetModel.from_transformer(
        parts["transformer"], num_layers=2, num_extra_conditioning_channels=0
    ).eval()
    redraw(controlnet, seed=9)
    for name in ("image_encoder", "feature_extractor"):
        parts.pop(name, None)
    pipe = StableDiffusion3ControlNetPipeline(**{**parts, "vae": tiny_vae(), "controlnet": controlnet})
    pipe.set_progress_bar_config(disable=True)
    call = inputs(height=8, width=12, num_inference_steps=6, latents=torch.randn(1, 16, 16, 24))
    return pipe, call | {"height": 32, "width": 48, "control_image": torch.rand(1, 3, 32, 48)}


def test_controlnet() -> None:
    pipe, call = with_controlnet()
    without = run(pipe, **{**call, "controlnet_conditioning_scale": 0.0})
    trace = check_contract(pipe, call)
    assert len(trace.steps) == 6
    assert not torch.equal(run(pipe, **call), without), "the ControlNet acts"


SKIPPING = RASConfig(sample_ratio=0.5, warmup_steps=2, skip_steps=(2, 4))


@contextmanager
def counted_calls(pipe: Any) -> Iterator[list[torch.Tensor]]:
    """What the ControlNet is given in the calls that it computes."""
    seen: list[torch.Tensor] = []
    hook = pipe.controlnet.transformer_blocks[0].register_forward_hook(lambda *call: seen.append(call[-1][-1].clone()))
    yield seen
    hook.remove()


def as_before(
    paint: Callable[[ras_dit.Handle], torch.Tensor], pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    """The pictures of a run that calls the ControlNet in every step."""
    with monkeypatch.context() as patched, ras_dit.accelerate(pipe, SKIPPING) as handle:
        patched.setattr(Generation, "will_skip", False)
        return paint(handle)


def test_a_controlnet_is_left_out_where_the_transformer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call = with_controlnet()
    expected = as_before(lambda handle: run(pipe, **call), pipe, monkeypatch)
    with counted_calls(pipe) as seen, ras_dit.accelerate(pipe, SKIPPING) as handle:
        assert torch.equal(run(pipe, **call), expected)
        assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "skip", "region", "skip", "region"]
        assert len(seen) == 4
        assert handle._session._controlnet._held == []
        assert torch.equal(run(pipe, **call), expected)
    assert "forward" not in vars(pipe.controlnet)
    with counted_calls(pipe) as seen:
        run(pipe, **call)
    assert len(seen) == 6


def test_a_controlnet_is_called_after_all_where_a_skipped_step_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the transformer's call alone shows: its output is of this step, in its place."""
    pipe, call = with_controlnet()
    refuses = [False]
    plan = dataclasses.replace(SD3, check=lambda *_: "Not now." if refuses[0] else None)

    def refuse(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        refuses[0] = index == 3
        return tensors

    call |= {"callback_on_step_end": refuse}

    def painted(handle: ras_dit.Handle) -> torch.Tensor:
        handle._session.token_plan = plan
        return run(pipe, **call)

    expected = as_before(painted, pipe, monkeypatch)
    with counted_calls(pipe) as seen, ras_dit.accelerate(pipe, SKIPPING) as handle:
        assert torch.equal(painted(handle), expected)
        assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "skip", "region", "dense", "region"]
    assert len(seen) == 5
    assert "Not now." in handle.trace.notes


@pytest.mark.parametrize("switch", [{"control_guidance_end": 0.5}, {"control_guidance_start": 0.5}])
@pytest.mark.parametrize("config", [SKIPPING, RASConfig(sample_ratio=0.5, warmup_steps=2, forecast_order=1)])
def test_nothing_is_carried_across_the_end_of_control(config: RASConfig, switch: dict[str, float]) -> None:
    """Noise with control says nothing of noise without: the step in which that changes is dense, and what was known is
    forgotten."""
    pipe, call = with_controlnet()
    call = {**call, "num_inference_steps": 10, **switch}
    with (
        ras_dit.accelerate(pipe, config.replace(skip_steps=(3, 6) if config.skips else ())) as handle,
        recorded(pipe) as noise,
        pytest.warns(ras_dit.RASWarning, match="switched on or off"),
    ):
        run(pipe, **call)
    kinds = [step.kind for step in handle.trace.steps]
    assert kinds[5] == "dense"
    assert kinds.count("dense") == 3
    assert kinds[6] == ("skip" if config.skips else "region")
    if config.skips:
        assert torch.equal(noise[6], noise[5]), "one value has no slope"


@pytest.mark.parametrize("name", ["flux-controlnet", "qwen-image-controlnet", "z-image-controlnet"])
def test_other_families_controlnets_are_left_out_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in all_cases() if case.name == name)
    pipe, calls = case.build(), []

    def painted() -> torch.Tensor:
        calls.clear()
        with ras_dit.accelerate(pipe, SKIPPING) as handle:
            result = case.output(pipe(**case.call()))
            assert [step.kind for step in handle.trace.steps].count("skip") == 2
        return result

    forward = type(pipe.controlnet).forward
    monkeypatch.setattr(
        type(pipe.controlnet), "forward", lambda self, *a, **k: (calls.append(1), forward(self, *a, **k))[1]
    )
    spared = painted()
    num_spared = len(calls)
    with monkeypatch.context() as patched:
        patched.setattr(Generation, "will_skip", False)
        assert torch.equal(painted(), spared)
    assert len(calls) == num_spared + 2


def test_both_guidance_calls_get_what_the_controlnet_was_called_for_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen-Image hands one list to two calls of the transformer."""
    case = next(case for case in all_cases() if case.name == "qwen-image-controlnet")
    pipe, refuses, given = case.build(), [False], []
    plan = dataclasses.replace(QWEN_IMAGE, check=lambda *_: "Not now." if refuses[0] else None)

    def refuse(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        refuses[0] = index == 3
        return tensors

    def painted(handle: ras_dit.Handle) -> torch.Tensor:
        handle._session.token_plan = plan
        return case.output(pipe(**case.call(), callback_on_step_end=refuse))

    expected = as_before(painted, pipe, monkeypatch)
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        arguments = handle._session._attached[pipe.transformer].seams.arguments
        pipe.transformer.register_forward_pre_hook(
            lambda module, *call: given.append(arguments(*call)["controlnet_block_samples"][0]), with_kwargs=True
        )
        assert torch.equal(painted(handle), expected)
        assert [step.kind for step in handle.trace.steps][:5] == ["dense", "dense", "skip", "region", "dense"]
    assert torch.equal(given[8], given[9])
    assert not torch.equal(given[8], given[6])


class Two(torch.nn.Module):
    """A ControlNet that returns two blocks in a list."""

    def forward(self, number: float, picture: torch.Tensor) -> tuple[list[torch.Tensor]]:
        return ([torch.full((1,), float(number)), torch.full((1,), 10.0 * number)],)


def idle_two(**changes: Any) -> tuple[Two, IdleControlNet, SimpleNamespace, list[str]]:
    """A ControlNet in a run under way whose next steps are skipped; what is noted."""
    steps = [SimpleNamespace(kind="skip")]
    run_under_way = SimpleNamespace(**{"will_skip": False, "index": 0, "plan": SimpleNamespace(steps=steps), **changes})
    controlnet, notes = Two(), []
    idle = IdleControlNet(lambda: run_under_way, notes.append)  # type: ignore[arg-type,return-value]
    idle.attach(controlnet)
    return controlnet, idle, run_under_way, notes


PICTURE = torch.zeros(1)


def numbers(blocks: list[torch.Tensor]) -> list[float]:
    return [float(block) for block in blocks]


def test_a_list_that_the_transformer_empties_is_whole_in_the_next_step() -> None:
    """HunyuanDiT pops from what its ControlNet returned."""
    controlnet, idle, run_under_way, notes = idle_two()
    controlnet(1, PICTURE)[0].clear()
    idle.end_evaluation()
    run_under_way.will_skip = True
    (blocks,) = controlnet(2, PICTURE)
    assert numbers(blocks) == [1, 10]
    for _ in range(2):  # both guidance calls
        computed = idle.with_computed_outputs((), {"blocks": blocks})
        assert computed is not None
        assert numbers(computed[1]["blocks"]) == [2, 20]
    idle.end_evaluation()
    assert idle.with_computed_outputs((), {"blocks": blocks}) is None
    assert notes == []


def test_two_calls_of_an_evaluation_are_answered_each_with_its_own() -> None:
    """Cosmos 2.5: the ControlNet, the transformer, and both again."""
    controlnet, idle, run_under_way, _ = idle_two()
    controlnet(1, PICTURE), controlnet(2, PICTURE)
    idle.end_evaluation()
    run_under_way.will_skip = True
    assert [numbers(controlnet(number, PICTURE)[0]) for number in (3, 4)] == [[1, 10], [2, 20]]


def test_calls_of_others_are_made_and_not_counted() -> None:
    """Another pipeline in a callback, which has a picture of its own."""
    controlnet, idle, run_under_way, _ = idle_two()
    controlnet(1, PICTURE)
    idle.end_evaluation()
    run_under_way.will_skip = True
    other = torch.ones(1)
    assert numbers(controlnet(7, other)[0]) == [7, 70]
    assert numbers(controlnet(2, PICTURE)[0]) == [1, 10]


def test_output_that_is_handed_on_changed_is_told_of() -> None:
    controlnet, idle, run_under_way, notes = idle_two()
    controlnet(1, PICTURE)
    idle.end_evaluation()
    run_under_way.will_skip = True
    (blocks,) = controlnet(2, PICTURE)
    idle.with_computed_outputs((), {"blocks": [2 * block for block in blocks]})
    assert "hands it on changed" in notes[0]


def test_a_controlnet_with_hooks_is_called_in_every_step() -> None:
    """They may change what it returns."""
    controlnet, *_ = idle_two(will_skip=True)
    hook = controlnet.register_forward_hook(lambda module, args, output: ([2 * block for block in output[0]],))
    assert [numbers(controlnet(number, PICTURE)[0]) for number in (1, 2)] == [[2, 20], [4, 40]]
    hook.remove()
    controlnet(3, PICTURE)
    assert numbers(controlnet(4, PICTURE)[0]) == [4, 40]


def test_an_offload_hook_over_the_forward_is_heeded_by_a_call_that_is_made_late() -> None:
    controlnet, idle, run_under_way, _ = idle_two()
    under, moves = controlnet.forward, []
    controlnet.forward = lambda *args: (moves.append(args[0]), under(*args))[1]  # type: ignore[method-assign,assignment]
    controlnet(1, PICTURE)
    idle.end_evaluation()
    run_under_way.will_skip = True
    (blocks,) = controlnet(2, PICTURE)
    computed = idle.with_computed_outputs((), {"blocks": blocks})
    assert computed is not None
    assert numbers(computed[1]["blocks"]) == [2, 20]
    assert moves == [1, 2, 2]


def test_an_error_in_a_call_that_is_made_late_goes_through_and_leaves_nothing_behind() -> None:
    controlnet, idle, run_under_way, _ = idle_two()
    controlnet(1, PICTURE)
    idle.end_evaluation()
    run_under_way.will_skip = True
    controlnet("no number", PICTURE)
    with pytest.raises(ValueError, match="no number"):
        idle.with_computed_outputs((), {})
    idle.end_evaluation()
    assert idle.with_computed_outputs((), {}) is None
    assert numbers(controlnet(2, PICTURE)[0]) == [1, 10]


def test_it_is_as_it_was_afterwards_whichever_session_ends_first() -> None:
    for order in ((0, 1), (1, 0)):
        controlnet, first, *_ = idle_two()
        second = IdleControlNet(lambda: None, print)
        second.attach(controlnet)
        with pytest.raises(ValueError, match="disable"):
            copy.deepcopy(controlnet)
        for number in order:
            (first, second)[number].release()
        assert vars(controlnet).keys() == vars(Two()).keys()
        assert vars(copy.deepcopy(controlnet)).keys() == vars(Two()).keys()


def test_a_controlnet_that_is_compiled_as_a_whole_is_left_alone() -> None:
    pipe, call = with_controlnet()
    expected = run(pipe, **call)
    assert controlnet_of(SimpleNamespace(controlnet=torch.compile(pipe.controlnet, backend="eager"))) is None
    assert controlnet_of(SimpleNamespace(controlnet=None)) is None
    assert controlnet_of(pipe) is pipe.controlnet
    pipe.controlnet.compile(backend="eager")
    before = set(vars(pipe.controlnet))
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        run(pipe, **call)
        assert [step.kind for step in handle.trace.steps].count("skip") == 2
        assert set(vars(pipe.controlnet)) == before
    torch.testing.assert_close(run(pipe, **call), expected)


def test_a_controlnet_that_is_replaced_is_followed() -> None:
    pipe, call = with_controlnet()
    with ras_dit.accelerate(pipe, SKIPPING):
        run(pipe, **call)
        old, pipe.controlnet = pipe.controlnet, copy.copy(with_controlnet()[0].controlnet)
        with counted_calls(pipe) as seen:
            run(pipe, **call)
        assert len(seen) == 4
        assert "forward" not in vars(old)
    assert "forward" not in vars(pipe.controlnet)


def test_a_second_order_step_takes_no_slope_across_the_end_of_control() -> None:
    """In a run that is dense as well: the step that first goes without is as the transformer has it."""
    pipe, call = with_controlnet()
    call = {**call, "num_inference_steps": 10, "control_guidance_end": 0.5}
    config = RASConfig(sample_ratio=1.0, solver_order=2)
    with recorded(pipe) as raw, ras_dit.accelerate(pipe, config), recorded(pipe) as given:
        run(pipe, **call)
    is_untouched = [torch.equal(before, after) for before, after in zip(raw, given, strict=True)]
    assert [index for index, is_same in enumerate(is_untouched) if is_same] == [0, 5]


def test_a_compiled_controlnet_is_told_of() -> None:
    pipe, call = with_controlnet()
    pipe.controlnet.compile(backend="eager")
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        run(pipe, **call)
    assert any("The ControlNet is compiled as a whole" in note for note in handle.summary().notes)


def test_so_is_one_of_a_pipeline_that_shares_the_transformer() -> None:
    """RAS is not on that pipeline, and nobody shows it its ControlNet."""
    twin, call = with_controlnet()
    parts = {name: part for name, part in twin.components.items() if name != "controlnet"}
    pipe = StableDiffusion3Pipeline(**parts)
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        run(twin, **call)
        assert any("or belongs to a pipeline that RAS was not enabled on" in note for note in handle.summary().notes)
        run(pipe, **{name: value for name, value in call.items() if name != "control_image"})
        assert handle.summary().notes == ()


def test_so_is_one_that_is_wrapped() -> None:
    case = next(case for case in all_cases() if case.name == "z-image-controlnet")
    pipe = case.build()
    pipe.controlnet = torch.compile(pipe.controlnet, backend="eager")
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        case.output(pipe(**case.call()))
    assert any("The ControlNet is compiled as a whole" in note for note in handle.summary().notes)


def test_a_swapped_scheduler_switches_nothing() -> None:
    pipe, call = with_controlnet()
    config = RASConfig(sample_ratio=1.0, warmup_steps=1, skip_steps=(1, 3), forecast_order=1)
    with ras_dit.accelerate(pipe, config) as handle:
        expected = run(pipe, **call)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        for _ in range(2):
            assert torch.equal(run(pipe, **call), expected)
            assert handle.summary().notes == ()


def test_several_controlnets_are_left_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call = with_controlnet()
    pipe.controlnet = SD3MultiControlNetModel([pipe.controlnet, with_controlnet()[0].controlnet])
    call |= {"control_image": 2 * [call["control_image"]], "controlnet_conditioning_scale": [1.0, 0.5]}
    expected = as_before(lambda handle: run(pipe, **call), pipe, monkeypatch)
    calls: list[int] = []
    for net in pipe.controlnet.nets:
        net.register_forward_hook(lambda *_: calls.append(1))
    with ras_dit.accelerate(pipe, SKIPPING):
        assert torch.equal(run(pipe, **call), expected)
    assert len(calls) == 2 * 4
    call["control_guidance_end"] = [0.5, 1.0]
    with ras_dit.accelerate(pipe, SKIPPING) as handle, pytest.warns(ras_dit.RASWarning, match="switched on or off"):
        run(pipe, **call)
    assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "skip", "dense", "skip", "region"]


def test_ras_that_is_disabled_midway_calls_it_again() -> None:
    pipe, call = with_controlnet()
    handle = ras_dit.enable(pipe, SKIPPING)

    def disable(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            handle.disable()
        return tensors

    with counted_calls(pipe) as seen:
        run(pipe, **call, callback_on_step_end=disable)
    assert len(seen) == 5  # all but the first skipped step
    assert "forward" not in vars(pipe.controlnet)


def test_a_controlnet_of_another_pipeline_is_called_and_nothing_of_it_held() -> None:
    pipe, call = with_controlnet()
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        run(pipe, **call)
        parts = {**pipe.components, "transformer": tiny_pipeline(in_channels=16, out_channels=16).transformer}
        other = StableDiffusion3ControlNetPipeline(**{**parts, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
        other.set_progress_bar_config(disable=True)
        with counted_calls(pipe) as seen:
            run(other, **call)
        assert len(seen) == 6
        assert handle._session._controlnet._held == []
