"""The mask of an inpainting call, picked up as the pipeline prepares it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ras_dit.geometry import TokenGrid
from ras_dit.region import RegionOfInterest, tokens_touched
from ras_dit.seams import PatchedMethod


class InpaintMask:
    """Sees the masks that a pipeline prepares.

    Args:
        pipe: with or without a ``prepare_mask_latents``.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._mask: torch.Tensor | None = None  # of the call under way
        self._is_fresh = False  # seen since a run was last due
        self._of_run: torch.Tensor | None = None
        has_method = hasattr(pipe, "prepare_mask_latents")
        self._patch = PatchedMethod(pipe, "prepare_mask_latents", self._observed) if has_method else None
        self._comes_first = has_method and _comes_first(type(pipe))

    def expect_run(self) -> None:
        """A run is due. A mask that was seen before is of a call that failed, but where the pipeline prepares it in
        front of the timesteps (FLUX.1 Control)."""
        if self._patch is not None:  # somebody may have taken the wrapper out
            self._patch.ensure()
        if not (self._is_fresh and self._comes_first):
            self._mask = None
        self._is_fresh = False

    def release(self) -> None:
        """The pipeline is as it was."""
        if self._patch is not None:
            self._patch.release()
        self._pipe = None

    def begin_run(self) -> None:
        """The run of the call under way begins. A mask serves one call: the next one may come without."""
        self._of_run, self._mask = self._mask, None

    def take(self, grid: TokenGrid, note: Callable[[str], None]) -> torch.Tensor | None:
        """Tokens that the mask of the run touches, bool [images, N]; None without a mask.

        Args:
            grid: the call's token grid.
            note: called if there is none.

        Raises:
            ValueError: the mask has other proportions than the grid.
        """
        mask, self._of_run = self._of_run, None
        if mask is None:
            note(
                "region_of_interest='inpaint': no inpainting mask was seen in this call (the pipeline has no "
                "prepare_mask_latents, did not call it, or takes no mask there): all tokens were candidates."
            )
            return None
        mask = mask.detach().float().cpu()
        if mask.ndim == 5:  # a video's [images, channels, frames, height, width]: the latent frames are fewer
            mask = mask.amax(dim=(1, 2))
        touched = tokens_touched(mask.reshape(-1, *mask.shape[-2:]) > 0.5, grid)
        if not touched.any(dim=1).all():
            note("region_of_interest='inpaint': a mask of this call is empty: all tokens were candidates.")
            return None
        return touched

    def _observed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prepare_mask_latents(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            mask = given.get("mask")
            processor = getattr(self._pipe, "mask_processor", None)
            if "mask_image" in given and processor is not None:  # as the user gave it (FLUX.1 Control)
                mask = processor.preprocess(given["mask_image"], given.get("height"), given.get("width"))
            result = original(*args, **kwargs)
            self._mask = mask if isinstance(mask, torch.Tensor) else None
            self._is_fresh = True
            return result

        return prepare_mask_latents


def _comes_first(kind: type) -> bool:
    """Whether a pipeline prepares its mask in front of the timesteps, by its code; False where that cannot be read."""
    for each in kind.__mro__:  # a subclass may hand its call on
        try:
            code = inspect.getsource(vars(each)["__call__"])
        except (KeyError, OSError, TypeError):
            continue
        mask, timesteps = code.find("prepare_mask_latents("), code.find("retrieve_timesteps(")
        if mask >= 0:
            return mask < timesteps
    return False


def allowed_tokens(
    region: RegionOfInterest | str | None,
    inpaint: InpaintMask | None,
    grid: TokenGrid,
    given: torch.Tensor | None,
    has_own_sets: bool,
    note: Callable[[str], None],
) -> torch.Tensor | None:
    """Tokens inside a region of interest that are not given, bool [1 or images, N]; None for all.

    Args:
        region: of the config.
        inpaint: sees the mask, if that is the region.
        grid: of the run.
        given: tokens that are not sampled, bool [1, N]; None without any.
        has_own_sets: every image has a set of its own; otherwise what is inside for one is inside for all.
        note: called if there is no mask to be had.

    Raises:
        ValueError: the region has other proportions than the grid.
    """
    allowed = region.tokens(grid) if isinstance(region, RegionOfInterest) else None
    if inpaint is not None:
        allowed = inpaint.take(grid, note)
    if given is not None:
        allowed = ~given if allowed is None else allowed.to(given.device) & ~given
    return allowed if allowed is None or has_own_sets else allowed.any(dim=0, keepdim=True)
