"""`--offload`: what is called instead of `.to`, where it is refused, and what a GPU that is too small says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

import ras_dit
from ras_dit.arena.run import digest
from ras_dit.cli.pipelines import load_pipeline
from ras_dit.pipeline import device_of
from tiny import REGION, tiny_pipeline, tiny_transformer

Run = Callable[..., tuple[int, str, str]]


class Recorder:
    """Stands for a pipeline whose weights were read."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[object] = []
        self.error = error

    def to(self, device: str) -> Recorder:
        self.calls.append(("to", device))
        if self.error is not None:
            raise self.error
        return self

    def enable_model_cpu_offload(self, device: str) -> None:
        self.calls.append(("model", device))

    def enable_sequential_cpu_offload(self, device: str) -> None:
        self.calls.append(("sequential", device))

    def set_progress_bar_config(self, **_: Any) -> None: ...


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recorder], None]:
    """Have weights read for a GPU that is not there."""

    def instead(pipe: Recorder) -> None:
        monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pipe)
        monkeypatch.setattr("ras_dit.cli.pipelines.resolve_device", lambda _: "cuda:1")

    return instead


@pytest.mark.parametrize("offload", ["none", "model", "sequential"])
def test_what_is_called(model: str, reads: Callable[[Recorder], None], offload: str) -> None:
    pipe = Recorder()
    reads(pipe)
    assert load_pipeline(model, device="cuda:1", offload=offload) is pipe
    assert pipe.calls == [("to" if offload == "none" else offload, "cuda:1")]


@pytest.mark.parametrize("command", ["generate", "compare", "arena", "calibrate", "tune", "demo"])
def test_every_command_that_loads_a_pipeline_hands_it_on(
    ras_dit: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen = []

    def load(*_: object, offload: str, **__: object) -> None:
        seen.append(offload)
        raise ValueError("enough")

    monkeypatch.setattr("ras_dit.cli.pipelines.load_pipeline", load)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\nan owl\na cat\na dog\n")
    words: tuple[object, ...] = ("a fox",) if command in ("generate", "compare") else ("--prompts-file", prompts)
    if command == "demo":
        words = ()
    if command == "tune":
        pytest.importorskip("optuna")
        words = (*words, "--min-psnr", 30, "--calibration", 2, "--validation", 2)
    where = tmp_path / {"compare": "x.png", "calibrate": "x.json", "demo": "x.png"}.get(command, "x")
    code, _, err = ras_dit(command, *words, "-m", model, "--offload", "model", "-o", where)
    assert (code, seen) == (2, ["model"]), err


def test_offloading_that_cannot_be(ras_dit: Run, model: str, tmp_path: Path) -> None:
    words = ("generate", "a fox", "-m", model, "--device", "cpu", "-o", tmp_path, "--offload")
    code, _, err = ras_dit(*words, "model")
    assert code == 2
    assert "--offload: got 'model' on the device 'cpu', where all weights lie anyway; leave it out" in err
    code, _, err = ras_dit(*words, "some")
    assert code == 2
    assert "--offload: got 'some'; allowed: none, model, sequential." in err


def test_weights_that_a_gpu_does_not_hold(
    ras_dit: Run, model: str, tmp_path: Path, reads: Callable[[Recorder], None]
) -> None:
    reads(Recorder(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines.")))
    code, _, err = ras_dit("generate", "a fox", "-m", model, "-o", tmp_path)
    assert code == 2
    assert err.startswith("ras-dit: error: out of memory while the weights were put on 'cuda:1': CUDA out of memory.")
    assert "Give --offload model" in err
    assert "--kv-cache-dtype" not in err
    assert err.count("\n") == 1
    reads(Recorder(RuntimeError("no such device")))
    with pytest.raises(RuntimeError, match="no such device"):
        ras_dit("generate", "a fox", "-m", model, "-o", tmp_path)


def test_offloaded_weights_are_known_by_their_values() -> None:
    """An arena's folder is of one model, however it is loaded."""
    kept, other = tiny_transformer(0), tiny_transformer(1)
    before, others = digest(kept), digest(other)
    for transformer in (kept, other):
        cpu_offload(transformer, torch.device("cpu"), offload_buffers=True)
        assert transformer.proj_out.weight.device.type == "meta"
    assert (digest(kept), digest(other)) == (before, others)
    assert before != others
    assert kept.proj_out.weight.device.type == "meta", "they are offloaded still"


def test_a_plan_of_offloaded_weights_is_for_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    pipe = tiny_pipeline()
    expected = ras_dit.plan_for(pipe, REGION, 10, 128, 192)
    cpu_offload(pipe.transformer, torch.device("cpu"), offload_buffers=True)
    assert device_of(pipe).type == "cpu"
    assert ras_dit.plan_for(pipe, REGION, 10, 128, 192) == expected


def test_an_accelerate_that_cannot_align_devices_will_do() -> None:
    """Before 1.1, for weights that lie where they run."""
    code = "import accelerate.utils as a; del a.align_module_device, a.has_offloaded_params; import ras_dit.arena.run"
    subprocess.run([sys.executable, "-c", code], check=True)
