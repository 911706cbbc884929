"""A whole tuning in a folder: references, search, validation, report."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ras_dit.arena.methods import Method, Solver, why_unfit
from ras_dit.arena.origins import described
from ras_dit.arena.run import CONVERGED, DENSE, Scene, identity_of
from ras_dit.config import RASConfig
from ras_dit.engine import check_reuse
from ras_dit.files import alone_in, claim_folder, save_text
from ras_dit.machine import machine_name
from ras_dit.models import token_plan_of
from ras_dit.pipeline import device_of
from ras_dit.remarks import RASWarning
from ras_dit.schedule import is_euler, why_stochastic
from ras_dit.tune.measure import Bench, SceneSet
from ras_dit.tune.search import Search, known_for, load_optuna
from ras_dit.tune.space import Run, Space
from ras_dit.tune.target import Target
from ras_dit.tune.trial import Trial, best_of, candidates_of
from ras_dit.tune.validate import NUM_AT_LEAST, Validated, Validation, Verdict
from ras_dit.versions import versions

Reference = Literal["dense", "converged"]
Progress = Callable[[str, int], AbstractContextManager[Callable[[str], None]]]
"""From a title and a number of units, which may turn out to be more, to a context whose function counts one and says
how things stand."""
CLAIM = "tuning.json"
"""What a folder was begun for, and the versions that worked there since."""


@contextmanager
def _silent(title: str, total: int) -> Iterator[Callable[[str], None]]:
    yield lambda text: None


@dataclass(frozen=True)
class Outcome:
    """What a tuning found.

    Attributes:
        verdict: the choice, and how it was validated.
        trials: all that were tried.
        baselines: dense runs with fewer steps, at about the cost of the choice, on the validation pictures.
    """

    verdict: Verdict
    trials: tuple[Trial, ...]
    baselines: tuple[Validated, ...]


@dataclass(frozen=True)
class Tuning:
    """What is tuned, for which target, on which pictures.

    Attributes:
        folder: everything is kept there; a tuning that was begun there goes on.
        target: what is asked for.
        calibration: scenes that configs are searched on.
        validation: other scenes, which the winners have to hold on.
        call: arguments of every pipeline call that JSON can hold, without prompt, steps and generator.
        steps: denoising steps.
        reference: compare with the dense run (the same picture sooner) or with a converged one (the right picture).
        converged_steps: of the converged run.
        batch: pictures per call. Time depends on it, and so does quality where a batch shares its active tokens.
        seed: of the search.
        base: options that are not searched; it is tried first.
        without: options that are searched otherwise, and are to stay the base's.
        model: what was tuned, for the report.
        offload: how the weights come to the device, which times depend on.

    Raises:
        ValueError: no scenes, prompts in both sets, or values out of their ranges.
    """

    folder: Path
    target: Target
    calibration: tuple[Scene, ...]
    validation: tuple[Scene, ...]
    call: dict[str, Any] = field(default_factory=dict)
    steps: int = 28
    reference: Reference = "dense"
    converged_steps: int = 200
    batch: int = 1
    seed: int = 0
    base: RASConfig = field(default_factory=RASConfig)
    without: frozenset[str] = frozenset()
    model: str = ""
    offload: str = "none"

    def __post_init__(self) -> None:
        if self.reference not in get_args(Reference):
            raise ValueError(f"--reference: got {self.reference!r}; allowed: {', '.join(get_args(Reference))}.")
        for name, scenes in (("calibration", self.calibration), ("validation", self.validation)):
            if len(scenes) < 2:
                raise ValueError(f"--{name}: got {len(scenes)} prompt(s); allowed: at least 2.")
        if both := sorted({s.prompt for s in self.calibration} & {s.prompt for s in self.validation}):
            raise ValueError(
                f"prompts: got {both[0]!r} for calibration and for validation; what a config was chosen on cannot "
                "validate it. Give other prompts."
            )
        try:
            json.dumps(self.call)
        except TypeError as error:
            raise ValueError(
                f"call: got {error}; allowed: numbers, words and lists, which can be compared when a tuning goes on."
            ) from error
        for name in ("steps", "converged_steps", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: got {getattr(self, name)}; allowed: at least 1.")

    def run(self, pipe: Any, trials: int = 60, plan_trials: int = 20, progress: Progress = _silent) -> Outcome:
        """Search and validate; goes on where an earlier call with the same settings stopped.

        Args:
            pipe: a text-to-image (or -video) pipeline on which RAS is not enabled.
            trials: configs in all, the known ones that are tried first among them.
            plan_trials: changed plans in all, tried after that.
            progress: shows how far it is.

        Raises:
            ValueError: the folder holds another tuning, one is under way there, or the pipeline cannot be tuned.
            ImportError: Optuna is not installed.
        """
        load_optuna()
        self._check(pipe)
        bench = Bench(pipe, self.call, self.steps, self.batch, self.target.metrics, is_timed=self.target.cost == "time")
        dense = bench.plan(RASConfig(sample_ratio=1.0))
        has_text_reuse = token_plan_of(pipe.transformer).reuses_text(pipe.transformer)
        run = Run(len(dense), dense.num_tokens, is_euler(pipe.scheduler), has_text_reuse)
        space = Space(run, self.base, self.without)
        known = len(known_for(space, bench))
        if trials < known:
            raise ValueError(f"--trials: got {trials}; allowed: at least {known}, the known configs that come first.")
        with alone_in(self.folder, "tuning"):
            self._claim(bench)
            calibration, validation = self._references(bench, progress)
            search = Search(self.folder, bench, calibration, self.target, space, self.seed)
            self._search(search, trials, plan_trials, progress)
            judge = Validation(self.folder / "validation", bench, validation, self.target)
            candidates = candidates_of(search.trials, self.target)
            with progress("validating", min(NUM_AT_LEAST, len(candidates))) as advance:
                verdict = judge.choose(candidates, lambda: advance("validating"))
            methods = self._baselines(bench, verdict)
            with progress("dense runs at this cost", len(methods)) as advance:
                baselines = []
                for method in methods:
                    baselines.append(judge.validate(method.name, method))
                    advance("dense runs at this cost")
        return Outcome(verdict, tuple(search.trials), tuple(baselines))

    def _check(self, pipe: Any) -> None:
        if reason := why_stochastic(pipe.scheduler):
            raise ValueError(f"tune: {reason}, so that RAS runs dense and there is nothing to tune; use another one.")
        check_reuse(pipe, self.base)
        if self.reference == "converged" and not is_euler(pipe.scheduler):
            raise ValueError(
                f"--reference: got 'converged' with {type(pipe.scheduler).__name__}; it takes "
                "FlowMatchEulerDiscreteScheduler. Use --reference dense."
            )

    def _claim(self, bench: Bench) -> None:
        before, now = claim_of(self.folder), versions()
        purpose = {
            "model": self.model,
            **identity_of(bench.pipe),
            "machine": _machine(device_of(bench.pipe)) if self.target.cost == "time" else None,
            "target": self.target.to_dict(),
            "calibration": [asdict(scene) for scene in self.calibration],
            "validation": [asdict(scene) for scene in self.validation],
            "call": self.call,
            "steps": self.steps,
            "reference": self.reference,
            "converged_steps": self.converged_steps if self.reference == "converged" else None,
            "batch": self.batch,
            "seed": self.seed,
            "base": self.base.to_dict(),
            "without": sorted(self.without),
        }
        if self.offload != "none" and self.target.cost == "time":  # as in folders begun without a word of it
            purpose["offload"] = self.offload
        if "versions" in before or not before:  # likewise; they differ without being refused
            purpose["versions"] = before.get("versions", [now])
        if others := claim_folder(self.folder / CLAIM, purpose):
            raise ValueError(
                f"{self.folder}: holds a tuning with another {', '.join(others)}; give another folder, or remove it "
                f"({'; '.join(others.values())})."
            )
        self._keep_versions(before, now)

    def _keep_versions(self, before: dict[str, Any], now: dict[str, str]) -> None:
        """Keep all versions that worked in the folder, and say so if these are not the only ones."""
        kept: list[dict[str, str] | None] = before.get("versions", [None] if before else [now])
        if now not in kept:
            save_text(json.dumps({**before, "versions": [*kept, now]}, indent=1) + "\n", self.folder / CLAIM)
        if others := [described(each) for each in kept if each != now]:
            warnings.warn(
                f"{self.folder}: was worked on with {' and with '.join(others)}, and goes on with {described(now)}: "
                "trials of different versions are compared with each other. Another folder begins anew.",
                RASWarning,
                stacklevel=4,
            )

    def _references(self, bench: Bench, progress: Progress) -> tuple[SceneSet, SceneSet]:
        method = Method(DENSE, "dense", self.steps)
        if self.reference == "converged":
            method = Method(CONVERGED, "converged", self.converged_steps, solver="ab2")
        sets: Sequence[tuple[str, tuple[Scene, ...]]]
        sets = (("calibration", self.calibration), ("validation", self.validation))
        title = "painting the references"
        with progress(title, sum(-(-len(scenes) // self.batch) for _, scenes in sets)) as advance:
            first, second = (
                bench.references(scenes, method, self.folder / "references" / name, lambda: advance(title))
                for name, scenes in sets
            )
        return first, second

    def _search(self, search: Search, trials: int, plan_trials: int, progress: Progress) -> None:
        def standing() -> str:
            best = best_of(search.trials, self.target)
            if best is None or best.quality is None:
                return "searching"
            value = best.quality[self.target.main.name]
            missed = "" if best.is_met(self.target) else " (misses the target)"
            return f"best so far: {self.target.cost} {best.cost:.3f}, {self.target.main.name} {value:.4g}{missed}"

        changed = 0 if "step_ratios" in self.without else plan_trials
        with progress("searching", trials + changed) as advance:
            for _ in search.trials:
                advance(standing())
            search.search_options(trials, lambda trial: advance(standing()))
            search.search_plans(plan_trials, lambda trial: advance(standing()))

    def _baselines(self, bench: Bench, verdict: Verdict) -> list[Method]:
        """What anybody gets by taking fewer steps: as many as the choice's cost pays for, rounded up."""
        if verdict.validated is None:
            return []
        steps = max(1, math.ceil(self.steps * verdict.validated.cost - 1e-6))
        methods = [Method(f"{steps} dense steps", "dense", steps)]
        solvers: tuple[tuple[str, Solver], ...] = (("AB2", "ab2"), ("UniPC", "unipc"))
        for name, solver in solvers:
            if not why_unfit(bench.pipe.scheduler, solver):
                methods.append(Method(f"{steps} dense steps, second order ({name})", "dense", steps, solver=solver))
        return methods


def claim_of(folder: Path) -> dict[str, Any]:
    """What the tuning that was begun in a folder is for; empty where none was."""
    path = folder / CLAIM
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def scenes_of(folder: Path) -> list[Scene]:
    """The scenes of the tuning that was begun in a folder; none where none was."""
    claim = claim_of(folder)
    return [Scene(**values) for name in ("calibration", "validation") for values in claim.get(name, ())]


def _machine(device: torch.device) -> list[object]:
    """What times depend on: the GPU, or the processor and its threads; and PyTorch."""
    return [machine_name(device), torch.get_num_threads(), torch.__version__]
