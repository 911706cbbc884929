"""RAS on one pipeline: the hooks on its transformer and scheduler, and what they hand to the generation under way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ras_dit.addresses import FixedAddresses
from ras_dit.by_image import can_split, count_parts, own_forward
from ras_dit.calls import Call
from ras_dit.chooser import TokenChooser
from ras_dit.config import RASConfig
from ras_dit.controlnets import IdleControlNet
from ras_dit.cpu_layers import CPULayers, LayerTimings
from ras_dit.fitted import FittedForecast
from ras_dit.flops import Layers, plan_cost
from ras_dit.gain import DeviceRates, Model, is_small, why_small, with_prediction
from ras_dit.geometry import TokenGrid
from ras_dit.importance import Score
from ras_dit.inpainting import InpaintMask, allowed_tokens
from ras_dit.kernels import operations_for
from ras_dit.models import TokenPlan, check_uncached, check_uncompiled
from ras_dit.models.plan import stream_of
from ras_dit.models.sizes import default_rows
from ras_dit.observed import ObservedScheduler
from ras_dit.outputs import noise_of, with_noise
from ras_dit.pipeline import (
    controlnet_of,
    device_of,
    has_another_transformer,
    pass_of,
    records_gradients,
    transformers_of,
)
from ras_dit.plan import Plan, build_plan
from ras_dit.remarks import OUTSIDE, AdviceWarning, ShortRunWarning, Warner, unused_options, why_short
from ras_dit.schedule import as_steps_allow, first_index, first_of_second, forecast_levels, noise_levels
from ras_dit.seams import KeptResults, NoCopies, PatchedMethod, WatchedLoop
from ras_dit.state import Generation, StaticMemory
from ras_dit.tokens import TokenSeams, storages_of
from ras_dit.trace import Trace
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
        self.config, self.token_plan, self.rates, self.score = config, token_plan, rates, score
        self.transformer: torch.nn.Module = pipe.transformer
        self.trace = Trace()
        self.plan: Plan | None = None
        self.fitting: Callable[[TokenGrid, list[float]], FittedForecast] | None = None  # while `calibrate` is at work
        self.costed: Callable[..., Plan] | None = None  # puts their cost to plans of such runs as the latest
        self.num_references, self.num_parts = 0, 1  # tokens beside the grid, images in turn, in the latest run
        self._pipe, self._operations = pipe, operations_for(config.kernels, device_of(pipe))
        self._generation: Generation | None = None
        self._is_due, self._is_in_loop, self._is_left, self._first = False, False, False, 0
        self._call: Call | None = None
        self.warn = Warner()
        self._early_notes: list[str] = []
        self._scheduler: Any = None
        self._observed: ObservedScheduler | None = None
        self._patches: list[PatchedMethod | NoCopies | KeptResults] = []
        self._inpaint: InpaintMask | None = None
        self._controlnet = IdleControlNet(self._followed, self.note)
        self._seams: dict[torch.nn.Module, TokenSeams] = {}
        self._memory: StaticMemory = {}
        self._addresses = FixedAddresses() if config.static_memory else None
        self._cpu_layers: dict[torch.nn.Module, CPULayers] = {}
        self.layer_timings: LayerTimings = {}
        self._layers: dict[torch.nn.Module, Layers] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        try:
            self._controlnet.attach(controlnet_of(pipe) if config.skips else None)
            for transformer in transformers_of(pipe):
                self._attach_transformer(transformer)
            self._attach_scheduler(pipe.scheduler)
            if config.region_of_interest == "inpaint":
                self._inpaint = InpaintMask(pipe)
            if token_plan.repeated:
                self._patches.append(KeptResults(pipe, token_plan.repeated))
            if hasattr(pipe, "progress_bar"):
                self._patches.append(PatchedMethod(pipe, "progress_bar", self._watched_progress_bar))
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ in and out

    def _attach_transformer(self, root: torch.nn.Module) -> None:
        self._hooks.append(root.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        self._hooks.append(root.register_forward_pre_hook(self._compute_controlnet, with_kwargs=True))
        self._hooks.append(root.register_forward_hook(self._after_transformer, with_kwargs=True))
        kept = storages_of(self.config, len(self.token_plan.attention_modules(root)), self._operations, self._addresses)
        self._seams[root] = TokenSeams(root, self.token_plan, lambda: self._call, kept)
        self._seams[root].attach()
        streams = self.token_plan.linear_streams(root)
        self._cpu_layers[root] = CPULayers(root, lambda name: stream_of(name, streams), self.layer_timings)
        self._layers[root] = Layers.of(self.token_plan, root)
        if self.config.skips or not self.token_plan.is_per_image:
            enter = functools.partial(setattr, self, "_call")
            wrap = functools.partial(own_forward, self._seams[root], enter, self._skipped)
            self._patches.append(PatchedMethod(root, "forward", wrap))
        self._patches.append(NoCopies(root, "copy: RAS is on this transformer; ras_dit.disable(pipe) first."))

    def _attach_scheduler(self, scheduler: Any) -> None:
        if self._observed is not None:
            self._observed.release()
        self._scheduler = scheduler
        self._observed = ObservedScheduler(
            scheduler, self._expect_generation, self._observe, self._adjusted, self._refuse
        )

    def close(self) -> None:
        """Take everything back out; the pipeline is as it was."""
        for hook in self._hooks:
            hook.remove()
        for seams in self._seams.values():
            seams.close()
        for layers in self._cpu_layers.values():
            layers.close()
        for patch in (*self._patches, self._observed, self._inpaint, self._controlnet):
            if patch is not None:
                patch.release()
        self._hooks, self._patches, self._observed, self._inpaint = [], [], None, None
        self._seams, self._cpu_layers, self._layers, self._memory = {}, {}, {}, {}
        self._generation = self._call = self._scheduler = self._addresses = None
        self._pipe = self.transformer = None  # type: ignore[assignment]

    # ------------------------------------------------------------------ the scheduler, observed

    def _expect_generation(self, is_begun: bool = False) -> None:
        """A new run begins, or has begun: whatever an interrupted one left behind is dropped."""
        self._drop_generation()
        self._is_due, self._is_in_loop, self._is_left = True, False, False
        for part in (*self._patches, *self._cpu_layers.values(), *self._seams.values()):
            part.ensure()
        if self._inpaint is not None and not is_begun:
            self._inpaint.expect_run()
        self._controlnet.attach(controlnet_of(self._pipe) if self.config.skips else None)
        for transformer in (self._pipe.transformer, *self._seams):
            check_uncompiled(transformer)
        if self._pipe.transformer is not self.transformer:
            self._leave("The transformer was replaced after `enable`: RAS is not on it. Disable and enable again.")

    def _leave(self, reason: str) -> None:
        """A run is not followed at all: say why."""
        self._forget_latest()
        self._is_left = True
        self.note(reason)
        self.trace.notes.extend(self._early_notes)
        self._early_notes.clear()

    def _forget_latest(self) -> None:
        """Another run: what is known of the one before is not of it."""
        self.trace, self.plan, self.num_references, self.num_parts = Trace(), None, 0, 1

    def _drop_generation(self) -> None:
        """Nothing that comes belongs to the run under way any more."""
        if self._generation is not None and not self._generation.is_over:
            self._generation.abandon()
        self._generation = self._call = None
        self._controlnet.end_evaluation()
        for seams in self._seams.values():  # a call that failed did not get to let go of keys and values
            seams.end(None)
        for layers in self._cpu_layers.values():
            layers.clear()

    def _watched_progress_bar(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def progress_bar(*args: Any, **kwargs: Any) -> Any:
            bar, self._is_in_loop = original(*args, **kwargs), True
            return WatchedLoop(bar, lambda: bool(getattr(self._pipe, "_interrupt", False)), self._drop_generation)

        return progress_bar

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

    def _compute_controlnet(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_skipped = self._call is not None and self._call.kind == "skip"
        return None if is_skipped else self._controlnet.with_computed_outputs(args, kwargs)

    # ------------------------------------------------------------------ the transformer

    def _before_transformer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._call = None
        for patch in self._patches:  # offload hooks that take themselves out in the first call take ours along
            patch.ensure()
        if self._addresses is not None:
            self._addresses.begin_call()
        seams = self._seams[module]
        seams.end(None)
        self._cpu_layers[module].clear()
        arguments = seams.arguments(args, kwargs)
        if self._pipe.scheduler is not self._scheduler:
            self._attach_scheduler(self._pipe.scheduler)
            self._expect_generation(is_begun=True)
        if self._is_due:
            self._begin_generation(module, arguments)
        elif self._is_outside(module, arguments):
            self.warn(OUTSIDE)
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
        if records_gradients(arguments):
            generation.refuse(
                "Gradients are recorded (use torch.no_grad()): the rest of the run was dense.", forgets=True
            )
        call = generation.begin_call(num_rows, device, source, num_text, reason, texts)
        call.num_others = num_text
        is_known_text = call.take_in(texts)
        if call.rows is not None and is_known_text and self.config.text_reuse:
            num_padding = self.token_plan.count_padding(module, arguments, generation.grid)
            call.num_text_kept = self.token_plan.count_reused_text(num_text, num_padding)
        placed = call.rows if call.rows is not None else call.whole
        if placed is not None and self.token_plan.joint_offset is not None:
            call.joint_rows = placed.at(self.token_plan.joint_offset(arguments))
        self._call = call
        if call.rows is not None and not call.rows.is_shared and not self.token_plan.is_per_image:
            call.num_parts = call.num_images
        if call.rows is not None:
            self._cpu_layers[module].aim(call.num_rows_of(num_rows // call.num_parts, num_text), device)
        if call.num_parts > 1:
            return None  # see `own_forward`
        seams.begin(call)
        return None if call.rows is None else seams.gather_root(args, kwargs)

    def _is_outside(self, transformer: torch.nn.Module, arguments: dict[str, Any]) -> bool:
        """Whether a call that RAS could accelerate belongs to no run, and nobody was told why."""
        is_told = self._is_left or (self.plan is not None and not self.plan.has_savings)
        if self._followed() is not None or is_told or not self.config.has_savings:
            return False
        return self.token_plan.check(transformer, arguments) is None

    def _begin_generation(self, transformer: torch.nn.Module, arguments: dict[str, Any]) -> None:
        check_uncached(transformer)
        self._is_due = False
        self._forget_latest()
        if self._inpaint is not None:
            self._inpaint.begin_run()
        token_plan, scheduler = self.token_plan, self._scheduler
        latents = arguments[token_plan.latents]
        grid = token_plan.grid_or_reason(transformer, arguments)
        if isinstance(grid, str):
            self._leave(grid)
            return
        self.num_references = num_extra = grid.count_references(latents)
        is_timed = token_plan.has_timestep_per_token(arguments, grid.num_tokens + num_extra)
        first = first_index(scheduler, token_plan.timestep_in(scheduler, arguments[token_plan.timestep]), is_timed)
        if first is None:
            self._leave("All tokens are given in part, none has the scheduler's timestep: the whole run was dense.")
            return
        self._first = first
        sigmas = noise_levels(scheduler)[self._first :]
        num_first = token_plan.num_first(transformer, arguments, grid)
        second = first_of_second(self._pipe, scheduler, self._first)
        plan = build_plan(self.config, len(sigmas) - 1, grid.num_tokens, num_first, None, second)
        num_text = token_plan.count_costed_text(transformer, arguments, grid)
        reason = why_dense(self._pipe, transformer, token_plan, arguments, plan.num_region_steps > 0)
        if any(other not in self._seams for other in transformers_of(self._pipe)):
            reason = "A transformer was replaced after `enable`: the run was dense. Disable and enable again."
        if reason is None and num_first and self.config.rules == "reference":
            reason = "The authors' rules would leave out the given first frame: the whole run was dense."
        can_differ = token_plan.is_per_image or can_split(token_plan, transformer, arguments)
        is_per_image, allowed = can_differ and not self.config.shared_active_set, None
        if reason is None and self.config.has_savings:
            given = token_plan.given_tokens(arguments, grid, num_extra)
            allowed = allowed_tokens(self.config.region_of_interest, self._inpaint, grid, given, self.note)
        if allowed is not None:
            allowed = allowed if is_per_image else allowed.any(dim=0, keepdim=True)
            num_allowed = max(num_first + 1, int(allowed.sum(dim=1).max()))
            plan = build_plan(self.config, len(plan), grid.num_tokens, num_first, num_allowed, second)
        config = self.config.dense if reason else self.config
        if plan.has_savings and reason:
            self.note(reason)
            plan = build_plan(config, len(plan), grid.num_tokens)
        elif self.config.has_savings and not plan.has_savings:
            self.note(
                f"The run has {len(plan)} evaluations, all of them dense by the plan (warm-up or refresh steps): take "
                "more steps or a shorter warm-up."
            )
        for remark, is_advice in unused_options(config, plan, num_extra):
            self.note(remark, is_warning=False)
            if is_advice:
                self.warn(remark, AdviceWarning)
        config = as_steps_allow(config, scheduler, transformer, self.note)
        num_padding = token_plan.count_padding(transformer, arguments, grid)
        layers = self._layers[transformer] = self._layers[transformer].updated(token_plan, transformer)
        model, num_rows = Model.of(layers, latents[0].device), len(latents)  # (what `costed` keeps holds no tensors)
        self.num_parts = count_parts(token_plan, plan, latents, default_rows(self._pipe)) if is_per_image else 1

        def costed(plan: Plan, num_parts: int = self.num_parts) -> Plan:
            cost = plan_cost(plan, token_plan, layers, num_text, num_extra, self.config, is_timed, num_padding)
            return with_prediction(replace(plan, cost=cost), self.config, model, num_rows, self.rates, num_parts)

        if latents[0].device.type != "cpu":  # the pipeline was moved after `enable`
            self._cpu_layers[transformer].close()
        self.costed, self.plan = costed, costed(plan)
        if is_small(self.plan) and self._leaves_dense(self.plan):
            config = config.dense
            self.plan = costed(build_plan(config, len(plan), plan.num_tokens))
        if (reason := why_short(self.plan, self.config)) is not None:
            self.warn(reason, ShortRunWarning)
        fitted = FittedForecast.of(config, grid, sigmas, scheduler, self.note) if self.plan.has_savings else None
        if self.fitting is not None:
            fitted = self.fitting(grid, sigmas)
        notes, self._early_notes = self._early_notes, []
        chooser = TokenChooser(
            config, self.plan, grid, sigmas, self.note, num_first, is_per_image, allowed, self._operations, self.score
        )
        levels, more = forecast_levels(scheduler, sigmas), (self._memory, fitted, self._addresses)
        self._generation = Generation(config, self.plan, grid, sigmas, levels, self.note, chooser, num_extra, *more)
        self.trace = self._generation.trace
        self.trace.notes.extend(notes)

    def _leaves_dense(self, plan: Plan) -> bool:
        """Whether a run whose plan gains little is left dense, which is for the user to say."""
        if not self.config.auto:
            self.warn.of_small_gain(f"This run: {why_small(plan)}")
            return False
        self.note(f"auto: the run was left dense, {why_small(plan)}", is_warning=False)
        return True

    def _after_transformer(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        call, generation = self._call, self._generation
        self._call = None
        self._seams[module].end(call)
        self._cpu_layers[module].clear()
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
        return branch.beside.output(generation.end_call(call, None), generation.forecast_options(), return_dict)

    # ------------------------------------------------------------------ saying what happened

    def note(self, reason: str, is_warning: bool = True) -> None:
        """Record a reason in the trace (once a generation) and, if it is worth that, warn of it (once a session)."""
        notes = self.trace.notes if not self._is_due and self._generation is not None else self._early_notes
        if reason not in notes:
            notes.append(reason)
        if is_warning:
            self.warn(reason)
