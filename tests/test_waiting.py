"""Inside the loop nothing asks the device for a value: on a GPU every such question would wait for all work queued."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ras_dit
from ras_dit import RASConfig
from ras_dit.session import Session
from ras_dit.state import Generation
from tiny import inputs, run, tiny_pipeline

ASKING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default)


class Questions(TorchDispatchMode):
    """Notes where in the library a tensor's values are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ASKING:
            frame: Any = sys._getframe()
            while frame is not None and "ras_dit" not in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is not None:
                self.asked.append(f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}")
        return func(*args, **(kwargs or {}))


def questions(monkeypatch: pytest.MonkeyPatch, config: RASConfig, batch: int = 1) -> list[str]:
    """What the evaluations between the first and the last ask, as on a GPU.

    The two places that look at values on a CPU only, and say so, answer here as they do on other devices.
    """
    monkeypatch.setattr(Session, "_is_expected", lambda self, timestep: True)
    monkeypatch.setattr(Generation, "_check_finite", lambda self, output, sample: None)
    pipe, call = tiny_pipeline(), inputs(batch=batch)
    asked = Questions()

    def switch(_pipe: Any, index: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            asked.__enter__()
        elif index == call["num_inference_steps"] - 2:
            asked.__exit__(None, None, None)
        return tensors

    with ras_dit.accelerate(pipe, config) as handle:
        run(pipe, **call, callback_on_step_end=switch)
    assert any(step.kind != "dense" for step in handle.trace.steps)
    return asked.asked


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"importance": "std"},
        {"importance": "random"},
        {"forecast_order": 2, "forecast_reach": None},
        {"kv_forecast": 0.8, "forecast_order": 1},
        {"solver_order": 2},
        {"score_filter": "dilate", "anchor_stride": 3, "neighbor_update": 0.5},
        {"text_reuse": True},
        {"skip_steps": (4, 5)},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_the_loop_asks_nothing(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], batch: int) -> None:
    config = RASConfig(sample_ratio=0.25, warmup_steps=2, **options)
    assert questions(monkeypatch, config, batch) == []


def test_a_refresh_tolerance_asks_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its help says; it also shows that questions are noticed."""
    config = RASConfig(sample_ratio=0.25, warmup_steps=2, refresh_tolerance=1e6)
    asked = questions(monkeypatch, config)
    assert set(asked) == {"chooser.py:predicted_error"}
    assert len(asked) == inputs()["num_inference_steps"] - 2, "after every step that was watched"
