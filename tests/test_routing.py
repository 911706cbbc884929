"""The short way to the attention seam: it gives what the long one gives, and is taken by every family's own processors
and by no other."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers import transformer_flux
from torch.nn import functional

import ras_dit
from families import one_case_per_class
from ras_dit import RASConfig, UnsupportedAttentionError
from ras_dit.attention import AttentionMerge
from ras_dit.routing import AttentionRoute
from tiny import REGION, inputs, tiny_pipeline


@contextmanager
def watched() -> Iterator[set[tuple[str, bool]]]:
    """Processors that region steps called, and whether the short way."""
    seen: set[tuple[str, bool]] = set()
    original = AttentionRoute._called

    def called(self: AttentionRoute, processor: Any, *rest: Any) -> Any:
        seen.add((type(processor).__name__, True)) if self._layer.kind == "region" else None
        return original(self, processor, *rest)

    def enter(self: AttentionMerge) -> AttentionMerge:
        if self.layer.kind == "region":
            seen.add((inspect.stack()[1].function, False))
        super(AttentionMerge, self).__enter__()
        return self

    with mock.patch.object(AttentionRoute, "_called", called), mock.patch.object(AttentionMerge, "__enter__", enter):
        yield seen


def latents(pipe: Any, config: RASConfig = REGION, **changes: Any) -> torch.Tensor:
    with ras_dit.accelerate(pipe, config):
        return pipe(**inputs(num_inference_steps=8, **changes)).images


def the_long_way(pipe: Any) -> Any:
    """The pipeline with processors that somebody has wrapped."""

    class Wrapped(JointAttnProcessor2_0):
        @functools.wraps(JointAttnProcessor2_0.__call__)
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return JointAttnProcessor2_0.__call__(self, *args, **kwargs)

    pipe.transformer.set_attn_processor(Wrapped())
    return pipe


@pytest.mark.parametrize("name", sorted(one_case_per_class()))
def test_every_family_takes_the_short_way(name: str) -> None:
    case = one_case_per_class()[name]
    with watched() as seen, ras_dit.accelerate(case.build(), REGION) as handle:
        handle._pipe()(**case.call())
    assert any(step.kind == "region" for step in handle.trace.steps)
    assert any(is_short for _, is_short in seen)
    assert {way for way, is_short in seen if not is_short} <= {"_dispatch"}, "an attention module went the long way"


@pytest.mark.parametrize("batch", [1, 2])
def test_both_ways_give_the_same(batch: int) -> None:
    with watched() as short:
        taken = latents(tiny_pipeline(), batch=batch)
    with watched() as long:
        expected = latents(the_long_way(tiny_pipeline()), batch=batch)
    assert short == {("JointAttnProcessor2_0", True)}
    assert long == {("__call__", False)}
    assert torch.equal(taken, expected)


class Elsewhere(JointAttnProcessor2_0):
    """Leaves attention to another function."""

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        scores = F.scaled_dot_product_attention  # named, but not called
        assert scores is not None
        return JointAttnProcessor2_0.__call__(self, attn, hidden_states, encoder_hidden_states, **kwargs)


F = functional


def test_attention_that_the_short_way_would_miss_goes_the_long_way() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.set_attn_processor(Elsewhere())
    with watched() as seen:
        found = latents(pipe)
    assert seen == {("__call__", False)}
    assert torch.equal(found, latents(tiny_pipeline()))


def test_the_processor_is_its_own_again_after_a_call_and_an_error() -> None:
    pipe = tiny_pipeline()
    processors = dict(pipe.transformer.attn_processors)
    handle = ras_dit.enable(pipe, REGION)
    pipe(**inputs(num_inference_steps=8))
    assert pipe.transformer.attn_processors == processors

    steps: list[int] = []

    def fail(*args: Any, **kwargs: Any) -> None:
        if steps and steps[-1] == 4:
            raise RuntimeError("midway")

    hook = pipe.transformer.transformer_blocks[1].attn.to_q.register_forward_hook(fail)

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return tensors

    with pytest.raises(RuntimeError, match="midway"):
        pipe(**inputs(num_inference_steps=8), callback_on_step_end=count)
    hook.remove()
    assert pipe.transformer.attn_processors == processors
    handle.disable()
    assert all("processor" in vars(module) for module in pipe.transformer.modules() if hasattr(module, "to_q"))


def test_the_stand_in_is_of_the_processors_kind_and_shares_its_attributes() -> None:
    class Noticing(JointAttnProcessor2_0):
        scale = 1.0

        def __call__(
            self,
            attn: Any,
            hidden_states: torch.Tensor,
            encoder_hidden_states: Any = None,
            attention_mask: Any = None,
        ) -> Any:
            kinds.add((type(self).__name__, isinstance(self, Noticing), attn.processor is self))
            self.count = getattr(self, "count", 0) + 1
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
            query, key, value = (each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in (query, key, value))
            text = [layer(encoder_hidden_states) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            text = [each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in text]
            joint = [torch.cat(pair, dim=2) for pair in zip((query, key, value), text, strict=True)]
            out = F.scaled_dot_product_attention(*joint).transpose(1, 2).flatten(2)
            length = hidden_states.shape[1]
            own = attn.to_out[0](out[:, :length])
            return own, out[:, length:] if attn.context_pre_only else attn.to_add_out(out[:, length:])

    kinds: set[tuple[str, bool, bool]] = set()
    processor = Noticing()
    pipe = tiny_pipeline()
    for block in pipe.transformer.transformer_blocks:
        block.attn.set_processor(processor)
    with watched() as seen:
        found = latents(pipe)
    assert ("Noticing", True) in seen
    assert kinds == {("Noticing", True, True)}
    assert processor.count == 8 * 3
    torch.testing.assert_close(found, latents(tiny_pipeline()), rtol=1e-4, atol=1e-5)


def test_a_processor_that_is_replaced_midway_goes_the_long_way_until_the_next_dense_step() -> None:
    pipe = tiny_pipeline()

    def replace(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 3:
            pipe.transformer.set_attn_processor(JointAttnProcessor2_0())
        return tensors

    with watched() as seen:
        found = latents(pipe, callback_on_step_end=replace)
    assert seen == {("JointAttnProcessor2_0", True), ("__call__", False)}
    assert torch.equal(found, latents(tiny_pipeline()))


def test_other_names_of_the_module_are_those_of_the_last_dense_step(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    original = transformer_flux._get_qkv_projections

    def noticed(*args: Any, **kwargs: Any) -> Any:
        called.append("")
        return original(*args, **kwargs)

    case = one_case_per_class()["FluxTransformer2DModel"]
    pipe = case.build()
    with ras_dit.accelerate(pipe, REGION):
        pipe(**case.call())
        assert not called
        monkeypatch.setattr(transformer_flux, "_get_qkv_projections", noticed)
        pipe(**case.call())
    num_attentions = sum(hasattr(module, "to_q") for module in pipe.transformer.modules())
    assert len(called) == num_attentions * pipe.num_timesteps


def test_attention_that_goes_nowhere_is_an_error_the_short_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1) @ value

    monkeypatch.setattr(attention_processor.F, "scaled_dot_product_attention", attention)
    with pytest.raises(UnsupportedAttentionError, match="does not use scaled_dot_product_attention"):
        latents(tiny_pipeline())


def test_the_stand_in_is_of_the_class_of_the_processor_as_it_is() -> None:
    """One that inherits its call, but not what that calls."""

    class Helping(JointAttnProcessor2_0):
        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            F.scaled_dot_product_attention  # noqa: B018  # so that there is a short way
            return self.helped(attn, *args, **kwargs)

        def helped(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            return JointAttnProcessor2_0.__call__(self, attn, *args, **kwargs)

    class Otherwise(Helping):
        def helped(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            called.append(type(self).__name__)
            return super().helped(attn, *args, **kwargs)

    called: list[str] = []
    pipe = tiny_pipeline()
    pipe.transformer.set_attn_processor(Helping())
    with ras_dit.accelerate(pipe, REGION):
        pipe(**inputs(num_inference_steps=8))
        assert not called
        pipe.transformer.set_attn_processor(Otherwise())
        pipe(**inputs(num_inference_steps=8))
    assert called == ["Otherwise"] * 8 * 3


def test_calls_without_any_text_go_the_long_way() -> None:
    """What a reshape of no rows means is known there alone."""
    with watched() as seen:
        latents(tiny_pipeline(), REGION.replace(text_reuse=True))
    assert seen == {("__call__", False)}
