"""RAS on one pipeline: the hooks on its transformer and scheduler, and what they hand to the generation under way."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ras_dit.attention import AttentionMerge, UnsupportedAttentionError
from ras_dit.cache import RowIndex
from ras_dit.config import RASConfig
from ras_dit.flops import plan_cost
from ras_dit.geometry import TokenGrid
from ras_dit.models import TokenPlan
from ras_dit.plan import Plan, build_plan
from ras_dit.seams import PatchedMethod
from ras_dit.state import Call, Generation
from ras_dit.trace import Trace


class RASWarning(UserWarning):
    """Something ran otherwise than asked for; `Handle.summary` repeats why."""


class Session:
    """Everything `enable` adds to a pipeline, and its undo.

    A run goes: ``set_timesteps`` (a new generation is due) -> per evaluation: the transformer's pre-hook (what to
    compute), the entry hooks (rows gathered), the attention seams (keys and values merged), the exit hook (rows put
    back), the transformer's post-hook (full noise returned) -> ``scheduler.step`` (guided noise observed, next rows
    chosen).
    """

    def __init__(self, pipe: Any, config: RASConfig, token_plan: TokenPlan) -> None:
        self.config = config
        self.token_plan = token_plan
        self.transformer: torch.nn.Module = pipe.transformer
        self.trace = Trace()
        self.plan: Plan | None = None
        self._pipe = pipe
        self._signature = inspect.signature(type(self.transformer).forward)
        self._generation: Generation | None = None
        self._is_due = False
        self._call: Call | None = None
        self._warned: set[str] = set()
        self._early_notes: list[str] = []
        self._first = 0
        self._scheduler: Any = None
        self._scheduler_patches: list[PatchedMethod] = []
        self._module_patches: list[PatchedMethod] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        try:
            self._attach_transformer()
            self._attach_scheduler(pipe.scheduler)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ in and out

    def _attach_transformer(self) -> None:
        root, plan = self.transformer, self.token_plan
        self._hooks.append(root.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        self._hooks.append(root.register_forward_hook(self._after_transformer, with_kwargs=True))
        for path, arguments in plan.gather.items():
            if path:
                module = root.get_submodule(path)
                hook = self._gather_hook(tuple(arguments))
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._hooks.append(root.get_submodule(plan.scatter).register_forward_hook(self._scatter_hook))
        for name, module in plan.attention_modules(root).items():
            self._module_patches.append(PatchedMethod(module, "forward", self._attention_seam(name, module)))
        if self.config.skip_steps:
            self._module_patches.append(PatchedMethod(root, "forward", self._skipping_forward))

    def _attach_scheduler(self, scheduler: Any) -> None:
        for patch in self._scheduler_patches:
            patch.release()
        self._scheduler = scheduler
        self._scheduler_patches = [
            PatchedMethod(scheduler, "set_timesteps", self._observed_set_timesteps),
            PatchedMethod(scheduler, "step", self._observed_step),
        ]

    def close(self) -> None:
        """Take everything back out; the pipeline is as it was."""
        for hook in self._hooks:
            hook.remove()
        for patch in [*self._module_patches, *self._scheduler_patches]:
            patch.release()
        self._hooks, self._module_patches, self._scheduler_patches = [], [], []
        self._generation = self._call = self._scheduler = None

    # ------------------------------------------------------------------ the scheduler, observed

    def _observed_set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._expect_generation()
            return result

        return set_timesteps

    def _expect_generation(self) -> None:
        """A new run begins: whatever an interrupted one left behind is dropped."""
        self._generation = self._call = None
        self._is_due = True
        for patch in self._module_patches:
            patch.ensure()
        if self._pipe.transformer is not self.transformer:
            self.trace = Trace()
            self.note(
                "The pipeline's transformer was replaced after `enable`: RAS is not on it. Disable and enable again."
            )
            self.trace.notes.extend(self._early_notes)

    def _observed_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(model_output, timestep, sample, *args, **kwargs)
            generation = self._generation
            if generation is not None and not generation.is_over:
                generation.observe(model_output, sample)
            return result

        return step

    # ------------------------------------------------------------------ the transformer

    def _before_transformer(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._call = None
        arguments = self._signature.bind_partial(module, *args, **kwargs).arguments
        if self._pipe.scheduler is not self._scheduler:
            self._attach_scheduler(self._pipe.scheduler)
            self._expect_generation()
        if self._is_due:
            self._begin_generation(arguments)
        generation = self._generation
        if generation is None or generation.is_over or not self._is_expected(arguments[self.token_plan.timestep]):
            return None
        latents = arguments[self.token_plan.latents]
        self._call = generation.begin_call(latents.shape[0], latents.device)
        if self._call.rows is None:
            return None
        return args, self._gathered(kwargs, tuple(self.token_plan.gather.get("", ())), self._call.rows)

    def _begin_generation(self, arguments: dict[str, Any]) -> None:
        self._is_due = False
        token_plan, scheduler = self.token_plan, self._scheduler
        latents, text = arguments[token_plan.latents], arguments.get(token_plan.text)
        grid = TokenGrid.of_latents(latents, token_plan.patch_size(self.transformer))
        self._first = first_index(scheduler, arguments[token_plan.timestep])
        sigmas = noise_levels(scheduler)[self._first :]
        plan = build_plan(self.config, len(sigmas) - 1, grid.num_tokens)
        num_text = 0 if text is None else text.shape[1]
        if plan.has_savings and (reason := why_stochastic(scheduler)):
            self.note(f"{reason}: noise cannot be carried from step to step, so the whole run was dense.")
            plan = build_plan(self.config.replace(sample_ratio=1.0, skip_steps=()), len(plan), grid.num_tokens)
        elif self.config.sample_ratio < 1 and not plan.has_savings:
            self.note(
                f"The run has {len(plan)} evaluations, all of them dense by the plan (warm-up or refresh steps): take "
                "more steps or a shorter warm-up."
            )
        cost = plan_cost(plan, token_plan, self.transformer, num_text)
        self.plan = Plan(plan.steps, plan.num_tokens, cost)
        notes = list(self._early_notes)
        self._early_notes.clear()
        self._generation = Generation(self.config, self.plan, grid, sigmas, self.note)
        self.trace = self._generation.trace
        self.trace.notes.extend(notes)

    def _is_expected(self, timestep: Any) -> bool:
        """Whether a call belongs to the run: its timestep is that of the evaluation due. Compares addresses first, so
        that the device need not be waited for."""
        generation = self._generation
        assert generation is not None
        expected = self._scheduler.timesteps[self._first + generation.index]
        if isinstance(timestep, torch.Tensor):
            if timestep.data_ptr() == expected.data_ptr():
                return True
            timestep = timestep.flatten()[0]
        return bool(abs(float(timestep) - float(expected)) < 1e-3)

    def _after_transformer(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        call, generation = self._call, self._generation
        self._call = None
        if call is None or generation is None or call.kind == "skip":
            return None
        is_tuple = isinstance(output, tuple)
        full = generation.end_call(call, output[0] if is_tuple else output.sample)
        if full is None:
            return None
        if is_tuple:
            return (full, *output[1:])
        output.sample = full
        return output

    def _skipping_forward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call, generation = self._call, self._generation
            if call is None or generation is None or call.kind != "skip":
                return original(*args, **kwargs)
            sample = generation.end_call(call, None)
            if not kwargs.get("return_dict", True):
                return (sample,)
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=sample)

        return forward

    # ------------------------------------------------------------------ rows in, rows out, attention between

    def _gathered(self, kwargs: dict[str, Any], names: tuple[str, ...], rows: RowIndex) -> dict[str, Any]:
        changed = dict(kwargs)
        for name in names:
            value = changed.get(name)
            if isinstance(value, torch.Tensor):
                changed[name] = rows.gather(value)
            elif isinstance(value, (list, tuple)):
                changed[name] = type(value)(rows.gather(tensor) for tensor in value)
        return changed

    def _gather_hook(self, names: tuple[str, ...]) -> Callable[..., Any]:
        def gather(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._call is None or self._call.rows is None:
                return None
            return args, self._gathered(kwargs, names, self._call.rows)

        return gather

    def _scatter_hook(self, module: torch.nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
        if self._call is None or self._call.rows is None:
            return None
        return self._call.rows.scatter(output)

    def _attention_seam(self, name: str, module: torch.nn.Module) -> Callable[..., Any]:
        def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                call, generation = self._call, self._generation
                if call is None or generation is None or not (call.captures or call.rows is not None):
                    return original(*args, **kwargs)
                with AttentionMerge(call.layer(name), call.rows, generation.grid.num_tokens) as merge:
                    result = original(*args, **kwargs)
                if merge.num_calls == 0:
                    processor = type(getattr(module, "processor", module)).__name__
                    raise UnsupportedAttentionError(
                        f"attention: {processor} in {name} does not use scaled_dot_product_attention; RAS cannot merge "
                        "cached keys into it. Use the default processor: pipe.transformer.set_attn_processor(...)."
                    )
                return result

            return forward

        return wrap

    # ------------------------------------------------------------------ saying what happened

    def note(self, reason: str) -> None:
        """Record a reason in the trace (once a generation) and warn of it (once a session)."""
        notes = self.trace.notes if not self._is_due and self._generation is not None else self._early_notes
        if reason not in notes:
            notes.append(reason)
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(reason, RASWarning, stacklevel=2)


def first_index(scheduler: Any, timestep: Any) -> int:
    """Where in ``scheduler.timesteps`` a run begins (img2img begins in the middle)."""
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None:
        return int(begin)
    at = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
    return int((scheduler.timesteps.float() - at).abs().argmin())


def noise_levels(scheduler: Any) -> list[float]:
    """The noise level of every evaluation of the schedule, and the last one reached (S + 1 numbers)."""
    timesteps = scheduler.timesteps
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(timesteps) + 1:
        return [float(sigma) for sigma in sigmas.tolist()]
    return [float(t) / scheduler.config.num_train_timesteps for t in timesteps.tolist()] + [0.0]


_STOCHASTIC_CLASSES = ("LCM", "Ancestral", "SDE", "TCD", "DDPM", "SASolver")


def why_stochastic(scheduler: Any) -> str | None:
    """The reason why a scheduler adds fresh noise at every step, None if it does not."""
    name = type(scheduler).__name__
    if any(word in name for word in _STOCHASTIC_CLASSES):
        return f"{name} adds fresh noise at every step"
    if scheduler.config.get("stochastic_sampling", False):
        return f"{name} with stochastic_sampling=True adds fresh noise at every step"
    if "sde" in str(scheduler.config.get("algorithm_type", "")):
        return f"{name} with algorithm_type={scheduler.config['algorithm_type']!r} adds fresh noise at every step"
    return None
