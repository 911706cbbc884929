"""Step caches as rivals: every guidance call of a step by itself, on any pipeline, and nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.hooks.hooks import StateManager

from families import ltx2, lumina2, wan
from ras_dit.arena import Method, StepCache, applied
from ras_dit.arena.rivals import TAYLORSEER


def test_a_cache_without_contexts_is_refused_where_a_step_makes_two_calls() -> None:
    pipe = lumina2.build()
    options = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (100, 800)}
    with (
        applied(pipe, Method("pyramid", "cache", 6, cache=StepCache("pyramid", options))),
        pytest.raises(ValueError, match="pyramid keeps one state, and Lumina2Pipeline calls its transformer more than"),
    ):
        pipe(**lumina2.call(num_inference_steps=6))


def test_contexts_that_a_pipeline_names_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = wan.build(), set[str]()
    get_state = StateManager.get_state

    def noted(manager: StateManager) -> Any:
        seen.add(manager.context.name)
        return get_state(manager)

    monkeypatch.setattr(StateManager, "get_state", noted)
    options = {"cache_interval": 2, "max_order": 1, **TAYLORSEER[" of attention and MLP"]}
    with applied(pipe, Method("seer", "cache", 6, cache=StepCache("taylorseer", options))):
        pipe(**wan.call(num_inference_steps=6))
    assert seen == {"cond", "uncond"}


def test_a_copy_of_the_scheduler_steps_for_itself_under_a_step_cache() -> None:
    """LTX-2 copies it for the sound."""
    pipe = ltx2.build()
    call = ltx2.call(num_inference_steps=6)
    options = {"cache_interval": 1, "max_order": 1, **TAYLORSEER[" of attention and MLP"]}
    dense = pipe(**call)
    with applied(pipe, Method("seer", "cache", 6, cache=StepCache("taylorseer", options))):
        cached = pipe(**call)
    assert torch.allclose(cached[0], dense[0], atol=1e-4)


def test_guidance_calls_of_a_step_have_a_step_cache_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that calls the transformer twice a step and names no context: neither is predicted from the other."""
    pipe = lumina2.build()
    call = lumina2.call(num_inference_steps=6)
    options = {"cache_interval": 2, "max_order": 1, **TAYLORSEER[" of attention and MLP"]}
    method = Method("seer", "cache", 6, cache=StepCache("taylorseer", options))
    seen: list[str] = []
    set_context = StateManager.set_context

    def noted(manager: StateManager, context: Any) -> None:
        set_context(manager, context)
        seen.append(context.name)

    monkeypatch.setattr(StateManager, "set_context", noted)
    dense = pipe(**call).images
    with applied(pipe, method):
        cached = pipe(**call).images
    num_hooks = len(seen) // 12
    assert seen == [name for _ in range(6) for name in ["arena-0"] * num_hooks + ["arena-1"] * num_hooks]
    assert not torch.equal(cached, dense)
    assert torch.equal(pipe(**call).images, dense), "nothing is left behind"
