"""Stage 2: render scenes and encode them once; captions are worded anew at every use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.embedded_model.checkpoint import Ranks, mixed_precision, save_atomically
from recipes.embedded_model.scenes import DEFAULT_FONT, Renderer
from recipes.embedded_model.train import EncodedScenes
from recipes.embedded_model.vae import to_unit

SCENES_SEED = 21
SHARD = 1024  # scenes per file


class RenderedScenes(Dataset[tuple[Tensor, np.ndarray]]):
    """Pictures as float32 [3, H, W] in -1..1 with their attributes, int16 [5]."""

    def __init__(self, size: int, start: int, stop: int, font: Path) -> None:
        self.size, self.start, self.stop, self.font = size, start, stop, font
        self._renderer: Renderer | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[Tensor, np.ndarray]:
        self._renderer = self._renderer or Renderer(self.size, self.font)
        picture, scene = self._renderer.render(SCENES_SEED, self.start + index)
        return to_unit(picture), scene.as_array()


@torch.no_grad()
def encode_shard(vae: AutoencoderKL, data: RenderedScenes, device: str, workers: int = 0) -> dict[str, Tensor]:
    """Encode the scenes of one shard: scaled latents, float16 [N, C, H, W], and attributes, int16 [N, 5]."""
    latents, attributes = [], []
    for pictures, rows in DataLoader(data, batch_size=32, num_workers=workers):
        pictures = pictures.to(device, memory_format=torch.channels_last)
        with mixed_precision(device):
            mean = vae.encode(pictures).latent_dist.mean.float()
        scaled = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        latents.append(scaled.half().cpu())
        attributes.append(rows)
    return {"latents": torch.cat(latents).contiguous(), "attributes": torch.cat(attributes)}


def encode_scenes(
    out: Path, size: int, num_scenes: int, device: str = "cpu", font: Path = DEFAULT_FONT, workers: int = 0
) -> EncodedScenes:
    """Encode the training set, one file per shard so that an interrupted run goes on, and load it."""
    ranks = Ranks.join()
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last).eval()
    starts = range(0, num_scenes, SHARD)
    files = [out / "latents" / f"{start:08d}_{min(start + SHARD, num_scenes):08d}.pt" for start in starts]
    mine = list(zip(starts, files, strict=True))[ranks.rank :: ranks.count]
    for start, file in tqdm(mine, desc="encode", unit="shard", disable=not ranks.is_first):
        if not file.is_file():
            data = RenderedScenes(size, start, min(start + SHARD, num_scenes), font)
            save_atomically(encode_shard(vae, data, device, workers), file)
    ranks.wait()
    shards = [torch.load(file, weights_only=True) for file in files]
    attributes = torch.cat([shard["attributes"] for shard in shards]).numpy()
    return EncodedScenes(torch.cat([shard["latents"] for shard in shards]), attributes)
