"""What a config does: its pictures beside the references, and what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ras_dit.arena.methods import Method, applied
from ras_dit.arena.run import Scene, call_for, pixels
from ras_dit.config import RASConfig
from ras_dit.engine import Handle, plan_for
from ras_dit.files import whole_file
from ras_dit.plan import Plan
from ras_dit.schedule import num_evaluations
from ras_dit.tune.metric import Metric

NUM_TIMED = 3
"""Calls of a measurement that a dense call is timed beside, unless it asks for more."""


@dataclass
class Measured:
    """What is known of a config (or of a dense run with fewer steps) after some pictures.

    Attributes:
        per_picture: metric name -> one value per picture.
        costs: shares of the dense run's: ``flops``, ``token_steps``, and ``time`` where it was measured.
        notes: why anything ran otherwise than planned.
    """

    per_picture: dict[str, list[float]]
    costs: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def num_pictures(self) -> int:
        return len(next(iter(self.per_picture.values())))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SceneSet:
    """Scenes and their reference pictures, uint8 [N, 3, H, W] (videos [N, F, 3, H, W])."""

    scenes: tuple[Scene, ...]
    references: torch.Tensor


@dataclass(frozen=True)
class Bench:
    """A pipeline, how it is called, and what is measured.

    Attributes:
        pipe: RAS is not enabled on it.
        call: arguments of every call, without prompt, steps and generator.
        steps: denoising steps.
        batch: pictures per call.
        metrics: see `Metric`.
        is_timed: measure time, too.
    """

    pipe: Any
    call: dict[str, Any]
    steps: int
    batch: int
    metrics: tuple[Metric, ...]
    is_timed: bool
    _is_warm: list[bool] = field(default_factory=list, repr=False, compare=False)

    def plan(self, config: RASConfig) -> Plan:
        """What a picture would compute.

        Raises:
            ValueError: the config does not fit the run.
        """
        sizes = {
            name: self.call[name]
            for name in ("height", "width", "num_frames", "max_sequence_length")
            if name in self.call
        }
        return plan_for(self.pipe, config, self.steps, **sizes)

    def why_not(self, config: RASConfig) -> str:
        """Why a config need not be painted with; empty if it must be."""
        try:
            plan = self.plan(config)
        except ValueError as error:
            return str(error)
        return "" if plan.has_savings else "saves nothing: every step is dense"

    def references(
        self, scenes: Sequence[Scene], method: Method, folder: Path, on_call: Callable[[], None] = lambda: None
    ) -> SceneSet:
        """The reference pictures, painted once and kept in a folder."""
        from safetensors.torch import load_file, save_file

        kept = []
        for start in range(0, len(scenes), self.batch):
            path = folder / f"{start:05d}.safetensors"
            if not path.is_file():
                with applied(self.pipe, method):
                    painted = self._paint(scenes[start : start + self.batch], method.steps)
                with whole_file(path) as temporary:
                    save_file({"pictures": painted}, temporary)
            kept.append(load_file(path)["pictures"])
            on_call()
        return SceneSet(tuple(scenes), torch.cat(kept))

    def measure(
        self,
        method: Method,
        on: SceneSet,
        is_hopeless: Callable[[Measured], bool] = lambda measured: False,
        num_timed: int = NUM_TIMED,
    ) -> Measured:
        """Paint with a method and compare with the references.

        Args:
            method: RAS, or a dense run with fewer steps.
            on: what to paint.
            is_hopeless: asked after every call; True ends it there.
            num_timed: calls that a dense call is timed beside, if time is measured.
        """
        found = Measured({metric.name: [] for metric in self.metrics})
        ratios: list[float] = []
        spent: list[dict[str, float]] = []
        for number, start in enumerate(range(0, len(on.scenes), self.batch)):
            scenes = on.scenes[start : start + self.batch]
            seconds_dense = self._time_dense(scenes) if self.is_timed and number < num_timed else None
            with applied(self.pipe, method) as handle:
                if self.is_timed and number == 0:
                    self._paint(scenes, method.steps)  # the first run of a config is slower
                started = time.perf_counter()
                pictures = self._paint(scenes, method.steps)
                seconds = time.perf_counter() - started
            if seconds_dense is not None:
                ratios.append(seconds / seconds_dense)
                found.costs["time"] = statistics.median(ratios)
            self._compare(found, pictures, on.references[start : start + self.batch])
            spent.append(self._costs(handle, method))
            found.costs |= {name: statistics.fmean(costs[name] for costs in spent) for name in spent[0]}
            if handle is not None:
                found.notes = sorted({*found.notes, *handle.summary().notes})
            if is_hopeless(found):
                break
        return found

    def _compare(self, found: Measured, pictures: torch.Tensor, references: torch.Tensor) -> None:
        for metric in self.metrics:
            values = [round(float(value), 6) for value in metric.measure(pictures, references)]
            found.per_picture[metric.name] += values

    def _costs(self, handle: Handle | None, method: Method) -> dict[str, float]:
        if handle is None:  # a dense run with fewer steps
            count, whole = (num_evaluations(self.pipe.scheduler, steps) for steps in (method.steps, self.steps))
            share = count / whole
            return {"flops": share, "token_steps": share}
        ran, costed = handle.trace.as_plan(), handle._session.latest.costed
        if costed is None:
            raise ValueError(f"{method.name}: RAS does not follow this call. {' '.join(handle.summary().notes)}")
        return {"flops": 1 / costed(ran).speedup_limit, "token_steps": ran.token_steps / len(ran)}

    def _time_dense(self, scenes: Sequence[Scene]) -> float:
        if not self._is_warm:  # the first calls of a process are slower, whoever makes them
            self._paint(scenes, self.steps)
            self._is_warm.append(True)
        started = time.perf_counter()
        self._paint(scenes, self.steps)
        return time.perf_counter() - started

    def _paint(self, scenes: Sequence[Scene], steps: int) -> torch.Tensor:
        return torch.stack([pixels(image) for image in call_for(self.pipe, scenes, steps, self.call)[0]])
