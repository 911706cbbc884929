"""How a pipeline of each architecture is built from dimensions alone, and called with random text and noise."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ras_dit.bench.weights import random_transformer

if TYPE_CHECKING:
    import torch


_BLOCKS = ("num_layers", "num_single_layers")
"""Arguments of transformers that count blocks, in the order in which these run."""


@dataclass(frozen=True)
class Size:
    """A picture or video in pixels. ``str(size)`` is what ``--sizes`` takes."""

    height: int
    width: int
    num_frames: int = 1

    def __str__(self) -> str:
        text = f"{self.height}x{self.width}"
        return text if self.num_frames == 1 else f"{text}x{self.num_frames}"

    @property
    def described(self) -> str:
        """For people."""
        text = f"{self.height} x {self.width}"
        return text if self.num_frames == 1 else f"{text}, {self.num_frames} frames"

    @property
    def num_pixels(self) -> int:
        """Of all frames."""
        return self.height * self.width * self.num_frames

    @classmethod
    def parse(cls, text: str, default: Size, flag: str = "--sizes") -> Size:
        """``1024``, ``768x1024`` (height first) or ``480x832x81`` (with frames).

        Args:
            text: what was written.
            default: gives the number of frames that the text leaves out.
            flag: where it was written, for the message.

        Raises:
            ValueError: anything else.
        """
        try:
            numbers = [int(word) for word in text.lower().split("x")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or min(numbers) < 1:
            raise ValueError(f"{flag}: got {text!r}; allowed: SIDE, HEIGHTxWIDTH or HEIGHTxWIDTHxFRAMES in pixels.")
        sides = numbers * 2 if len(numbers) == 1 else numbers
        return cls(sides[0], sides[1], sides[2] if len(sides) > 2 else default.num_frames)


@dataclass(frozen=True)
class Dimensions:
    """A transformer's dimensions and the sequence it works on.

    Attributes:
        architecture: key of `ARCHITECTURES`.
        arguments: of the transformer's constructor, over the defaults of its class in diffusers.
        size: of the picture or video.
        num_text: text tokens of a prompt.
        source: where the numbers are published.
        depth: which share of the blocks this is, for people; empty for all of them.
    """

    architecture: str
    arguments: Mapping[str, Any]
    size: Size
    num_text: int
    source: str = ""
    depth: str = ""

    def at_depth(self, share: float) -> Dimensions:
        """The same with a share of every kind of blocks, two at least."""
        whole = {name: number for name in _BLOCKS if (number := self._argument(name)) is not None}
        fewer = {name: min(number, max(2, round(share * number))) for name, number in whole.items()}
        depth = " + ".join(f"{fewer[name]} of {number}" for name, number in whole.items()) + " blocks"
        return replace(self, arguments={**self.arguments, **fewer}, depth=depth)

    def _argument(self, name: str) -> Any:
        """Of the transformer's constructor; None where it has no such argument."""
        import diffusers

        kind = getattr(diffusers, ARCHITECTURES[self.architecture].transformer)
        found = inspect.signature(kind.__init__).parameters.get(name)
        return self.arguments.get(name, found.default) if found else None

    def tiny(self) -> Dimensions:
        """The same architecture with few layers, a narrow width and a small picture."""
        one = ARCHITECTURES[self.architecture]
        size = Size(one.tiny_side, one.tiny_side * 3 // 2, 9 if self.size.num_frames > 1 else 1)
        return replace(self, arguments={**self.arguments, **one.tiny}, size=size, num_text=7)


@dataclass(frozen=True)
class Architecture:
    """One transformer class with its pipeline.

    Attributes:
        transformer: class name in diffusers.
        pipeline: likewise.
        scheduler: class name and arguments.
        components: names of components that the pipeline is given as None.
        call: (transformer's config, dimensions, batch, normal) -> arguments of a call that ends in latents; ``normal``
            draws tensors.
        tiny: changes that make the transformer tiny.
        num_branches: rows of guidance per image.
        calls_per_step: transformer calls that these rows are spread over.
        tiny_side: height of the tiny picture in pixels.
        num_references: reference tokens beside the picture's.
    """

    transformer: str
    pipeline: str
    scheduler: tuple[str, Mapping[str, Any]]
    components: tuple[str, ...]
    call: Callable[[Any, Dimensions, int, Callable[..., Any]], dict[str, Any]]
    tiny: Mapping[str, Any] = field(default_factory=dict)
    num_branches: int = 2
    calls_per_step: int = 1
    tiny_side: int = 128
    num_references: Callable[[Dimensions], int] = lambda dimensions: 0


def build_pipeline(dimensions: Dimensions, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of these dimensions with random weights; it has neither text encoders nor an autoencoder."""
    return pipeline_around(dimensions, lambda kind, arguments: random_transformer(kind, arguments, device, dtype))


def pipeline_around(dimensions: Dimensions, make: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """A pipeline whose transformer is made by a function of its class and arguments."""
    import diffusers

    one = ARCHITECTURES[dimensions.architecture]
    transformer = make(getattr(diffusers, one.transformer), dict(dimensions.arguments))
    scheduler_name, options = one.scheduler
    pipe = getattr(diffusers, one.pipeline)(
        transformer=transformer,
        scheduler=getattr(diffusers, scheduler_name)(**options),
        **dict.fromkeys(one.components),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_call(pipe: Any, dimensions: Dimensions, batch: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a call of a pipeline that `build_pipeline` made."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    one, size = ARCHITECTURES[dimensions.architecture], dimensions.size
    arguments = one.call(pipe.transformer.config, dimensions, batch, normal)
    return {**arguments, "height": size.height, "width": size.width, "output_type": "latent"}


def _sd3_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    text = (batch, dimensions.num_text, config.joint_attention_dim)
    size = dimensions.size
    return {
        "prompt_embeds": normal(*text),
        "negative_prompt_embeds": normal(*text),
        "pooled_prompt_embeds": normal(batch, config.pooled_projection_dim),
        "negative_pooled_prompt_embeds": normal(batch, config.pooled_projection_dim),
        "latents": normal(batch, config.in_channels, size.height // 8, size.width // 8),
        "guidance_scale": 5.0,
    }


def _lumina_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    import torch

    text, size = (batch, dimensions.num_text, config.cross_attention_dim), dimensions.size
    embeds, negative = normal(*text), normal(*text)
    mask = torch.ones(text[:2], dtype=torch.long, device=embeds.device)
    return {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask.clone(),
        "latents": normal(batch, config.in_channels, size.height // 8, size.width // 8),
        "guidance_scale": 4.0,
    }


def _flux_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    return {
        "prompt_embeds": normal(batch, dimensions.num_text, config.joint_attention_dim),
        "pooled_prompt_embeds": normal(batch, config.pooled_projection_dim),
        "latents": normal(batch, _num_patches(dimensions.size), config.in_channels),
        "guidance_scale": 3.5,
    }


def _kontext_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    size = dimensions.size
    reference = normal(batch, config.in_channels // 4, size.height // 8, size.width // 8)
    area = {"max_area": size.height * size.width, "_auto_resize": False}
    return {**_flux_call(config, dimensions, batch, normal), **area, "image": reference}


def _qwen_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    import torch

    text = (batch, dimensions.num_text, config.joint_attention_dim)
    embeds, negative = normal(*text), normal(*text)
    mask = torch.ones(text[:2], dtype=torch.long, device=embeds.device)
    return {
        "prompt_embeds": embeds,
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": negative,
        "negative_prompt_embeds_mask": mask.clone(),
        "latents": normal(batch, _num_patches(dimensions.size), config.in_channels),
        "true_cfg_scale": 4.0,
    }


def _wan_call(config: Any, dimensions: Dimensions, batch: int, normal: Callable[..., Any]) -> dict[str, Any]:
    text, size = (batch, dimensions.num_text, config.text_dim), dimensions.size
    frames = (size.num_frames - 1) // 4 + 1
    return {
        "prompt_embeds": normal(*text),
        "negative_prompt_embeds": normal(*text),
        "latents": normal(batch, config.in_channels, frames, size.height // 8, size.width // 8),
        "num_frames": size.num_frames,
        "guidance_scale": 5.0,
    }


def _num_patches(size: Size) -> int:
    return (size.height // 16) * (size.width // 16)


_T5_AND_CLIPS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")

_TINY_FLUX: Mapping[str, Any] = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 6, 6),
}

ARCHITECTURES: dict[str, Architecture] = {
    "sd3": Architecture(
        "SD3Transformer2DModel",
        "StableDiffusion3Pipeline",
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("vae", *_T5_AND_CLIPS),
        _sd3_call,
        tiny={
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 24,
        },
    ),
    "lumina-next": Architecture(
        "LuminaNextDiT2DModel",
        "LuminaPipeline",
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("vae", "text_encoder", "tokenizer"),
        _lumina_call,
        tiny={
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 16,
            "cross_attention_dim": 24,
        },
    ),
    "flux": Architecture(
        "FluxTransformer2DModel",
        "FluxPipeline",
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        _flux_call,
        tiny=_TINY_FLUX,
        num_branches=1,
    ),
    "flux-kontext": Architecture(
        "FluxTransformer2DModel",
        "FluxKontextPipeline",
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
        ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        _kontext_call,
        tiny={**_TINY_FLUX, "in_channels": 64},  # the pipeline tells latents from pictures by their 16 channels
        num_branches=1,
        num_references=lambda dimensions: _num_patches(dimensions.size),
    ),
    "qwen-image": Architecture(
        "QwenImageTransformer2DModel",
        "QwenImagePipeline",
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02}),
        ("vae", "text_encoder", "tokenizer"),
        _qwen_call,
        tiny={
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
        calls_per_step=2,
    ),
    "wan": Architecture(
        "WanTransformer3DModel",
        "WanPipeline",
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        ("vae", "text_encoder", "tokenizer"),
        _wan_call,
        tiny={
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 24,
            "freq_dim": 16,
            "ffn_dim": 64,
            "num_layers": 3,
            "rope_max_seq_len": 64,
        },
        calls_per_step=2,
        tiny_side=64,
    ),
}
