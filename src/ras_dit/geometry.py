"""The token grid: the sole owner of the order in which image tokens lie in a sequence (row-major)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenGrid:
    """Image tokens of a latent picture: ``height`` rows of ``width`` tokens, each ``patch_size`` latent pixels square.

    Token ``t`` covers row ``t // width`` and column ``t % width``.
    """

    height: int
    width: int
    patch_size: int

    @property
    def num_tokens(self) -> int:
        return self.height * self.width

    @classmethod
    def of_latents(cls, latents: torch.Tensor, patch_size: int) -> TokenGrid:
        """The grid of latents [B, C, H, W]; a remainder that fills no patch is cut off, as patch embeddings do."""
        return cls(latents.shape[-2] // patch_size, latents.shape[-1] // patch_size, patch_size)

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, H, W] to tokens [B, N, C * p * p]; inside a token the channel varies slowest."""
        batch, channels = latents.shape[:2]
        p = self.patch_size
        patches = latents.reshape(batch, channels, self.height, p, self.width, p)
        return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.num_tokens, channels * p * p)

    def unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, C * p * p] back to latents [B, C, H, W]: the inverse of `patchify`."""
        batch = tokens.shape[0]
        p = self.patch_size
        channels = tokens.shape[-1] // (p * p)
        patches = tokens.reshape(batch, self.height, self.width, channels, p, p)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, self.height * p, self.width * p)

    def as_image(self, per_token: torch.Tensor) -> torch.Tensor:
        """One value per token [..., N] laid out as a picture [..., height, width]."""
        return per_token.reshape(*per_token.shape[:-1], self.height, self.width)
