"""`calibrate` fits the forecast of a config to a pipeline's own dense runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ras_dit.config import RASConfig
from ras_dit.engine import Handle, accelerate, resolve_config
from ras_dit.fitted import NUM_TERMS, FittedForecast
from ras_dit.geometry import TokenGrid
from ras_dit.schedule import is_euler

Watcher = TypeVar("Watcher", bound=FittedForecast)
RIDGE = 1e-4
"""Of the mean squared term: keeps terms that are nearly the same from large shares of opposite signs."""
NUM_ROUNDS = 4


def calibrate(pipe: Any, config: RASConfig | str | Path | None = None, **call: Any) -> RASConfig:
    """Fit the forecast of a config to a pipeline's own dense runs.

    The pictures of one call are sampled twice from the same noise, dense and by the config. In every evaluation that
    leaves tokens out, four numbers are fitted by least squares so that the latents after it come as near to those of
    the dense run as they can (in the mean of the pictures' PSNR); the run goes on from there, so that later
    evaluations are fitted to what earlier ones left. Nothing is trained, and two runs are all it takes. (For several
    configs, `DenseRun` does the first one once.)

    The fit belongs to this pipeline, plan, number of steps and (more or less) guidance; several pictures should be in
    the call, and other ones than those that are to be judged by.

    Args:
        pipe: a pipeline with FlowMatchEulerDiscreteScheduler, RAS not enabled on it.
        config: what to fit, as for `ras_dit.enable`; with ``solver_order=2`` the dense run is second order too.
        **call: arguments of the pipeline's call, as it will be called: prompts, size, ``num_inference_steps``. Without
            ``generator`` and ``latents`` the noise is that of seed 0.

    Returns:
        The config with its ``forecast_fit``.

    Raises:
        ValueError: nothing is left out by this config, RAS is enabled, another scheduler, or latents that hold more
            than the tokens of a picture or video.
    """
    config = resolve_config(config)
    check_fittable(config)
    return DenseRun(pipe, config.solver_order, **call).fit(config)


class SameCall:
    """A call of a pipeline for its latents, over and over from the same noise.

    Args:
        pipe: any.
        call: its arguments; without ``generator`` and ``latents`` the noise is that of seed 0.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any]) -> None:
        if "latents" not in call:
            call = {"generator": torch.Generator().manual_seed(0), **call}
        self._pipe, self._call = pipe, {**call, "output_type": "latent"}
        given = call.get("generator")
        self._generators = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        self._states = [generator.get_state() for generator in self._generators]

    def watched(
        self, config: RASConfig, make: Callable[[TokenGrid, list[float]], Watcher]
    ) -> tuple[list[Watcher], Handle]:
        """Call the pipeline by a config, with something in the place of its fitted forecast.

        Args:
            config: to run by.
            make: what to put there, from the grid and the noise levels of a run.

        Returns:
            What was put there, one for each run of the call, and the handle, disabled.
        """
        found: list[Watcher] = []

        def fitting(grid: TokenGrid, sigmas: list[float]) -> Watcher:
            found.append(make(grid, sigmas))
            return found[-1]

        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        with accelerate(self._pipe, config.replace(auto=False)) as handle:
            handle._session.fitting = fitting
            self._pipe(**self._call)
        return found, handle


class DenseRun:
    """A dense run that forecasts are fitted to.

    Args:
        pipe: as for `calibrate`.
        solver_order: of the run, 1 or 2; configs of that order can be fitted to it.
        **call: as for `calibrate`.

    Raises:
        ValueError: RAS is enabled, or another scheduler.
    """

    def __init__(self, pipe: Any, solver_order: int = 1, **call: Any) -> None:
        if not is_euler(pipe.scheduler):
            raise ValueError(
                f"calibrate: got {type(pipe.scheduler).__name__}; allowed: FlowMatchEulerDiscreteScheduler, whose "
                "steps show what noise would have led where."
            )
        self._order, self._call = solver_order, SameCall(pipe, call)
        recordings, _ = self._call.watched(RASConfig(sample_ratio=1.0, solver_order=solver_order), Recording)
        if len(recordings) != 1:
            raise ValueError(f"calibrate: got a call of {len(recordings)} runs in a row; allowed: a single one.")
        self._targets = recordings[0].targets

    def fit(self, config: RASConfig | str | Path | None = None) -> RASConfig:
        """A config with its forecast fitted to this run; errors as of `calibrate`."""
        config = resolve_config(config)
        check_fittable(config)
        if config.solver_order != self._order:
            raise ValueError(f"fit: got solver_order={config.solver_order}; allowed: {self._order}, that of this run.")
        plain = config.replace(forecast_fit=())
        fittings, handle = self._call.watched(plain, partial(Fitting, self._targets))
        if len(fittings) != 1 or not any(fittings[0].found):
            why = " ".join(handle.trace.notes) or "Its latents hold more than the tokens of a picture or video."
            raise ValueError(f"calibrate: no evaluation of this call could be fitted. {why}")
        return plain.replace(forecast_fit=tuple(fittings[0].found))


def check_fittable(config: RASConfig) -> None:
    """Refuse a config that leaves no token out, or is the authors'."""
    if not config.has_savings or config.rules == "reference":
        raise ValueError("calibrate: got a config without steps that leave tokens out; there is nothing to fit.")


class Recording(FittedForecast):
    """Leaves all noise as it is, and keeps the latents that Euler's steps make of it."""

    def __init__(self, grid: TokenGrid, sigmas: Sequence[float]) -> None:
        super().__init__((), grid, sigmas)
        self.targets: list[torch.Tensor] = []

    def adjusted(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, active: torch.Tensor | None
    ) -> torch.Tensor:
        """The noise itself."""
        length = self.sigmas[index + 1] - self.sigmas[index]
        self.targets.append(sample.float() + length * model_output.float())
        return model_output


class Fitting(FittedForecast):
    """Finds the shares as it goes.

    Args:
        targets: latents after every evaluation of the dense run.
        grid: token grid of the latents.
        sigmas: noise level of every evaluation, and the last one reached.
    """

    def __init__(self, targets: Sequence[torch.Tensor], grid: TokenGrid, sigmas: Sequence[float]) -> None:
        super().__init__((), grid, sigmas)
        self.found = [0.0] * (NUM_TERMS * (len(sigmas) - 1))
        self._targets = targets

    def _shares(self, index: int, terms: Sequence[torch.Tensor], is_active: torch.Tensor) -> Sequence[float]:
        *_, last, latents = terms
        length = self.sigmas[index + 1] - self.sigmas[index]
        wanted = (self.grid.patchify(self._targets[index]) - latents) / length - last
        left_out = (~is_active)[..., None]
        rows = torch.stack([(term * left_out).flatten(1) for term in terms], dim=1).cpu().double()
        shares = least_error(rows, (wanted * left_out).flatten(1).cpu().double())
        found = [round(float(share), 6) for share in shares]
        self.found[NUM_TERMS * index : NUM_TERMS * (index + 1)] = found
        return found


def least_error(terms: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Shares of terms for which the logarithm of the squared error is least on average over pictures, as PSNR has it.

    (Plain least squares would look at the worst picture and little else.) It is found by least squares whose pictures
    are weighted by the inverse of their errors, a few times over.

    Args:
        terms: [pictures, terms, M], float64.
        wanted: [pictures, M].

    Returns:
        One share per term.
    """
    products = terms @ terms.mT
    moments = (terms @ wanted[..., None]).squeeze(-1)
    squares = wanted.square().sum(1)
    errors, shares = squares, terms.new_zeros(terms.shape[1])
    for _ in range(NUM_ROUNDS):
        weights = 1 / errors.clamp_min(1e-12 * squares.max() + 1e-300)
        matrix = torch.einsum("b,bij->ij", weights, products)
        ridge = RIDGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        shares = torch.linalg.solve(matrix + ridge, weights @ moments)
        errors = squares - 2 * moments @ shares + torch.einsum("i,bij,j->b", shares, products, shares)
    return shares
