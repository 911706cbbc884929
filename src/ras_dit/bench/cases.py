"""The registry of speed cases: dimensions of real models, what to compare on them, whether a machine can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ras_dit.bench.architectures import ARCHITECTURES, Dimensions, Size, build_pipeline, pipeline_around, random_call
from ras_dit.config import RASConfig

RATIOS = (1.0, 0.5, 0.25, 0.125)
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
        title: what it is, for people.
        dimensions: of the transformer; None for the model in the box.
        schedule: which evaluations are dense.
        batch: images per call.
        ratios: shares of tokens on region steps to compare.
        presets: presets to compare.
        repeats: interleaved repetitions by default.
        dtype: of the weights and latents.
        guidance: how guidance is done, for people.
        fits_cpu: quick enough on a CPU to run by default.
        sizes: pictures of the crossover table.
    """

    name: str
    title: str
    dimensions: Dimensions | None
    schedule: Schedule = field(default_factory=Schedule)
    batch: int = 1
    ratios: tuple[float, ...] = RATIOS
    presets: tuple[str, ...] = ()
    repeats: int = 5
    dtype: str = "bfloat16"
    guidance: str = "classifier-free guidance, both rows in one call"
    fits_cpu: bool = False
    sizes: tuple[str, ...] = ("256", "512", "1024", "2048")

    @property
    def num_rows(self) -> int:
        """Rows that the transformer computes per evaluation: images times guidance branches."""
        return self.batch * (2 if self.dimensions is None else ARCHITECTURES[self.dimensions.architecture].num_branches)

    @property
    def calls_per_step(self) -> int:
        """Transformer calls that they are spread over."""
        return 1 if self.dimensions is None else ARCHITECTURES[self.dimensions.architecture].calls_per_step

    @property
    def size(self) -> Size:
        return Size(128, 128) if self.dimensions is None else self.dimensions.size

    def tiny(self) -> Case:
        """The same architecture at a size that runs in a second; in float32, so that checks are tight."""
        if self.dimensions is None:
            return self
        return replace(
            self,
            title=f"{self.title} (tiny)",
            dimensions=self.dimensions.tiny(),
            repeats=1,
            dtype="float32",
        )

    def at(self, size: Size) -> Case:
        """The same with another picture."""
        if self.dimensions is None:
            raise ValueError(f"{self.name}: the model in the box is timed at its own size; take another case.")
        return replace(self, dimensions=replace(self.dimensions, size=size))

    def configs(self, num_steps: int, ratios: tuple[float, ...] | None = None) -> dict[str, RASConfig]:
        """Name -> what to compare with dense.

        Args:
            num_steps: evaluations of the run.
            ratios: these alone; None for the case's own ratios and presets.
        """
        found = {f"ratio {ratio:g}": self.schedule.config(ratio, num_steps) for ratio in ratios or self.ratios}
        return found if ratios else found | {name: RASConfig.preset(name) for name in self.presets}

    def make(self, device: str) -> Any:
        """The pipeline on a device."""
        import torch

        if self.dimensions is None:
            from ras_dit.embedded import load_embedded

            pipe: Any = load_embedded(device=device)
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
        return {"weights": weight_bytes(pipe.transformer), "kv_cache": self.num_rows * self._cache_bytes(pipe)}

    def _cache_bytes(self, pipe: Any) -> int:
        from ras_dit.flops import plan_cost
        from ras_dit.models import token_plan_of
        from ras_dit.models.sizes import grid_for_size
        from ras_dit.plan import build_plan

        assert self.dimensions is not None
        size, token_plan = self.dimensions.size, token_plan_of(pipe.transformer)
        frames = size.num_frames if size.num_frames > 1 else None
        grid = grid_for_size(pipe, token_plan, size.height, size.width, frames)
        plan = build_plan(self.schedule.config(0.5, self.schedule.num_steps), self.schedule.num_steps, grid.num_tokens)
        return plan_cost(plan, token_plan, pipe.transformer, self.dimensions.num_text).kv_cache_bytes


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


_SD3: Mapping[str, Any] = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_MEDIUM = Dimensions(
    "sd3",
    {**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
    Size(1024, 1024),
    333,
    "transformer/config.json of stabilityai/stable-diffusion-3-medium-diffusers; 77 CLIP and 256 T5 tokens",
)
_TWO_CALLS = "classifier-free guidance, two calls"
_PRESETS = ("quality", "balanced", "fast", "regions")

_CASES: tuple[Case, ...] = (
    Case(
        "embedded",
        "the embedded model, 1 image",
        None,
        presets=_PRESETS,
        ratios=RATIOS[1:],
        repeats=7,
        dtype="float32",
        fits_cpu=True,
        sizes=(),
    ),
    Case(
        "embedded-batch",
        "the embedded model, batch of 8",
        None,
        batch=8,
        presets=_PRESETS,
        ratios=RATIOS[1:],
        repeats=3,
        dtype="float32",
        fits_cpu=True,
        sizes=(),
    ),
    Case(
        "mid",
        "SD3 architecture, 12 layers, width 768, 4,096 image + 333 text tokens, bf16",
        replace(
            _MEDIUM,
            arguments={
                **_SD3,
                "num_layers": 12,
                "num_attention_heads": 12,
                "caption_projection_dim": 768,
                "qk_norm": "rms_norm",
            },
            source="half of Stable Diffusion 3 medium's layers and width; no published model",
        ),
        ratios=(0.25, 0.125),
        repeats=3,
        fits_cpu=True,
        sizes=("256", "512", "1024"),
    ),
    Case(
        "sd3-medium",
        "Stable Diffusion 3 medium's dimensions, 1024 x 1024, bf16",
        _MEDIUM,
        presets=_PRESETS,
    ),
    Case(
        "sd3-medium-2048",
        "Stable Diffusion 3 medium's dimensions, 2048 x 2048, bf16",
        replace(_MEDIUM, size=Size(2048, 2048)),
        repeats=3,
        sizes=(),
    ),
    Case(
        "sd3.5-large",
        "Stable Diffusion 3.5 large's dimensions, 1024 x 1024, bf16",
        replace(
            _MEDIUM,
            arguments={
                **_SD3,
                "num_layers": 38,
                "num_attention_heads": 38,
                "caption_projection_dim": 2432,
                "qk_norm": "rms_norm",
            },
            source="transformer/config.json of stabilityai/stable-diffusion-3.5-large; 77 CLIP and 256 T5 tokens",
        ),
        sizes=("512", "1024", "2048"),
    ),
    Case(
        "lumina-next",
        "Lumina-Next's dimensions (2B), 1024 x 1024, bf16",
        Dimensions(
            "lumina-next",
            {
                "hidden_size": 2304,
                "num_layers": 24,
                "num_attention_heads": 32,
                "num_kv_heads": 8,
                "in_channels": 4,
                "cross_attention_dim": 2048,
                "qk_norm": True,
                "learn_sigma": True,
            },
            Size(1024, 1024),
            256,
            "transformer/config.json of Alpha-VLLM/Lumina-Next-SFT-diffusers",
        ),
        schedule=Schedule(30, (12, 22)),
    ),
    Case(
        "flux-dev",
        "FLUX.1 dev's dimensions, 1024 x 1024, bf16",
        Dimensions(
            "flux",
            {"guidance_embeds": True},
            Size(1024, 1024),
            512,
            "FluxTransformer2DModel's defaults, with guidance_embeds as in black-forest-labs/FLUX.1-dev",
        ),
        guidance="distilled guidance, one row",
        sizes=("512", "1024", "2048"),
    ),
    Case(
        "qwen-image",
        "Qwen-Image's dimensions, 1024 x 1024, bf16",
        Dimensions(
            "qwen-image", {}, Size(1024, 1024), 512, "QwenImageTransformer2DModel's defaults, those of Qwen/Qwen-Image"
        ),
        guidance=_TWO_CALLS,
        repeats=3,
        sizes=("512", "1024"),
    ),
    Case(
        "wan-1.3b",
        "Wan 2.1's 1.3B dimensions, 480 x 832, 81 frames, bf16",
        Dimensions(
            "wan",
            {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
            Size(480, 832, 81),
            512,
            "transformer/config.json of Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        ),
        guidance=_TWO_CALLS,
        repeats=3,
        sizes=("480x832x9", "480x832x33", "480x832x81"),
    ),
)

CASES: dict[str, Case] = {case.name: case for case in _CASES}


def chosen_cases(names: tuple[str, ...], device: str) -> list[Case]:
    """The cases of these names; without one, all of them on a GPU, and on a CPU those that it can do in minutes.

    Raises:
        ValueError: there is no such case.
    """
    for name in names:
        if name not in CASES:
            raise ValueError(f"--case: got {name!r}; allowed: {', '.join(CASES)}.")
    if names:
        return [CASES[name] for name in dict.fromkeys(names)]
    return [case for case in CASES.values() if case.fits_cpu or device != "cpu"]
