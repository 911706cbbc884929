"""RAS on one pipeline: the hooks on its transformer and scheduler, and what they hand to the generation under way."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ras_dit import remarks
from ras_dit.addresses import FixedAddresses
from ras_dit.attached import AttachedTransformer
from ras_dit.by_image import count_parts, has_own_sets, own_forward
from ras_dit.calls import Call
from ras_dit.chooser import TokenChooser
from ras_dit.config import RASConfig
from ras_dit.controlnets import IdleControlNet
from ras_dit.cpu_layers import LayerTimings
from ras_dit.fitted import FittedForecast
from ras_dit.flops import plan_cost
from ras_dit.gain import DeviceRates, Model, with_prediction
from ras_dit.geometry import TokenGrid
from ras_dit.importance import Score
from ras_dit.inpainting import InpaintMask, allowed_tokens
from ras_dit.kernels import operations_for
from ras_dit.latest import LatestRun
from ras_dit.models import TokenPlan, check_uncached, check_uncompiled
from ras_dit.models.sizes import default_rows
from ras_dit.observed import ObservedScheduler
from ras_dit.outputs import noise_of, with_noise
from ras_dit.pipeline import (
    controlnet_of,
    device_of,
    has_another_transformer,
    pass_of,
    records_gradients,
    takes_control,
    transformers_of,
)
from ras_dit.plan import Plan, build_plan, within_run
from ras_dit.schedule import as_steps_allow, first_index, first_of_second, forecast_levels, noise_levels
from ras_dit.seams import KeptResults, PatchedMethod, watched_bar
from ras_dit.state import Generation, StaticMemory
from ras_dit.tokens import storages_of
from ras_dit.why_dense import why_dense


class Session:
    """Everything `enable` adds to a pipeline, and its undo.

    A run goes: ``set_timesteps`` (a new generation is due) -> per evaluation: the transformer's pre-hook (what to
    compute), the entry hooks (rows gathered), the attention seams (keys and values merged), the exit hook (rows put
    back), the transformer's post-hook (full noise returned) -> ``scheduler.step`` (noise observed, rows chosen).
    """

    def __init__(
        self, pipe: Any, config: RASConfig, token_plan: TokenPlan, rates: DeviceRates | None, score: Score | None
    ) -> None:
        self.token_plan, self.rates = token_plan, rates
        self.transformer: torch.nn.Module = pipe.transformer
        self.latest = LatestRun()
        self.is_paused = False
        self.fitting: Callable[[TokenGrid, list[float]], FittedForecast] | None = None  # while `calibrate` is at work
        self._pipe = pipe
        self._generation: Generation | None = None
        self._is_due, self._is_in_loop, self._is_left, self._first = False, False, False, 0
        self._call: Call | None = None
        self._size: torch.Size | None = None  # of the latents of one row, in the run under way
        self.warn = remarks.Warner()
        self._early_notes: list[str] = []
        self._scheduler: Any = None
        self._observed: ObservedScheduler | None = None
        self._patches: list[PatchedMethod | KeptResults] = []
        self._inpaint: InpaintMask | None = None
        self._controlnet = IdleControlNet(self._followed, self.note)
        self._attached: dict[torch.nn.Module, AttachedTransformer] = {}
        self.layer_timings: LayerTimings = {}
        try:
            for transformer in transformers_of(pipe):
                self._attach_transformer(transformer)
            self.configure(config, score)
            self._attach_scheduler(pipe.scheduler)
            if token_plan.repeated:
                self._patches.append(KeptResults(pipe, token_plan.repeated))
            if hasattr(pipe, "progress_bar"):
                entered = functools.partial(setattr, self, "_is_in_loop", True)
                bar = functools.partial(watched_bar, pipe, entered, self._is_stuck, self._drop_generation)
                self._patches.append(PatchedMethod(pipe, "progress_bar", bar))
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ in and out

    def configure(self, config: RASConfig, score: Score | None) -> None:
        """Go by this from the next run on; what is left of one under way is dense.

        Raises:
            ValueError: the device cannot follow the config; nothing is changed then.
        """
        operations = operations_for(config.kernels, device_of(self._pipe))
        addresses = FixedAddresses() if config.static_memory else None
        storages = [
            storages_of(config, len(self.token_plan.attention_modules(root)), operations, addresses)
            for root in self._attached
        ]
        if self._followed() is not None:
            self.note(remarks.RECONFIGURED, is_warning=False)
            self._is_left = True
        self._drop_generation()
        self.config, self.score = config, score
        self._operations, self._addresses = operations, addresses
        self._memory: StaticMemory = {}
        for attached, kept in zip(self._attached.values(), storages, strict=True):
            attached.seams.keep_by(kept)
        if self._inpaint is not None:
            self._inpaint.release()
        self._inpaint = InpaintMask(self._pipe) if config.region_of_interest == "inpaint" else None
        self._attach_controlnet()

    def _attach_controlnet(self) -> None:
        self._controlnet.attach(controlnet_of(self._pipe) if self.config.remembers else None)

    def _attach_transformer(self, root: torch.nn.Module) -> None:
        attached = AttachedTransformer(root, self.token_plan, lambda: self._call, self.layer_timings)
        self._attached[root] = attached
        enter = functools.partial(setattr, self, "_call")
        forward = functools.partial(own_forward, attached.seams, enter, self._skipped)
        attached.attach([self._before_transformer, self._compute_controlnet], self._after_transformer, forward)

    def _attach_scheduler(self, scheduler: Any) -> None:
        if self._observed is not None:
            self._observed.release()
        self._scheduler = scheduler
        self._observed = ObservedScheduler(
            scheduler, self._expect_generation, self._observe, self._adjusted, self._refuse
        )

    def close(self) -> None:
        """Take everything back out; the pipeline is as it was."""
        with contextlib.suppress(Exception):  # a GPU that failed fails again when it is asked for its clocks
            self._drop_generation()
        for attached in self._attached.values():
            attached.close()
        for patch in (*self._patches, self._observed, self._inpaint, self._controlnet):
            if patch is not None:
                patch.release()
        self._attached, self._patches, self._observed, self._inpaint, self._memory = {}, [], None, None, {}
        self._generation = self._call = self._scheduler = self._addresses = None
        self._pipe = self.transformer = None  # type: ignore[assignment]

    # ------------------------------------------------------------------ the scheduler, observed

    def _expect_generation(self, is_begun: bool = False) -> None:
        """A new run begins, or has begun: whatever an interrupted one left behind is dropped."""
        self._drop_generation()
        self._is_due, self._is_in_loop, self._is_left = True, False, False
        for part in (*self._patches, *self._attached.values()):
            part.ensure()
        if self._inpaint is not None and not is_begun:
            self._inpaint.expect_run()
        self._attach_controlnet()
        check_uncompiled(self._pipe.transformer)
        if self._pipe.transformer is not self.transformer:
            self._leave("The transformer was replaced after `enable`: RAS is not on it. Disable and enable again.")

    def _leave(self, reason: str) -> None:
        """A run is not followed at all: say why."""
        self.latest, self._is_left = LatestRun(), True
        self.note(reason)
        self.latest.trace.notes.extend(self._early_notes)
        self._early_notes.clear()

    def _drop_generation(self) -> None:
        """Nothing that comes belongs to the run under way any more."""
        if self._generation is not None and not self._generation.is_over:
            self._generation.abandon()
        self._generation = self._call = None
        self._controlnet.end_evaluation()
        for attached in self._attached.values():  # a call that failed did not get to let go of keys and values
            attached.clear()

    def _refuse(self, reason: str) -> None:
        generation = self._followed()
        if generation is not None and generation.plan.has_savings:
            generation.refuse(f"{reason}: noise cannot be carried from step to step, so the run was dense.")

    def _adjusted(self, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        generation = self._followed()
        return model_output if generation is None else generation.adjusted(model_output, sample)

    def _observe(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        generation = self._followed()
        is_its_own = self._is_in_loop or has_another_transformer(self._pipe)  # not a step of somebody else's
        if self._is_due and is_its_own and self.config.has_savings:
            if self._pipe.transformer is self.transformer:
                self._leave("The run did not call the transformer that RAS is on: it was dense.")
            self._is_due = False
        elif generation is not None:
            if generation.plan.has_savings and not generation.num_calls:
                self.note("The transformer was called with other timesteps than the scheduler's: it was dense.")
            generation.observe(model_output, sample)
        self._controlnet.end_evaluation()

    def _followed(self) -> Generation | None:
        """The run under way, once its first call has begun it; None outside of one."""
        generation = self._generation
        return None if self._is_due or generation is None or generation.is_over else generation

    def _is_stuck(self) -> bool:
        """Whether transformer calls of the run under way were followed by no step of the scheduler."""
        generation = self._followed()
        return generation is not None and generation.index == 0 and generation.num_calls > 0

    def _compute_controlnet(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_skipped = self._call is not None and self._call.kind == "skip"
        return None if is_skipped else self._controlnet.with_computed_outputs(args, kwargs)

    # ------------------------------------------------------------------ the transformer

    def _before_transformer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._call = None
        attached = self._attached[module]
        attached.ensure_forward()
        if self._addresses is not None:
            self._addresses.begin_call()
        attached.clear()
        arguments, switched_on = attached.seams.arguments(args, kwargs), self._controlnet.switched_on
        if self._pipe.scheduler is not self._scheduler:
            self._attach_scheduler(self._pipe.scheduler)
            self._expect_generation(is_begun=True)
        if self._is_due:
            self._begin_generation(module, arguments)
        elif self._is_outside(module, arguments):
            self.warn(remarks.OUTSIDE)
        generation = self._followed()
        if generation is None or not self.token_plan.is_due(
            self._scheduler, arguments[self.token_plan.timestep], self._first + generation.index
        ):
            return None
        latents = arguments[self.token_plan.latents]
        num_rows, device = len(latents), latents[0].device
        num_text, reason, texts = 0, None, self.token_plan.texts(arguments)
        source = (module, pass_of(arguments), self.token_plan.positions(arguments))
        if generation.plan.has_savings:
            num_text = self.token_plan.count_text(module, arguments, generation.grid)
            reason = self.token_plan.check(module, arguments)
        if generation.remembers and latents[0].shape != self._size:
            generation.refuse(
                "The size of the latents changed in the middle of the run: the rest of it was dense.", forgets=True
            )
        if records_gradients(arguments):
            generation.refuse(
                "Gradients are recorded (use torch.no_grad()): the rest of the run was dense.", forgets=True
            )
        condition = (switched_on, attached.image_prompts())
        call = generation.begin_call(num_rows, device, source, num_text, reason, texts, condition)
        call.num_others = num_text
        is_known_text = call.take_in(texts)
        if call.rows is not None and is_known_text and self.config.text_reuse:
            num_padding = self.token_plan.count_padding(module, arguments, generation.grid)
            call.num_text_kept = self.token_plan.count_reused_text(num_text, num_padding)
        placed = call.rows if call.rows is not None else call.whole
        if placed is not None and self.token_plan.joint_offset is not None:
            call.joint_rows = placed.at(self.token_plan.joint_offset(arguments))
        self._call = call
        if call.rows is not None and not call.rows.is_shared and not self.token_plan.has_batched_positions:
            call.num_parts = call.num_images
        if call.rows is not None:
            attached.cpu_layers.aim(call.num_rows_of(num_rows // call.num_parts, num_text), device)
        if call.num_parts > 1:
            return None  # see `own_forward`
        attached.seams.begin(call)
        return None if call.rows is None else attached.seams.gather_root(args, kwargs)

    def _is_outside(self, transformer: torch.nn.Module, arguments: dict[str, Any]) -> bool:
        """Whether a call that RAS could accelerate belongs to no run, and nobody was told why."""
        plan = self.latest.plan
        is_told = self._is_left or (plan is not None and not plan.has_savings)
        if self._followed() is not None or is_told or not self.config.has_savings:
            return False
        return self.token_plan.check(transformer, arguments) is None

    def _begin_generation(self, transformer: torch.nn.Module, arguments: dict[str, Any]) -> None:
        base = self.config.whole if self.is_paused else self.config
        if base.has_savings:
            for each in self._attached:
                check_uncached(each)
        self._is_due, self.latest = False, LatestRun()
        if self._inpaint is not None:
            self._inpaint.begin_run()
        token_plan, scheduler = self.token_plan, self._scheduler
        latents = arguments[token_plan.latents]
        self._size = latents[0].shape
        grid = token_plan.grid_or_reason(transformer, arguments)
        if isinstance(grid, str):
            self._leave(grid)
            return
        num_extra = grid.count_references(latents)
        is_timed = token_plan.has_timestep_per_token(arguments, grid.num_tokens + num_extra)
        first = first_index(scheduler, token_plan.timestep_in(scheduler, arguments[token_plan.timestep]), is_timed)
        if first is None:
            self._leave("All tokens are given in part, none has the scheduler's timestep: the whole run was dense.")
            return
        self._first = first
        sigmas = noise_levels(scheduler)[self._first :]
        num_first = token_plan.num_first(transformer, arguments, grid)
        second = first_of_second(self._pipe, scheduler, self._first)
        config, left_out = within_run(base, len(sigmas) - 1)
        if left_out is not None:
            self.note(left_out)
        plan = build_plan(config, len(sigmas) - 1, grid.num_tokens, num_first, None, second)
        num_text = token_plan.count_costed_text(transformer, arguments, grid)
        reason = why_dense(self._pipe, self._attached, transformer, token_plan, arguments, plan, base, num_first)
        own_sets, allowed = has_own_sets(token_plan, base, transformer, arguments), None
        if reason is None and base.has_savings:
            given = token_plan.given_tokens(arguments, grid, num_extra)
            allowed = allowed_tokens(base.region_of_interest, self._inpaint, grid, given, own_sets, self.note)
        if allowed is not None:
            num_allowed = max(num_first + 1, int(allowed.sum(dim=1).max()))
            plan = build_plan(config, len(plan), grid.num_tokens, num_first, num_allowed, second)
        config = config.dense if reason else config
        if plan.has_savings and reason:
            self.note(reason)
            plan = build_plan(config, len(plan), grid.num_tokens)
        elif base.has_savings and not plan.has_savings:
            self.note(
                f"The run has {len(plan)} evaluations, all of them dense by the plan (warm-up or refresh steps): take "
                "more steps or a shorter warm-up."
            )
        if self.is_paused and self.config.remembers:
            self.note(remarks.PAUSED, is_warning=False)
        if plan.has_savings and controlnet_of(self._pipe) is None and takes_control(self._pipe, arguments):
            self.note(remarks.UNSEEN_CONTROL, is_warning=False)
        for remark, is_advice in remarks.unused_options(config, plan, num_extra):
            self.note(remark, is_warning=False)
            if is_advice:
                self.warn(remark, remarks.AdviceWarning)
        config = as_steps_allow(config, scheduler, transformer, self.note)
        num_padding = token_plan.count_padding(transformer, arguments, grid)
        layers = self._attached[transformer].read_layers()
        model, num_rows = Model.of(layers, latents[0].device), len(latents)  # (what `costed` keeps holds no tensors)
        num_parts = count_parts(token_plan, plan, latents, default_rows(self._pipe)) if own_sets else 1

        def costed(plan: Plan, num_parts: int = num_parts) -> Plan:
            cost = plan_cost(plan, token_plan, layers, num_text, num_extra, base, is_timed, num_padding)
            return with_prediction(replace(plan, cost=cost), base, model, num_rows, self.rates, num_parts)

        if latents[0].device.type != "cpu":  # the pipeline was moved after `enable`
            self._attached[transformer].cpu_layers.close()
        plan = costed(plan)
        if (reason := remarks.why_left(plan, base, self.warn)) is not None:
            self.note(reason, is_warning=False)
            config = config.dense
            plan = costed(build_plan(config, len(plan), plan.num_tokens))
        fitted = FittedForecast.of(config, grid, sigmas, scheduler, self.note) if plan.has_savings else None
        if self.fitting is not None:
            fitted = self.fitting(grid, sigmas)
        notes, self._early_notes = self._early_notes, []
        chooser = TokenChooser(
            config, plan, grid, sigmas, self.note, num_first, own_sets, allowed, self._operations, self.score
        )
        levels, more = forecast_levels(scheduler, sigmas), (self._memory, fitted, self._addresses)
        self._generation = Generation(config, plan, grid, sigmas, levels, self.note, chooser, num_extra, *more)
        self.latest = LatestRun(self._generation.trace, plan, base, num_extra, num_parts, costed)
        self.latest.trace.notes.extend(notes)

    def _after_transformer(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        call, generation = self._call, self._generation
        self._call = None
        self._attached[module].seams.end(call)
        self._attached[module].cpu_layers.clear()
        if call is None or generation is None or call.kind == "skip":
            return None
        sample = noise_of(output)
        if call.branch is not None and self.config.skips:
            call.branch.beside.take(output, generation.sigmas[generation.index], call.branch.history.depth)
        is_needed = isinstance(sample, list) and call.branch is not None  # (Cosmos 3's controls may differ in size)
        full = generation.end_call(call, torch.stack(sample) if is_needed else sample)
        return None if full is None else with_noise(output, full)

    def _skipped(self, call: Call, return_dict: bool) -> Any:
        """What the transformer returns in a skipped step."""
        generation, branch = self._generation, call.branch
        assert generation is not None
        assert branch is not None
        return branch.beside.output(generation.end_call(call, None), generation.forecast_rule, return_dict)

    def note(self, reason: str, is_warning: bool = True) -> None:
        """Record a reason in the trace (once a generation) and, if it is worth that, warn of it (once a session)."""
        notes = self.latest.trace.notes if not self._is_due and self._generation is not None else self._early_notes
        if reason not in notes:
            notes.append(reason)
        if is_warning:
            self.warn(reason)
