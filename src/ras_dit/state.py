"""One generation: everything that is remembered from one transformer evaluation to the next, and nothing longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ras_dit import selection
from ras_dit.addresses import FixedAddresses
from ras_dit.cache import KVCache
from ras_dit.calls import Branch, Call
from ras_dit.chooser import TokenChooser
from ras_dit.clocks import FiniteCheck, Stopwatch
from ras_dit.config import RASConfig
from ras_dit.filling import NoiseFiller
from ras_dit.fitted import FittedForecast
from ras_dit.forecast import ForecastRule, TokenHistory
from ras_dit.geometry import TokenGrid
from ras_dit.kv_forecast import KVProgress
from ras_dit.plan import Plan, StepKind
from ras_dit.rows import RowIndex, as_made
from ras_dit.trace import StepTrace, Trace

TEXT_REPLACED = "The text was replaced in the middle of the run: the step that first saw it was dense."
SWITCHED = "A ControlNet or an IP-Adapter was switched on or off in the middle of the run: that step was dense."
MOST_CALLS = 32
"""Of one evaluation: as many come from a loop that steps no scheduler that RAS knows; each would be remembered."""
STUCK = f"The transformer was called {MOST_CALLS} times without a step of the pipeline's scheduler: the run was dense."
StaticMemory = dict[tuple[int, object], dict[str, list[KVCache]]]


class Generation:
    """The state of one run of a pipeline.

    Args:
        config: the user's choice.
        plan: what each evaluation should compute.
        grid: token grid of the latents.
        sigmas: S + 1 noise levels: the one of every evaluation, then the last one reached.
        levels: the same from 1 (noise) to 0 (picture), see `ras_dit.schedule.forecast_levels`.
        note: called with a reason whenever something runs otherwise than planned (False: not worth a warning).
        chooser: chooses the tokens of this run.
        num_extra: reference tokens M beside the grid.
        memory: where keys and values live beyond a run if their memory is static: by the call's place in an evaluation
            and its transformer.
        fitted: puts its forecast in the place of ours, None for none.
        addresses: where lies what compiled blocks read of a step, if that has to stay; None if not.
    """

    def __init__(
        self,
        config: RASConfig,
        plan: Plan,
        grid: TokenGrid,
        sigmas: list[float],
        levels: list[float],
        note: Callable[..., None],
        chooser: TokenChooser,
        num_extra: int = 0,
        memory: StaticMemory | None = None,
        fitted: FittedForecast | None = None,
        addresses: FixedAddresses | None = None,
    ) -> None:
        assert len(sigmas) == len(plan) + 1
        self.config, self.plan, self.grid = config, plan, grid
        self.sigmas, self.levels = sigmas, levels
        self.note = note
        self.num_extra = num_extra
        self._fitted, self._fixed = fitted, as_made if addresses is None else addresses.of
        self._memory: StaticMemory = {} if memory is None else memory
        self.trace = Trace(grid)
        self.index = 0
        self.num_calls = 0  # of the transformer, in the evaluation due
        self.num_images = 0  # known once the first evaluation was observed
        self._branches: dict[int, Branch] = {}
        self._active: torch.Tensor | None = None  # [images, K]
        self._is_active: torch.Tensor | None = None  # [images, N], of the evaluation under way; None: all
        self._members: torch.Tensor | None = None  # [images, N], the active tokens as a mask
        self._made_rows: dict[int, tuple[RowIndex, torch.Tensor]] = {}  # of the evaluation due, by batch size
        self._chooser = chooser
        self._filler = NoiseFiller(config, plan, grid, sigmas, levels, chooser.operations, num_extra)
        self._stopwatches: list[Stopwatch] = []
        self._why_all_dense: str | None = None
        self._is_refresh = False  # the evaluation under way is dense because its predicted error is too large
        self._finite = FiniteCheck()

    @property
    def is_over(self) -> bool:
        return self.index >= len(self.plan)

    @property
    def remembers(self) -> bool:
        """Whether noise of one evaluation goes into another."""
        return self.plan.has_savings or self.config.solver_order == 2

    @property
    def will_skip(self) -> bool:
        """Whether the evaluation due leaves the transformer out, as far as can be told before its call."""
        branches = [branch for position, branch in self._branches.items() if position >= self.num_calls]
        due = [branch for branch in branches if branch.last_index == self.index - 1]  # the others have ended
        is_due = bool(due) and not self._is_refresh and self.plan[self.index].kind == "skip"
        return is_due and not any(self._why_dense(branch, branch.num_rows, branch.num_text) for branch in due)

    # ------------------------------------------------------------------ a transformer call

    def begin_call(
        self,
        num_rows: int,
        device: torch.device,
        source: object = None,
        num_text: int = 0,
        reason: str | None = None,
        texts: Sequence[torch.Tensor] = (),
        condition: object = None,
    ) -> Call:
        """Decide what the next transformer call of this evaluation computes. Branches are told apart by their order;
        they end where another source takes their place.

        Args:
            num_rows: batch size R of the call.
            device: of its latents.
            source: of the noise: the transformer, and which of its passes.
            num_text: text tokens of the call, which the keys and values kept have to agree with.
            reason: why this call cannot be anything but dense, if so.
            texts: what its text tokens are made of. Noise of one text says nothing of that of another.
            condition: what else the noise hangs on, likewise (see `Branch`).
        """
        position = self.num_calls
        self.num_calls += 1
        if position == MOST_CALLS and self.remembers:
            self.refuse(STUCK, forgets=True)
        planned = self.plan[self.index]
        kind = "dense" if self._is_refresh else planned.kind
        branch = self._branches.get(position)
        needs_memory = self.remembers and self._why_all_dense is None
        if branch is not None and branch.source != source:
            self._put_away(position, branch)
            branch = None
            if position == 0:  # its noise is no later value of the other's; this evaluation is computed whole
                self._chooser.forget_noise()
        if branch is not None and branch.num_rows != num_rows and not needs_memory:
            branch = None  # nothing is carried on any more
        is_replaced = branch is not None and branch.is_replaced_by(texts)
        if branch is not None and (is_replaced or branch.condition != condition):
            why = TEXT_REPLACED if is_replaced else SWITCHED
            reason = reason or self._why_dense(branch, num_rows, num_text) or why
            self._put_away(position, branch)
            branch = self._fitted = None
            if position == 0:  # so that all tokens of this evaluation are computed
                self._chooser.forget_noise()
        if kind != "dense" and (reason := reason or self._why_dense(branch, num_rows, num_text)):
            self.note(reason)
            kind = "dense"
        if kind == "dense" and needs_memory and (branch is None or branch.num_rows != num_rows):
            history = TokenHistory(depth=max(self.config.solver_order, self.config.forecast_order + 1))
            branch = Branch(num_rows, source, history, condition)
            branch.layers = self._memory.pop((position, source), {})
            branch.is_steady = is_replaced
            self._branches[position] = branch
        if kind == "dense" and branch is not None:
            branch.num_text = num_text
        rows, is_active = None, None
        if kind == "region":
            rows, is_active = self._made_rows.get(num_rows) or self._rows(num_rows)
            if not self.config.static_memory:  # whose addresses are those of a call
                self._made_rows[num_rows] = rows, is_active
        step = StepTrace(kind, self.sigmas[self.index])
        if position == 0:
            if kind == "region":
                step.active = self._active
            elif kind == "skip":
                step.active = torch.zeros(self.num_images, 0, dtype=torch.long)
            self._is_active = self._mask(kind)
            self.trace.steps.append(step)
        else:
            step = self.trace.steps[-1]
        step.num_rows += num_rows
        captures = kind == "dense" and needs_memory and self.plan.captures_at(self.index)
        stopwatch, size = Stopwatch(step, device), (self.grid.num_tokens + self.num_extra, self.grid.num_before)
        call = Call(kind, branch, rows, is_active, captures, stopwatch, *size, self.num_images)
        if self.config.kv_forecast and branch is not None and (captures or kind == "region"):
            self._carry(call, branch, device)
        return call

    def _carry(self, call: Call, branch: Branch, device: torch.device) -> None:
        """Carry the keys and values of a branch on to the evaluation under way."""
        sigma, num_tokens = self.sigmas[self.index], self.grid.num_tokens
        call.forecasts = True
        if branch.kv_progress is None:
            branch.kv_progress = KVProgress(branch.num_rows, num_tokens, sigma, device)
            return
        if branch.layers:
            damping = self.config.kv_forecast if self.levels[self.index] < self.config.forecast_below else 0.0
            call.advance = branch.kv_progress.advance(sigma, damping, self.config.forecast_reach)
            if call.kind == "dense":
                everything = torch.arange(num_tokens, device=device).expand(branch.num_rows, -1)
                call.whole = RowIndex(everything, num_tokens, is_shared=True, offset=self.grid.num_before)
        branch.kv_progress.record(sigma, call.is_active)

    def _why_dense(self, branch: Branch | None, num_rows: int, num_text: int = 0) -> str | None:
        """The reason why a planned region or skipped step cannot be one."""
        if self._why_all_dense:
            return self._why_all_dense
        if branch is None or branch.last_index != self.index - 1:
            return "A guidance branch began (or came back, or changed tables) during the run: its first call was dense."
        if branch.num_text != num_text:
            return "The length of the text changed in the middle of the run: one step was dense."
        if branch.num_rows != num_rows:
            return "The batch size of the transformer's call changed in the middle of the run: one step was dense."
        if self.num_images == 0 or num_rows % self.num_images:
            return "The transformer's batch is no multiple of the number of images: its steps were dense."
        if self.plan[self.index].kind == "region" and self._active is None:
            return "No selection was made before the first region step: it was dense."
        return None

    def _rows(self, num_rows: int) -> tuple[RowIndex, torch.Tensor]:
        assert self._active is not None
        assert self._members is not None
        num_images = self._active.shape[0]
        active = self._active.repeat(num_rows // num_images, 1)
        mask = self._members.repeat(num_rows // num_images, 1)
        is_shared = num_images == 1 or not self._chooser.has_own_sets
        num_before, beside = self.grid.num_before, (0, 0)
        if self.config.reference_reuse and self.num_extra:
            beside = (num_before, self.num_extra - num_before)
        size, fixed = self.grid.num_tokens, self._fixed
        return RowIndex(fixed(active), size, is_shared, num_before, beside, fixed=fixed), mask

    def _mask(self, kind: StepKind) -> torch.Tensor | None:
        if kind == "dense" or not self._chooser.has_learned:
            return None
        if kind == "skip":
            return self._chooser.no_tokens
        return self._members

    def end_call(self, call: Call, output: torch.Tensor | None) -> torch.Tensor | None:
        """Take in the noise of a call; return the full noise in its place, or None to leave it as it is.

        Args:
            call: what `begin_call` gave.
            output: noise in any form that `TokenGrid` knows; tokens that were not computed hold anything. None for a
                skipped step.
        """
        self._stopwatches.append(call.stopwatch.stop())
        if call.branch is None:
            return None
        call.branch.last_index = self.index
        return self._filler.full_noise(call, call.branch, output, self.index)

    @property
    def forecast_rule(self) -> ForecastRule:
        """How tokens that are not computed in the evaluation under way are forecast."""
        return self._filler.rule(self.index)

    def _next_selects(self) -> bool:
        return self.index + 1 < len(self.plan) and self.plan[self.index + 1].selects

    # ------------------------------------------------------------------ after an evaluation

    def adjusted(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Guided noise as the scheduler should get it; arguments as for `observe`."""
        if self._fitted is None or len(self.trace.steps) != self.index + 1:
            return model_output
        return self._fitted.adjusted(self.index, model_output, sample, self.trace.steps[-1].active)

    def observe(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        """Learn from the guided noise of an evaluation and choose the tokens of the next one.

        Args:
            model_output: what the scheduler was given, in any form that `TokenGrid` knows.
            sample: the latents it was to advance, same shape.
        """
        if model_output.ndim == 2:  # rows of one video, without a batch dimension
            model_output, sample = model_output[None], sample[None]
        if self.index == 0 and self.plan.has_savings and self.grid.samples_references(sample, self.num_extra):
            self.refuse("The scheduler steps more tokens than those of the picture: the run was dense.")
        if self.num_images not in (0, model_output.shape[0]):
            self._why_all_dense = "The number of images changed in the middle of the run: the rest of it was dense."
        self.num_images = model_output.shape[0]
        if self.plan.has_savings and self._why_all_dense is None:
            if not self._finite.add(model_output, sample):
                self._why_all_dense = "The noise held values that are not finite: the rest of the run was dense."
            self._chooser.learn(model_output, self.index, self._is_active)
            if self._next_selects() and self._why_all_dense is None:
                self._active = self._chooser.choose(model_output, sample, self.index + 1)
                self._members = selection.membership(self._active, self.grid.num_tokens)
        for position, branch in self._branches.items():
            if branch.last_index < self.index and not self.config.static_memory:  # guidance that has ended
                self._put_away(position, branch)
        self.index, self._made_rows = self.index + 1, {}
        self._is_refresh = self._exceeds_tolerance()
        self.num_calls = 0
        if self._why_all_dense or all(step.kind != "region" for step in self.plan.steps[self.index :]):
            self._release_layers()
        if self.is_over:
            self._finish()

    def refuse(self, reason: str, forgets: bool = False) -> None:
        """From now on every evaluation is dense, and nothing is remembered if it has to be forgotten."""
        if forgets:
            self._release_layers()
            self._branches, self._fitted = {}, None
        if self._why_all_dense is None:
            self._why_all_dense = reason
            self.note(reason)

    def abandon(self) -> None:
        """The run was interrupted: free everything but the trace."""
        self.note(f"The run was cut short after {self.index} of {len(self.plan)} evaluations.", is_warning=False)
        self._release_layers()
        self._finite = FiniteCheck()
        self._finish()

    def _release_layers(self) -> None:
        """Keys and values are not needed any more in this run."""
        for position, branch in self._branches.items():
            self._put_away(position, branch)

    def _put_away(self, position: int, branch: Branch) -> None:
        """The keys and values of a branch are not needed any more in this run; static memory is kept for the next."""
        if self.config.static_memory and branch.layers:
            for cached in (cached for caches in branch.layers.values() for cached in caches):
                cached.end_run()
            self._memory[position, branch.source] = branch.layers
        branch.layers = {}

    def _exceeds_tolerance(self) -> bool:
        """Whether the evaluation due has to be dense because its noise would be too far off."""
        tolerance = self.config.refresh_tolerance
        if tolerance is None or self.is_over or self._why_all_dense or self.plan[self.index].kind == "dense":
            return False
        active = self._active if self.plan[self.index].kind == "region" else None
        if self._chooser.predicted_error(self.index, active) <= tolerance:
            return False
        self.note("refresh_tolerance: steps whose predicted error exceeded it were dense.", is_warning=False)
        return True

    def _finish(self) -> None:
        """Free everything but the trace."""
        if not self._finite.was_true():
            self.note("The noise held values that are not finite: the picture is damaged, with or without RAS.")
        for stopwatch in self._stopwatches:
            stopwatch.read()
        for step in self.trace.steps:
            if step.active is not None:
                step.active = step.active.cpu()
        self._branches.clear()
        self._fitted = None
        self._chooser.forget()
        self._active = self._is_active = self._members = None
