"""The embedded model at 256 x 256: what differs from the weights of 128 x 128, and the positions of 1,024 tokens.

`recipes/embedded_model/enlarge.py` trains the difference. It is kept in 4 bits, with a scale for each 32 weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LARGE_RECORD",
    "LARGE_SIZE",
    "LARGE_WEIGHTS",
    "enlarge_pipeline",
    "enlarge_transformer",
    "large_positions",
    "load_difference",
    "save_difference",
]

LARGE_SIZE = 256
"""Pixels per side."""
LARGE_WEIGHTS = Path(__file__).parent / "large" / "difference.safetensors"
LARGE_RECORD = LARGE_WEIGHTS.with_name("training.json")
"""The log of their training."""

_SCALE = ".scale"
_GROUP = 32  # weights that share a scale
_LARGEST, _ZERO = 7, 8  # of the whole numbers in 4 bits
_TOKENS = 32  # per side
_SMALL_TOKENS = 16  # per side at 128 x 128
_TABLE = 8 * _SMALL_TOKENS  # tokens per side of the table that the positions are the middle of


def large_positions(width: int) -> Tensor:
    """Return the position embeddings [1024, width] of 32 x 32 tokens over the coordinates that 16 x 16 tokens have.

    Args:
        width: channels of the transformer.
    """
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    # the model of 128 x 128 has the middle 16 of a table that goes from 0 to 16 in steps of 1/4; here the steps are 1/8
    table = get_2d_sincos_pos_embed(width, _TABLE, base_size=_SMALL_TOKENS, output_type="pt")
    start = (_TABLE - _TOKENS) // 2
    middle = table.unflatten(0, (_TABLE, _TABLE))[start : start + _TOKENS, start : start + _TOKENS]
    return middle.flatten(0, 1).float().contiguous()


def save_difference(old: dict[str, Tensor], new: dict[str, Tensor], path: Path) -> None:
    """Write `new - old` of each tensor: matrices in 4 bits with a scale for each 32 weights, all else in bfloat16.

    Args:
        old: tensors by name, as the small model has them.
        new: tensors of the same names and shapes.
        path: the safetensors file, replaced in one go.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in new.items():
        difference = value.float() - old[name].float()
        if difference.ndim < 2 or difference.shape[-1] % 2 or difference.numel() % _GROUP:
            tensors[name] = difference.bfloat16().contiguous()
        else:
            tensors[name], tensors[name + _SCALE] = _packed(difference)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".part")
    save_file(tensors, scratch)
    scratch.chmod(0o644)
    scratch.replace(path)


def _packed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Two whole numbers from -7 to 7 a byte, uint8 [..., D / 2], and the scales of groups of 32, bfloat16 [N / 32]."""
    groups = values.reshape(-1, _GROUP)
    scale = (groups.abs().amax(1) / _LARGEST).clamp_min(1e-12).bfloat16()
    whole = (groups / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST) + _ZERO
    low, high = whole.to(torch.uint8).view_as(values).unflatten(-1, (-1, 2)).unbind(-1)
    return (low | high << 4).contiguous(), scale


def _unpacked(packed: Tensor, scale: Tensor) -> Tensor:
    whole = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).float() - _ZERO
    return (whole.reshape(-1, _GROUP) * scale.float()[:, None]).view_as(whole)


def load_difference(path: Path = LARGE_WEIGHTS) -> dict[str, Tensor]:
    """Return the differences by name, in float32.

    Raises:
        FileNotFoundError: the file is not there.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(
            f"The weights of {LARGE_SIZE} x {LARGE_SIZE} are missing: no {path}. Reinstall the package, or train them "
            "with `python -m recipes.embedded_model.enlarge --out runs/large` from the repository."
        )
    tensors = load_file(path)
    differences: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.endswith(_SCALE):
            scale = tensors.get(name + _SCALE)
            differences[name] = value.float() if scale is None else _unpacked(value, scale)
    return differences


@torch.no_grad()
def enlarge_transformer(transformer: Any, path: Path = LARGE_WEIGHTS) -> None:
    """Turn the transformer of 128 x 128 into that of 256 x 256, in place; its default size changes with it.

    Args:
        transformer: the `SD3Transformer2DModel` with the weights of 128 x 128, in float32: the sum is rounded once, by
            whoever casts it afterwards.
        path: the difference.

    Raises:
        FileNotFoundError: the difference is not there.
    """
    parameters = dict(transformer.named_parameters())
    for name, difference in load_difference(path).items():
        parameters[name].add_(difference.to(parameters[name]))
    embed = transformer.pos_embed
    embed.register_buffer(
        "pos_embed", large_positions(transformer.inner_dim)[None].to(embed.pos_embed), persistent=True
    )
    embed.pos_embed_max_size = _TOKENS
    transformer.register_to_config(sample_size=2 * _TOKENS, pos_embed_max_size=_TOKENS)


def enlarge_pipeline(pipeline: Any, path: Path = LARGE_WEIGHTS) -> None:
    """Turn the pipeline of 128 x 128 into that of 256 x 256, in place: `enlarge_transformer`, and its default size.

    Args:
        pipeline: the `StableDiffusion3Pipeline`, in float32.
        path: the difference.

    Raises:
        FileNotFoundError: the difference is not there.
    """
    enlarge_transformer(pipeline.transformer, path)
    pipeline.default_sample_size = pipeline.transformer.config.sample_size  # read once, when it was made
