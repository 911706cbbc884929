"""Full noise of a transformer call that computed some tokens, or none: the others are forecast or reused."""

from __future__ import annotations

import torch

from ras_dit.calls import Branch, Call
from ras_dit.config import RASConfig
from ras_dit.forecast import ForecastRule, missed_nearby
from ras_dit.geometry import TokenGrid
from ras_dit.kernels import Operations
from ras_dit.plan import Plan


class NoiseFiller:
    """Puts the noise of all tokens in the place of what a call returned, and remembers it in the call's branch.

    Args:
        config: the user's choice.
        plan: of the run.
        grid: token grid of the latents.
        sigmas: S + 1 noise levels: the one of every evaluation, then the last one reached.
        levels: the same from 1 (noise) to 0 (picture), see `ras_dit.schedule.forecast_levels`.
        operations: kernels of this run; None for torch.
        num_extra: reference tokens M beside the grid.
    """

    def __init__(
        self,
        config: RASConfig,
        plan: Plan,
        grid: TokenGrid,
        sigmas: list[float],
        levels: list[float],
        operations: Operations | None,
        num_extra: int,
    ) -> None:
        self._config, self._plan, self._grid = config, plan, grid
        self._sigmas, self._levels = sigmas, levels
        self._operations, self._num_extra = operations, num_extra

    def full_noise(self, call: Call, branch: Branch, output: torch.Tensor | None, index: int) -> torch.Tensor | None:
        """The noise of all tokens in the form of the transformer's output, None to leave that as it is.

        Args:
            call: that has ended.
            branch: its memory.
            output: noise in any form that `TokenGrid` knows; tokens that were not computed hold anything. None for a
                skipped step.
            index: of the evaluation.
        """
        config = self._config
        if call.kind == "dense":
            assert output is not None
            return self._taken_in(branch, output, index)
        if self._operations is not None and config.rules == "ras_dit" and not config.neighbor_update:
            return self._full(branch, self._by_kernel(self._operations, call, branch, output, index), output)
        filled = self._forecast(branch, index)
        if call.kind == "region":
            assert output is not None
            assert call.is_active is not None
            tokens = self._grid.patchify(output)
            branch.history.record(tokens, self._sigmas[index], call.is_active)
            if config.solver_order == 2:
                tokens = self._step_mean(branch, index).to(tokens.dtype)
            if config.neighbor_update:
                nearby = missed_nearby(tokens.float() - filled, call.is_active, self._grid)
                filled = filled + config.neighbor_update * nearby
            filled = torch.where(call.is_active[..., None], tokens, filled.to(tokens.dtype))
        self._keep(branch, filled, index)
        return self._full(branch, filled, output)

    def _taken_in(self, branch: Branch, output: torch.Tensor, index: int) -> torch.Tensor | None:
        """The noise of a dense step is remembered, and left as it is unless the step is of second order."""
        tokens = self._grid.patchify(output)
        branch.noise_shape, branch.noise_dtype = tuple(output.shape), output.dtype
        branch.history.record(tokens, self._sigmas[index])
        self._keep(branch, tokens, index)
        if self._config.solver_order == 1:
            return None
        return self._full(branch, self._step_mean(branch, index).to(tokens.dtype), output)

    def rule(self, index: int) -> ForecastRule:
        """How tokens that an evaluation does not compute are forecast."""
        config = self._config
        is_midway = config.forecast_midpoint or config.solver_order == 2
        at = self._middle(index) if is_midway else self._sigmas[index]
        order = config.forecast_order if self._levels[index] < config.forecast_below else 0
        return ForecastRule(at, order, config.forecast_damping, config.forecast_reach)

    def _forecast(self, branch: Branch, index: int) -> torch.Tensor:
        """What tokens that are not computed are given [R, N, D]."""
        if self._config.rules == "reference":
            assert branch.kept is not None
            return branch.kept
        return branch.history.forecast(*self.rule(index))

    def _by_kernel(
        self, kernels: Operations, call: Call, branch: Branch, output: torch.Tensor | None, index: int
    ) -> torch.Tensor:
        """Noise of all tokens after a region or skipped step [R, N, D], by a kernel that records it as well."""
        tokens = None if output is None else self._grid.patchify(output)
        mean_at = self._middle(index) if self._config.solver_order == 2 else None
        options = (self._sigmas[index], *self.rule(index), mean_at, branch.noise_dtype)
        return kernels.record_and_fill(branch.history.values, branch.history.sigmas, tokens, call.is_active, *options)

    def _step_mean(self, branch: Branch, index: int) -> torch.Tensor:
        """Noise just computed, carried to the middle of the step by its last slope [R, N, D]: Adams-Bashforth 2."""
        return branch.history.forecast(self._middle(index), order=1, damping=1.0)

    def _middle(self, index: int) -> float:
        """The middle of the step's sigma interval."""
        return (self._sigmas[index] + self._sigmas[index + 1]) / 2

    def _keep(self, branch: Branch, tokens: torch.Tensor, index: int) -> None:
        """The authors store the noise of slow tokens when they select, not when it is computed."""
        next_selects = index + 1 < len(self._plan) and self._plan[index + 1].selects
        if self._config.rules == "reference" and (next_selects or branch.kept is None):
            branch.kept = tokens

    def _full(self, branch: Branch, tokens: torch.Tensor, output: torch.Tensor | None) -> torch.Tensor:
        """Noise of the grid's tokens in the form of the transformer's output."""
        grid = self._grid
        full = grid.unpatchify(tokens.to(branch.noise_dtype), branch.noise_shape)
        if self._num_extra and output is not None and not grid.has_items:
            # the noise of reference tokens is what it is (zero where they were not computed): nobody samples them
            begin, end = grid.num_before, grid.num_before + grid.num_tokens
            full[:, :begin] = output[:, :begin]
            full[:, end:] = output[:, end:]
        return full
