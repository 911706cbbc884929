"""What a tuning leaves behind: a preset that `enable` takes, a JSON of all numbers, a few lines to read, a plot."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ras_dit.files import save_text
from ras_dit.tune.plot import plot
from ras_dit.tune.trial import Trial, best_of, front_of, key_of
from ras_dit.tune.tuning import CLAIM, Outcome, Tuning, claim_of
from ras_dit.tune.validate import Validated
from ras_dit.versions import versions

REPORT = ".report"
"""Ends the name of the report of a preset."""


def check_name(name: str) -> None:
    """Refuse a name of a preset that is none of a file, or of a file that a tuning keeps.

    Raises:
        ValueError: says which.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"--name: got {name!r}; allowed: letters, digits, _, - and ., which does not come first.")
    if name.lower() == Path(CLAIM).stem:  # some file systems take both for one
        raise ValueError(f"--name: got {name!r}; allowed: any but that of {CLAIM}, which the folder keeps.")
    if name.lower().endswith(REPORT):
        raise ValueError(f"--name: got {name!r}; allowed: no name ending in {REPORT}, as the reports of others do.")


def write_report(tuning: Tuning, outcome: Outcome, name: str = "tuned", has_plot: bool = True) -> dict[str, Any]:
    """Write ``<name>.report.json`` and ``<name>.png``, and the preset ``<name>.json`` if the target was met.

    A preset of that name from before is removed if the target was missed.

    Returns:
        What the report holds.

    Raises:
        ValueError: a name that `check_name` refuses.
    """
    check_name(name)
    result = report(tuning, outcome)
    save_text(json.dumps(result, indent=1) + "\n", tuning.folder / f"{name}{REPORT}.json")
    preset = preset_path(tuning, name)
    if outcome.verdict.chosen is None:
        preset.unlink(missing_ok=True)
    else:
        outcome.verdict.chosen.config.save(preset)
    if has_plot:
        plot(tuning.target, outcome, tuning.folder / f"{name}.png")
    return result


def preset_path(tuning: Tuning, name: str = "tuned") -> Path:
    """The config file: ``ras_dit.enable(pipe, path)`` takes it."""
    return tuning.folder / f"{name}.json"


def report(tuning: Tuning, outcome: Outcome) -> dict[str, Any]:
    """All numbers, as JSON has them."""
    verdict, target = outcome.verdict, tuning.target
    best = best_of(outcome.trials, target)
    return {
        "status": verdict.status,
        "summary": summary(tuning, outcome),
        "config": None if verdict.chosen is None else verdict.chosen.config.to_dict(),
        "closest": None if best is None else best.to_dict(),
        "target": target.to_dict(),
        "reference": tuning.reference,
        "model": tuning.model,
        "steps": tuning.steps,
        "batch": tuning.batch,
        "call": tuning.call,
        "seed": tuning.seed,
        "num_calibration": len(tuning.calibration),
        "num_validation": len(tuning.validation),
        "candidates": [
            {"calibration": _outline(trial), "validation": found.to_dict(), "config": trial.config.to_dict()}
            for trial, found in verdict.candidates
        ],
        "baselines": [found.to_dict() for found in outcome.baselines],
        "front": [{**_outline(trial), "config": trial.config.to_dict()} for trial in front_of(outcome.trials, target)],
        "trials": [trial.to_dict() for trial in outcome.trials],
        "versions": {**versions(), "optuna": version("optuna")},
        "versions_of_trials": claim_of(tuning.folder).get("versions", []),  # None: of before they were kept
    }


def _outline(trial: Trial) -> dict[str, Any]:
    costs = {} if trial.measured is None else trial.measured.costs
    return {"label": trial.label, "stage": trial.stage, "quality": trial.quality, "cost": trial.cost, "costs": costs}


def summary(tuning: Tuning, outcome: Outcome) -> list[str]:
    """What came of it, in a few lines."""
    target, verdict = tuning.target, outcome.verdict
    measured, pruned = (
        len({key_of(trial.config) for trial in outcome.trials if trial.state == state})
        for state in ("measured", "pruned")
    )
    lines = [
        f"Asked for: {target}; compared with the {tuning.reference} run.",
        f"{len(outcome.trials)} trials on {len(tuning.calibration)} pictures: {measured} measured, {pruned} given up "
        f"early, {len(outcome.trials) - measured - pruned} not run or the same as others.",
    ]
    if not verdict.candidates:
        return [*lines, *_nothing_met(tuning, outcome)]
    place = [trial is verdict.chosen for trial, _ in verdict.candidates]
    for (trial, found), is_chosen in zip(verdict.candidates, place, strict=True):
        mark = "CHOSEN " if is_chosen else ""
        lines.append(f"{mark}{trial.label}: {_numbers(tuning, found)}; on calibration {_calibration(tuning, trial)}.")
    lines.append(_said(tuning, outcome))
    lines += [f"For comparison, {found.label}: {_numbers(tuning, found)}." for found in outcome.baselines]
    if beaten := [found.label for found in outcome.baselines if _beats(tuning, found, verdict.validated)]:
        lines.append(
            f"Note: {' and '.join(beaten)} did better at about this cost; taking fewer steps would serve you better."
        )
    return lines


def _nothing_met(tuning: Tuning, outcome: Outcome) -> list[str]:
    best = best_of(outcome.trials, tuning.target)
    if best is None:
        return ["TARGET MISSED: nothing could be measured."]
    return [
        f"TARGET MISSED on the calibration pictures already. Closest: {best.label}: {_calibration(tuning, best)}.",
        "Ask for less, or try more (--trials, --plan-trials).",
    ]


def _said(tuning: Tuning, outcome: Outcome) -> str:
    status, found = outcome.verdict.status, outcome.verdict.validated
    on = f"on {len(tuning.validation)} validation pictures"
    if found is None:
        return f"TARGET MISSED {on} by all that met it on the calibration pictures; no preset was written."
    sure = "" if found.is_sure else " (the interval reaches beyond the target: more validation pictures would tell)"
    if status == "fallback":
        return f"The best on calibration missed the target {on}; the next that meets it was taken instead{sure}."
    return f"The target is met {on}{sure}."


def _numbers(tuning: Tuning, found: Validated) -> str:
    quality = [
        f"{name} {middle:.4g} ({low:.4g} to {high:.4g})" for name, (middle, low, high) in found.intervals.items()
    ]
    costs = [f"{name} {share:.3f}" for name, share in sorted(found.measured.costs.items())]
    missed = "" if found.is_met else ", misses the target"
    return f"{', '.join(quality)} at {', '.join(costs)} of dense{missed}"


def _calibration(tuning: Tuning, trial: Trial) -> str:
    main = tuning.target.main.name
    assert trial.quality is not None
    return f"{main} {trial.quality[main]:.4g} at {tuning.target.cost} {trial.cost:.3f}"


def _beats(tuning: Tuning, found: Validated, chosen: Validated | None) -> bool:
    main = tuning.target.main
    return chosen is not None and main.gain(found.intervals[main.name][0], chosen.intervals[main.name][0]) > 0
