"""How much each token needs to be computed: pure functions of noise, sigmas and ages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from ras_dit.forecast import TokenHistory
from ras_dit.geometry import TokenGrid


@dataclass(frozen=True)
class ScoreInputs:
    """What a score of one's own can go by (``score`` of `ras_dit.enable`), before a region step.

    Attributes:
        noise: guided noise of the evaluation before, [B, N, D]; that of tokens it did not compute is forecast.
        latents: that the scheduler was to advance with it, [B, N, D].
        values: the last two computed guided noises of every token, newest first, [2, B, N, D] float32.
        value_sigmas: noise levels that they were computed at, [2, B, N]; NaN where there is none.
        age: evaluations since every token was computed, [B, N].
        sigma: noise level of the evaluation to choose for.
        next_sigma: that of the one behind it.
        index: its number in the run, from 0.
        num_active: tokens that it computes of every image.
        grid: where the N tokens lie.
    """

    noise: torch.Tensor
    latents: torch.Tensor
    values: torch.Tensor
    value_sigmas: torch.Tensor
    age: torch.Tensor
    sigma: float
    next_sigma: float
    index: int
    num_active: int
    grid: TokenGrid


SAME_LEVEL = 1e-6
"""Distance of noise levels that counts between two evaluations at one level (the second ones of Heun's steps begin
there): tokens are ranked by their slopes then, not all alike."""

Score = Callable[[ScoreInputs], torch.Tensor]
"""A score of one's own: [B, N], high where a token is wanted."""


def displacement_metric(displacement: torch.Tensor, grid: TokenGrid, metric: Literal["std", "l2norm"]) -> torch.Tensor:
    """The paper's R: spread over channels of the step's displacement, averaged over the patch.

    Args:
        displacement: ``(sigma_next - sigma) * velocity`` in any form that `TokenGrid` knows; its dtype is that of the
            result.
        grid: the token grid of those latents.
        metric: ``std`` (unbiased, over C) or ``l2norm`` (over C).

    Returns:
        [B, N], low where the paper finds the model's focus.

    Source: arXiv 2502.10389, equation 2.
    """
    tokens = grid.patchify(displacement)
    pixels = tokens.unflatten(-1, (-1, grid.pixels_per_token))
    per_pixel = pixels.std(dim=2) if metric == "std" else pixels.norm(p=2, dim=2)
    return per_pixel.mean(dim=-1)


def predicted_error(history: TokenHistory, sigma_next: float) -> torch.Tensor:
    """How far each token's last noise will be off at ``sigma_next``: its last slope times the distance since.

    A token that was computed once only has no slope yet; the norm of its noise stands in for it.

    Args:
        history: computed noise of every token with the sigmas it was computed at (guided, [B, N, D]).
        sigma_next: sigma of the evaluation to choose tokens for.

    Returns:
        [B, N] float32, high where a token should be computed.
    """
    last, sigma_last = history.values[0], history.sigmas[0]
    if history.depth == 1:
        slope = last.norm(dim=-1)
    else:
        gap = (sigma_last - history.sigmas[1]).abs()
        change = (last - history.values[1]).norm(dim=-1) / gap
        slope = torch.where(gap.isnan(), last.norm(dim=-1), change)
    return slope * (sigma_next - sigma_last).abs().clamp_min(SAME_LEVEL)


def starved(metric: torch.Tensor, age: torch.Tensor, starvation_scale: float) -> torch.Tensor:
    """The paper's metric with the sign its text asks for: the longer a token waited, the lower (more wanted) it gets.

    Args:
        metric: [B, N].
        age: evaluations since each token was last computed [B, N], 0 for one computed just now.
        starvation_scale: k in ``metric * exp(-k * age)``.
    """
    return metric * torch.exp(-starvation_scale * age)


def reference_starved(metric: torch.Tensor, drop_count: torch.Tensor, starvation_scale: float) -> torch.Tensor:
    """The authors' sign: every drop raises the score, and a high score is dropped again (see RASConfig.reference)."""
    return metric * torch.exp(starvation_scale * drop_count)


def filtered(score: torch.Tensor, grid: TokenGrid, kind: Literal["blur", "dilate"]) -> torch.Tensor:
    """The score with neighbours made alike: the mean or the maximum over 3 x 3 tokens of a frame, as far as they exist.

    Args:
        score: [B, N].
        grid: where the tokens lie.
        kind: ``blur`` or ``dilate``.

    Returns:
        [B, N].
    """
    frames = score.reshape(-1, 1, grid.height, grid.width)
    if kind == "blur":
        frames = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    else:
        frames = F.max_pool2d(frames, 3, stride=1, padding=1)
    return frames.reshape(score.shape)


def anchors(grid: TokenGrid, stride: int, index: int, device: torch.device | None = None) -> torch.Tensor:
    """One token of every cell of ``stride`` x ``stride`` tokens, another one in every region step, all in turn.

    Consecutive region steps take places that lie apart. In a cell that the border cuts, some turns go without.

    Args:
        grid: where the tokens lie.
        stride: side of a cell.
        index: of the region step, counted from the first one of the run.
        device: of the mask.

    Returns:
        Mask [N] bool.
    """
    turn = index * _coprime_step(stride) % stride**2
    rows = torch.arange(grid.height, device=device) % stride == turn // stride
    columns = torch.arange(grid.width, device=device) % stride == turn % stride
    return (rows[:, None] & columns).flatten().repeat(grid.num_frames)


def _coprime_step(stride: int) -> int:
    """A step through the places of a cell that comes by all of them: their golden section, made coprime."""
    count = stride**2
    step = round(count * 0.618)
    while math.gcd(step, count) != 1:
        step += 1
    return step
