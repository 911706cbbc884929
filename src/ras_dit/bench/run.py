"""The whole benchmark: cases by modes, each part checked, measured and written before the next one begins."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from ras_dit.bench.cases import Case
from ras_dit.bench.checks import (
    PROBE,
    Check,
    Probe,
    RefusedError,
    compiled_checks,
    eager_checks,
    eager_probe,
    option_checks,
    require,
)
from ras_dit.bench.crossover import num_runs, size_row
from ras_dit.bench.measure import first_line, look_into, measure, num_loops
from ras_dit.bench.modes import config_in, in_mode, num_without_graphs, settle
from ras_dit.bench.overhead import overhead
from ras_dit.bench.profiling import profile_step
from ras_dit.bench.results import Results, mode_and_size
from ras_dit.bench.settings import Settings, size_of
from ras_dit.config import RASConfig
from ras_dit.errors import is_out_of_memory
from ras_dit.remarks import AdviceWarning, RASWarning

Advance = Callable[[str], None]


@dataclass(frozen=True)
class _Loaded:
    """A case in memory: its pipeline, the call of it that is checked, and what the checks of the eager model found."""

    case: Case
    pipe: Any
    call: dict[str, Any]
    checks: list[Check]
    eager: Probe


@dataclass
class Benchmark:
    """Runs cases into a results file.

    Attributes:
        settings: what to measure.
        results: where it goes; parts that are finished there are left alone.
        progress: gives a bar of so many units, (title, units) -> context with the function that counts one.
        say: takes lines for people.
    """

    settings: Settings
    results: Results
    progress: Callable[[str, int], Any]
    say: Callable[[str], None] = lambda text: None

    def run(self, cases: list[Case]) -> bool:
        """Measure all that is not there yet.

        Returns:
            Whether no part of these cases was refused, now or, by the same code with the same options, before.

        Raises:
            Exception: something is broken; all other parts of all cases were measured before it is raised.
        """
        is_green, broken = True, list[Exception]()
        with _on(self.settings.device):
            due = [case.name for case in cases if self._runs(case)]
            for case in cases:
                try:
                    is_green &= self._measure(case, is_last=[case.name] == due[-1:])
                except Exception as error:
                    broken.append(error)
        if broken:
            raise broken[0]
        return is_green

    def _runs(self, case: Case) -> bool:
        """Whether anything of a case is still to be measured, and can be here."""
        due = [part for part in self.settings.parts(case) if not self._is_finished(case, part)]
        return bool(due) and _may_fit(self.settings.least_of(case, due), self.settings.device)

    def _measure(self, case: Case, is_last: bool) -> bool:
        parts = self.settings.parts(case)
        due = [part for part in parts if not self._is_finished(case, part)]
        known = {part: self._why_refused(case, part) for part in parts if part not in due}
        for part, why in known.items():
            self.results.forget_later_refusal(case.name, part, self.settings.options(case, part))
            if why is not None:
                self.say(f"{case.name}, {part}: refused before, by the same code with the same options. {why}")
        is_green = not any(known.values())
        if not due:
            if None in known.values():
                self.say(f"{case.name}: measured already, with the same code and options.")
        elif reason := self.settings.least_of(case, due).why_skipped(self.settings.device):
            self.say(f"{case.name}: left out, {reason}.")
        else:
            try:
                self._run_case(case, due, is_last)
            finally:
                _free(self.settings.device)
            is_green &= not any(self._why_refused(case, part) for part in due)
        return is_green

    def _is_finished(self, case: Case, part: str) -> bool:
        return self.results.is_finished(case.name, part, self.settings.options(case, part))

    def _why_refused(self, case: Case, part: str) -> str | None:
        return self.results.why_refused(case.name, part, self.settings.options(case, part))

    def _run_case(self, case: Case, due: list[str], is_last: bool) -> None:
        import torch

        settings = self.settings
        try:
            pipe = case.make(settings.device)
            call = settings.least_of(case, due).call(pipe, settings.device, settings.steps_of(case))
            checks, eager = eager_checks(pipe, call, case.dtype, case.has_kernels)
            loaded = _Loaded(case, pipe, call, checks, eager)
        except torch.OutOfMemoryError as error:
            for part in due:
                self._keep(case, part, self._refused(case, part, error))
            return
        broken: Exception | None = None
        sizes = {part: size_of(part) for part in due}
        fitting = [
            part
            for part, size in sizes.items()
            if size is None or _may_fit(case.at(size), settings.device, is_loaded=True)
        ]
        for part in due:
            # a profiler slows down what a GPU does after it in the same process
            is_profiled = settings.device == "cpu" or (is_last and [part] == fitting[-1:])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", RASWarning)
                    warnings.simplefilter("ignore", AdviceWarning)  # what is gained is measured here
                    result = self._part(loaded, part, is_profiled)
            except Exception as error:
                result = self._refused(case, part, error)
                broken = broken if _is_refusal(error, part) else error
            self._keep(case, part, result)
        if broken is not None:  # the other parts may have done better
            raise broken

    def _refused(self, case: Case, part: str, error: Exception) -> dict[str, Any]:
        reason = f"{type(error).__name__}: {first_line(error)}"
        self.say(f"{case.name}, {part}: {reason}")
        # what else went wrong, but for what torch.compile does not take, may be the machine's fault
        is_final = isinstance(error, (RefusedError, RASWarning)) or type(error).__name__ == "Unsupported"
        if not is_final and not is_out_of_memory(error):
            self.say("".join(traceback.format_exception(error)))
        return {"refused": reason, "is_final": is_final}

    def _keep(self, case: Case, part: str, result: Mapping[str, Any]) -> None:
        about = _about(case, self.settings)
        dropped = self.results.keep(case.name, part, self.settings.options(case, part), {"about": about, **result})
        if dropped:
            self.say(f"{case.name}: dropped what other code, options or machines measured ({', '.join(dropped)}).")

    def _part(self, loaded: _Loaded, part: str, is_profiled: bool) -> dict[str, Any]:
        mode, size = mode_and_size(part)[0], size_of(part)
        require(loaded.checks, loaded.eager.rounding)
        num_before = num_without_graphs()
        if size is None:
            result = self._loops(loaded, mode, is_profiled)
        else:
            result = self._crossed(loaded.case.at(size), loaded.pipe, mode, is_profiled)
        if num_without_graphs() > num_before:
            raise RefusedError(
                "PyTorch ran compiled blocks without CUDA graphs: its warnings, or TORCH_LOGS=perf_hints, say why."
            )
        return result

    def _loops(self, loaded: _Loaded, mode: str, is_profiled: bool) -> dict[str, Any]:
        case, pipe, call, checks = loaded.case, loaded.pipe, loaded.call, loaded.checks
        rounding = loaded.eager.rounding
        with in_mode(pipe, mode, self.settings.backend):
            if mode != "eager":
                settle(pipe, call)
                checks = compiled_checks(pipe, call, case.dtype, loaded.eager, config_in(mode, PROBE))
                require(checks, rounding)
            configs = self._configs(case, mode)
            checks = [*checks, *option_checks(pipe, call, case.dtype, configs.values(), rounding, mode)]
            require(checks, rounding)
            rows = self._rows(loaded, mode, configs, is_profiled)
        self._say_missing(f"{case.name}, {mode}", rows)
        return {"rows": rows, "checks": [check.to_dict() for check in checks]}

    def _configs(self, case: Case, mode: str) -> dict[str, RASConfig]:
        """Name -> what is compared with dense."""
        settings = self.settings
        configs = case.configs(settings.steps_of(case), settings.ratios, settings.presets, settings.has_variants)
        return {name: config_in(mode, config) for name, config in configs.items()}

    def _rows(
        self, loaded: _Loaded, mode: str, configs: Mapping[str, RASConfig], is_profiled: bool
    ) -> list[dict[str, Any]]:
        case, pipe, call = loaded.case, loaded.pipe, loaded.call
        repeats = self.settings.repeats or case.repeats
        with self.progress(f"{case.name}, {mode}", num_loops(len(configs), repeats)) as advance:
            rows = measure(
                pipe,
                call,
                configs,
                repeats,
                case.num_rows,
                case.calls_per_step,
                lambda: advance(f"{case.name}, {mode}"),
                has_long_warm_up=mode != "eager",
            )
        regional = [row for row in rows if row.get("num_active")]
        for row in regional:
            added = partial(overhead, pipe, call, configs[row["name"]], rows[0]["dense_step"])
            look_into(row, "overhead", added)
        leanest = sorted(regional, key=lambda row: row["num_active"])[:1]
        for row in (rows[0], *leanest) if is_profiled else ():
            profile = partial(profile_step, pipe, call, configs.get(row["name"]), case.calls_per_step)
            look_into(row, "profile", profile)
        return [{"mode": mode, **row} for row in rows]

    def _crossed(self, sized: Case, pipe: Any, mode: str, is_profiled: bool) -> dict[str, Any]:
        """One size of the crossover, in one mode."""
        import torch

        steps, device = self.settings.steps_of(sized), self.settings.device
        if reason := sized.why_skipped(device, is_loaded=True):
            return {"left_out": reason}
        ratios = [ratio for ratio in self.settings.ratios or sized.ratios if ratio < 1]
        title = f"{sized.name}, {mode}, {sized.size}"
        try:
            with self.progress(title, num_runs(len(ratios))) as advance:
                eager = None if mode == "eager" else eager_probe(pipe, sized.call(pipe, device, steps))
                with in_mode(pipe, mode, self.settings.backend):  # anew: every size gets its own graphs
                    row = size_row(sized, pipe, device, ratios, steps, mode, eager, lambda: advance(title), is_profiled)
        except torch.OutOfMemoryError as error:
            _free(device)
            return {"left_out": f"ran out of memory ({first_line(error)})"}
        self._say_missing(f"{sized.name}, {mode}, {sized.size}", (row, *row["ratios"]))
        return {"row": row}

    def _say_missing(self, what: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Of what could not be looked into after all was timed."""
        for row in rows:
            for name, why in row.get("missing", {}).items():
                of = f" of {row['name']}" if "name" in row else ""
                self.say(f"{what}: no {name}{of}: {why}")


def _may_fit(case: Case, device: str, is_loaded: bool = False) -> bool:
    """Whether there is memory for a case, as far as that can be told: what is wrong with it is an error of its own
    part."""
    try:
        return case.why_skipped(device, is_loaded) is None
    except ValueError:
        return True


def _on(device: str) -> AbstractContextManager[Any]:
    """What is timed, and what memory is asked for, is of this device."""
    import torch

    return torch.cuda.device(torch.device(device)) if device.startswith("cuda") else nullcontext()


def _free(device: str) -> None:
    """Give the memory of a case back before the next one."""
    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _is_refusal(error: Exception, part: str) -> bool:
    """Whether an error says that there is no figure to be had, rather than that something is broken: a check is not
    green, a run went otherwise than planned, memory ran out, or the model does not compile in this mode."""
    import torch

    return mode_and_size(part)[0] != "eager" or isinstance(error, (RefusedError, RASWarning, torch.OutOfMemoryError))


def _about(case: Case, settings: Settings) -> dict[str, Any]:
    return {
        "case": case.name,
        "title": case.title,
        "device": settings.device,
        "dtype": case.dtype,
        "size": str(case.size),
        "batch": case.batch,
        "guidance": case.guidance,
        "source": case.dimensions.source if case.dimensions else "ships with the package",
        "steps": settings.steps_of(case),
        "repeats": settings.repeats or case.repeats,
    }


@contextmanager
def silent(title: str, total: int) -> Iterator[Advance]:
    """No bar."""
    yield lambda text: None
