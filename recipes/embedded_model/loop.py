"""The loop of the stages that train for a given time: notes, checkpoints, a clean stop, all processes in step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from tqdm import tqdm

from recipes.embedded_model.checkpoint import Ranks, Stopwatch, interruptible

SAVE_EVERY = 180.0  # seconds


class TimedTraining(ABC):
    """Training until `done` is 1, or until Ctrl-C.

    Attributes:
        ranks: the processes that train together.
        watch: the time that was spent, over all runs.
        step: steps done.
        history: rows of the log.
        title: of the progress bar.
        note_every: steps between two rows of the log.
    """

    ranks: Ranks
    watch: Stopwatch
    step: int
    history: list[dict[str, Any]]
    title = "training"
    note_every = 50

    @property
    @abstractmethod
    def done(self) -> float:
        """The share of the budget that is used."""

    @abstractmethod
    def advance(self, done: float) -> None:
        """Train on one batch, with a share `done` of the budget gone, and keep its loss."""

    @abstractmethod
    def note(self) -> None:
        """Add a row to the log."""

    @abstractmethod
    def save(self) -> None:
        """Write the checkpoint and the log, atomically."""

    def run(self) -> bool:
        """Train to the end of the budget; returns False when interrupted (the state is saved)."""
        self.watch = Stopwatch(self.watch.elapsed)
        saved_at = self.watch.elapsed
        bar = tqdm(total=1.0, desc=self.title, unit="run", mininterval=5, disable=not self.ranks.is_first)
        with interruptible() as interruption, bar:
            while (done := self.ranks.agree(self.done + 10 * interruption.is_requested)) < 1:
                self.advance(done)
                if self.step % self.note_every == 0:
                    self.note()
                    bar.n = round(self.done, 4)
                    bar.set_postfix({k: f"{v:.4g}" for k, v in self.history[-1].items()})
                if self.watch.elapsed - saved_at > SAVE_EVERY:
                    self.save()
                    saved_at = self.watch.elapsed
            self.save()
        return done < 10
