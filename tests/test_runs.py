"""Runs beside and after one another, short ones, skipped steps, offloading: state begins and ends with a run."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    UniPCMultistepScheduler,
)

import ras_dit
from checks import recorded
from families import one_case_per_class
from ras_dit import RASConfig, ScoreInputs
from ras_dit.forecast import TokenHistory
from ras_dit.importance import predicted_error
from ras_dit.models import TOKEN_PLANS
from ras_dit.selection import top_k
from ras_dit.state import TEXT_REPLACED, Generation
from tiny import REGION, inputs, run, tiny_pipeline, tiny_vae


def test_different_calls_one_after_the_other() -> None:
    calls = [inputs(), inputs(batch=2, height=5, width=9), inputs(guidance_scale=1.0, num_inference_steps=6), inputs()]
    alone = []
    for call in calls:
        pipe = tiny_pipeline()
        ras_dit.enable(pipe, REGION)
        alone.append(run(pipe, **call))
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    for call, expected in zip(calls, alone, strict=True):
        assert torch.equal(run(pipe, **call), expected)


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    pipe = tiny_pipeline()
    ras_dit.enable(pipe, REGION)
    both = inputs(batch=2)
    together = run(pipe, **both)
    for index in range(2):
        one = {k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in both.items()}
        assert (run(pipe, **one) - together[index : index + 1]).abs().max() < 1e-3  # batched kernels round differently


def test_two_pipelines_interleaved_and_in_threads() -> None:
    def make(seed: int) -> Any:
        return tiny_pipeline(seed, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))

    alone = []
    for seed in (0, 1):
        pipe = make(seed)
        ras_dit.enable(pipe, REGION)
        alone.append(run(pipe, **inputs(seed=seed)))
    first, second = make(0), make(1)
    ras_dit.enable(first, REGION)
    ras_dit.enable(second, REGION)
    inner: list[torch.Tensor] = []

    def nested(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            inner.append(run(second, **inputs(seed=1)))
        return tensors

    assert torch.equal(run(first, **inputs(seed=0, callback_on_step_end=nested)), alone[0])
    assert torch.equal(inner[0], alone[1])

    def work(index: int, pipe: Any) -> list[torch.Tensor]:
        torch.set_num_threads(1)
        return [run(pipe, **inputs(seed=index)) for _ in range(3)]

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(work, (0, 1), (first, second)))
    for pictures, expected in zip(results, alone, strict=True):
        assert len(pictures) == 3
        assert all(torch.equal(picture, expected) for picture in pictures)


def test_a_scheduler_swapped_while_enabled_is_observed() -> None:
    pipe = tiny_pipeline()
    handle = ras_dit.enable(pipe, REGION)
    first = pipe.scheduler
    run(pipe, **inputs())
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    run(pipe, **inputs())
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 8
    handle.disable()
    assert "step" not in vars(first)
    assert "step" not in vars(pipe.scheduler)


def test_a_copied_scheduler_is_on_its_own() -> None:
    pipe = tiny_pipeline()
    theirs: Any = lambda *args, **kwargs: "theirs"  # noqa: E731
    pipe.scheduler.set_timesteps = theirs
    with ras_dit.accelerate(pipe, REGION):
        copied = copy.deepcopy(pipe.scheduler)
        assert vars(copied)["set_timesteps"] is theirs, "what the user had set goes along, our wrapper does not"
        assert "step" not in vars(copied)
        assert copied.sigmas is not pipe.scheduler.sigmas
        assert torch.equal(copied.sigmas, pipe.scheduler.sigmas)
        assert "__deepcopy__" not in vars(copied)
    assert "__deepcopy__" not in vars(pipe.scheduler)
    assert pipe.scheduler.set_timesteps is theirs


def test_pipelines_made_of_the_same_parts_share_it() -> None:
    pipe = tiny_pipeline(in_channels=16, out_channels=16)
    handle = ras_dit.enable(pipe, REGION)
    img2img = StableDiffusion3Img2ImgPipeline.from_pipe(pipe, vae=tiny_vae())
    img2img.set_progress_bar_config(disable=True)
    call = {**inputs(num_inference_steps=12), "latents": None, "strength": 0.5, "height": 32, "width": 48}
    run(img2img, **call, image=torch.rand(1, 3, 32, 48))
    assert [step.kind for step in handle.trace.steps] == ["dense"] * 2 + ["region"] * 4
    ras_dit.disable(img2img)
    assert not handle.is_enabled


@pytest.mark.parametrize("steps", [5, 7, 10])
def test_short_runs(steps: int) -> None:
    pipe = tiny_pipeline()
    for config in (RASConfig(sample_ratio=0.25), RASConfig.preset("regions"), RASConfig.reference(0.25, start_step=4)):
        with ras_dit.accelerate(pipe, config) as handle:
            assert torch.isfinite(run(pipe, **inputs(num_inference_steps=steps))).all()
        assert len(handle.trace.steps) == steps
        assert any(step.kind == "region" for step in handle.trace.steps)


def test_nothing_is_kept_after_a_run_nor_after_disable() -> None:
    def all_key_like() -> list[torch.Tensor]:
        gc.collect()
        return [
            x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.dim() == 4 and x.shape[2:] == (96 + 7, 16)
        ]

    def key_like() -> int:
        return len(all_key_like())

    of_other_tests = all_key_like()  # held, so that none of them is freed in the middle of this one
    pipe = tiny_pipeline()
    held: list[int] = []

    def count(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(key_like())
        return tensors

    before = key_like()
    assert before == len(of_other_tests)
    handle = ras_dit.enable(pipe, REGION.replace(refresh_steps=[5], end_step=7))
    run(pipe, **inputs(callback_on_step_end=count))
    layers = 2 * 3
    assert held == [before] + [before + layers] * 6 + [before] * 3

    def fail(_pipe: Any, index: int, _t: Any, _tensors: Any) -> Any:
        if index == 4:
            raise RuntimeError
        return {}

    with pytest.raises(RuntimeError):
        run(pipe, **inputs(callback_on_step_end=fail))
    handle.disable()
    assert key_like() == before


def test_skipped_steps_compute_nothing() -> None:
    pipe = tiny_pipeline()
    calls = []
    hook = pipe.transformer.proj_out.register_forward_hook(lambda *_: calls.append(1))
    dense = run(pipe, **inputs())
    calls.clear()
    config = RASConfig(sample_ratio=0.25, warmup_steps=3, skip_steps=(3, 8))
    with ras_dit.accelerate(pipe, config) as handle:
        fast = run(pipe, **inputs())
    assert len(calls) == 8
    assert [handle.trace.steps[i].kind for i in (3, 4, 8)] == ["skip", "region", "skip"]
    assert handle.trace.token_steps == pytest.approx(3 + 5 * 0.25)
    assert handle.trace.steps[3].active.shape == (1, 0)  # type: ignore[union-attr]
    assert torch.isfinite(fast).all()
    hook.remove()
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(run(pipe, **inputs()), dense)


class TestModelCpuOffload:
    """accelerate takes every hook off and puts it on again after each picture."""

    @pytest.mark.parametrize("config", [REGION, REGION.replace(skip_steps=[5])], ids=["region", "skip"])
    @pytest.mark.parametrize("is_offloaded_first", [True, False])
    def test_runs_alike(self, config: RASConfig, is_offloaded_first: bool) -> None:
        pipe = tiny_pipeline()
        dense = run(pipe, **inputs())
        with ras_dit.accelerate(pipe, config):
            expected = run(pipe, **inputs())
        if is_offloaded_first:
            pipe.enable_model_cpu_offload(device="cpu")
        handle = ras_dit.enable(pipe, config)
        if not is_offloaded_first:
            pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(3):
            assert torch.equal(run(pipe, **inputs()), expected)
            assert handle.trace.token_steps < 6
        handle.disable()
        assert torch.equal(run(pipe, **inputs()), dense)
        pipe.remove_all_hooks()
        assert (
            "forward" not in vars(pipe.transformer)
            or pipe.transformer.forward.__func__ is type(pipe.transformer).forward
        )
        assert torch.equal(run(pipe, **inputs()), dense)


@pytest.mark.parametrize("name", ["Lumina2Transformer2DModel", "ZImageTransformer2DModel"])
def test_tables_that_all_blocks_are_given_alike_are_cut_once_a_step(name: str) -> None:
    case = one_case_per_class()[name]
    pipe, given = case.build(), []

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = handle._session._call
        if call is not None and call.kind == "region":
            table = (
                next(kwargs[key] for key in ("image_rotary_emb", "freqs_cis") if key in kwargs) if kwargs else args[2]
            )
            given.append((call, table))

    with ras_dit.accelerate(pipe, REGION) as handle:
        for block in pipe.transformer.layers:
            block.register_forward_pre_hook(look, with_kwargs=True)
        pipe(**case.call())
    assert given
    by_call: dict[int, set[int]] = {}
    for call, table in given:
        by_call.setdefault(id(call), set()).add(id(table))
    assert len(pipe.transformer.layers) > 1
    assert all(len(tables) == 1 for tables in by_call.values())


def test_rows_are_laid_out_once_for_both_guidance_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    case = one_case_per_class()["QwenImageTransformer2DModel"]
    made: list[int] = []
    original = Generation._rows
    monkeypatch.setattr(Generation, "_rows", lambda self, count: (made.append(self.index), original(self, count))[1])
    pipe = case.build()
    with ras_dit.accelerate(pipe, REGION) as handle:
        pipe(**case.call())
    regions = [index for index, step in enumerate(handle.trace.steps) if step.kind == "region"]
    assert case.num_calls == 2
    assert made == regions


def replaced_text(index: int) -> dict[str, Any]:
    """Arguments of a call whose prompt a callback replaces after a step, as a schedule of prompts does."""
    other = inputs(seed=9)

    def replace(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == index:
            tensors["prompt_embeds"] = torch.cat([other["negative_prompt_embeds"], other["prompt_embeds"]])
        return tensors

    return inputs(callback_on_step_end=replace, callback_on_step_end_tensor_inputs=["prompt_embeds"])


@pytest.mark.parametrize(
    ("skipped", "expected"),
    [((), [7] * 2 + [0] * 3 + [7] + [0] * 4), ((5,), [7] * 2 + [0] * 3 + [7] + [0] * 4)],
)
def test_text_that_is_replaced_midway_is_computed(skipped: tuple[int, ...], expected: list[int]) -> None:
    """Reused keys and values would be those of the old one, and so would be the forecast of a skipped step."""
    pipe = tiny_pipeline()
    computed: list[int] = []
    with ras_dit.accelerate(pipe, REGION.replace(text_reuse=True, skip_steps=skipped)):
        pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs: computed.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
        )
        plain = run(pipe, **inputs())
        assert computed == [7] * 2 + [0] * (8 - len(skipped))
        computed.clear()
        run(pipe, **replaced_text(index=4))
        assert computed == expected
        assert torch.equal(run(pipe, **inputs()), plain)


@pytest.mark.parametrize(
    "config",
    [
        RASConfig(step_ratios=(1, 1, 1, 0, 1, 0, 0, 1, 0, 1), forecast_order=1, forecast_damping=1.0),
        REGION,
        REGION.replace(kv_forecast=0.5),
        REGION.replace(static_memory=True),
    ],
)
@pytest.mark.parametrize("at", [3, 4])
def test_noise_of_another_prompt_is_no_ground_for_a_forecast(config: RASConfig, at: int) -> None:
    """The step that first sees the new prompt is computed whole, and the next one reuses that alone."""
    pipe = tiny_pipeline()
    given: list[torch.Tensor] = []
    with ras_dit.accelerate(pipe, config) as handle:
        plain = run(pipe, **inputs())
        assert handle.summary().notes == ()
        hook = pipe.transformer.register_forward_hook(lambda module, args, output: given.append(output[0].clone()))
        run(pipe, **replaced_text(index=at))
        hook.remove()
        step, after = handle.trace.steps[at + 1 : at + 3]
        assert step.kind == "dense"
        if handle.latest_plan[at + 1].kind != "dense":
            assert "The text was replaced" in " ".join(handle.summary().notes)
        if after.kind == "skip":
            assert torch.equal(given[at + 2], given[at + 1])
        assert torch.equal(run(pipe, **inputs()), plain)


@pytest.mark.parametrize("is_wholly_dense", [True, False])
def test_a_second_order_step_takes_no_slope_from_another_prompt(is_wholly_dense: bool) -> None:
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=1.0, skip_steps=() if is_wholly_dense else (8,), solver_order=2)
    raw: list[torch.Tensor] = []
    given: list[torch.Tensor] = []
    pipe.transformer.register_forward_hook(lambda module, args, output: raw.append(output[0].clone()))
    with ras_dit.accelerate(pipe, config):
        pipe.transformer.register_forward_hook(lambda module, args, output: given.append(output[0].clone()))
        run(pipe, **replaced_text(index=4))
    assert not torch.equal(given[4], raw[4])
    assert torch.equal(given[5], raw[5]), "the first noise of the new prompt stands alone"
    assert not torch.equal(given[6], raw[6])


def test_tokens_are_not_ranked_by_how_far_the_noise_of_one_prompt_is_from_that_of_another() -> None:
    """Behind the step that first sees the new prompt no slope is known, and the norm of its noise stands in."""
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION) as handle, recorded(pipe) as noises:
        run(pipe, **replaced_text(index=4))
    assert [step.kind for step in handle.trace.steps[4:7]] == ["region", "dense", "region"]
    unconditional, conditional = noises[5].chunk(2)
    guided = unconditional + inputs()["guidance_scale"] * (conditional - unconditional)
    grid, active = handle.trace.grid, handle.trace.steps[6].active
    assert grid is not None
    assert active is not None
    assert torch.equal(active, top_k(grid.patchify(guided).norm(dim=-1), 24))


def test_text_that_is_overwritten_where_it_lies_is_another() -> None:
    pipe, other = tiny_pipeline(), inputs(seed=9)

    def overwrite(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            tensors["prompt_embeds"].copy_(torch.cat([other["negative_prompt_embeds"], other["prompt_embeds"]]))
        return tensors

    call = inputs(callback_on_step_end=overwrite, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with ras_dit.accelerate(pipe, REGION) as handle:
        overwritten = run(pipe, **call)
        assert [step.kind[0] for step in handle.trace.steps] == list("ddrrrdrrrr")
        assert handle.summary().notes == (TEXT_REPLACED,)
        assert torch.equal(run(pipe, **replaced_text(index=4)), overwritten)


def test_a_prompt_that_is_replaced_by_copies_of_one_is_one() -> None:
    """A callback that hands out the same new text in tensors of its own, step after step."""
    pipe, other = tiny_pipeline(), inputs(seed=9)

    def replace(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step >= 4:
            tensors["prompt_embeds"] = torch.cat([other["negative_prompt_embeds"], other["prompt_embeds"]])
        return tensors

    call = inputs(callback_on_step_end=replace, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **call)
    kinds = [step.kind for step in handle.trace.steps]
    assert kinds == ["dense"] * 2 + ["region"] * 3 + ["dense"] + ["region"] * 4


def test_text_that_is_made_anew_for_every_call_is_not_taken_for_another() -> None:
    pipe = tiny_pipeline()

    def anew(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "encoder_hidden_states": kwargs["encoder_hidden_states"].clone()}

    with ras_dit.accelerate(pipe, "balanced") as handle:
        plain = run(pipe, **inputs(num_inference_steps=20))
        pipe.transformer.register_forward_pre_hook(anew, with_kwargs=True, prepend=True)
        assert torch.equal(run(pipe, **inputs(num_inference_steps=20)), plain)
        assert handle.summary().notes == ()


@pytest.mark.parametrize("name", sorted(name for name, plan in TOKEN_PLANS.items() if plan.text_rows is not None))
def test_the_text_that_can_be_reused_is_known(name: str) -> None:
    case = one_case_per_class()[name]
    pipe, seen = case.build(), []
    hook = pipe.transformer.register_forward_pre_hook(lambda *call: seen.append(call[1:]), with_kwargs=True)
    pipe(**case.call())
    hook.remove()
    signature = inspect.signature(type(pipe.transformer).forward)
    given = [signature.bind_partial(pipe.transformer, *args, **kwargs).arguments for args, kwargs in seen]
    assert all(TOKEN_PLANS[name].texts(arguments) for arguments in given)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_score_of_ones_own(batch: int) -> None:
    """It sees what the library's own score goes by, and chooses what it wants."""
    pipe, call, config = tiny_pipeline(), inputs(batch=batch), REGION.replace(skip_steps=(4,))
    with ras_dit.accelerate(pipe, config) as handle:
        expected, sets = run(pipe, **call), [step.active for step in handle.trace.steps]
    seen: list[ScoreInputs] = []

    def predicted(given: ScoreInputs) -> torch.Tensor:
        seen.append(given)
        history = TokenHistory(2)
        history.values, history.sigmas = given.values, given.value_sigmas
        return predicted_error(history, given.sigma)

    with ras_dit.accelerate(pipe, config.replace(importance="random"), score=predicted) as handle:
        assert torch.equal(run(pipe, **call), expected)
    assert [given.index for given in seen] == [2, 3, 5, 6, 7, 8, 9]
    for given in seen:
        assert given.noise.shape == given.latents.shape
        assert given.noise.shape[:2] == given.age.shape == (batch, given.grid.num_tokens)
        assert given.num_active == 24
        assert given.sigma > given.next_sigma
    sigmas = [step.sigma for step in handle.trace.steps]
    for before, after in itertools.pairwise(seen[2:]):  # of steps that follow one another
        moved = before.latents + (before.sigma - sigmas[before.index - 1]) * before.noise
        assert torch.allclose(after.latents, moved, atol=1e-5), "they are those that go with the noise"
    replayed = iter([active for active in sets if active is not None and active.shape[1]])
    masks = lambda given: torch.zeros_like(given.age).scatter(1, next(replayed), 1)  # noqa: E731
    with ras_dit.accelerate(pipe, config, score=masks) as handle:
        assert torch.equal(run(pipe, **call), expected), "sets of an earlier run, once more"


def test_a_score_of_another_shape_is_refused() -> None:
    pipe = tiny_pipeline()
    refused = pytest.raises(ValueError, match=r"score: got a tensor \[1, 96, 16\]; allowed: .* here \[1, 96\]")
    with ras_dit.accelerate(pipe, REGION, score=lambda given: given.noise), refused:
        run(pipe, **inputs())
    unknown = pytest.raises(ValueError, match="score: got NaN")
    with ras_dit.accelerate(pipe, REGION, score=lambda given: given.age * torch.nan), unknown:
        run(pipe, **inputs())
    with pytest.raises(ValueError, match="score: got str; allowed: a function"):
        ras_dit.enable(pipe, REGION, score="std")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="score: got one with a plan without region steps"):
        ras_dit.enable(pipe, score=lambda given: given.age)
    with pytest.raises(ValueError, match="score: got one with rules='reference'"):
        ras_dit.enable(pipe, RASConfig.reference(0.5), score=lambda given: given.age)
    assert ras_dit.handle_of(pipe) is None


def test_masks_say_what_every_evaluation_computed() -> None:
    pipe = tiny_pipeline()
    config = RASConfig(sample_ratio=0.25, warmup_steps=3, skip_steps=(3, 8))
    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **inputs(batch=2))
    trace = handle.trace
    masks = trace.masks()
    assert trace.grid is not None
    assert masks.dtype == torch.bool
    assert masks.shape == (len(trace.steps), 2, trace.grid.height, trace.grid.width)
    for mask, step in zip(masks, trace.steps, strict=True):
        if step.kind == "dense":
            assert mask.all()
        elif step.kind == "skip":
            assert not mask.any()
        else:
            assert step.active is not None
            assert [row.flatten().nonzero()[:, 0].tolist() for row in mask] == step.active.tolist()
    assert {step.kind for step in trace.steps} == {"dense", "region", "skip"}
    assert torch.equal(masks.sum(dim=0), trace.times_computed())
    video = ras_dit.Trace(ras_dit.TokenGrid(2, 3, 1, num_frames=4), trace.steps[:1])
    assert video.masks().shape == (1, 1, 4, 2, 3)
    assert video.masks().all()
    with pytest.raises(ValueError, match="got no generation yet"):
        ras_dit.Trace().masks()


def test_traces_in_files(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    with ras_dit.accelerate(pipe, REGION) as handle:
        run(pipe, **inputs())
    trace, path = handle.trace, tmp_path / "traces" / "fox.json"
    trace.save(path)
    assert [found.name for found in path.parent.iterdir()] == ["fox.json"]
    values = json.loads(path.read_text())
    assert values["grid"]["height"] == trace.grid.height  # type: ignore[union-attr]
    assert ras_dit.Trace.load(str(path)).to_dict() == trace.to_dict()
    earlier = tmp_path / "earlier.trace.json"  # as `generate --trace` wrote it before grids had names
    earlier.write_text(json.dumps({**values, "grid": list(values["grid"].values())}))
    assert ras_dit.Trace.load(earlier).to_dict() == trace.to_dict()
    earlier.write_text(json.dumps({**values, "grid": [6, 8, 2]}))
    assert ras_dit.Trace.load(earlier).grid == ras_dit.TokenGrid(6, 8, 2)
    ras_dit.Trace().save(path)
    assert ras_dit.Trace.load(path) == ras_dit.Trace()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "got text that is no JSON"),
        ("[]", "got values that are no trace"),
        ('{"steps": []}', "got values that are no trace"),
        ('{"grid": {"rows": 3}, "steps": []}', "got values that are no trace"),
        ('{"grid": null, "steps": [{"kind": "half", "sigma": 1, "active": null}]}', "kind 'half'; allowed: dense, "),
    ],
)
def test_files_that_hold_no_trace(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "fox.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"fox.json could not be read: trace: .*{why}"):
        ras_dit.Trace.load(path)
    with pytest.raises(ValueError, match=r"trace: got .*other\.json', which is no file; give a \.json file"):
        ras_dit.Trace.load(tmp_path / "other.json")
    for act in (ras_dit.Trace.load, ras_dit.Trace().save):
        with pytest.raises(ValueError, match=r"got the file name .fox\.yaml.; allowed: one ending in \.json"):
            act(path.with_suffix(".yaml"))
    assert not path.with_suffix(".yaml").exists()
