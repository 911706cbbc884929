"""What the library must know about a transformer class: where tokens enter, where they leave, where they attend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class TokenSelect:
    """An argument that carries one row per image token (a tensor, or a list of them), along this dimension."""

    dim: int = 1


@dataclass(frozen=True)
class AttentionShape:
    """Dimensions that the cost model needs.

    Attributes:
        num_layers: attention modules that see the image tokens (a dual-attention block has two).
        width: channels of a token.
        kv_width: channels of a token's key (equal to ``width`` without grouped queries).
    """

    num_layers: int
    width: int
    kv_width: int


@dataclass(frozen=True)
class TokenPlan:
    """One supported transformer class.

    Attributes:
        transformer: its class name in diffusers.
        family: the models people know it by.
        pipelines: diffusers pipelines this was tried with.
        gather: module (dotted path, "" is the transformer itself) -> keyword argument -> which rows to take.
        scatter: module whose output rows go back to their places.
        attention: patterns of the attention modules whose keys and values are kept.
        layout: order of the sequence inside joint attention.
        latents: name of the root argument with the latents [R, C, H, W].
        timestep: name of the root argument with the timestep.
        text: name of the root argument with the text tokens [R, L, D].
        patch_size: latent pixels per token side.
        step_flops: FLOPs of one evaluation per row of the batch: (transformer, computed image tokens, all image tokens,
            text tokens) -> float.
        attention_shape: dimensions for the K/V cache estimate.
        num_text: text tokens per prompt, (pipeline, max_sequence_length) -> int, for estimates made before a run.
        caveats: what a user should know.
    """

    transformer: str
    family: str
    pipelines: tuple[str, ...]
    gather: dict[str, dict[str, TokenSelect]]
    scatter: str
    attention: tuple[str, ...]
    layout: Literal["image", "image_first"]
    patch_size: Callable[[Any], int]
    step_flops: Callable[[Any, int, int, int], float]
    attention_shape: Callable[[Any], AttentionShape]
    num_text: Callable[[Any, int], int]
    latents: str = "hidden_states"
    timestep: str = "timestep"
    text: str = "encoder_hidden_states"
    caveats: tuple[str, ...] = field(default=())

    def attention_modules(self, transformer: torch.nn.Module) -> dict[str, torch.nn.Module]:
        """The attention modules by their dotted path, in the order of the layers."""
        return {
            name: module
            for name, module in transformer.named_modules()
            if module is not None and any(_matches(name, pattern) for pattern in self.attention)
        }


def _matches(name: str, pattern: str) -> bool:
    """A glob in which ``*`` stays inside one part of a dotted path."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(fnmatchcase(part, want) for part, want in zip(parts, wanted, strict=True))
