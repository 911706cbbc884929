"""Stage 3b: train the decoder a little longer on the frozen encoder's latents, which stay valid for the transformer."""

from __future__ import annotations

import argparse
import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from recipes.embedded_model.checkpoint import (
    Ranks,
    Stopwatch,
    interruptible,
    mixed_precision,
    update_average,
    write_json,
)
from recipes.embedded_model.scenes import DEFAULT_FONT
from recipes.embedded_model.vae import RenderedPictures, endless, measure_vae

SEED = 15


@dataclass(frozen=True)
class RefineSettings:
    """Options of the refinement.

    Args:
        minutes: training time; an interrupted refinement starts again.
        batch: pictures per step and process.
        learning_rate: peak of AdamW's learning rate.
        latent_noise: std of the noise added to latents, over their own std.
        average_decay: EMA decay per step.
    """

    minutes: float = 5.0
    batch: int = 1
    learning_rate: float = 8e-4
    latent_noise: float = 0.04
    average_decay: float = 0.995


def decoder_loss(vae: AutoencoderKL, pictures: Tensor, latent_noise: float) -> Tensor:
    """Return L1 on pixels and on differences, and the squared error, of pictures [B, 3, H, W] decoded again."""
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean.float()
        latents = latents + latent_noise * latents.std() * torch.randn_like(latents)
    error = vae.decode(latents).sample.float() - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges + 3 * error.square().mean()


def refine_decoder(out: Path, settings: RefineSettings, device: str = "cpu", font: Path = DEFAULT_FONT) -> None:
    """Refine the decoder in `out/vae` in place and write its new PSNR to `out/vae_result.json`."""
    ranks = Ranks.join()
    record = json.loads((out / "vae_result.json").read_text())
    if "refined_minutes" in record:
        return
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last)
    vae.encoder.requires_grad_(False)
    average = copy.deepcopy(vae.decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01)
    torch.manual_seed(SEED + ranks.rank)
    data = RenderedPictures(vae.config.sample_size, SEED + 100 * ranks.rank, 1_000_000, font)
    batches = endless(DataLoader(data, settings.batch, num_workers=1, prefetch_factor=8))
    watch, step = Stopwatch(), 0
    bar = tqdm(total=1.0, desc="decoder", unit="run", disable=not ranks.is_first, mininterval=5)
    with interruptible() as interruption, bar:
        while (done := ranks.agree(watch.tick() / (60 * settings.minutes) + 10 * interruption.is_requested)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min((step + 1) / 50, 1.0) * math.cos(math.pi / 2 * done) ** 2
            pictures = next(batches).to(device, memory_format=torch.channels_last)
            with mixed_precision(device):
                loss = decoder_loss(vae, pictures, settings.latent_noise)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            ranks.average_gradients(vae.decoder)
            torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
            optimizer.step()
            update_average(average, vae.decoder, min(settings.average_decay, (step + 1) / (step + 10)))
            step += 1
            bar.n = round(done, 4)
            bar.set_postfix(step=step, loss=f"{loss.item():.4f}", refresh=False)
    if done >= 10:
        raise KeyboardInterrupt
    if ranks.is_first:
        vae.decoder.load_state_dict(average.state_dict())
        measured = measure_vae(vae, device, font)
        vae.save_pretrained(out / "vae")
        write_json(record | {"psnr": measured.psnr, "refined_minutes": watch.elapsed / 60}, out / "vae_result.json")
        tqdm.write(f"decoder: held-out PSNR {record['psnr']:.2f} dB before, {measured.psnr:.2f} dB after")
    ranks.wait()


def main(command_line: list[str] | None = None) -> None:
    """Refine from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=RefineSettings.minutes)
    a = parser.parse_args(command_line)
    refine_decoder(a.out, RefineSettings(minutes=a.minutes), a.device, a.font)


if __name__ == "__main__":
    main()
