"""What holds for every supported transformer class, on tiny real pipelines: see tests/families for the cases."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ras_dit
from checks import fingerprint, moving_by, recorded
from families import all_cases, one_case_per_class
from families.case import FamilyCase
from ras_dit import RASConfig
from ras_dit.models import TOKEN_PLANS, token_plan_of
from ras_dit.pipeline import transformers_of
from ras_dit.remarks import RASWarning
from ras_dit.seams import PatchedMethod

REGION = RASConfig(sample_ratio=0.25, warmup_steps=2)
CASES = {case.name: case for case in all_cases()}
ONE_PER_CLASS = [case.name for case in one_case_per_class().values()]
REUSES_TEXT = [case.name for cls, case in one_case_per_class().items() if TOKEN_PLANS[cls].text_rows is not None]
REFERENCES = [
    "flux-kontext",
    "flux2-references",
    "flux2-klein-references",
    "joyimage-edit",
    "joyimage-edit-plus",
    "joyimage-mrope",
    "qwen-image-edit",
    "qwen-image-edit-plus",
    "qwen-image-layered",
]
REFERENCES = [name for name in REFERENCES if name in CASES]  # an older diffusers has fewer
INSEPARABLE = {"omnigen-edit", *(name for name in CASES if name.startswith("framepack"))}
"""Cases whose arguments cannot be taken apart by image: all images of a batch share one active set."""
REUSES = (
    [(name, {"text_reuse": True}) for name in dict.fromkeys([*REUSES_TEXT, *REFERENCES])]
    + [(name, {"reference_reuse": True}) for name in REFERENCES]
    + [(name, {"text_reuse": True, "reference_reuse": True}) for name in REFERENCES]
)


def run(case: FamilyCase, pipe: Any, size: tuple[int, int, int]) -> torch.Tensor:
    """The latents of a call; whatever draws from the global generator draws the same every time."""
    torch.manual_seed(0)
    batch, height, width = size
    return case.output(pipe(**case.call(batch=batch, height=height, width=width)))


def sizes_of(case: FamilyCase) -> list[tuple[int, int, int]]:
    """One case per class goes through all of its sizes, other pipelines of the class through the last, a batch."""
    sizes = [(min(batch, case.max_batch), height, width) for batch, height, width in case.sizes]
    return sizes if case.name in ONE_PER_CLASS else sizes[-1:]


def region_noises(
    case: FamilyCase, pipe: Any, size: tuple[int, int, int], factor: float, **options: Any
) -> tuple[list[torch.Tensor], ras_dit.Trace]:
    """The noise of every transformer call of a region run over a scheduler that moves by a factor, and the trace."""
    config = RASConfig(sample_ratio=0.3, warmup_steps=2, importance="random", token_multiple=16, **options)
    with moving_by(pipe, factor, case.reads_sigmas), ras_dit.accelerate(pipe, config) as handle, recorded(pipe) as seen:
        run(case, pipe, size)
    return seen, handle.trace


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_idle_ratio_one_region_and_undo(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    for size in sizes_of(case):
        dense = run(case, pipe, size)
        before = fingerprint(pipe)
        assert dense.isfinite().all()
        assert dense.std() > 0
        assert torch.equal(run(case, pipe, size), dense), "the case itself is repeatable"
        with ras_dit.accelerate(pipe, RASConfig(sample_ratio=1.0)):
            assert torch.equal(run(case, pipe, size), dense)
        with ras_dit.accelerate(pipe, REGION) as handle:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ras_dit.RASWarning)
                warnings.simplefilter("ignore", ras_dit.AdviceWarning)
                for note in case.notes:
                    warnings.filterwarnings("ignore", note, ras_dit.RASWarning)
                fast = run(case, pipe, size)
            assert torch.equal(run(case, pipe, size), fast), "a second run gives the same"
            for note in case.notes:
                assert any(re.match(note, said) for said in handle.summary().notes)
        assert fast.isfinite().all()
        assert fast.shape == dense.shape
        assert not torch.equal(fast, dense)
        plan = handle.latest_plan
        assert plan is not None
        assert [step.kind for step in handle.trace.steps] == [step.kind for step in plan]
        assert plan.num_region_steps >= len(plan) // 2
        check_trace(handle.trace, plan, (size[0] * case.samples_per_image, *size[1:]))
        assert fingerprint(pipe) == before
        assert torch.equal(run(case, pipe, size), dense)


def check_trace(trace: ras_dit.Trace, plan: Any, size: tuple[int, int, int]) -> None:
    batch, height, width = size
    assert trace.grid is not None
    assert (trace.grid.height, trace.grid.width) == (height, width)
    for step, planned in zip(trace.steps, plan, strict=True):
        if step.kind == "region":
            assert step.active is not None
            assert step.active.shape == (batch, planned.num_active)
            assert planned.num_active < trace.num_tokens
            assert (step.active.diff(dim=1) > 0).all()
            assert int(step.active.min()) >= 0
            assert int(step.active.max()) < trace.num_tokens
    assert trace.times_computed().numel() == batch * trace.num_tokens


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_fresh_keys_and_values_give_the_dense_tokens(name: str) -> None:
    """On an input that stays the same every step, region steps give what the dense ones gave: difference 0.0.

    So do forecast keys and values: their slopes are zero.
    """
    case = CASES[name]
    pipe = case.build()
    for size, kv_forecast in zip(sizes_of(case), cycle((0.0, 0.8)), strict=False):
        in_turn = size[0] > 1 and name not in INSEPARABLE and not token_plan_of(pipe.transformer).has_batched_positions
        for is_shared in (False, True)[: 1 + in_turn]:
            # one image at a time, a vector per row of the batch is multiplied alone, and may round differently
            rounding = 1e-5 if in_turn and not is_shared else case.rounding
            options = {"kv_forecast": kv_forecast, "shared_active_set": is_shared}
            outputs, trace = region_noises(case, pipe, size, factor=1.0, **options)
            assert len(outputs) == case.num_calls * len(trace.steps)
            assert trace.steps[-1].kind == "region"
            grid = trace.grid
            assert grid is not None
            for index, output in enumerate(outputs):
                dense = outputs[index % case.num_calls]
                difference = grid.patchify(output) - grid.patchify(dense)
                assert difference.abs().max() <= rounding, f"call {index} of size {size}, {is_shared}"


@pytest.mark.parametrize(
    ("name", "reuse"), REUSES, ids=lambda value: "-".join(value) if isinstance(value, dict) else value
)
@torch.no_grad()
def test_what_is_not_computed_beside_the_grid_serves_as_it_was(name: str, reuse: dict[str, Any]) -> None:
    """As above, with text or references computed in dense steps only; what is computed is what the cost says."""
    case = CASES[name]
    pipe = case.build()
    for size, kv_forecast in zip(sizes_of(case), cycle((0.8, 0.0)), strict=False):
        outputs, trace = region_noises(case, pipe, size, factor=1.0, kv_forecast=kv_forecast, **reuse)
        assert trace.steps[-1].kind == "region"
        grid = trace.grid
        assert grid is not None
        for index, output in enumerate(outputs):
            difference = grid.patchify(output) - grid.patchify(outputs[index % case.num_calls])
            assert difference.abs().max() < 1e-5, f"call {index} of size {size}"
    size = sizes_of(case)[0]
    counted: list[float] = []
    rows: list[int] = []
    config = REGION.replace(**reuse)
    with ras_dit.accelerate(pipe, config) as handle, counting(pipe, counted, rows), sdpa_kernel(SDPBackend.MATH):
        reused = run(case, pipe, size)
    plan = handle.latest_plan
    assert plan is not None
    assert plan.cost is not None
    assert plan.cost.total_flops * sum(rows) / len(plan) == pytest.approx(sum(counted), rel=case.flops_tolerance)
    with ras_dit.accelerate(pipe, REGION) as handle:
        assert not torch.equal(run(case, pipe, size), reused)
    whole = handle.latest_plan
    assert whole is not None
    assert whole.speedup_limit < plan.speedup_limit


def test_reuse_is_refused_where_it_is_not_known_to_work() -> None:
    pipe = one_case_per_class()["PixArtTransformer2DModel"].build()
    with pytest.raises(ValueError, match="text_reuse: got PixArtTransformer2DModel; allowed: AuraF"):
        ras_dit.enable(pipe, RASConfig(text_reuse=True))
    with pytest.raises(ValueError, match="reference_reuse: got PixArtTransformer2DModel; allowed: Flux2Tr"):
        ras_dit.enable(pipe, RASConfig(reference_reuse=True))


@torch.no_grad()
def test_an_edit_is_told_of_reference_reuse() -> None:
    case = CASES["flux-kontext"]
    pipe, size = case.build(), case.sizes[0]
    told = []
    for config in (REGION, REGION.replace(reference_reuse=True), RASConfig(sample_ratio=1.0)):
        with ras_dit.accelerate(pipe, config) as handle:
            run(case, pipe, size)
        told.append([advice for advice in handle.summary().advice if "64 reference tokens" in advice])
    assert [len(advice) for advice in told] == [1, 0, 0]


@torch.no_grad()
def test_reference_reuse_without_references_is_noted_and_changes_nothing() -> None:
    case = CASES["flux"]
    pipe, size = case.build(), sizes_of(case)[0]
    with ras_dit.accelerate(pipe, REGION):
        computed = run(case, pipe, size)
    with ras_dit.accelerate(pipe, REGION.replace(reference_reuse=True)) as handle:
        assert torch.equal(run(case, pipe, size), computed)
    assert any("no reference tokens" in note for note in handle.summary().notes)


def calling_thrice(transformer: Any) -> bool:
    """Make every call of a transformer three calls, with other texts in the second and third, as guiders do that skip
    a layer or perturb attention. The first one's result counts. False where there are no embeddings to change."""
    once = type(transformer)
    signature = inspect.signature(once.forward)
    texts = [
        name
        for name in signature.parameters
        if ("encoder_hidden_states" in name or name == "cap_feats") and "mask" not in name and "image" not in name
    ]

    def scaled(value: Any, factor: float) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(scaled(part, factor) for part in value)
        is_text = isinstance(value, torch.Tensor) and value.is_floating_point()
        return factor * value if is_text else value

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = []
        for factor in (1.0, 0.5, -1.0):
            bound = signature.bind(self, *args, **kwargs)
            for name in texts:
                if name in bound.arguments:
                    bound.arguments[name] = scaled(bound.arguments[name], factor)
            results.append(once.__call__(self, *bound.args[1:], **bound.kwargs))
        return results[0]

    transformer.__class__ = type(f"Thrice{once.__name__}", (once,), {"__call__": call, "forward": once.forward})
    return bool(texts)


@pytest.mark.parametrize("name", ONE_PER_CLASS)
@torch.no_grad()
def test_three_calls_per_evaluation_keep_their_own_memory(name: str) -> None:
    """Guidance in three calls, whatever layout the pipeline itself has: every call gives what its dense one gave."""
    case = CASES[name]
    pipe = case.build()
    have_texts = calling_thrice(pipe.transformer)
    outputs, trace = region_noises(case, pipe, sizes_of(case)[0], factor=1.0)
    num_calls = 3 * case.num_calls
    assert len(outputs) == num_calls * len(trace.steps)
    assert trace.steps[-1].kind == "region"
    grid = trace.grid
    assert grid is not None
    for index, output in enumerate(outputs):
        difference = grid.patchify(output) - grid.patchify(outputs[index % num_calls])
        assert difference.abs().max() == 0.0, f"call {index}"
    assert all(torch.equal(outputs[0], outputs[i]) != have_texts for i in (1, 2)), "the calls differ"


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_stale_keys_and_values_differ(name: str) -> None:
    """Negative control: on an input that moves, a region step is not the dense run's."""
    case = CASES[name]
    pipe = case.build()
    size = sizes_of(case)[0]
    stale, trace = region_noises(case, pipe, size, factor=0.8)
    with moving_by(pipe, 0.8, case.reads_sigmas), recorded(pipe) as dense:
        run(case, pipe, size)
    grid, active = trace.grid, trace.steps[2].active
    assert grid is not None
    assert active is not None
    index = 2 * case.num_calls
    for got, expected in zip(stale[:index], dense[:index], strict=True):
        assert torch.equal(got, expected), "dense steps"
    rows = grid.patchify(stale[index])[:1, active[0]] - grid.patchify(dense[index])[:1, active[0]]
    assert rows.abs().max() > 1e-6


@pytest.mark.parametrize("name", ONE_PER_CLASS)
@torch.no_grad()
def test_skipped_steps_and_forecast_keys(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    size = sizes_of(case)[-1]
    dense = run(case, pipe, size)
    with ras_dit.accelerate(pipe, REGION.replace(skip_steps=(4,), kv_forecast=0.8)) as handle:
        fast = run(case, pipe, size)
    assert fast.isfinite().all()
    kinds = [step.kind for step in handle.trace.steps]
    assert kinds[3:6] == ["region", "skip", "region"]
    assert torch.equal(run(case, pipe, size), dense)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_images_of_a_batch_have_their_own_sets_or_share_one(name: str) -> None:
    case = CASES[name]
    if case.max_batch < 2:
        pytest.skip("the pipeline takes one image at a time")
    pipe, config = case.build(), REGION.replace(importance="random")
    for is_shared in (False, True):
        with ras_dit.accelerate(pipe, config.replace(shared_active_set=is_shared)) as handle:
            run(case, pipe, (2, 4, 6))
        sets = [step.active for step in handle.trace.steps if step.active is not None]
        are_alike = all(torch.equal(active[0], active[1]) for active in sets)
        assert are_alike == (is_shared or name in INSEPARABLE)
        is_told = any("share one active set" in note for note in handle.summary().notes)
        assert is_told == (name in INSEPARABLE and not is_shared)


@torch.no_grad()
def test_the_authors_rules_share_one_set_where_ours_do() -> None:
    case, config = CASES["flux"], RASConfig.reference(0.25, start_step=2)
    pipe = case.build()
    for is_shared in (False, True):
        with ras_dit.accelerate(pipe, config.replace(shared_active_set=is_shared)) as handle:
            assert run(case, pipe, (2, 4, 6)).isfinite().all()
        sets = [step.active for step in handle.trace.steps if step.active is not None]
        assert sets
        assert all(torch.equal(active[0], active[1]) for active in sets) == is_shared


@torch.no_grad()
def test_the_authors_rules_know_of_no_given_first_frame() -> None:
    case = CASES["hunyuan-video-i2v-replace"]
    pipe, size = case.build(), sizes_of(case)[0]
    dense = run(case, pipe, size)
    with (
        ras_dit.accelerate(pipe, RASConfig.reference(0.25, start_step=2)) as handle,
        pytest.warns(RASWarning, match="given first frame"),
    ):
        assert torch.equal(run(case, pipe, size), dense)
    assert {step.kind for step in handle.trace.steps} == {"dense"}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_flops_agree_with_torchs_counter(name: str) -> None:
    """The planned cost against what torch counts in the transformer calls of a whole region run."""
    case = CASES[name]
    pipe = case.build()
    counted: list[float] = []
    rows: list[int] = []
    with ras_dit.accelerate(pipe, REGION) as handle, counting(pipe, counted, rows), sdpa_kernel(SDPBackend.MATH):
        run(case, pipe, sizes_of(case)[0])
    plan = handle.latest_plan
    assert plan is not None
    assert plan.cost is not None
    rows_per_evaluation = sum(rows) / len(plan)
    assert plan.cost.total_flops * rows_per_evaluation == pytest.approx(sum(counted), rel=case.flops_tolerance)


@contextmanager
def counting(pipe: Any, counted: list[float], rows: list[int]) -> Iterator[None]:
    """Note the FLOPs and the rows of the batch of every transformer call."""
    counter = FlopCounterMode(display=False)
    latents = token_plan_of(pipe.transformer).latents

    def wrap(forward: Any) -> Any:
        signature = inspect.signature(forward)

        def counted_forward(*args: Any, **kwargs: Any) -> Any:
            rows.append(len(signature.bind(*args, **kwargs).arguments[latents]))
            with counter:
                result = forward(*args, **kwargs)
            counted.append(counter.get_total_flops())
            return result

        return counted_forward

    patches = [PatchedMethod(transformer, "forward", wrap) for transformer in transformers_of(pipe)]
    try:
        yield
    finally:
        for patch in patches:
            patch.release()
