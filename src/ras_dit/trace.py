"""What actually ran: one record per transformer evaluation of the conditional branch, and the map drawn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from ras_dit.files import checked_suffix, read_as, save_text
from ras_dit.geometry import TokenGrid
from ras_dit.plan import Plan, StepKind, StepPlan

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class StepTrace:
    """One evaluation.

    Attributes:
        kind: ``dense``, ``region`` or ``skip``, as it ran (not as it was planned).
        sigma: noise level it was evaluated at.
        active: computed token ids, LongTensor [B, num_active] ascending, one row per image; None when dense, [B, 0]
            when skipped.
        seconds: wall time of the evaluation's transformer calls (all branches); None while it is not known.
        num_rows: rows of the batches of those calls together, also where none was computed; 0 in files of earlier
            versions.
    """

    kind: StepKind
    sigma: float
    active: torch.Tensor | None = None
    seconds: float | None = None
    num_rows: int = 0


@dataclass
class Trace:
    """The steps of the latest generation, in order.

    Attributes:
        grid: the token grid; None before the first generation.
        steps: see `StepTrace`.
        notes: why anything ran otherwise than planned, each reason once.
    """

    grid: TokenGrid | None = None
    steps: list[StepTrace] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Image tokens N of one image (0 before the first generation)."""
        return self.grid.num_tokens if self.grid else 0

    @property
    def token_steps(self) -> float:
        """T: the sum over steps of computed / all tokens."""
        return sum(self._share(step) for step in self.steps)

    def _share(self, step: StepTrace) -> float:
        return 1.0 if step.active is None else step.active.shape[1] / self.num_tokens

    @property
    def measured_speedup(self) -> float | None:
        """Time of as many dense evaluations (the median per row) over the time of those that ran; None while unknown.

        The transformer's calls alone are timed, and a run's own dense steps are the measure: see the benchmarks for
        whole runs side by side.
        """
        steps = [step for step in self.steps if step.seconds is not None]
        rows = [step.num_rows for step in steps]  # guidance of a part of the run makes them more there
        rows = rows if all(rows) else [1] * len(rows)
        total = sum(step.seconds or 0.0 for step in steps)
        pairs = zip(steps, rows, strict=True)
        dense = sorted((step.seconds or 0.0) / count for step, count in pairs if step.kind == "dense")
        return dense[len(dense) // 2] * sum(rows) / total if dense and total else None

    def as_plan(self, planned: Plan | None = None) -> Plan:
        """What ran, as a plan without a cost.

        Args:
            planned: dense steps whose keys and values that plan keeps are taken to have kept them.
        """
        keeps = [step.captures for step in planned or ()]
        steps = []
        for index, step in enumerate(self.steps):
            count = self.num_tokens if step.active is None else step.active.shape[1]
            captures = step.kind == "dense" and index < len(keeps) and keeps[index]
            steps.append(StepPlan(index, step.kind, count, captures=captures))
        return Plan(tuple(steps), self.num_tokens)

    def masks(self) -> torch.Tensor:
        """Which tokens every evaluation computed, bool [S, B, height, width] (video: [S, B, frames, height, width]) on
        the CPU: all of them in dense steps, none in skipped ones; B is 1 where every step was dense.

        Raises:
            ValueError: nothing has run yet.
        """
        if self.grid is None:
            raise ValueError("trace: got no generation yet; call the pipeline first.")
        batch = max((step.active.shape[0] for step in self.steps if step.active is not None), default=1)
        masks = torch.zeros(len(self.steps), batch, self.num_tokens, dtype=torch.bool, device="cpu")
        for mask, step in zip(masks, self.steps, strict=True):
            if step.active is None:
                mask.fill_(True)
            else:
                mask.scatter_(1, step.active.cpu(), True)
        return self.grid.as_image(masks)

    def times_computed(self) -> torch.Tensor:
        """How often each token was computed, LongTensor [B, height, width] (video: [B, frames, height, width]); B is 1
        where every step was dense.

        Raises:
            ValueError: nothing has run yet.
        """
        return self.masks().sum(dim=0)

    def _of_image(self, index: int, step: int | None = None) -> torch.Tensor:
        """Counts of one image of the batch, in all steps or in one; all are alike where every step was dense."""
        masks = self.masks()
        if step is not None and not 0 <= step < len(self.steps):
            raise ValueError(f"step: got {step}; allowed: 0 to {len(self.steps) - 1}, the evaluations of this run.")
        counts = masks.sum(dim=0) if step is None else masks[step]
        if len(counts) == 1:  # all steps were dense, however many images there were
            return counts[0]
        if not 0 <= index < len(counts):
            raise ValueError(f"index: got {index}; allowed: 0 to {len(counts) - 1}, the images of this run.")
        return counts[index]

    def heatmap(
        self, image: Image.Image | None = None, *, index: int = 0, step: int | None = None, size: int = 512
    ) -> Image.Image:
        """Where the compute went: bright where a token was computed often (the mean over a video's frames).

        Args:
            image: a picture to lay the map over; None draws the map alone.
            index: which image of the batch.
            step: an evaluation, from 0 on, whose map it is: bright where it computed a token, dark where it did not (of
                a video the share of frames); None takes all of them together.
            size: longer side of the map in pixels without ``image`` (a colour bar comes below it); with one, its size.

        Raises:
            ValueError: nothing has run yet, or an image or step outside of the run.
        """
        from ras_dit.viz import draw_heatmap

        counts = self._of_image(index, step).float()
        counts = counts.mean(dim=0) if counts.ndim == 3 else counts
        if step is None:
            return draw_heatmap(counts, num_steps=len(self.steps), image=image, size=size)
        return draw_heatmap(counts, 1, image, size, span=(0, 1), legend=f"computed in step {step}")

    def heatmaps(self, frames: Sequence[Image.Image], *, index: int = 0) -> list[Image.Image]:
        """The map of each frame of a video over it, in the colours of the whole; of a picture one map.

        A latent frame stands for several frames; each gets the map of the latent frame nearest to its place.

        Args:
            frames: of the video, or a picture alone.
            index: which video of the batch.

        Raises:
            ValueError: nothing has run yet, or a video outside of the run.
        """
        from ras_dit.viz import draw_heatmap

        counts = self._of_image(index)
        counts = counts[None] if counts.ndim == 2 else counts
        span = int(counts.min()), int(counts.max())
        last = max(len(frames) - 1, 1)
        return [
            draw_heatmap(counts[round(at * (len(counts) - 1) / last)], len(self.steps), frame, span=span)
            for at, frame in enumerate(frames)
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        grid = self.grid
        return {
            "grid": None if grid is None else asdict(grid),
            "notes": list(self.notes),
            "steps": [
                {
                    "kind": step.kind,
                    "sigma": step.sigma,
                    "active": None if step.active is None else step.active.tolist(),
                    "seconds": step.seconds,
                    "num_rows": step.num_rows,
                }
                for step in self.steps
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """The inverse of `to_dict`; the grid may be the list of its values, as earlier versions wrote it.

        Raises:
            ValueError: values that are not those of a trace.
        """
        try:
            steps = [_step_of(step) for step in data["steps"]]
            found = data["grid"]
            if found is not None:
                found = TokenGrid(**found) if isinstance(found, Mapping) else TokenGrid(*found)
            return cls(found, steps, list(data.get("notes", ())))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"trace: got values that are no trace ({error!r}); allowed: what to_dict returns."
            ) from error

    def to_json(self) -> str:
        """All of it, as ``ras-dit generate --trace`` writes it."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The inverse of `to_json`.

        Raises:
            ValueError: no JSON, or values that `from_dict` refuses.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"trace: got text that is no JSON ({error}); allowed: what to_json returns.") from error
        return cls.from_dict(data)

    def save(self, path: str | Path) -> None:
        """Write a ``.json`` file (whole or not at all); its folder is made, too.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        checked_suffix("trace", path, ".json")
        save_text(self.to_json(), path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` or ``ras-dit generate --trace`` wrote; errors name the file.

        Raises:
            ValueError: another ending, no such file, or one that holds no trace.
        """
        return read_as("trace", Path(path), {".json": cls.from_json})


def _step_of(values: Mapping[str, Any]) -> StepTrace:
    """One of the steps that `Trace.to_dict` lists."""
    if values["kind"] not in get_args(StepKind):
        raise ValueError(f"trace: got a step of kind {values['kind']!r}; allowed: {', '.join(get_args(StepKind))}.")
    active = values["active"]
    ids = None if active is None else torch.tensor(active, dtype=torch.long, device="cpu")
    return StepTrace(values["kind"], values["sigma"], ids, values.get("seconds"), values.get("num_rows", 0))
