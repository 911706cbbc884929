"""Checks without which the speed benchmark gives no figures, and what rounding is allowed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from bench_twins import ONE_PER_ARCHITECTURE, QUICK, benchmark, tiny
from benchmarks import rounding
from ras_dit.bench import CASES
from ras_dit.bench.checks import (
    COMPILED_TOLERANCE,
    FRESH_TOLERANCE,
    Check,
    RefusedError,
    compiled_checks,
    eager_checks,
    eager_probe,
    fresh_check,
    option_checks,
    probe,
    relative_error,
    require,
)
from ras_dit.bench.loops import run_loop
from ras_dit.bench.modes import blocks_of
from ras_dit.cache import KVCache
from ras_dit.config import RASConfig


@pytest.mark.parametrize("name", sorted(ONE_PER_ARCHITECTURE.values()))
def test_probes_see_the_same_latents_and_undo_themselves(name: str) -> None:
    _, pipe, call = tiny(name)
    before = run_loop(pipe, call)
    attributes = sorted(vars(pipe.scheduler))
    still = probe(pipe, call)
    assert still.active[0] is None
    assert still.active[1] is not None
    assert still.error_to(still, 2, 0) == 0.0
    assert sorted(vars(pipe.scheduler)) == attributes
    assert torch.equal(run_loop(pipe, call), before)


def test_a_broken_merge_gets_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses_rows(cache: KVCache, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(cache.key), cache.value

    monkeypatch.setattr(KVCache, "merge", loses_rows)
    said: list[str] = []
    ran = benchmark(said=said)
    assert not ran.run([CASES["sd3-medium"].tiny()])
    case = ran.results.cases["sd3-medium-tiny"]
    assert case["rows"] == []
    assert "region step over fresh keys equals dense: error" in case["refused"]["eager"]
    assert "no figures" in said[0]


def test_what_else_region_steps_read_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pipe, call = tiny("sd3-medium")
    plain = RASConfig(sample_ratio=0.25)
    configs = [plain, plain.replace(text_reuse=True), RASConfig.preset("regions"), RASConfig.preset("fast")]
    checks = option_checks(pipe, call, case.dtype, configs, 0.0)
    name = "region step over fresh keys equals dense"
    assert [check.name for check in checks] == [f"with kv_forecast, {name}", f"with text_reuse, {name}"]
    assert all(check.is_green for check in checks)
    assert option_checks(pipe, call, case.dtype, [plain], 0.0) == []

    monkeypatch.setattr(KVCache, "_carry", lambda cache, kept, slope, rows: kept.zero_())
    checks = option_checks(pipe, call, case.dtype, configs, 0.0)
    assert [check.is_green for check in checks] == [False, True], "keys that are carried on wrongly"
    ran = benchmark(dataclasses.replace(QUICK, ratios=None, presets=("regions",)))
    assert not ran.run([case])
    assert "with kv_forecast, region step" in ran.results.cases[case.name]["refused"]["eager"]


def test_keys_that_do_not_matter_get_no_figures() -> None:
    """Where attention adds nothing, a check of the cache sees nothing, and says so."""
    case, pipe, call = tiny("sd3-medium")
    for block in pipe.transformer.transformer_blocks:
        torch.nn.init.zeros_(block.attn.to_out[0].weight)
    checks, _ = eager_checks(pipe, call, case.dtype)
    with pytest.raises(RefusedError, match="stale keys can be told from fresh ones"):
        require(checks)


def test_a_ratio_of_one_that_differs_gets_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pipe, call = tiny("sd3-medium")

    @contextmanager
    def nudging(pipe: Any, config: RASConfig) -> Iterator[None]:
        hook = pipe.transformer.register_forward_hook(lambda module, args, output: (output[0] * (1 + 1e-6),))
        yield
        hook.remove()

    monkeypatch.setattr("ras_dit.engine.accelerate", nudging)
    with pytest.raises(RefusedError, match="ratio 1 is bit-equal"):
        require(eager_checks(pipe, call, case.dtype)[0])


def test_a_run_otherwise_than_planned_gets_no_figures() -> None:
    ran = benchmark(dataclasses.replace(QUICK, num_steps=1))
    assert not ran.run([CASES["sd3-medium"].tiny()])
    assert "RASWarning" in ran.results.cases["sd3-medium-tiny"]["refused"]["eager"]


def test_errors_are_relative_and_bounds_are_ceilings_or_floors() -> None:
    one = torch.ones(4)
    assert relative_error(one * 1.5, one) == pytest.approx(0.5)
    assert relative_error(one * torch.nan, one) == float("inf")
    assert relative_error(0 * one, 0 * one) == 0.0
    assert relative_error(one, 0 * one) == float("inf")
    assert Check("a", 0.5, 0.5).is_green
    assert not Check("a", float("nan"), 0.5).is_green
    assert not Check("a", 0.4, 0.5, is_floor=True).is_green


def test_compiled_blocks_are_held_against_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(QUICK, modes=("eager", "compiled"), ratios=(0.25,), backend="eager")
    case = CASES["flux-dev"].tiny()
    ran = benchmark(settings)
    assert ran.run([case])
    found = ran.results.cases["flux-dev-tiny"]
    assert [(row["mode"], row["name"]) for row in found["rows"]] == [
        *(("eager", "dense"), ("eager", "ratio 0.25"), ("compiled", "dense"), ("compiled", "ratio 0.25"))
    ]
    assert [check["name"] for check in found["checks"]["compiled"]][:2] == [
        *("compiled dense step equals eager", "compiled region step equals eager")
    ]
    medians = {row["mode"]: row["median"] for row in found["rows"] if row["name"] == "dense"}
    assert found["dense_best"]["median"] == min(medians.values())
    monkeypatch.setattr("ras_dit.bench.checks.COMPILED_TOLERANCE", {"float32": -1.0})
    monkeypatch.setattr("ras_dit.bench.checks.rounding_error", lambda *_: -1.0)
    ran = benchmark(dataclasses.replace(settings, modes=("compiled",)))
    assert not ran.run([case])
    assert ran.results.cases["flux-dev-tiny"]["rows"] == []
    assert "compiled dense step equals eager" in ran.results.cases["flux-dev-tiny"]["refused"]["compiled"]


def test_rounding_is_told_from_stale_keys_and_from_mistakes_of_compiled_blocks() -> None:
    row = rounding.measured(CASES["sd3-medium"].tiny(), "cpu", is_compiled=True, backend="eager")
    assert (row["num_blocks"], row["num_tokens"]) == (3, 8 * 12)
    errors = row["errors"]
    assert errors["compiled dense"] == errors["compiled region"] == 0.0, "the same operations"
    assert 0 < errors["last place"] < COMPILED_TOLERANCE["float32"] < errors["stale"] / 100
    assert errors["fresh"] < FRESH_TOLERANCE["float32"] < 100 * FRESH_TOLERANCE["float32"] < errors["stale"]
    assert "compiled dense" not in rounding.measured(CASES["lumina-next"].tiny(), "cpu", is_compiled=False)["errors"]


def test_models_that_make_much_of_rounding_may_differ_by_more_once_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    case, pipe, call = tiny("sd3-medium")
    still = eager_probe(pipe, call)
    assert not any(block._forward_hooks for block in blocks_of(pipe))
    assert torch.equal(still.noises[0], probe(pipe, call).noises[0]), "it is the untouched one's"
    allowed = [check.bound for check in compiled_checks(pipe, call, case.dtype, still)[:2]]
    assert allowed == [COMPILED_TOLERANCE["float32"]] * 2
    still.rounding = 0.01
    assert [check.bound for check in compiled_checks(pipe, call, case.dtype, still)[:2]] == [0.01] * 2
    monkeypatch.setattr("ras_dit.bench.checks.rounding_error", lambda *_: 0.01)
    _, fresh, stale = eager_checks(pipe, call, case.dtype)[0]
    assert (fresh.bound, stale.bound) == (FRESH_TOLERANCE["float32"], 0.02), "what was red before stays red"
    monkeypatch.undo()
    pipe.transformer.proj_out.weight.data[0] = float("nan")
    assert eager_probe(pipe, call).rounding == 0.0
    with pytest.raises(RefusedError, match="error inf, allowed at most 1e-05"):
        require(eager_checks(pipe, call, case.dtype)[0][1:])


def test_rounding_is_allowed_for_where_fewer_rows_go_to_other_kernels() -> None:
    case, pipe, call = tiny("sd3-medium")
    still = dataclasses.replace(probe(pipe, call), rounding=0.01)
    assert fresh_check(still, case.dtype).bound == FRESH_TOLERANCE["float32"], "not on a CPU"
    with torch.device("meta"):
        elsewhere = [torch.empty(1)]
    on_gpu = dataclasses.replace(still, noises=elsewhere, active=[None])
    assert fresh_check(on_gpu, case.dtype).bound == 0.01
