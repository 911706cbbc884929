"""Stage 1: a small AutoencoderKL, four times smaller per side, trained on fresh renders."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from recipes.embedded_model.checkpoint import (
    Ranks,
    Stopwatch,
    interruptible,
    mixed_precision,
    save_atomically,
    update_average,
    write_json,
)
from recipes.embedded_model.scenes import DEFAULT_FONT, Renderer

TRAIN_SEED, HELD_OUT_SEED = 11, 12


@dataclass(frozen=True)
class VAESettings:
    """Options of the autoencoder stage.

    Args:
        size: pixels per side of the pictures.
        minutes: training time.
        batch: pictures per step and process.
        learning_rate: peak of AdamW's learning rate.
        kl_weight: weight of the KL term per latent element, beside an L1 term per pixel.
        latent_noise: std of the noise added to latents in training, so that the decoder forgives small errors.
        edge_weight: weight of the L1 term on horizontal and vertical differences.
        colour_weight: weight of the L1 term on colours averaged over 4 x 4 pixels, and of the squared error.
        latent_channels: channels of the latents.
        anchor_scale: scale of the first three latent channels, which are held to the colours averaged over 4 x 4
            pixels; without that anchor rare hues are lost in a short training.
        anchor_weight: weight of the squared distance from the anchor.
        channels: channels of the three levels.
    """

    size: int = 128
    minutes: float = 10.0
    batch: int = 2
    learning_rate: float = 1.5e-3
    kl_weight: float = 2e-4
    latent_noise: float = 0.05
    edge_weight: float = 0.5
    colour_weight: float = 3.0
    latent_channels: int = 8
    anchor_scale: float = 5.0
    anchor_weight: float = 0.1
    channels: tuple[int, int, int] = (32, 64, 64)
    average_decay: float = 0.995
    seed: int = 0


def build_vae(settings: VAESettings) -> AutoencoderKL:
    """Build the untrained autoencoder: [B, 3, H, W] to latents [B, latent_channels, H / 4, W / 4]."""
    levels = len(settings.channels)
    return AutoencoderKL(
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=settings.size,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


class RenderedPictures(Dataset[Tensor]):
    """Fresh renders as float32 [3, H, W] in -1..1; item i is picture i of set `seed`."""

    def __init__(self, size: int, seed: int, length: int, font: Path) -> None:
        self.size, self.seed, self.length, self.font = size, seed, length, font
        self._renderer: Renderer | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        self._renderer = self._renderer or Renderer(self.size, self.font)
        return to_unit(self._renderer.render(self.seed, index)[0])


def to_unit(picture: np.ndarray) -> Tensor:
    """Turn uint8 [..., H, W, 3] into float32 [..., 3, H, W] in -1..1."""
    return torch.from_numpy(picture).movedim(-1, -3).float().div(127.5).sub(1)


def endless(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """Go through a loader again and again."""
    while True:
        yield from loader


def vae_loss(vae: AutoencoderKL, pictures: Tensor, settings: VAESettings) -> tuple[Tensor, Tensor]:
    """Return the training loss and the reconstruction of `pictures` [B, 3, H, W]."""
    posterior = vae.encode(pictures).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise_std = (torch.exp(logvar) + settings.latent_noise**2 * mean.detach().var()).sqrt()
    latents = mean + noise_std * torch.randn_like(mean)
    decoded = vae.decode(latents).sample.float()
    error = decoded - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    colour = F.avg_pool2d(error, 4).abs().mean()
    loss = error.abs().mean() + settings.edge_weight * edges + settings.colour_weight * (colour + error.square().mean())
    anchor = (mean[:, :3] - settings.anchor_scale * F.avg_pool2d(pictures, 4)).square().mean()
    return loss + settings.kl_weight * kl + settings.anchor_weight * anchor, decoded


def train_vae(out: Path, settings: VAESettings, device: str = "cpu", font: Path = DEFAULT_FONT) -> Path:
    """Train (or resume) the autoencoder; returns the folder of the finished one."""
    folder, checkpoint = out / "vae", out / "vae.pt"
    if (folder / "config.json").is_file():
        return folder
    ranks = Ranks.join()
    torch.manual_seed(settings.seed)
    vae = build_vae(settings).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(vae).requires_grad_(False)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    step, history, watch = 0, [], Stopwatch()
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=False)
        vae.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, history, watch = state["step"], state["history"], Stopwatch(state["elapsed"])

    def save() -> None:
        state = {"model": vae.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        extra = {"step": step, "history": history, "elapsed": watch.elapsed}
        save_atomically(state | extra | {"settings": asdict(settings)}, checkpoint)

    torch.manual_seed(settings.seed + 1000 * step + ranks.rank)
    data = RenderedPictures(settings.size, TRAIN_SEED + 1000 * (step + 1) + ranks.rank, 1_000_000, font)
    batches = endless(DataLoader(data, settings.batch, num_workers=1, prefetch_factor=8))
    forward = torch.compile(vae_loss) if device != "cpu" else vae_loss
    bar = tqdm(total=1.0, desc="vae", unit="run", disable=not ranks.is_first, mininterval=5)
    with interruptible() as interruption, bar:
        saved_at = watch.elapsed
        while (done := ranks.agree(watch.tick() / (60 * settings.minutes) + 10 * interruption.is_requested)) < 1:
            rate = (
                settings.learning_rate * min((step + 1) / 100, 1.0) * (0.02 + 0.98 * math.cos(math.pi / 2 * done) ** 2)
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            pictures = next(batches).to(device, memory_format=torch.channels_last)
            with mixed_precision(device):
                loss, decoded = forward(vae, pictures, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            ranks.average_gradients(vae)
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimizer.step()
            update_average(average, vae, min(settings.average_decay, (step + 1) / (step + 10)))
            step += 1
            if step % 50 == 0:
                with torch.no_grad():
                    history.append({"step": step, "minutes": watch.elapsed / 60, "psnr": psnr(decoded, pictures)})
                bar.n = round(done, 4)
                bar.set_postfix(step=step, loss=f"{loss.item():.4f}", psnr=f"{history[-1]['psnr']:.1f}")
            if ranks.is_first and watch.elapsed - saved_at > 120:
                save()
                saved_at = watch.elapsed
        if ranks.is_first:
            save()
    if done >= 10:
        raise KeyboardInterrupt
    if ranks.is_first:
        finish_vae(average, folder, watch.elapsed / 60, device, font)
    ranks.wait()
    return folder


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1: 10 log10(4 / MSE), the mean over pictures."""
    mse = (first.float() - second.float()).square().flatten(1).mean(1)
    return float((10 * torch.log10(4 / mse.clamp_min(1e-10))).mean())


@dataclass(frozen=True)
class VAEMeasure:
    """Held-out PSNR in dB, and mean and std of the latents."""

    psnr: float
    latent_mean: float
    latent_std: float


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, device: str, font: Path, num_pictures: int = 256) -> VAEMeasure:
    """Measure the autoencoder on held-out renders."""
    data = RenderedPictures(vae.config.sample_size, HELD_OUT_SEED, num_pictures, font)
    pictures = torch.stack([data[i] for i in range(len(data))])
    latents, decoded = [], []
    for batch in pictures.split(32):
        with mixed_precision(device):
            latents.append(vae.encode(batch.to(device)).latent_dist.mean.float().cpu())
            decoded.append(vae.decode(latents[-1].to(device)).sample.float().cpu())
    joined = torch.cat(latents)
    return VAEMeasure(psnr(torch.cat(decoded), pictures), joined.mean().item(), joined.std().item())


def finish_vae(vae: AutoencoderKL, folder: Path, minutes: float, device: str, font: Path) -> None:
    """Save the autoencoder with the measured scale and shift of its latents, and its held-out PSNR beside it."""
    measured = measure_vae(vae, device, font)
    vae.register_to_config(
        scaling_factor=round(1 / measured.latent_std, 4), shift_factor=round(measured.latent_mean, 4)
    )
    vae.save_pretrained(folder)
    result = {"psnr": measured.psnr, "latent_std": measured.latent_std, "minutes": minutes}
    write_json(result, folder.parent / "vae_result.json")
    tqdm.write(f"vae: held-out PSNR {measured.psnr:.2f} dB, latent std {measured.latent_std:.3f}")
