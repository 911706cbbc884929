"""On a GPU all is computed as on the CPU, and inside the loop nothing waits for it: see tests/pretended_gpu.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ras_dit
from families import one_case_per_class
from families.case import FamilyCase
from pretended_gpu import Log, Pretended, on_cpu, on_gpu, pretended_gpu
from ras_dit import RASConfig
from ras_dit.bench import architectures, chosen_cases
from ras_dit.cli import main
from ras_dit.rows import RowIndex
from tiny import REGION, inputs, run, tiny_pipeline

CASES = one_case_per_class()

# Of this class the transformer asks for the same values right behind: then there is nothing left to wait for.
ALLOWED = {
    "BriaFibo2Transformer2DModel": ["ras_dit/models/bria_fibo2.py:gist_counts: asked for values (torch.Tensor.tolist)"]
}


def waits_inside(log: Log, num_steps: int) -> list[str]:
    """What RAS, and helpers of diffusers that it called, waited for from the second evaluation on until the last."""
    return [what for what, step in log.waits if what.startswith("ras_dit/") and 2 <= step < num_steps]


def painted(case: FamilyCase, pipe: Any, moved: Callable[[Any], Any] = lambda value: value) -> torch.Tensor:
    """The latents of a call of the case's last size; pictures and tags of tokens stay where processors put them."""
    torch.manual_seed(0)
    batch, height, width = case.sizes[-1]
    call = case.call(batch=min(batch, case.max_batch), height=height, width=width)
    stays = {name for name in call if re.fullmatch("(?!.*(embeds|latents)).*image.*|.*tags", name)}
    return case.output(pipe(**{name: value if name in stays else moved(value) for name, value in call.items()}))


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_class(name: str) -> None:
    case, pipe = CASES[name], CASES[name].build()
    with ras_dit.accelerate(pipe, REGION) as handle:
        expected = painted(case, pipe)
    notes = handle.trace.notes
    with pretended_gpu() as log:
        pipe = case.build().to("cuda")
        with ras_dit.accelerate(pipe, REGION) as handle:
            log.moment = lambda: len(handle.trace.steps)
            found = painted(case, pipe, on_gpu)
    assert isinstance(found, Pretended)
    assert torch.equal(on_cpu(found), expected)
    assert handle.trace.notes == notes
    assert any(step.kind == "region" for step in handle.trace.steps)
    assert sorted(set(waits_inside(log, len(handle.trace.steps)))) == ALLOWED.get(name, [])


MASK = torch.zeros(8, 12)
MASK[2:7, 3:9] = 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"importance": "std"},
        {"importance": "l2norm"},
        {"importance": "random"},
        {"importance": "round_robin"},
        {"forecast_order": 2, "forecast_reach": None},
        {"forecast_order": 1, "forecast_midpoint": True},
        {"kv_forecast": 0.8, "forecast_order": 1},
        {"kv_cache_dtype": "float8_e4m3fn"},
        {"kv_cache_layers": 0.5},
        {"solver_order": 2},
        {"score_filter": "dilate", "anchor_stride": 3, "neighbor_update": 0.5},
        {"text_reuse": True},
        {"skip_steps": (4, 5)},
        {"static_memory": True},
        {"static_memory": True, "kv_cache_layers": 0.5},
        {"region_of_interest": MASK},
        {"final_sample_ratio": 0.1},
        {"end_step": 8},
        {"token_multiple": 16},
        {"forecast_below": 0.7, "forecast_order": 1},
        {"score_filter": "blur"},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_options(options: dict[str, Any], batch: int) -> None:
    found, expected, waits = on_both(REGION.replace(**options), batch)
    assert torch.equal(found, expected)
    assert waits == []


def test_the_authors_rules() -> None:
    found, expected, waits = on_both(RASConfig.reference(0.5, reset_steps=(6,), high_ratio=0.3))
    assert torch.equal(found, expected)
    assert waits == []


def test_a_refresh_tolerance_asks_once_per_step() -> None:
    """As its help says; it also shows that questions are noticed."""
    found, expected, waits = on_both(REGION.replace(refresh_tolerance=1e6))
    assert torch.equal(found, expected)
    assert {what.split(": ")[0] for what in waits} == {"ras_dit/chooser.py:predicted_error"}
    assert len(waits) == inputs()["num_inference_steps"] - 2, "after every step that was watched"


def test_keys_and_values_kept_on_the_cpu_are_waited_for() -> None:
    """And the row numbers, once a step, that what is computed goes to."""
    found, expected, waits = on_both(REGION.replace(kv_cache_device="cpu"))
    assert torch.equal(found, expected)
    assert {what.split(":")[0] for what in waits} == {f"ras_dit/{name}.py" for name in ("cache", "kv_storage", "rows")}


def test_a_fitted_forecast() -> None:
    config = RASConfig(step_ratios=(1, 1, 1, 0.25, 0, 1, 0, 0.25, 0, 1), forecast_order=1)
    fitted = ras_dit.calibrate(tiny_pipeline(qk_norm="rms_norm"), config, **inputs(batch=2))
    found, expected, waits = on_both(fitted, batch=2)
    assert torch.equal(found, expected)
    assert waits == []
    assert not torch.equal(found, on_both(config, batch=2)[0]), "the fit does something"


def test_numbers_that_are_not_finite_are_reported_at_the_end() -> None:
    with pretended_gpu() as log:
        pipe, call = tiny_pipeline().to("cuda"), on_gpu(inputs())
        call["latents"][0, 0, 0, 0] = torch.nan
        with ras_dit.accelerate(pipe, REGION) as handle:
            log.moment = lambda: len(handle.trace.steps)
            run(pipe, **call)
    assert any("not finite" in note for note in handle.trace.notes)
    assert waits_inside(log, len(handle.trace.steps)) == []


def test_a_table_of_the_cpu_is_sent_once_per_step() -> None:
    """Whatever its layout, and without waiting."""
    table = torch.arange(40.0).view(8, 5)[:, :3]
    with pretended_gpu() as log:
        rows = RowIndex(torch.tensor([[1, 2, 5]], device="cuda"), 8, is_shared=True)
        log.waits.clear()
        found = rows.gather(table, 0)
        assert log.waits == []
        assert rows.on_device_of_ids(table) is rows.on_device_of_ids(table)
        assert rows.on_device_of_ids(table[0].expand(8, 3)).shape == (8, 3)
        assert log.waits == []
    assert torch.equal(on_cpu(found), table[[1, 2, 5]])


def on_both(config: RASConfig, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The latents of the pretended GPU and of the CPU, and what was waited for on the former."""
    pipe, call = tiny_pipeline(qk_norm="rms_norm"), inputs(batch=batch)
    with ras_dit.accelerate(pipe, config):
        expected = run(pipe, **call)
    with pretended_gpu() as log:
        pipe = tiny_pipeline(qk_norm="rms_norm").to("cuda")
        dense = run(pipe, **on_gpu(call))
        with ras_dit.accelerate(pipe, config) as handle:
            log.moment = lambda: len(handle.trace.steps)
            found = run(pipe, **on_gpu(call))
        assert all(step.active is None or step.active.device.type == "cpu" for step in handle.trace.steps)
        assert torch.equal(run(pipe, **on_gpu(call)), dense), "disabled, it is as before"
    assert any(step.kind != "dense" for step in handle.trace.steps)
    return on_cpu(found), expected, waits_inside(log, len(handle.trace.steps))


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``ras-dit bench`` on a GPU, but for compiled blocks: its checks, loops, picture sizes, profiles and memory."""
    case, made = "sd3-medium", architectures.random_transformer
    chosen_cases((case,), "cpu")[0].tiny().make("cpu")  # what diffusers imports late looks for a real GPU
    monkeypatch.setattr(
        architectures,
        "random_transformer",
        lambda kind, arguments, device, dtype: made(kind, arguments, "cpu", dtype).to(device),
    )
    profile, cpu = torch.profiler.profile, [torch.profiler.ProfilerActivity.CPU]
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile(activities=cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    output = tmp_path / "bench.json"
    options = ["--tiny", "--steps", "8", "--ratios", "0.25", "--repeats", "1", "--sizes", "64"]
    with pretended_gpu() as log:
        code = main(
            [
                "bench",
                "--case",
                case,
                *options,
                "--device",
                "cuda",
                "--no-compiled",
                "--no-reduce-overhead",
                "-o",
                str(output),
            ]
        )
    assert code == 0
    assert log.num_operations > 1000
    written = json.loads(output.read_text())
    assert written["environment"]["device"] == "pretended"
    found = written["cases"][f"{case}-tiny"]
    assert len(found["checks"]["eager"]) >= 3
    assert all(check["is_green"] for check in found["checks"]["eager"])
    assert {row["name"] for row in found["rows"]} == {"dense", "ratio 0.25"}
    assert found["crossover"]["eager"]["rows"]


class TestPretending:
    """The stand-in itself: what a GPU would refuse or wait for."""

    def test_devices(self) -> None:
        with pretended_gpu() as log:
            there = torch.zeros(3, device="cuda")
            assert (there.device.type, there.is_cuda, torch.zeros(3).device.type) == ("cuda", True, "cpu")
            assert (there + 1).device == there.device == torch.zeros_like(there).device
            assert there.to("cuda:0") is there
            assert there.half().dtype == torch.float16
            assert log.num_operations > 0
            assert log.waits == []
            assert there.cpu().device.type == "cpu"
            assert len(log.waits) == 1

    def test_views_and_changes_in_place(self) -> None:
        with pretended_gpu():
            whole = torch.arange(6.0, device="cuda").view(2, 3)
            row = whole[1]
            assert row.mul_(2) is row
            whole[0] = torch.ones(3, device="cuda")
            assert on_cpu(whole).tolist() == [[1, 1, 1], [6, 8, 10]]

    @pytest.mark.parametrize(
        "mixed",
        [
            lambda there, here: there + here,
            lambda there, here: torch.cat([there, here]),
            lambda there, here: torch.nn.functional.linear(there, here.expand(2, 3)),
            lambda there, here: here.index_select(0, there.long()),
            lambda there, here: there.index_add_(0, here.long(), there),
            lambda there, here: here[there.long()],
            lambda there, here: there.__setitem__(there.long(), here),
            lambda there, here: torch.stack([there[0], here[0]]),
            lambda there, here: here[0].add_(there[0]),
        ],
    )
    def test_two_devices_do_not_mix(self, mixed: Callable[[Any, Any], Any]) -> None:
        with pretended_gpu():
            there = torch.zeros(3, device="cuda")
            with pytest.raises(RuntimeError, match="on the same device"):
                mixed(there, torch.zeros(3))
            assert (there + torch.tensor(1.0)).device.type == "cuda", "numbers do"
            assert torch.zeros(3).copy_(there).device.type == "cpu", "and what is copied"

    def test_generators_are_of_the_device(self) -> None:
        with pretended_gpu():
            with pytest.raises(RuntimeError, match="'cuda' device type for generator but found 'cpu'"):
                torch.randn(3, generator=torch.Generator(), device="cuda")
            with pytest.raises(RuntimeError, match="'cpu' device type for generator but found 'cuda'"):
                torch.randn(3, generator=torch.Generator("cuda"))

    def test_generators_draw_what_those_of_the_cpu_draw(self) -> None:
        expected = torch.randn(3, generator=torch.Generator().manual_seed(4))
        with pretended_gpu():
            generator = torch.Generator("cuda").manual_seed(4)
            assert isinstance(torch.Generator(), torch.Generator)
            assert torch.equal(on_cpu(torch.randn(3, generator=generator, device="cuda")), expected)

    def test_modules_move(self) -> None:
        with pretended_gpu():
            layer = torch.nn.Linear(3, 2).to("cuda", torch.bfloat16)
            assert isinstance(layer.weight, torch.nn.Parameter)
            assert layer(torch.zeros(1, 3, device="cuda", dtype=torch.bfloat16)).device.type == "cuda"
            with pytest.raises(TypeError, match="to numpy"):
                layer.weight.detach().numpy()

    @pytest.mark.parametrize(
        "waiting",
        [
            lambda there: there.sum().item(),
            lambda there: bool(there.any()),
            lambda there: there.tolist(),
            lambda there: there.nonzero(),
            lambda there: there[there > 0],
            lambda there: there.__setitem__(there < 1, torch.ones(3, device="cuda")),
            lambda there: there[torch.tensor([0, 1])],
            lambda there: there[[0, 1]],
            lambda there: torch.zeros(3).__setitem__(there.long(), 1.0),
            lambda there: there[: there.long()[0]],
            lambda there: torch.zeros(3)[there.long()[0] :],
            lambda there: torch.equal(there, there),
            lambda there: torch.tensor([1.0], device="cuda"),
            lambda there: torch.tensor([there[0]]),
            lambda there: torch.zeros(3).to("cuda"),
            lambda there: torch.zeros(3).to("cuda", non_blocking=True),
            lambda there: torch.zeros(3, 4)[:, :2].pin_memory().to("cuda", non_blocking=True),
            lambda there: there.repeat_interleave(there.long()),
            lambda there: torch.cuda.synchronize(),
            lambda there: there.copy_(torch.zeros(3)),
            lambda there: torch.zeros(3).copy_(there),
            lambda there: there.unique(),
            lambda there: there.cpu(),
            lambda there: torch.zeros(9)[there.long()[0]],
        ],
    )
    def test_waits_are_noted(self, waiting: Callable[[Any], Any]) -> None:
        with pretended_gpu() as log:
            there = torch.zeros(3, device="cuda")
            waiting(there)
            assert log.waits
            assert log.waits[0][0].split(":")[0].endswith("test_pretended_gpu.py")

    def test_what_does_not_wait(self) -> None:
        with pretended_gpu() as log:
            there = torch.zeros(3, device="cuda")
            there[1:] = 5
            there[there > 4] = 1
            there[torch.zeros(1, dtype=torch.long, device="cuda")] += 1
            torch.where(there > 0, there, 0.0).topk(2).indices.sort()
            torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
            there.repeat_interleave(there.long(), output_size=3)
            torch.zeros(2, 0).to("cuda")
            assert log.waits == []
