"""What has to hold in this process before a figure is reported: RAS and compiling change only what they should.

All checks look at the noise of single evaluations, over a scheduler that does not move: a region step then works on the
very latents and timestep of the dense one that filled its cache, and has to give the dense noise where it computes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ras_dit.bench.loops import run_loop, short_call, weights_device
from ras_dit.bench.modes import blocks_of, config_in, num_recorded
from ras_dit.config import RASConfig
from ras_dit.outputs import noise_of
from ras_dit.seams import PatchedMethod

if TYPE_CHECKING:
    import torch

FRESH_TOLERANCE = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}
"""Relative error (root mean square) that rounding may make of a region step over fresh keys: matrix products of other
row counts are summed in another order."""
COMPILED_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}
"""Likewise of a compiled evaluation against an eager one: fused operations round less often, in every layer. Models
that make more of rounding may be off by what `rounding_error` finds (docs/performance.md, "Rounding")."""
STALE_MARGIN = 2.0
"""A step over stale keys has to be off by so many times the tolerance, and what rounding does, or the checks could not
see a broken merge."""
STILL, MOVING = 1.0, -1.0
PROBE = RASConfig(sample_ratio=0.25, warmup_steps=1, importance="random")
READING = ("text_reuse", "reference_reuse", "kv_forecast")
"""Options that change what a region step reads of the step that filled the cache, and not what it gives right behind
that."""
KERNEL_PROBE = PROBE.replace(importance="error", kernels="triton")
_PROBE_STEPS = 3
_REGION = 1
"""The first evaluation of a probe that is no dense one; that before it fills the cache."""


class RefusedError(RuntimeError):
    """A check is not green: this run reports no figures."""


@dataclass(frozen=True)
class Check:
    """One equality.

    Attributes:
        name: what is compared.
        error: relative, root mean square.
        bound: what it may be at most (at least, where ``is_floor``).
        is_floor: the error has to exceed the bound.
    """

    name: str
    error: float
    bound: float
    is_floor: bool = False

    @property
    def is_green(self) -> bool:
        return self.error >= self.bound if self.is_floor else self.error <= self.bound

    @property
    def limit(self) -> str:
        return "at least" if self.is_floor else "at most"

    @property
    def described(self) -> str:
        return f"error {self.error:.3g}, allowed {self.limit} {self.bound:.3g}"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "error": self.error, self.limit: self.bound, "is_green": self.is_green}


def require(checks: Sequence[Check], rounding: float | None = None) -> None:
    """Let no figure pass unless all checks are green.

    Args:
        checks: all of them.
        rounding: what `rounding_error` found, to be told beside them; None where it was not asked.

    Raises:
        RefusedError: says which one is not, and what all found.
    """
    if all(check.is_green for check in checks):
        return
    red = [f"{check.name}: {check.described}" for check in checks if not check.is_green]
    green = [f"{check.name}: {check.described}" for check in checks if check.is_green]
    if rounding is not None:
        green.append(f"one unit in the last place of every block makes {rounding:.3g}")
    beside = f" (Beside it: {'; '.join(green)}.)" if green else ""
    raise RefusedError(f"{'; '.join(red)}; no figures.{beside}")


@dataclass
class Probe:
    """The noise of the evaluations of a short loop over a scheduler that does not follow it.

    Attributes:
        noises: of every transformer call, tokens [R, N, D].
        active: computed ids of every evaluation [images, K], None where it was dense.
        rounding: what `rounding_error` found, where it was asked.
    """

    noises: list[torch.Tensor] = field(default_factory=list)
    active: list[torch.Tensor | None] = field(default_factory=list)
    rounding: float = 0.0

    @property
    def calls_per_step(self) -> int:
        return len(self.noises) // len(self.active)

    def error_to(self, other: Probe, step: int, other_step: int) -> float:
        """How far the noise of a step is from that of another probe's, over the tokens that both computed."""
        count, worst = self.calls_per_step, 0.0
        ids = self.active[step]
        for call in range(count):
            ours = computed(self.noises[step * count + call], ids)
            theirs = computed(other.noises[other_step * count + call], ids)
            worst = max(worst, relative_error(ours, theirs))
        return worst


def computed(tokens: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """The rows of active tokens [R, K, D]; all of them without any."""
    if active is None:
        return tokens
    ids = active.to(tokens.device).repeat(tokens.shape[0] // active.shape[0], 1)
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square of the difference over that of the second one; infinite where anything is not finite."""
    import torch

    if not torch.isfinite(ours).all() or not torch.isfinite(theirs).all():
        return float("inf")
    size = float(theirs.float().norm())
    difference = float((ours.float() - theirs.float()).norm())
    return difference / size if size else (float("inf") if difference else 0.0)


def probe(pipe: Any, call: dict[str, Any], factor: float = STILL, config: RASConfig | None = PROBE) -> Probe:
    """Record a short loop in which every evaluation has the same timestep and the latents are multiplied by a factor.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments.
        factor: 1 leaves the latents as they are.
        config: of RAS; None runs dense.
    """
    from ras_dit.engine import enable

    found, short = Probe(), short_call(call, _PROBE_STEPS)
    with _not_following(pipe, factor):
        handle = enable(pipe, config if config is not None else RASConfig(sample_ratio=1.0))
        raw: list[torch.Tensor] = []
        hook = pipe.transformer.register_forward_hook(lambda module, args, output: raw.append(noise_of(output).clone()))
        try:
            for _ in range(3 if config is not None and config.static_memory else 1):  # until graphs are recorded
                raw.clear()
                run_loop(pipe, short)
        finally:
            hook.remove()
            handle.disable()
    assert handle.trace.grid is not None
    found.noises = [handle.trace.grid.patchify(noise) for noise in raw]
    found.active = [step.active for step in handle.trace.steps]
    return found


def eager_probe(pipe: Any, call: dict[str, Any]) -> Probe:
    """What compiled evaluations are compared with: the probe of blocks as they are, and what rounding makes of them."""
    still = probe(pipe, call)
    still.rounding = rounding_error(pipe, call, still)
    return still


def rounding_error(pipe: Any, call: dict[str, Any], still: Probe) -> float:
    """How far the noise of a dense step moves if all numbers that a block returns are off by up to one unit in the last
    place, in every block.

    Args:
        pipe: not compiled.
        call: arguments.
        still: its probe.

    Returns:
        A relative error; 0 where numbers are not finite, for which nothing makes up.
    """
    import torch

    device = weights_device(pipe)
    noise = torch.Generator(device).manual_seed(0)

    def nudged(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(nudged(one) for one in value)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        units = torch.rand(value.shape, generator=noise, device=value.device).mul_(2).sub_(1)
        return (value * (1 + torch.finfo(value.dtype).eps * units)).to(value.dtype)

    hooks = [block.register_forward_hook(lambda module, args, output: nudged(output)) for block in blocks_of(pipe)]
    try:
        error = probe(pipe, call, config=None).error_to(still, 0, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return error if math.isfinite(error) else 0.0


@contextmanager
def _not_following(pipe: Any, factor: float) -> Iterator[None]:
    def even_timesteps(original: Any) -> Any:
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            timesteps = pipe.scheduler.timesteps
            timesteps[:] = timesteps[len(timesteps) // 2].clone()
            return result

        return set_timesteps

    def scaled(original: Any) -> Any:
        signature = inspect.signature(original)
        return lambda *args, **kwargs: (signature.bind(*args, **kwargs).arguments["sample"] * factor,)

    scheduler = pipe.scheduler
    patches = [PatchedMethod(scheduler, "set_timesteps", even_timesteps), PatchedMethod(scheduler, "step", scaled)]
    try:
        yield
    finally:
        for patch in patches:
            patch.release()


def fresh_check(still: Probe, dtype: str) -> Check:
    """A region step over fresh keys and values gives the dense noise where it computes.

    Args:
        still: a probe, on a GPU with its rounding: fewer rows go to other kernels there, which sum in another order, in
            every layer. On a CPU a row does not depend on how many there are, and nothing is allowed for that.
        dtype: name of the type of the noise.
    """
    steps = [index for index, active in enumerate(still.active) if active is not None]
    error = max((still.error_to(still, step, 0) for step in steps), default=float("inf"))
    rounding = 0.0 if still.noises[0].is_cpu else still.rounding
    return Check("region step over fresh keys equals dense", error, max(FRESH_TOLERANCE[dtype], rounding))


def eager_checks(pipe: Any, call: dict[str, Any], dtype: str, has_kernels: bool = False) -> tuple[list[Check], Probe]:
    """The checks of a pipeline whose blocks run as they are.

    Args:
        pipe: RAS is not enabled on it.
        call: arguments.
        dtype: name of the type of the noise.
        has_kernels: of RAS by the Triton kernels, too.

    Returns:
        The checks, and the probe that `compiled_checks` compares with.
    """
    still = eager_probe(pipe, call)
    floor = STALE_MARGIN * max(FRESH_TOLERANCE[dtype], still.rounding)
    checks = [
        ratio_one_check(pipe, call),
        fresh_check(still, dtype),
        Check("stale keys can be told from fresh ones", stale_error(pipe, call), floor, is_floor=True),
    ]
    if has_kernels:
        by_kernels = fresh_check(replace(probe(pipe, call, config=KERNEL_PROBE), rounding=still.rounding), dtype)
        checks.append(replace(by_kernels, name=f"by the kernels, {by_kernels.name}"))
    return checks, still


def option_checks(
    pipe: Any, call: dict[str, Any], dtype: str, configs: Iterable[RASConfig], rounding: float, mode: str = "eager"
) -> list[Check]:
    """The check of fresh keys for what else is timed: every set of options that changes what region steps read.

    Args:
        pipe: in this mode.
        call: arguments.
        dtype: name of the type of the noise.
        configs: that are going to be timed.
        rounding: what `rounding_error` found.
        mode: one of `ras_dit.bench.modes.MODES`.
    """
    sets = {tuple((name, getattr(config, name)) for name in READING) for config in configs}
    checks = []
    for options in sorted(sets - {tuple((name, getattr(PROBE, name)) for name in READING)}):
        given = {name: value for name, value in options if value != getattr(PROBE, name)}
        found = probe(pipe, call, config=config_in(mode, PROBE.replace(**given)))
        check = fresh_check(replace(found, rounding=rounding), dtype)
        checks.append(replace(check, name=f"with {', '.join(given)}, {check.name}"))
    return checks


def stale_error(pipe: Any, call: dict[str, Any]) -> float:
    """How far a region step is from the dense one, over keys and values of latents that point the other way."""
    stale, moved = probe(pipe, call, MOVING), probe(pipe, call, MOVING, config=None)
    return stale.error_to(moved, _REGION, _REGION)


def ratio_one_check(pipe: Any, call: dict[str, Any]) -> Check:
    """A run at ratio 1 is the untouched one, bit for bit."""
    import torch

    from ras_dit.engine import accelerate

    short = short_call(call, _PROBE_STEPS)
    dense = run_loop(pipe, short)
    with accelerate(pipe, RASConfig(sample_ratio=1.0)):
        ours = run_loop(pipe, short)
    error = 0.0 if torch.equal(ours, dense) else max(relative_error(ours, dense), 1e-30)
    return Check("ratio 1 is bit-equal to the untouched pipeline", error, 0.0)


def compiled_checks(
    pipe: Any, call: dict[str, Any], dtype: str, eager: Probe, config: RASConfig = PROBE
) -> list[Check]:
    """The checks of a pipeline whose blocks are compiled.

    Args:
        pipe: compiled.
        call: arguments.
        dtype: name of the type of the noise.
        eager: the `eager_probe` of the same pipeline before.
        config: `PROBE`, as it runs in this mode.
    """
    device, before = weights_device(pipe), num_recorded(weights_device(pipe))
    still = replace(probe(pipe, call, config=config), rounding=eager.rounding)
    errors = {"dense": still.error_to(eager, 0, 0), "region": still.error_to(eager, _REGION, _REGION)}
    bound = max(COMPILED_TOLERANCE[dtype], eager.rounding)
    checks = [Check(f"compiled {kind} step equals eager", error, bound) for kind, error in errors.items()]
    checks.append(fresh_check(still, dtype))
    if config.static_memory and device.type == "cuda":
        is_missing = num_recorded(device) - before < 2  # asking takes a number itself
        name = "region steps are recorded as CUDA graphs (PyTorch's warnings, or TORCH_LOGS=perf_hints, say why not)"
        checks.append(Check(name, float(is_missing), 0.0))
    return checks
