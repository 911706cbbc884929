"""What to measure on every case, and by which names its parts are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ras_dit.bench.architectures import Size
from ras_dit.bench.cases import Case
from ras_dit.bench.results import mode_and_size, part_of
from ras_dit.config import RASConfig


@dataclass(frozen=True)
class Settings:
    """What to measure on every case.

    Attributes:
        device: ``cpu``, ``cuda`` ...
        modes: of `ras_dit.bench.modes.MODES`, the eager one first.
        ratios: of loops, with ``presets`` instead of all that the case has, and of the crossover; None for its own.
        presets: of loops, by name, with ``ratios`` instead of all that the case has.
        has_variants: the case's variants stay beside ``ratios``.
        sizes: of the crossover, instead of the case's own; None for those.
        repeats: instead of the case's own.
        num_steps: evaluations, instead of the case's own.
        has_crossover: measure the crossover as well.
        has_loops: measure whole loops; without them the crossover alone.
        backend: of torch.compile.
    """

    device: str = "cpu"
    modes: tuple[str, ...] = ("eager",)
    ratios: tuple[float, ...] | None = None
    presets: tuple[str, ...] | None = None
    has_variants: bool = False
    sizes: tuple[str, ...] | None = None
    repeats: int | None = None
    num_steps: int | None = None
    has_crossover: bool = False
    has_loops: bool = True
    backend: str = "inductor"

    def __post_init__(self) -> None:
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(
                f"--device: got {self.device!r}; allowed: cpu, cuda. The work of others is not waited for, so that its "
                "time cannot be taken."
            )
        if self.presets and not self.has_loops:
            raise ValueError(
                "--presets: got them with --no-loops, which measures picture sizes against ratios alone; leave one out."
            )
        for name in self.presets or ():
            RASConfig.preset(name)  # an unknown one is an error now, not after an hour

    def steps_of(self, case: Case) -> int:
        return self.num_steps or case.schedule.num_steps

    def parts(self, case: Case) -> list[str]:
        """Names of what is measured, in order."""
        sizes = self.sizes_of(case) if self.has_crossover else []
        return [
            *(self.modes if self.has_loops else ()),
            *(part_of(mode, size) for mode in self.modes for size in sizes),
        ]

    def sizes_of(self, case: Case) -> list[Size]:
        if case.dimensions is None:
            return []
        texts = self.sizes if self.sizes is not None else case.sizes
        return list(dict.fromkeys(Size.parse(text, case.size) for text in texts))

    def with_parts(self, cases: list[Case], is_named: bool) -> list[Case]:
        """The cases of which there is something to measure.

        Args:
            cases: any.
            is_named: somebody asked for picture sizes of these very cases: those that have none are not left out.

        Raises:
            ValueError: they are not to be left out.
        """
        without = [case for case in cases if not self.sizes_of(case)] if self.has_crossover and is_named else []
        if without:
            flag = "--sizes" if self.sizes is not None else "--crossover" if self.has_loops else "--no-loops"
            names = ", ".join(case.name for case in without)
            if any(case.dimensions is None for case in without):
                why = "the model in the box is timed at its own size; take another case"
            else:
                why = "it has no picture sizes of its own; give --sizes"
            raise ValueError(f"{flag}: got it for {names}, but {why}, or leave {flag} out.")
        return [case for case in cases if self.parts(case)]

    def least_of(self, case: Case, parts: list[str]) -> Case:
        """The case at the size at which RAS is checked before these parts are measured: its own, or where no whole
        loops are among them, the smallest of all sizes asked for."""
        if any(size_of(part) is None for part in parts):
            return case
        return case.at(min(self.sizes_of(case), key=lambda size: size.num_pixels))

    def options(self, case: Case, part: str) -> dict[str, Any]:
        """What a part's figures depend on, besides code and machine."""
        found: dict[str, Any] = {
            "title": case.title,
            "steps": self.steps_of(case),
            "ratios": self.ratios or case.ratios,
            "backend": None if mode_and_size(part)[0] == "eager" else self.backend,
        }
        if size_of(part) is not None:
            return found
        if self.presets:
            found["presets"] = self.presets
        if case.variants and (self.has_variants or not (self.ratios or self.presets)):
            found["variants"] = {name: dict(options) for name, options in case.variants.items()}
        return {**found, "repeats": self.repeats or case.repeats}


def size_of(part: str) -> Size | None:
    """Of a part that is a size of the crossover."""
    text = mode_and_size(part)[1]
    return None if text is None else Size.parse(text, Size(1, 1))
