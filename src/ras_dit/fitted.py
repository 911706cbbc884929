"""A forecast whose weights were fitted to dense runs: `ras_dit.calibrate` finds them, `RASConfig.forecast_fit` holds
them, and here they are put to use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ras_dit.forecast import TokenHistory
from ras_dit.geometry import TokenGrid
from ras_dit.schedule import is_euler
from ras_dit.selection import membership

if TYPE_CHECKING:
    from ras_dit.config import RASConfig

NUM_TERMS = 4


class FittedForecast:
    """Guided noise of the tokens that an evaluation leaves out: their last one, and a fitted share of four terms.

    A token's terms are the change between its last two values, the change between the two before (0 where there are
    no such values), its last value, and its latents.

    Args:
        fit: `NUM_TERMS` shares per evaluation; where all are 0 the noise is left as it is.
        grid: token grid of the latents.
        sigmas: noise level of every evaluation, and the last one reached.
    """

    def __init__(self, fit: Sequence[float], grid: TokenGrid, sigmas: Sequence[float]) -> None:
        self.fit = tuple(fit)
        self.grid = grid
        self.sigmas = sigmas
        self._history = TokenHistory(3)

    @classmethod
    def of(
        cls, config: RASConfig, grid: TokenGrid, sigmas: Sequence[float], scheduler: Any, note: Callable[[str], None]
    ) -> FittedForecast | None:
        """The one that a config asks for; None, and a note, where it does not fit the run."""
        num_steps, num_fitted = len(sigmas) - 1, len(config.forecast_fit) // NUM_TERMS
        if not config.forecast_fit:
            return None
        if num_steps != num_fitted:
            note(
                f"forecast_fit is of runs of {num_fitted} evaluations, this one has {num_steps}: it was left out. "
                "Calibrate for this length."
            )
            return None
        if not is_euler(scheduler):
            note(f"forecast_fit needs FlowMatchEulerDiscreteScheduler, this is {type(scheduler).__name__}: left out.")
            return None
        return cls(config.forecast_fit, grid, sigmas)

    def adjusted(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, active: torch.Tensor | None
    ) -> torch.Tensor:
        """Guided noise as the scheduler should get it.

        Args:
            index: of the evaluation.
            model_output: guided noise in any form that `TokenGrid` knows.
            sample: the latents, same shape.
            active: ids of the computed tokens [images, K]; None for all.

        Returns:
            The noise, same shape and dtype; the very tensor where nothing is to be done.
        """
        tokens, latents = self.grid.patchify(model_output), self.grid.patchify(sample)
        if tokens.numel() != model_output.numel() or latents.shape != tokens.shape:
            return model_output  # frames or tokens beside the grid: not what was fitted
        if not self._history.is_empty and self._history.values.shape[1:] != tokens.shape:
            self._history = TokenHistory(3)  # images left the batch
        if active is None:
            self._history.record(tokens, self.sigmas[index])
            return model_output
        if self._history.is_empty:
            return model_output
        is_active = membership(active.to(tokens.device), self.grid.num_tokens)
        terms = self._terms(latents)
        shares = self._shares(index, terms, is_active)
        if any(shares):
            filled = self._history.values[0] + sum(share * term for share, term in zip(shares, terms, strict=True))
            filled = torch.where(is_active[..., None], tokens, filled.to(tokens.dtype))
            model_output = self.grid.unpatchify(filled, model_output.shape)
        self._history.record(tokens, self.sigmas[index], is_active)
        return model_output

    def _shares(self, index: int, terms: Sequence[torch.Tensor], is_active: torch.Tensor) -> Sequence[float]:
        """Of the four terms in an evaluation, each [B, N, D]; computed tokens [B, N]."""
        return self.fit[NUM_TERMS * index : NUM_TERMS * (index + 1)]

    def _terms(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """The four terms of every token, each [B, N, D] float32."""
        values, is_known = self._history.values, ~self._history.sigmas.isnan()[..., None]
        changes = [torch.where(is_known[i + 1], values[i] - values[i + 1], 0.0) for i in range(2)]
        return [*changes, values[0], latents.float()]
