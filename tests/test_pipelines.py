"""What pipelines do around the transformer: variants, schedulers, adapters, precision."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    UniPCMultistepScheduler,
)
from peft import LoraConfig, get_peft_model_state_dict
from torch._dynamo.testing import CompileCounterWithBackend

import ras_dit
from families import all_cases
from ras_dit import RASConfig
from ras_dit.controlnets import IdleControlNet
from ras_dit.flops import Layers
from ras_dit.models.qwen_image import QWEN_IMAGE
from ras_dit.models.sd3 import SD3
from ras_dit.state import Generation
from tiny import REGION, check_contract, inputs, redraw, run, tiny_pipeline, tiny_vae

SCHEDULERS: dict[str, Any] = {
    "euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "euler-dynamic-shift": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "euler-karras": FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
    "heun": FlowMatchHeunDiscreteScheduler(shift=3.0),
    "dpm++2m": DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
    ),
    "dpm++2s": DPMSolverSinglestepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "deis": DEISMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name: str) -> None:
    pipe = tiny_pipeline(scheduler=SCHEDULERS[name])
    trace = check_contract(pipe, inputs(num_inference_steps=8))
    assert len(trace.steps) == (15 if name == "heun" else 8)
    sigmas = [step.sigma for step in trace.steps]
    assert sigmas == sorted(sigmas, reverse=True)


def test_img2img_starts_in_the_middle_of_the_schedule() -> None:
    pipe = StableDiffusion3Img2ImgPipeline(
        **{**tiny_pipeline(in_channels=16, out_channels=16).components, "vae": tiny_vae()}
    )
    pipe.set_progress_bar_config(disable=True)
    call = {**inputs(num_inference_steps=12), "latents": None, "strength": 0.5, "height": 32, "width": 48}
    call["image"] = torch.rand(1, 3, 32, 48)

    def seeded() -> dict[str, Any]:
        return {**call, "generator": torch.Generator().manual_seed(0)}

    dense = run(pipe, **seeded())
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **seeded())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    assert handle.trace.steps[0].sigma < 0.9
    assert (handle.trace.grid.height, handle.trace.grid.width) == (8, 12)  # type: ignore[union-attr]
    assert not torch.equal(fast, dense)
    assert torch.equal(run(pipe, **seeded()), dense)


def test_inpaint() -> None:
    pipe = StableDiffusion3InpaintPipeline(
        **{**tiny_pipeline(in_channels=16, out_channels=16).components, "vae": tiny_vae()}
    )
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 16:] = 1
    call = {**inputs(num_inference_steps=8), "latents": None, "strength": 0.75, "height": 32, "width": 48}
    call |= {"image": torch.rand(1, 3, 32, 48), "mask_image": mask}

    def seeded() -> dict[str, Any]:
        return {**call, "generator": torch.Generator().manual_seed(0)}

    dense = run(pipe, **seeded())
    with ras_dit.accelerate(pipe, REGION) as handle:
        fast = run(pipe, **seeded())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    assert torch.isfinite(fast).all()
    assert not torch.equal(fast, dense)
    assert torch.equal(run(pipe, **seeded()), dense)


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
    call = inputs(
        height=8, width=12, num_inference_steps=6, latents=torch.randn(1, 16, 16, 24), control_guidance_end=0.8
    )
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


def as_before(pipe: Any, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> torch.Tensor:
    """The pictures of a run that calls the ControlNet in every step."""
    with monkeypatch.context() as patched, ras_dit.accelerate(pipe, SKIPPING) as handle:
        patched.setattr(Generation, "will_skip", False)
        for name, value in changes.items():
            patched.setattr(handle._session, name, value)
        return run(pipe, **call)


def test_a_controlnet_is_left_out_where_the_transformer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, call = with_controlnet()
    expected = as_before(pipe, call, monkeypatch)
    with counted_calls(pipe) as seen, ras_dit.accelerate(pipe, SKIPPING) as handle:
        assert torch.equal(run(pipe, **call), expected)
        assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "skip", "region", "skip", "region"]
        assert len(seen) == 4
        assert handle._session._controlnet._results == []
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
    expected = as_before(pipe, call, monkeypatch, token_plan=plan)
    with counted_calls(pipe) as seen, ras_dit.accelerate(pipe, SKIPPING) as handle:
        handle._session.token_plan = plan
        assert torch.equal(run(pipe, **call), expected)
        assert [step.kind for step in handle.trace.steps] == ["dense", "dense", "skip", "region", "dense", "region"]
    assert len(seen) == 5
    assert "Not now." in handle.trace.notes


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

    expected = as_before_of(case, pipe, case.call() | {"callback_on_step_end": refuse}, plan, monkeypatch)
    with ras_dit.accelerate(pipe, SKIPPING) as handle:
        handle._session.token_plan = plan
        arguments = handle._session._seams[pipe.transformer].arguments
        pipe.transformer.register_forward_pre_hook(
            lambda module, *call: given.append(arguments(*call)["controlnet_block_samples"][0]), with_kwargs=True
        )
        assert torch.equal(case.output(pipe(**case.call(), callback_on_step_end=refuse)), expected)
        assert [step.kind for step in handle.trace.steps][:5] == ["dense", "dense", "skip", "region", "dense"]
    assert torch.equal(given[8], given[9])
    assert not torch.equal(given[8], given[6])


def as_before_of(
    case: Any, pipe: Any, call: dict[str, Any], plan: Any, monkeypatch: pytest.MonkeyPatch
) -> torch.Tensor:
    with monkeypatch.context() as patched, ras_dit.accelerate(pipe, SKIPPING) as handle:
        patched.setattr(Generation, "will_skip", False)
        handle._session.token_plan = plan
        return case.output(pipe(**call))


def test_a_list_that_the_transformer_empties_is_whole_in_the_next_step() -> None:
    """HunyuanDiT pops from what its ControlNet returned."""

    class Emptying(torch.nn.Module):
        def forward(self, number: int) -> tuple[list[torch.Tensor]]:
            return ([torch.full((1,), float(number)), torch.full((1,), 10.0 * number)],)

    run_under_way = SimpleNamespace(
        will_skip=False, index=0, plan=SimpleNamespace(steps=[SimpleNamespace(kind="skip")])
    )
    controlnet = Emptying()
    idle = IdleControlNet(controlnet, lambda: run_under_way)  # type: ignore[arg-type,return-value]
    controlnet(1)[0].clear()
    idle.end_evaluation()
    run_under_way.will_skip = True
    (blocks,) = controlnet(2)
    assert [float(block) for block in blocks] == [1.0, 10.0]
    paid = idle.paid((), {"blocks": blocks})
    assert paid is not None
    assert [float(block) for block in paid[1]["blocks"]] == [2.0, 20.0]
    assert idle.paid((), {"blocks": blocks}) == paid, "the second guidance call"
    idle.end_evaluation()
    assert idle.paid((), {"blocks": blocks}) is None
    with pytest.raises(ValueError, match="disable"):
        copy.deepcopy(controlnet)
    idle.release()
    assert vars(copy.deepcopy(controlnet)).keys() == vars(Emptying()).keys()


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
        assert handle._session._controlnet._results == []


def test_lora_follows_its_scale_at_run_time() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], lora_alpha=4))
    redraw(pipe.transformer, seed=4)
    check_contract(pipe, inputs())
    with ras_dit.accelerate(pipe, REGION):
        full = run(pipe, **inputs())
        half = run(pipe, **inputs(), joint_attention_kwargs={"scale": 0.5})
    assert not torch.equal(full, half)


def test_lora_loaded_from_a_file_fused_and_unfused(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    weights = get_peft_model_state_dict(pipe.transformer)
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=weights)

    pipe = tiny_pipeline()
    plain = run(pipe, **inputs())
    pipe.load_lora_weights(tmp_path)
    loaded = run(pipe, **inputs())
    assert not torch.equal(loaded, plain)
    check_contract(pipe, inputs())
    with ras_dit.accelerate(pipe, REGION):
        fast = run(pipe, **inputs())
        pipe.fuse_lora()
        assert torch.allclose(run(pipe, **inputs()), fast, atol=1e-3)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    assert torch.allclose(run(pipe, **inputs()), plain, atol=1e-4)
    pipe.load_lora_weights(tmp_path)
    pipe.fuse_lora()
    check_contract(pipe, inputs())


def test_lora_may_be_added_while_enabled() -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION):
        before = run(pipe, **inputs())
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        assert not torch.equal(run(pipe, **inputs()), before)
        pipe.transformer.delete_adapters("default")
        assert torch.equal(run(pipe, **inputs()), before)


@pytest.mark.parametrize("layer", ["proj_out", "context_embedder"])
def test_lora_of_the_first_and_the_last_layer_may_come_and_go_while_enabled(layer: str) -> None:
    """peft puts a module of its own in the layer's place, around which rows have to be put back."""
    pipe = tiny_pipeline()
    adapter = LoraConfig(r=2, target_modules=[layer], init_lora_weights=False)
    with ras_dit.accelerate(pipe, REGION):
        before = run(pipe, **inputs())
        torch.manual_seed(0)
        pipe.transformer.add_adapter(adapter)
        during = run(pipe, **inputs())
        assert not torch.equal(during, before)
    with ras_dit.accelerate(pipe, REGION):  # the hooks are put in with the adapter there
        assert torch.equal(run(pipe, **inputs()), during)
        pipe.transformer.delete_adapters("default")
        pipe.unload_lora_weights()
        assert type(pipe.transformer.get_submodule(layer)) is torch.nn.Linear
        assert torch.equal(run(pipe, **inputs()), before)
    assert not pipe.transformer.get_submodule(layer)._forward_hooks


def test_ip_adapter() -> None:
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    pipe = tiny_pipeline()
    transformer = pipe.transformer
    torch.manual_seed(0)
    projection = IPAdapterTimeImageProjection(
        embed_dim=12, output_dim=32, hidden_dim=64, depth=1, dim_head=64, heads=1, num_queries=3, timestep_in_dim=32
    )
    transformer.image_proj = projection.eval()
    processors = {
        name: SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=32, ip_hidden_states_dim=32, head_dim=16, timesteps_emb_dim=64
        )
        for name in transformer.attn_processors
    }
    transformer.set_attn_processor(processors)
    redraw(transformer, seed=7)

    def call(scale: float) -> dict[str, Any]:
        pipe.set_ip_adapter_scale(scale)
        return inputs(ip_adapter_image_embeds=torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2)))

    without = run(pipe, **call(0.0))
    check_contract(pipe, call(0.7))
    assert not torch.equal(run(pipe, **call(0.7)), without)
    adapted, plain = (Layers.of(SD3, each.transformer).linears for each in (pipe, tiny_pipeline()))
    added = adapted[:]
    for layer in plain:
        added.remove(layer)
    assert {stream for _, _, stream in added} == {"row"}, "the adapter's layers do not work on the picture"
    with ras_dit.accelerate(pipe, REGION.replace(text_reuse=True)) as handle:  # no text in its second call
        assert torch.isfinite(run(pipe, **call(0.7))).all()
    assert handle.summary().num_dense < 10
    assert not handle.summary().notes


def test_skip_layer_guidance_has_a_branch_of_its_own() -> None:
    pipe = tiny_pipeline()
    call = inputs(
        num_inference_steps=12,
        skip_guidance_layers=[1],
        skip_layer_guidance_start=0.2,
        skip_layer_guidance_stop=0.7,
        skip_layer_guidance_scale=2.0,
    )
    dense = run(pipe, **call)
    assert not torch.equal(dense, run(pipe, **inputs(num_inference_steps=12)))
    with ras_dit.accelerate(pipe, REGION) as handle, pytest.warns(ras_dit.RASWarning, match="guidance branch began"):
        fast = run(pipe, **call)
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 10
    assert len(handle.summary().notes) == 1
    assert torch.isfinite(fast).all()
    assert torch.equal(run(pipe, **call), dense)


def test_fused_projections() -> None:
    pipe = tiny_pipeline(qk_norm="rms_norm")
    pipe.transformer.fuse_qkv_projections()
    check_contract(pipe, inputs())


def test_layerwise_casting() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    check_contract(pipe, inputs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    pipe = tiny_pipeline(qk_norm="rms_norm").to(dtype)
    call = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs(batch=2).items()}
    check_contract(pipe, call)


def test_compiled_blocks_stay_whole_and_are_compiled_once_per_shape() -> None:
    """fullgraph=True, the same results as eager, and nothing compiled again after the first image of a shape."""
    torch.compiler.reset()
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.25, warmup_steps=2, refresh_steps=(6,))
    dense = run(pipe, **inputs())
    with ras_dit.accelerate(pipe, config):
        fast = run(pipe, **inputs())
    counter = CompileCounterWithBackend("aot_eager")
    for block in pipe.transformer.transformer_blocks:
        block.compile(fullgraph=True, backend=counter)
    with ras_dit.accelerate(pipe, config):
        assert torch.allclose(run(pipe, **inputs()), fast, atol=1e-5)
        assert counter.frame_count > 0
        num_compiled = counter.frame_count
        for seed in (2, 3):
            assert run(pipe, **inputs(seed=seed)).isfinite().all()
        assert torch.allclose(run(pipe, **inputs()), fast, atol=1e-5)
        assert counter.frame_count == num_compiled
    assert torch.allclose(run(pipe, **inputs()), dense, atol=1e-5)
    torch.compiler.reset()
