"""Fits the constants of `ras_dit.gain` for a CPU to the committed speed results, and shows how well they explain them.

``python -m benchmarks.fit_gain`` prints the constants (write them down in ``gain.py``) and the speed-ups predicted with
those that are there now. The results of one kind of CPU (`FITTED`) share one set, but for the rates of 16 and 32 bits;
those of other kinds are predicted with it.
"""

from __future__ import annotations

import argparse
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import torch

from benchmarks import record
from ras_dit import Plan, RASConfig, build_plan
from ras_dit.bench import case_named
from ras_dit.cli.pipelines import EMBEDDED, pipeline_outline
from ras_dit.embedded import MAX_SEQUENCE_LENGTH
from ras_dit.flops import Layers, plan_cost
from ras_dit.gain import DeviceRates, Load, Model, capture_load, evaluation_load, with_prediction
from ras_dit.models import token_plan_of

HALF, SINGLE = torch.bfloat16, torch.float32
UNKNOWNS = tuple(field.name for field in fields(Load) if field.name != "transferred_bytes")
FITTED = "amx_bf16"
"""In the name of the processors whose results the constants are fitted to."""
BY_DTYPE = ("linear_flops", "attention_flops")


@dataclass(frozen=True)
class Outline:
    """What the prediction needs of a case.

    Attributes:
        pipe: its transformer holds no weights.
        num_text: text tokens.
        num_rows: rows of the transformer's batch.
        num_extra: reference tokens.
    """

    pipe: Any
    num_text: int
    num_rows: int
    num_extra: int = 0


@dataclass(frozen=True)
class Run:
    """One row of a speed result.

    Attributes:
        case: the result's.
        name: the row's.
        seconds: median of the whole loop.
        speedup: dense over that.
        plan: what it computed, with its cost and the prediction.
        load: what it had to pay for.
        dtype: of the model.
        processor: it ran on.
        is_checked: the checks of the benchmark were made in the same process.
    """

    case: str
    name: str
    seconds: float
    speedup: float
    plan: Plan
    load: Load
    dtype: torch.dtype
    processor: str
    is_checked: bool

    @property
    def is_fitted(self) -> bool:
        """Whether the constants were fitted to it."""
        return FITTED in self.processor


def outline_of(name: str) -> Outline:
    """The model and the call of a case."""
    case = case_named(name)
    if case.dimensions is None:
        pipe = pipeline_outline(next(name for name, side in EMBEDDED.items() if side == case.embedded_size))
        num_text = token_plan_of(pipe.transformer).num_text(pipe, MAX_SEQUENCE_LENGTH)
        return Outline(pipe, num_text, case.num_rows)
    return Outline(case.outline(), case.dimensions.num_text, case.num_rows, case.num_references)


def committed_runs(device: str = "cpu") -> list[Run]:
    """Every row of every speed result from this kind of device, dense first in each."""
    return [
        run
        for result in record.read_all("speed_*").values()
        if result["device"] == device and result["rows"]
        for run in runs_of(result)
    ]


def runs_of(result: dict[str, Any]) -> list[Run]:
    """The rows of one result whose blocks were not compiled: the constants are of those."""
    rows = [row for row in result["rows"] if row.get("mode", "eager") == "eager"]
    if not rows:
        return []
    outline = outline_of(result["case"])
    num_tokens = next(row["num_tokens"] for row in rows if "num_tokens" in row)
    return [_run(result, row, outline, num_tokens) for row in rows]


def _run(result: dict[str, Any], row: dict[str, Any], outline: Outline, num_tokens: int) -> Run:
    transformer = outline.pipe.transformer
    token_plan = token_plan_of(transformer)
    config = RASConfig.from_dict(row["config"]) if "config" in row else RASConfig(sample_ratio=1.0)
    plan = build_plan(config, row["steps"], num_tokens)
    layers = Layers.of(token_plan, transformer)
    cost = plan_cost(plan, token_plan, layers, outline.num_text, outline.num_extra, config)
    plan = replace(plan, cost=cost)
    model = Model.of(layers, torch.device(result["device"]))
    load = plan_load(plan, config, model, outline.num_rows)
    predicted = with_prediction(plan, config, model, outline.num_rows)
    speedup, processor = row.get("speedup_same_mode", row["speedup"]), result["hardware"]["processor"]
    row_of = (result["case"], row["name"], row["median"], speedup, predicted, load, model.dtype)
    return Run(*row_of, processor, is_checked=bool(result.get("checks")))


def plan_load(plan: Plan, config: RASConfig, model: Model, num_rows: int) -> Load:
    """What a whole run has to pay for."""
    cost = plan.cost
    assert cost is not None
    loads = []
    for step in plan:
        if step.kind == "skip":
            loads.append(Load(steps=1))
            continue
        loads.append(evaluation_load(config, cost, model, num_rows, step.kind, cost.work_of[step.num_active]))
        if step.captures:
            loads.append(capture_load(config, cost, num_rows))
    return Load(*(sum(amounts) for amounts in zip(*map(astuple, loads), strict=True)))


def fitted(runs: list[Run]) -> dict[torch.dtype, dict[str, float]]:
    """Price per unit of every kind of load, by dtype: least squares of relative errors, none of them negative.

    A dense run counts three times: every speed-up of its case rests on it.
    """
    names = [*((name, dtype) for dtype in (SINGLE, HALF) for name in BY_DTYPE)]
    names += [(name, None) for name in UNKNOWNS if name not in BY_DTYPE]
    rows, aims = [], []
    for run in runs:
        weight = 3.0 if run.name == "dense" else 1.0
        amounts = [getattr(run.load, name) if dtype in (None, run.dtype) else 0.0 for name, dtype in names]
        rows.append([weight * amount / run.seconds for amount in amounts])
        aims.append(weight)
    prices = non_negative_least_squares(torch.tensor(rows, dtype=torch.float64), torch.tensor(aims).double())
    by_name = dict(zip(names, prices.tolist(), strict=True))
    return {
        dtype: {name: by_name[name, dtype if name in BY_DTYPE else None] for name in UNKNOWNS}
        for dtype in (SINGLE, HALF)
    }


def non_negative_least_squares(matrix: torch.Tensor, aim: torch.Tensor, num_rounds: int = 20_000) -> torch.Tensor:
    """The x >= 0 that brings ``matrix @ x`` nearest to ``aim``, by one coordinate after the other."""
    scale = matrix.norm(dim=0).clamp_min(1e-300)
    scaled = matrix / scale
    gram, target = (scaled.T @ scaled).tolist(), (scaled.T @ aim).tolist()
    found = [0.0] * len(target)
    for _ in range(num_rounds):
        for index, row in enumerate(gram):
            rest = target[index] - sum(a * b for a, b in zip(row, found, strict=True))
            found[index] = max(0.0, found[index] + rest / max(row[index], 1e-300))
    return torch.tensor(found, dtype=torch.float64) / scale


def rates_of(prices: dict[str, float]) -> DeviceRates:
    """Prices as `DeviceRates` has them."""

    def rate(price: float) -> float:
        return 1 / price if price else float("inf")

    return DeviceRates(
        linear_flops=rate(prices["linear_flops"]),
        attention_flops=rate(prices["attention_flops"]),
        bandwidth=rate(prices["moved_bytes"]),
        transfer=rate(prices["moved_bytes"]),
        operation=prices["operations"],
        region_layer=prices["region_layers"],
        step=prices["steps"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leave-out", metavar="CASE", help="fit to the other cases, and predict this one from them")
    left_out = parser.parse_args().leave_out
    runs = committed_runs()
    known = [run for run in runs if run.is_fitted and run.case != left_out]
    rates = {dtype: rates_of(prices) for dtype, prices in fitted(known).items()}
    for dtype, found in rates.items():
        print(dtype, ", ".join(f"{field.name} {getattr(found, field.name):.2g}" for field in fields(found)))
    print(f"{'case':<16}{'setting':<14}{'measured':>9}{'predicted':>11}{'limit':>8}{'error':>8}")
    for case, processor in dict.fromkeys((run.case, run.processor) for run in runs if left_out in (None, run.case)):
        rows = [run for run in runs if (run.case, run.processor) == (case, processor)]
        print(processor)
        for run in rows:
            found = rates[run.dtype] if left_out else DeviceRates.of("cpu", run.dtype)
            predicted = found.seconds(rows[0].load) / found.seconds(run.load)
            cells = f"{run.speedup:>8.2f}x{predicted:>10.2f}x{run.plan.speedup_limit:>7.2f}x"
            print(f"{case:<16}{run.name:<14}{cells}{predicted / run.speedup - 1:>+8.1%}")


if __name__ == "__main__":
    main()
