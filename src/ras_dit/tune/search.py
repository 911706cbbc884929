"""The search: Optuna over options, then small changes of the best plans; every finished trial is on disk."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from ras_dit.arena.methods import Method
from ras_dit.config import RASConfig
from ras_dit.tune.measure import Bench, Measured, SceneSet
from ras_dit.tune.plans import config_of_ratios, neighbour, ratios_of
from ras_dit.tune.space import Space, known_good
from ras_dit.tune.target import Target
from ras_dit.tune.trial import Stage, Trial, best_of, front_of, key_of, measured_trials

if TYPE_CHECKING:
    import optuna

NUM_RANDOM = 10
"""Trials (the known configs among them) before the sampler trusts what it has seen."""
LOCK_SECONDS = 3
"""Locks are held for milliseconds; one that is older was left behind."""
NOT_RUN_MISS = 10.0
"""What the sampler is told of a config that was not run: far off."""


def load_optuna() -> Any:
    """Optuna, silent.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune: needs Optuna; install it with `pip install '.[tune]'` in the checkout.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def known_for(space: Space, bench: Bench) -> dict[str, RASConfig]:
    """The known configs that fit the run, by name."""
    return {name: config for name, config in known_good(space).items() if not bench.why_not(config)}


def _journal(optuna: Any, path: Path) -> Any:
    """Optuna's storage in a file of lines; half a line or a lock that a killed process left is no hindrance."""
    if path.is_file():
        text = path.read_bytes()
        if not text.endswith(b"\n"):
            with path.open("r+b") as stream:
                stream.truncate(text.rfind(b"\n") + 1)
    lock = optuna.storages.journal.JournalFileOpenLock(str(path), grace_period=LOCK_SECONDS)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path), lock_obj=lock))


class Search:
    """Configs tried on the calibration pictures.

    Args:
        folder: where the trials are kept (``trials.log``, an Optuna journal).
        bench: paints and measures.
        on: the calibration pictures.
        target: what is asked for.
        space: what is searched.
        seed: of the search; with a cost that is counted, the same seed finds the same.
    """

    def __init__(self, folder: Path, bench: Bench, on: SceneSet, target: Target, space: Space, seed: int) -> None:
        self.bench, self.on, self.target, self.space, self.seed = bench, on, target, space, seed
        self._optuna = load_optuna()
        folder.mkdir(parents=True, exist_ok=True)
        storage = _journal(self._optuna, folder / "trials.log")
        self._options, self._plans = (
            self._optuna.create_study(storage=storage, study_name=name, direction="minimize", load_if_exists=True)
            for name in ("options", "plans")
        )
        self._done = {study: _finished(study) for study in (self._options, self._plans)}

    @property
    def trials(self) -> list[Trial]:
        """All that are finished, those of the plan search last."""
        return [trial for done in self._done.values() for trial in done]

    def search_options(self, count: int, on_trial: Callable[[Trial], None] = lambda trial: None) -> None:
        """Go on until there are this many trials: the known configs, then what Optuna suggests."""
        study, known, done = self._options, known_for(self.space, self.bench), self._done[self._options]
        self._clear_unfinished(study)
        while len(done) < count:
            tried = {trial.name for trial in done}
            name = next((name for name in known if name not in tried), "")
            study.sampler = self._sampler(len(done))
            if name:
                study.enqueue_trial(self.space.parameters(known[name]))
            asked = study.ask()
            chosen = self.space.suggest(asked)
            try:
                config = known[name] if name else self.space.config(chosen)
            except ValueError as error:  # does not go with the base's options
                trial = Trial("", "options", self.space.base, "not run", str(error))
            else:
                trial = self._try(config, name, "known" if name else "options")
            self._tell(study, asked, trial)
            on_trial(trial)

    def search_plans(self, count: int, on_trial: Callable[[Trial], None] = lambda trial: None) -> None:
        """Go on until there are this many trials of changed plans, each one move from one of the best so far."""
        done = self._done[self._plans]
        self._clear_unfinished(self._plans)
        while len(done) < count and "step_ratios" not in self.space.without:
            parents = self._parents()
            if not parents:
                return  # nothing was measured, so that there is nothing to change
            config = self._changed(parents, Random(f"{self.seed} {len(done)}"))
            trial = self._try(config, "", "plan")
            self._tell(self._plans, self._plans.ask(), trial)
            on_trial(trial)

    def _parents(self) -> list[Trial]:
        """The best, and its neighbours on the front: cheaper ones that miss a floor may be a move away from it."""
        best, front = best_of(self.trials, self.target), front_of(self.trials, self.target)
        if best is None:
            return []
        near = sorted(front, key=lambda trial: abs((trial.cost or 0.0) - (best.cost or 0.0)))[:4]
        return [best, best, *near]

    def _changed(self, parents: Sequence[Trial], random: Random) -> RASConfig:
        """A config that was not tried yet, one move from a parent (two, three ... where all nearer ones were)."""
        tried = {key_of(trial.config) for trial in self.trials}
        parent = random.choice(parents).config
        ratios = ratios_of(self.bench.plan(parent))
        for _ in range(100):
            ratios = neighbour(ratios, random)
            config = config_of_ratios(ratios, parent)
            if key_of(config) not in tried and not self.bench.why_not(config):
                return config
        return parent

    def _try(self, config: RASConfig, name: str, stage: Stage) -> Trial:
        if twin := next((trial for trial in self.trials if key_of(trial.config) == key_of(config)), None):
            return twin.again(name, stage)
        if reason := self.bench.why_not(config):
            return Trial(name, stage, config, "not run", reason)
        cost = self._known_cost(config)
        if cost is not None and not name and self.target.max_cost is not None and cost > self.target.max_cost:
            return Trial(name, stage, config, "not run", f"costs {cost:.3f}, over the budget", cost=cost)
        done = measured_trials(self.trials)
        hopeless = (lambda found: False) if name else (lambda found: self._is_hopeless(found, done))
        found = self.bench.measure(Method("tuned", "ras", self.bench.steps, config=config), self.on, hopeless)
        is_whole = found.num_pictures == len(self.on.scenes)
        quality = self.target.quality(found.per_picture) if is_whole else self._expected(found, done)
        state, reason = ("measured", "") if is_whole else ("pruned", f"hopeless after {found.num_pictures} pictures")
        return Trial(name, stage, config, state, reason, found, quality, found.costs[self.target.cost])  # type: ignore[arg-type]

    def _known_cost(self, config: RASConfig) -> float | None:
        """The cost that counts, if the plan says it."""
        plan = self.bench.plan(config)
        if self.target.cost == "time":
            return None
        return 1 / plan.speedup_limit if self.target.cost == "flops" else plan.token_steps / len(plan)

    def _is_hopeless(self, found: Measured, done: Sequence[Trial]) -> bool:
        """Whether a config that was painted with a few times misses the target by more than pictures differ."""
        if not 2 <= found.num_pictures < len(self.on.scenes) or 4 * found.num_pictures < len(self.on.scenes):
            return False
        quality, cost = self._expected(found, done), found.costs[self.target.cost]
        if self.target.max_cost is None:
            return max(self.target.misses(quality, cost).values()) > 1
        best = best_of(done, self.target)
        if cost > 1.2 * self.target.max_cost:
            return True
        if best is None or not best.is_met(self.target):
            return False
        assert best.quality is not None
        main = self.target.main
        return main.gain(best.quality[main.name], quality[main.name]) > main.scale

    def _expected(self, found: Measured, done: Sequence[Trial]) -> dict[str, float]:
        """What the quality over all pictures will come to.

        Pictures differ in how hard they are. The best config so far had them all: its quality, and the mean difference
        to it so far.
        """
        rival = best_of(done, self.target)
        if rival is None or rival.measured is None or rival.quality is None:
            return self.target.quality(found.per_picture)
        expected = {}
        for name, values in found.per_picture.items():
            others = rival.measured.per_picture[name][: len(values)]
            expected[name] = rival.quality[name] + math.fsum(a - b for a, b in zip(values, others, strict=True)) / len(
                values
            )
        return expected

    # ------------------------------------------------------------------ Optuna

    def _sampler(self, number: int) -> Any:
        """A sampler that draws by the seed and the number of trials so far: a search resumes as it would go on."""
        optuna = self._optuna
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=self.seed * 100_003 + number,
                n_startup_trials=NUM_RANDOM,
                multivariate=True,
                group=True,
                constant_liar=False,
            )

    def _clear_unfinished(self, study: optuna.Study) -> None:
        """A trial that was under way when a search was stopped is given up; it is begun anew."""
        states = self._optuna.trial.TrialState
        for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            study.tell(trial.number, state=states.FAIL)
        for _ in study.get_trials(deepcopy=False, states=(states.WAITING,)):
            study.tell(study.ask(), state=states.FAIL)

    def _tell(self, study: optuna.Study, asked: optuna.Trial, trial: Trial) -> None:
        states = self._optuna.trial.TrialState
        asked.set_user_attr("trial", trial.to_dict())
        if trial.quality is None or trial.cost is None:
            asked.set_constraint(
                "run", NOT_RUN_MISS if trial.cost is None else self.target.misses({}, trial.cost)["cost"]
            )
            study.tell(asked, state=states.PRUNED)
        else:
            for name, miss in self.target.misses(trial.quality, trial.cost).items():
                asked.set_constraint(name, miss)
            score = self.target.score(trial.quality, trial.cost)
            if trial.state == "measured":
                study.tell(asked, score)
            else:
                asked.report(score, step=0)
                study.tell(asked, state=states.PRUNED)
        self._done[study].append(trial)


def _finished(study: optuna.Study) -> list[Trial]:
    return [
        Trial.from_dict(trial.user_attrs["trial"])
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and "trial" in trial.user_attrs
    ]
