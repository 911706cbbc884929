"""The token grid: the sole owner of the order in which image tokens lie in a sequence, and of how noise is cut up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenGrid:
    """Image tokens of a latent picture or video: frames, then rows, then columns (row-major).

    Token ``t`` of a picture covers row ``t // width`` and column ``t % width``. Noise comes in three forms, told
    apart by its number of dimensions: a picture [B, C, H, W], a video (see ``channel_dim``), and a sequence of tokens
    [B, N + M, D] in which M reference tokens may stand before and behind those of the grid.

    Attributes:
        height: rows of tokens.
        width: columns of tokens.
        patch_size: latent pixels per token side.
        num_frames: frames of tokens (1 for a picture).
        patch_frames: latent frames per token.
        channel_dim: where a video keeps its channels: 1 in [B, C, F, H, W], 2 in [B, F, C, H, W], 4 in
            [B, F, H, W, C].
        num_before: reference tokens in front of the grid, of a sequence of tokens.
        has_items: latents are [B, items, C, F, H, W], of which the last item is sampled and the others are given.
    """

    height: int
    width: int
    patch_size: int
    num_frames: int = 1
    patch_frames: int = 1
    channel_dim: int = 1
    num_before: int = 0
    has_items: bool = False

    @property
    def num_tokens(self) -> int:
        """Image tokens N, those of all frames of a video."""
        return self.num_frames * self.height * self.width

    @property
    def tokens_per_frame(self) -> int:
        """Image tokens of a picture, or of one token frame of a video."""
        return self.height * self.width

    @property
    def pixels_per_token(self) -> int:
        """Latent pixels that one token covers."""
        return self.patch_frames * self.patch_size**2

    @classmethod
    def of_latents(cls, latents: torch.Tensor, patch_size: int) -> TokenGrid:
        """The grid of a picture's latents [B, C, H, W]; a remainder that fills no patch is cut off."""
        return cls(latents.shape[-2] // patch_size, latents.shape[-1] // patch_size, patch_size)

    @classmethod
    def of_video(cls, latents: torch.Tensor, patch_size: int, patch_frames: int = 1, channel_dim: int = 1) -> TokenGrid:
        """The grid of a video's latents, five-dimensional with the channels at ``channel_dim``."""
        frames = latents.shape[3 - channel_dim]
        height, width = latents.shape[-2:]
        return cls(
            height // patch_size, width // patch_size, patch_size, frames // patch_frames, patch_frames, channel_dim
        )

    def count_references(self, latents: object) -> int:
        """Tokens of a transformer's latents beside those of the grid."""
        if not isinstance(latents, torch.Tensor) or latents.ndim not in (3, 6):
            return 0
        return (latents.shape[1] - 1) * self.num_tokens if self.has_items else latents.shape[1] - self.num_tokens

    def samples_references(self, sample: torch.Tensor, num_extra: int) -> bool:
        """Whether latents that are sampled hold what counts as reference tokens as well: their noise is nobody's to
        leave out then. (Tokens in front of the grid are conditions, whose noise the pipeline throws away.)"""
        is_sequence = sample.ndim == 3 and not self.has_items and self.num_before == 0
        return num_extra > 0 and is_sequence and sample.shape[1] == self.num_tokens + num_extra

    def count_given(self, noise: torch.Tensor) -> int:
        """Tokens of given frames at the beginning of a video, which its noise leaves out."""
        if noise.ndim != 5:
            return 0
        num_frames = noise.movedim(self.channel_dim, 1).shape[2] // self.patch_frames
        return max(0, self.num_frames - num_frames) * self.tokens_per_frame

    def patchify(self, noise: torch.Tensor) -> torch.Tensor:
        """Noise in any of its forms to tokens [B, N, C * pixels]; inside a token the channel varies slowest.

        Frames that are missing at the beginning of a video are given (image to video): their tokens are zero.
        """
        if noise.ndim == 6 and noise.shape[-1] == self.patch_size and not self.has_items:
            noise = noise.flatten(2)  # rows of patches [B, N + M, C, f, p, p]
        if noise.ndim == 6:  # items [B, items, C, F, H, W], of which the last one is sampled
            noise = noise[:, -1]
        if noise.ndim == 3:
            first = self.num_before if noise.shape[1] > self.num_tokens else 0
            return noise[:, first : first + self.num_tokens]
        if noise.ndim == 4:
            noise = noise.unsqueeze(2)
        else:
            noise = noise.movedim(self.channel_dim, 1)
        batch, channels = noise.shape[:2]
        f, p = self.patch_frames, self.patch_size
        num_given = self.num_frames * f - noise.shape[2]
        if num_given > 0:
            noise = torch.nn.functional.pad(noise, (0, 0, 0, 0, num_given, 0))
        words = _words(noise, p)
        patches = words.reshape(batch, channels, self.num_frames, f, self.height, p, self.width, -1)
        tokens = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, self.num_tokens, -1)
        return _numbers(tokens, noise.dtype)

    def unpatchify(self, tokens: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Tokens [B, N, D] back to noise: the inverse of `patchify`.

        Args:
            tokens: one row per token of the grid.
            shape: shape of the noise; None is a picture's. Reference tokens of a sequence come back as zeros.
        """
        batch, _, depth = tokens.shape
        if shape is not None and len(shape) == 6 and shape[-1] == self.patch_size and not self.has_items:
            return self.unpatchify(tokens, (*shape[:2], depth)).reshape(shape)
        if shape is not None and len(shape) == 3:
            num_behind = shape[1] - self.num_tokens - self.num_before
            is_all = num_behind == 0 and self.num_before == 0
            return tokens if is_all else torch.nn.functional.pad(tokens, (0, 0, self.num_before, num_behind))
        f, p = self.patch_frames, self.patch_size
        channels = depth // self.pixels_per_token
        patches = _words(tokens, p).reshape(batch, self.num_frames, self.height, self.width, channels, f, p, -1)
        video = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)
        video = _numbers(video.reshape(batch, channels, self.num_frames * f, self.height * p, -1), tokens.dtype)
        if shape is None or len(shape) == 4:
            return video.squeeze(2)
        if len(shape) == 6:
            return torch.cat([video.new_zeros(shape[0], shape[1] - 1, *shape[2:]), video[:, None]], dim=1)
        return video.movedim(1, self.channel_dim)

    def as_image(self, per_token: torch.Tensor) -> torch.Tensor:
        """Values per token [..., N] as a picture [..., height, width]; a video as [..., frames, height, width]."""
        frames = (self.num_frames,) if self.num_frames > 1 else ()
        return per_token.reshape(*per_token.shape[:-1], *frames, self.height, self.width)


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _words(values: torch.Tensor, count: int) -> torch.Tensor:
    """Values with so many neighbours in the last dimension seen as one number, where memory allows it: to cut noise up
    then moves fewer, larger ones."""
    word = _WORDS.get(count * values.element_size())
    is_apart = values.stride(-1) != 1 or values.storage_offset() % count or any(s % count for s in values.stride()[:-1])
    if count == 1 or word is None or is_apart or values.requires_grad or torch.compiler.is_compiling():
        return values
    return values.view(word)


def _numbers(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values that `_words` were made of."""
    if words.dtype == dtype:
        return words
    is_apart = words.stride(-1) != 1  # of a dimension of size 1 the stride may be anything
    return (words.clone(memory_format=torch.contiguous_format) if is_apart else words).view(dtype)
