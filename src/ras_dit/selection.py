"""From one score per token to the ids of the active tokens. Pure functions; ids come out ascending."""

from __future__ import annotations

import torch


def top_k(importance: torch.Tensor, num_active: int) -> torch.Tensor:
    """The ``num_active`` most important tokens of each image.

    Args:
        importance: [B, N], higher is more wanted; equal scores go to the lower id, NaN counts as the highest.
        num_active: K.

    Returns:
        LongTensor [B, K], ascending.
    """
    order = importance.sort(dim=-1, descending=True, stable=True).indices
    return order[:, :num_active].sort(dim=-1).values


def drop_ends(metric: torch.Tensor, num_low: int, num_high: int) -> torch.Tensor:
    """All tokens but the ``num_low`` lowest and the ``num_high`` highest of each image.

    Args:
        metric: [B, N]; equal values keep their order by id.
        num_low: tokens dropped at the low end.
        num_high: tokens dropped at the high end.

    Returns:
        LongTensor [B, N - num_low - num_high], ascending.
    """
    order = metric.sort(dim=-1, stable=True).indices
    return order[:, num_low : metric.shape[-1] - num_high].sort(dim=-1).values


def membership(active: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Active ids [B, K] as a mask [B, N] bool."""
    mask = torch.zeros(active.shape[0], num_tokens, dtype=torch.bool, device=active.device)
    return mask.scatter_(1, active, True)
