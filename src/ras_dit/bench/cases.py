"""One speed case: dimensions of a model, what to compare on it, whether a machine can hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ras_dit.bench.architectures import ARCHITECTURES, Dimensions, Size, build_pipeline, pipeline_around, random_call
from ras_dit.config import RASConfig

if TYPE_CHECKING:
    from ras_dit.plan import Plan

RATIOS = (1.0, 0.5, 0.25, 0.125)
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""Types that a case may run in, and how its title writes them."""
WARMUP = 4
HEADROOM = 1.15
"""Memory that a run needs over weights and K/V cache, as a factor: activations, the allocator's rounding."""


@dataclass(frozen=True)
class Schedule:
    """Which evaluations are dense.

    Attributes:
        num_steps: evaluations of a run.
        refresh: dense ones after the first four.
    """

    num_steps: int = 28
    refresh: tuple[int, ...] = (12, 20)

    def config(self, ratio: float, num_steps: int) -> RASConfig:
        """A config of this schedule; in a run of another length the dense steps lie at the same shares of it."""
        if ratio == 1:
            return RASConfig(sample_ratio=1.0)
        if num_steps == self.num_steps:
            return RASConfig(sample_ratio=ratio, warmup_steps=WARMUP, refresh_steps=self.refresh)
        shares = tuple(step / self.num_steps for step in self.refresh)
        return RASConfig(sample_ratio=ratio, warmup_steps=WARMUP / self.num_steps, refresh_steps=shares)


@dataclass(frozen=True)
class Case:
    """One row group of the speed table.

    Attributes:
        name: as on the command line.
        model: what it is, for people; `title` adds picture and type.
        dimensions: of the transformer; None for the model in the box.
        schedule: which evaluations are dense.
        batch: images per call.
        ratios: shares of tokens on region steps to compare.
        presets: presets to compare.
        variants: name -> options over the leanest ratio, to compare as well.
        repeats: interleaved repetitions by default.
        dtype: of the weights and latents.
        guidance: how guidance is done, for people.
        fits_cpu: quick enough on a CPU to run by default.
        sizes: pictures of the crossover table.
        embedded_size: pixels per side, for the model in the box.
        has_kernels: RAS by the Triton kernels.
    """

    name: str
    model: str
    dimensions: Dimensions | None
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 1
    ratios: tuple[float, ...] = RATIOS
    presets: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    repeats: int = 5
    dtype: str = "bfloat16"
    guidance: str = "classifier-free guidance, both rows in one call"
    fits_cpu: bool = False
    sizes: tuple[str, ...] = ("256", "512", "1024", "2048")
    embedded_size: int = 128
    has_kernels: bool = False

    @property
    def title(self) -> str:
        """What it is, for people."""
        if self.dimensions is None:
            return self.model
        depth = self.dimensions.depth
        more = ("Triton kernels",) if self.has_kernels else ()
        return ", ".join((self.model, *([depth] if depth else ()), self.size.described, DTYPES[self.dtype], *more))

    @property
    def num_rows(self) -> int:
        """Rows that the transformer computes per evaluation: images times guidance rows."""
        return self.batch * (2 if self.dimensions is None else ARCHITECTURES[self.dimensions.architecture].num_branches)

    @property
    def calls_per_step(self) -> int:
        """Transformer calls that they are spread over."""
        return 1 if self.dimensions is None else ARCHITECTURES[self.dimensions.architecture].calls_per_step

    @property
    def num_references(self) -> int:
        """Reference tokens beside the picture's."""
        return (
            0
            if self.dimensions is None
            else ARCHITECTURES[self.dimensions.architecture].num_references(self.dimensions)
        )

    @property
    def size(self) -> Size:
        return Size(self.embedded_size, self.embedded_size) if self.dimensions is None else self.dimensions.size

    def tiny(self) -> Case:
        """The same architecture at a size that runs in a second, under a name of its own: ``mid-tiny``; in float32, so
        that checks are tight. The model in the box, and what is tiny, stays as it is."""
        if self.dimensions is None or self.dimensions == self.dimensions.tiny():
            return self
        return replace(
            self,
            name=f"{self.name}-tiny",
            model=f"{self.model} (tiny)",
            dimensions=self.dimensions.tiny(),
            repeats=1,
            dtype="float32",
        )

    def at(self, size: Size) -> Case:
        """The same with another picture, for one row of the crossover."""
        if self.dimensions is None:
            raise ValueError(f"{self.name}: the model in the box is timed at its own size; take another case.")
        return replace(self, dimensions=replace(self.dimensions, size=size))

    def resized(self, size: Size) -> Case:
        """The same with another picture, whole loops and all, under a name of its own: ``sd3-medium-512x512``.

        Raises:
            ValueError: the case is the model in the box.
        """
        return self if size == self.size else replace(self.at(size), name=f"{self.name}-{size}")

    def at_depth(self, share: float) -> Case:
        """The same with a share of the blocks, for machines that the whole model does not fit, under a name of its
        own: ``flux-dev-depth0.1``. A step is as much shorter as there are fewer blocks, so that the shares of the
        limit hold for the whole model nearly as they are; seconds and memory do not.

        Args:
            share: of every kind of blocks, above 0 and up to 1; two at least stay.

        Raises:
            ValueError: another share, or the case is the model in the box.
        """
        if not 0 < share <= 1:
            raise ValueError(f"--depth: got {share:g}; allowed: above 0 and up to 1, a share of the blocks.")
        if share == 1:
            return self
        if self.dimensions is None:
            raise ValueError(f"{self.name}: the model in the box is timed as a whole; take another case.")
        return replace(self, name=f"{self.name}-depth{share:g}", dimensions=self.dimensions.at_depth(share))

    def with_kernels(self) -> Case:
        """The same by the Triton kernels, which are for a GPU, under a name of its own: ``sd3-medium-kernels``."""
        return replace(self, name=f"{self.name}-kernels", has_kernels=True)

    def in_dtype(self, dtype: str) -> Case:
        """The same in another type, under a name of its own: ``mid-float32``.

        Args:
            dtype: of the weights and latents, one of `DTYPES`.

        Raises:
            ValueError: there is no such type, or the case is the model in the box.
        """
        if dtype not in DTYPES:
            raise ValueError(f"--dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}.")
        if dtype == self.dtype:
            return self
        if self.dimensions is None:
            raise ValueError(f"{self.name}: the model in the box is timed in {self.dtype}; take another case.")
        return replace(self, name=f"{self.name}-{dtype}", dtype=dtype)

    def configs(
        self,
        num_steps: int,
        ratios: tuple[float, ...] | None = None,
        presets: tuple[str, ...] | None = None,
        has_variants: bool = False,
    ) -> dict[str, RASConfig]:
        """Name -> what to compare with dense.

        Args:
            num_steps: evaluations of the run.
            ratios: these and ``presets`` alone; None for both: the case's own ratios, variants and presets.
            presets: by name.
            has_variants: the case's own variants, too, of the leanest of the ratios that are given.
        """
        is_own = not (ratios or presets)
        shares = self.ratios if is_own else ratios or ()
        found = {f"ratio {ratio:g}": self.schedule.config(ratio, num_steps) for ratio in shares}
        if shares and (is_own or has_variants):
            leanest = min(shares)
            for name, options in self.variants.items():
                found[f"ratio {leanest:g}, {name}"] = self.schedule.config(leanest, num_steps).replace(**options)
        found |= {name: RASConfig.preset(name) for name in (self.presets if is_own else presets or ())}
        if self.has_kernels:
            return {name: config.replace(kernels="triton") for name, config in found.items()}
        return found

    def make(self, device: str) -> Any:
        """The pipeline on a device."""
        import torch

        if self.dimensions is None:
            from ras_dit.embedded import load_embedded

            pipe: Any = load_embedded(device=device, size=self.embedded_size)
            pipe.set_progress_bar_config(disable=True)
            return pipe
        return build_pipeline(self.dimensions, device, getattr(torch, self.dtype))

    def call(self, pipe: Any, device: str, num_steps: int) -> dict[str, Any]:
        """Arguments of one call that ends in latents."""
        import torch

        if self.dimensions is None:
            return {**_embedded_call(self.batch), "num_inference_steps": num_steps}
        arguments = random_call(pipe, self.dimensions, self.batch, device, getattr(torch, self.dtype))
        return {**arguments, "num_inference_steps": num_steps}

    def outline(self) -> Any:
        """The pipeline without memory for its weights: enough for plans and estimates."""
        import torch

        from ras_dit.bench.weights import empty_transformer

        assert self.dimensions is not None
        dtype = getattr(torch, self.dtype)
        return pipeline_around(self.dimensions, lambda kind, arguments: empty_transformer(kind, arguments, dtype))

    def why_skipped(self, device: str, is_loaded: bool = False) -> str | None:
        """The reason why a device cannot hold this case, None if it can.

        Args:
            device: where it would run.
            is_loaded: its weights are there already.
        """
        if self.dimensions is None:
            return None
        estimate, free = self.estimate(), free_bytes(device)
        weights = 0 if is_loaded else estimate["weights"]
        needed = HEADROOM * (weights + estimate["kv_cache"])
        if free is None or needed <= free:
            return None
        gib = 2.0**30
        return (
            f"needs about {needed / gib:.1f} GiB (weights {weights / gib:.1f}, K/V cache "
            f"{estimate['kv_cache'] / gib:.1f}, the rest activations), {free / gib:.1f} GiB are free"
        )

    def estimate(self) -> dict[str, int]:
        """Bytes of ``weights`` and of the ``kv_cache`` of all rows, from an empty transformer."""
        from ras_dit.bench.weights import weight_bytes

        pipe = self.outline()
        cost = self.plan(self.schedule.config(0.5, self.schedule.num_steps), pipe).cost
        assert cost is not None
        return {"weights": weight_bytes(pipe.transformer), "kv_cache": self.num_rows * cost.kv_cache_bytes}

    def plan(self, config: RASConfig, pipe: Any = None) -> Plan:
        """What a config computes of a run of this case's length, with its cost, before anything runs.

        Args:
            config: any.
            pipe: what `outline` gave; None makes one.
        """
        from ras_dit.flops import Layers, plan_cost
        from ras_dit.models import token_plan_of
        from ras_dit.models.sizes import grid_for_size
        from ras_dit.plan import build_plan

        assert self.dimensions is not None
        pipe = pipe or self.outline()
        size, token_plan = self.dimensions.size, token_plan_of(pipe.transformer)
        frames = size.num_frames if size.num_frames > 1 else None
        grid = grid_for_size(pipe, token_plan, size.height, size.width, frames)
        plan = build_plan(config, self.schedule.num_steps, grid.num_tokens)
        layers, counts = Layers.of(token_plan, pipe.transformer), (self.dimensions.num_text, self.num_references)
        return replace(plan, cost=plan_cost(plan, token_plan, layers, *counts, config))


def _embedded_call(batch: int) -> dict[str, Any]:
    import torch

    from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_prompts

    return {
        "prompt": embedded_prompts(batch),
        "generator": torch.Generator().manual_seed(0),
        "guidance_scale": GUIDANCE_SCALE,
        "max_sequence_length": MAX_SEQUENCE_LENGTH,
        "output_type": "latent",
    }


def free_bytes(device: str) -> int | None:
    """Memory that is free on a device; None where that is not known."""
    import torch

    if device.startswith("cuda"):
        where = torch.device(device)
        unused = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(
            where
        )  # PyTorch's own, to be used again
        return int(torch.cuda.mem_get_info(where)[0]) + unused
    if device != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
