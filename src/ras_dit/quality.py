"""How far one picture is from another: PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "Image.Image | np.ndarray[Any, Any] | torch.Tensor"

WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5
K1, K2 = 0.01, 0.03


def psnr(first: Picture, second: Picture) -> float:
    """Peak signal-to-noise ratio in dB; higher is nearer, infinite for equal pictures.

    Args:
        first: a PIL picture, an array [H, W] or [H, W, C], or a tensor [H, W] or [..., C, H, W] (a video
            [F, C, H, W]); integers (uint8) in [0, 255] or floats in [0, 1].
        second: a picture of the same size and channels, in any of these forms.

    Returns:
        The decibels, of the squared error's mean over all pixels, channels and frames.

    Raises:
        ValueError: the sizes differ, or values lie outside the range.

    Source: 10 log10(1 / mean squared error), for a peak of 1.
    """
    a, b = _pair(first, second)
    error = torch.stack([(x - y).square().mean() for x, y in _parts(a, b)]).mean()
    return float("inf") if error == 0 else float(-10 * torch.log10(error))


def ssim(first: Picture, second: Picture) -> float:
    """Structural similarity, at most 1 (equal pictures) and without a unit.

    Statistics are taken where the window lies inside the picture, in a Gaussian window of 11 x 11 pixels with a
    standard deviation of 1.5, without Bessel's correction.

    Args:
        first: a picture or a video in any form that `psnr` takes, at least 11 x 11 pixels.
        second: likewise, of the same size and channels.

    Returns:
        The mean over positions, colour channels and a video's frames.

    Raises:
        ValueError: the sizes differ, are too small, or values lie outside the range.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, equation 13.
    """
    a, b = _pair(first, second)
    if min(a.shape[-2:]) < WINDOW_SIZE:
        raise ValueError(
            f"ssim: got a picture of {a.shape[-1]} x {a.shape[-2]} pixels; allowed: at least {WINDOW_SIZE} each way."
        )
    return float(torch.stack([_likeness(x, y) for x, y in _parts(a, b)]).mean())


def _likeness(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of a plane [H, W] to another."""
    a, b = a[None], b[None]
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a * mean_a
    var_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean()


def _blur(planes: torch.Tensor) -> torch.Tensor:
    """Gaussian means of planes [P, H, W] where the window fits: [P, H - 10, W - 10]."""
    offsets = torch.arange(WINDOW_SIZE, dtype=planes.dtype) - WINDOW_SIZE // 2
    window = torch.exp(-offsets.square() / (2 * WINDOW_SIGMA**2))
    window = window / window.sum()
    rows = F.conv2d(planes[:, None], window.view(1, 1, -1, 1))
    return F.conv2d(rows, window.view(1, 1, 1, -1))[:, 0]


def _pair(first: Picture, second: Picture) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = _planes(first), _planes(second)
    if a.shape != b.shape:
        raise ValueError(
            f"quality: got pictures of {_size(a)} and {_size(b)}; allowed: two of the same size and channels."
        )
    return a, b


def _parts(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Plane by plane [H, W], float64 in [0, 1], so that a long video needs no memory to speak of."""
    for one, other in zip(a, b, strict=True):
        yield _scaled(one), _scaled(other)


def _scaled(plane: torch.Tensor) -> torch.Tensor:
    """float64 in [0, 1]."""
    values = plane.to(torch.float64)
    return values if plane.is_floating_point() else values / 255


def _size(planes: torch.Tensor) -> str:
    return f"{planes.shape[-1]} x {planes.shape[-2]} pixels with {planes.shape[0]} channel(s)"


def _planes(picture: Picture) -> torch.Tensor:
    """Colour planes [P, H, W]: integers in [0, 255] or floats in [0, 1]."""
    if isinstance(picture, torch.Tensor):
        values = picture.detach().cpu()
    else:
        values = torch.from_numpy(np.array(picture))
        if values.ndim == 3:
            values = values.permute(2, 0, 1)
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(f"quality: got values of shape {tuple(values.shape)}; allowed: a picture with pixels.")
    peak = 1 if values.is_floating_point() else 255
    if values.dtype != torch.uint8 and not bool(((values >= 0) & (values <= peak)).all()):
        raise ValueError("quality: got values outside the range; allowed: integers in [0, 255] or floats in [0, 1].")
    return values.reshape(-1, *values.shape[-2:])
