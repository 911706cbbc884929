"""What region steps lose, and to what: ``python -m benchmarks.losses`` writes
``benchmarks/results/losses_embedded.json``.

A region step errs twice: computed tokens attend to keys and values of earlier steps, and the other tokens get a
forecast. Here a copy of the transformer computes everything beside every region step, and one of the two errors (or
both) is mended with what it says. What is then still missing, is what the other one costs. Nothing is saved by that.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import ras_dit
from benchmarks import record
from ras_dit.arena.metrics import MAX_PSNR, better_by, mean_interval
from ras_dit.arena.ours import GOALS, SKIPPING
from ras_dit.arena.rivals import NUM_STEPS
from ras_dit.config import RASConfig
from ras_dit.embedded import GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, embedded_scenes
from ras_dit.presets import listed
from ras_dit.quality import psnr
from ras_dit.selection import membership

CALL = {"guidance_scale": GUIDANCE_SCALE, "max_sequence_length": MAX_SEQUENCE_LENGTH, "output_type": "np"}
BATCH, SEED = 8, 1000
MENDED = ("", "keys and values", "the other tokens", "both")
"""What is mended in the region steps: the keys and values that computed tokens attend to, the noise of the others."""


class Beside:
    """A transformer's copy that computes everything, beside the transformer.

    Args:
        pipe: RAS not enabled on it yet.
        mended: of `MENDED`; what its noise replaces.
    """

    def __init__(self, pipe: Any, mended: str) -> None:
        self._transformer = pipe.transformer
        self._copy = copy.deepcopy(pipe.transformer)
        self._mended = mended
        self._true: torch.Tensor | None = None
        self._handle: ras_dit.Handle | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @contextmanager
    def running(self, pipe: Any, config: RASConfig) -> Iterator[ras_dit.Handle]:
        """RAS with its region steps mended."""
        if self._mended:
            self._hooks = [
                self._transformer.register_forward_pre_hook(self._compute, with_kwargs=True),
                self._transformer.register_forward_hook(self._mend_computed),
            ]
        try:
            with ras_dit.accelerate(pipe, config) as self._handle:
                self._hooks.append(self._transformer.register_forward_hook(self._mend_others))
                yield self._handle
        finally:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def _compute(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._true = self._copy(*args, **kwargs)[0]

    def _active(self) -> torch.Tensor | None:
        """Tokens that the step under way computes [images, K]; None where it is no region step."""
        assert self._handle is not None
        step = self._handle.trace.steps[-1]
        return step.active if step.kind == "region" else None

    def _mend_computed(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """In front of RAS's own hook: computed tokens as if all keys and values were fresh."""
        return (self._true,) if self._mended in ("keys and values", "both") and self._active() is not None else None

    def _mend_others(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Behind it: the noise of the other tokens."""
        active = self._active()
        if active is None or self._mended not in ("the other tokens", "both"):
            return None
        assert self._handle is not None
        assert self._true is not None
        grid = self._handle.trace.grid
        assert grid is not None
        tokens, true = grid.patchify(output[0]), grid.patchify(self._true)
        is_active = membership(active, grid.num_tokens).repeat(len(tokens) // len(active), 1)
        mended = torch.where(is_active[..., None], tokens, true)
        return (grid.unpatchify(mended, tuple(output[0].shape)),)


def painted(pipe: Any, num_pictures: int) -> np.ndarray:
    """Pictures [B, H, W, 3] of eight bits."""
    scenes = embedded_scenes(num_pictures)
    found = []
    for start in range(0, num_pictures, BATCH):
        part = scenes[start : start + BATCH]
        generators = [torch.Generator().manual_seed(SEED + start + index) for index in range(len(part))]
        call = {**CALL, "prompt": [scene.prompt for scene in part], "generator": generators}
        found.append(pipe(**call, num_inference_steps=NUM_STEPS).images)
    return np.round(255 * np.concatenate(found)).astype(np.uint8)


def plans() -> dict[str, RASConfig]:
    """Plans with regions, of first order as the dense run is."""
    regions = RASConfig.preset("regions")
    return {
        "regions in every step, T 11.5, order 1": GOALS[11.5].replace(solver_order=1),
        "preset regions": regions,
        "regions, no K/V forecast": regions.replace(kv_forecast=0.0),
        "preset regions_fast": RASConfig.preset("regions_fast"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=16, help="of the measurement, one prompt each")
    a = parser.parse_args()
    pipe = ras_dit.load_embedded()
    pipe.set_progress_bar_config(disable=True)
    skipping = GOALS[11.5].replace(step_ratios=listed(SKIPPING[11.5]), kv_forecast=0.0, solver_order=1)
    runs = [("skipping only, T 11, order 1", "", skipping)]
    runs += [(name, mended, config) for name, config in plans().items() for mended in MENDED]
    dense = painted(pipe, a.pictures)
    rows: list[dict[str, Any]] = []
    plain: list[float] = []
    for name, mended, config in tqdm(runs, desc="losses", unit="run"):
        with Beside(pipe, mended).running(pipe, config) as handle:
            pictures = painted(pipe, a.pictures)
            token_steps = handle.trace.token_steps
        values = [min(psnr(ours, theirs), MAX_PSNR) for ours, theirs in zip(pictures, dense, strict=True)]
        plain = values if not mended else plain
        row = {"name": name, "mended": mended, "token_steps": token_steps, "psnr": mean_interval(values)}
        rows.append({**row, "gained": better_by(values, plain)})
    result = {"num_pictures": a.pictures, "rows": rows}
    print("wrote", record.write("losses_embedded", {**record.environment(), **result}).name)


if __name__ == "__main__":
    main()
