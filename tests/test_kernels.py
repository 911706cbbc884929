"""The Triton kernels under its interpreter, their twins against the rest of the code, and which layers are plain."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

import ras_dit
from benchmarks import kernels as benchmark
from ras_dit import RASConfig, importance, kernels, selection
from ras_dit.cache import KVCache, RowIndex
from ras_dit.forecast import TokenHistory
from tiny import tiny_pipeline

HERE = Path(__file__).parent
FILES = sorted(path.name for path in (HERE / "kernels").glob("test_*.py"))
HAS_TRITON = importlib.util.find_spec("triton") is not None


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton (extra 'kernels')")
def test_under_the_interpreter() -> None:
    """All of tests/kernels, in a process of its own: Triton decides as it is imported whether it interprets."""
    unwanted = ("PYTEST_", "COV_")
    environment = {key: text for key, text in os.environ.items() if not key.startswith(unwanted)}
    environment.update(TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join(path for path in sys.path if path))
    files = [str(HERE / "kernels" / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-rp", *files, "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("PASSED ")]
    passed = {Path(words[1].split("::")[0]).name for words in lines}
    assert passed == set(FILES)


@pytest.mark.skipif(not HAS_TRITON, reason="needs Triton (extra 'kernels')")
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """What the interpreter takes and the compiler does not would show on a GPU only."""
    environment = {key: text for key, text in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment.update(PYTHONPATH=paths, TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(HERE / "kernels" / "compiling.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-1000:] + result.stderr[-5000:]
    assert result.stdout.count("compiled ") == 3 * 8


@pytest.mark.skipif(HAS_TRITON, reason="Triton is installed")
def test_kernels_say_what_to_install() -> None:
    with pytest.raises(ValueError, match="Triton is not installed"):
        kernels.triton_operations()


def test_the_benchmark_runs_where_there_is_no_gpu_and_writes_nothing() -> None:
    if not HAS_TRITON:
        pytest.skip("needs Triton (extra 'kernels')")
    results = HERE.parent / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    command = [sys.executable, "-m", "benchmarks.kernels", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": agrees") == len(benchmark.MAKERS) * len(benchmark.RATIOS)
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_the_benchmark_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    claim, path = {"code": "1", "triton": "3"}, tmp_path / "kernels_cuda.json"
    assert benchmark.finished_cases(path, claim) == []
    made = benchmark.measure("cpu", kernels.REFERENCE, "merge_rows")
    first = {**next(made), "milliseconds": {"kernel": 7.0}}
    failed = [{**next(made), "wrong": "out of memory"}, {**next(made), "left out": "torch compiled: no compiler"}]
    path.write_text(json.dumps({"claim": claim, "cases": [first, *failed]}))
    assert benchmark.finished_cases(path, {**claim, "code": "2"}) == []
    rows = list(benchmark.measure("cpu", kernels.REFERENCE, "merge_rows", benchmark.finished_cases(path, claim)))
    assert rows[0] == first
    assert [row["wrong"] for row in rows[1:]] == [None] * (len(rows) - 1)
    assert not [row for row in rows[1:] if "left out" in row]
    assert len(rows) > 2


def test_the_benchmark_sees_a_kernel_that_is_wrong() -> None:
    def shifted(kept_key: torch.Tensor, kept_value: torch.Tensor, *rest: torch.Tensor, **options: object) -> None:
        kernels.REFERENCE.merge_rows(kept_key, kept_value, *rest, **options)  # type: ignore[arg-type]
        kept_value += 1

    inputs = benchmark.Inputs(benchmark.TINY[0], 0.5, "cpu", torch.float32)
    for case in (benchmark.fused_case, benchmark.merge_case):
        assert benchmark.why_wrong(case(inputs, kernels.REFERENCE)) is None
        wrong = case(inputs, replace(kernels.REFERENCE, merge_rows=shifted))
        assert "kernel: " in str(benchmark.why_wrong(wrong))


def test_a_kernel_stays_if_it_wins_everywhere() -> None:
    def row(kernel: str, wrong: str | None = None, /, **milliseconds: float) -> dict[str, object]:
        return {"kernel": kernel, "model": "m", "ratio": 0.5, "wrong": wrong, "milliseconds": milliseconds}

    rows = [
        row("wins", kernel=1.0, torch=2.0),
        row("wins", **{"kernel 0": 3.0, "kernel 1": 1.0}, torch=2.0),
        row("loses once", kernel=1.0, torch=2.0),
        row("loses once", kernel=2.0, torch=1.0),
        row("loses once", kernel=1.0, torch=2.0),
        row("hardly wins", kernel=1.0, torch=1.01),
        row("is wrong", "differs", kernel=1.0, torch=2.0),
        {**row("is slow to launch", kernel=1.0, torch=2.0), "host milliseconds": {"kernel": 3.0, "torch": 2.0}},
        {"kernel": "is not timed", "model": "m", "ratio": 0.5, "wrong": None},
    ]
    found = benchmark.verdicts(rows)
    assert [name for name, verdict in found.items() if verdict == "stays"] == ["wins"]
    assert set(found.values()) == {"stays", "goes"}
    assert "wins: stays" in benchmark.table(rows, found)


def test_a_pipeline_on_the_cpu_is_told_where_kernels_run() -> None:
    if not HAS_TRITON:
        pytest.skip("needs Triton (extra 'kernels')")
    pipe = tiny_pipeline()
    if os.environ.get("TRITON_INTERPRET") != "1":
        with pytest.raises(ValueError, match=r"got 'triton' for a pipeline on 'cpu'; allowed there: 'torch'. Move"):
            ras_dit.enable(pipe, RASConfig(kernels="triton"))
    ras_dit.enable(pipe, RASConfig()).disable()


def test_a_choice_of_kernels_is_checked() -> None:
    with pytest.raises(ValueError, match=r"kernels: got 'tritn'; allowed: torch, triton. Did you mean 'triton'"):
        RASConfig(kernels="tritn")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- twins


def some_history(num_rows: int = 2, num_tokens: int = 12, width: int = 8) -> TokenHistory:
    """Three dense steps and one of a few tokens."""
    history = TokenHistory(depth=3)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        is_active = None if step < 2 else torch.arange(num_rows * num_tokens).view(num_rows, -1) % step == 0
        tokens = torch.randn(num_rows, num_tokens, width, generator=generator)
        history.record(tokens, 1 - 0.1 * step, is_active)
    return history


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2),
    st.sampled_from([0.0, 0.8]),
    st.sampled_from([None, 1.0]),
    st.booleans(),
    st.sampled_from([None, 0.55]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_twin_of_recording_is_the_history(
    order: int, damping: float, reach: float | None, is_skipped: bool, mean_at: float | None, dtype: torch.dtype
) -> None:
    history = some_history()
    values, sigmas = history.values.clone(), history.sigmas.clone()
    tokens, is_active = torch.randn(2, 12, 8).to(dtype), torch.rand(2, 12) < 0.4
    expected = history.forecast(0.6, order, damping, reach).to(dtype)
    if not is_skipped:
        history.record(tokens, 0.6, is_active)
        fresh = tokens if mean_at is None else history.forecast(mean_at, 1, 1.0).to(dtype)
        expected = torch.where(is_active[..., None], fresh, expected)
    filled = kernels.REFERENCE.record_and_fill(
        values,
        sigmas,
        None if is_skipped else tokens,
        None if is_skipped else is_active,
        sigma=0.6,
        at=0.6,
        order=order,
        damping=damping,
        reach=reach,
        mean_at=mean_at,
        dtype=dtype,
    )
    assert torch.equal(filled, expected)
    assert torch.equal(values, history.values)
    assert torch.equal(sigmas.nan_to_num(-1), history.sigmas.nan_to_num(-1))


def test_the_twins_of_scoring_are_those_of_the_chooser() -> None:
    history = some_history()
    score = kernels.REFERENCE.predicted_error(history.values, history.sigmas, 0.6)
    torch.testing.assert_close(score, importance.predicted_error(history, 0.6))
    once = TokenHistory(depth=1)
    once.record(torch.randn(2, 12, 8), 0.9)
    score = kernels.REFERENCE.predicted_error(once.values, once.sigmas, 0.6)
    torch.testing.assert_close(score, importance.predicted_error(once, 0.6))
    assert kernels.REFERENCE.top_k is selection.top_k


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("offset", [0, 3, torch.tensor([1, 4])])
def test_the_twin_of_merging_is_the_cache(is_shared: bool, offset: int | torch.Tensor) -> None:
    active = torch.tensor([[0, 2, 5], [0, 2, 5] if is_shared else [1, 2, 4]])
    rows = RowIndex(active, num_tokens=6, is_shared=is_shared, offset=offset)
    kept = torch.randn(2, 2, 2, 12, 4)
    cache = KVCache(kept[0].clone(), kept[1].clone())
    cache.aim(rows)
    fresh = torch.randn(2, 2, 2, 9, 4)
    kernels.REFERENCE.merge_rows(kept[0], kept[1], fresh[0], fresh[1], rows.positions(12))
    key, value = cache.merge(fresh[0], fresh[1])
    assert torch.equal(kept[0], key)
    assert torch.equal(kept[1], value)


def test_the_twin_of_the_linear_layer_is_the_linear_layer() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5)
    out = torch.full((2, 6, 7), float("nan"))
    rows = torch.tensor([[0, 4, 5], [1, 2, 3]])
    with torch.no_grad():
        kernels.REFERENCE.linear_scatter(x, layer.weight, layer.bias, rows, out)
        torch.testing.assert_close(out.gather(1, rows[..., None].expand(-1, -1, 7)), layer(x))
    assert int(out.isnan().sum()) == 2 * 3 * 7


# ---------------------------------------------------------------------- plain layers


def test_a_linear_layer_is_plain() -> None:
    assert kernels.is_plain_linear(torch.nn.Linear(4, 4))
    assert kernels.is_plain_linear(torch.nn.Linear(4, 4, bias=False).bfloat16())
    assert not kernels.is_plain_linear(torch.nn.LayerNorm(4))
    assert not kernels.is_plain_linear(torch.nn.Linear(4, 4, device="meta"))
    assert not kernels.is_plain_linear(torch.nn.Linear(4, 4).to(torch.float8_e4m3fn))


def test_lora_is_not_plain() -> None:
    pipe = tiny_pipeline()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    attention = pipe.transformer.transformer_blocks[0].attn
    assert not kernels.is_plain_linear(attention.to_q)
    assert kernels.is_plain_linear(attention.to_k)


def test_quantised_weights_are_not_plain() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    quantization.quantize_(model[0], quantization.Int8WeightOnlyConfig())
    assert type(model[0]) is torch.nn.Linear, "the layer's class says nothing"
    assert not kernels.is_plain_linear(model[0])
    assert kernels.is_plain_linear(model[1])


def test_layers_of_bitsandbytes_are_not_plain() -> None:
    nn = pytest.importorskip("bitsandbytes.nn")
    four_bit = nn.Linear4bit(32, 32, True, torch.float32, quant_type="nf4")
    four_bit.load_state_dict(torch.nn.Linear(32, 32).state_dict())
    assert not kernels.is_plain_linear(four_bit.to("cpu"))
    assert not kernels.is_plain_linear(nn.Linear8bitLt(32, 32))


def test_hooks_parametrisations_and_replaced_forwards_are_not_plain() -> None:
    layer = torch.nn.Linear(4, 4)
    for hook in (layer.register_forward_hook(lambda *_: None), layer.register_forward_pre_hook(lambda *_: None)):
        assert not kernels.is_plain_linear(layer)
        hook.remove()
    assert kernels.is_plain_linear(layer)
    of_all = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not kernels.is_plain_linear(layer)
    of_all.remove()
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert not kernels.is_plain_linear(layer)
    del layer.forward
    assert kernels.is_plain_linear(layer)
    assert not kernels.is_plain_linear(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)))
    assert not kernels.is_plain_linear(torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(4, 4)))
