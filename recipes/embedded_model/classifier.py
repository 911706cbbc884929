"""Stage 5: train the classifier that measures the samples: `python -m recipes.embedded_model.classifier --out RUN`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ras_dit.embedded.classifier import WEIGHTS, SceneClassifier, halve, load_classifier
from recipes.embedded_model.checkpoint import mixed_precision, write_json
from recipes.embedded_model.scenes import BACKGROUNDS, DEFAULT_FONT, SUBJECTS, Renderer
from recipes.embedded_model.vae import to_unit

TRAIN_SEED, HELD_OUT_SEED = 31, 32


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures uint8 [N, 3, S, S] at half size, and their labels, long [N] each."""

    pictures: Tensor
    subjects: Tensor
    backgrounds: Tensor

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True)
class Accuracy:
    """Share of pictures whose subject and background are recognised."""

    subject: float
    background: float


@torch.no_grad()
def render_labelled(
    renderer: Renderer, seed: int, start: int, count: int, vae: AutoencoderKL | None = None
) -> LabelledPictures:
    """Render `count` labelled pictures, through the autoencoder and back if one is given."""
    pictures, labels = [], []
    for begin in tqdm(range(start, start + count, 64), desc="render", leave=False):
        rendered = [renderer.render(seed, index) for index in range(begin, min(begin + 64, start + count))]
        batch = to_unit(np.stack([picture for picture, _ in rendered]))
        if vae is not None:
            with mixed_precision("cpu"):
                batch = vae.decode(vae.encode(batch).latent_dist.mean).sample.float()
        pictures.append(halve(batch))
        labels += [(scene.subject, scene.background) for _, scene in rendered]
    subjects, backgrounds = torch.tensor(labels).unbind(1)
    return LabelledPictures(torch.cat(pictures), subjects, backgrounds)


def degrade(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil pictures [B, 3, S, S] in -1..1 as an imperfect sampler would: blur, noise, contrast, shifts."""
    batch = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, 1, 1, 1, generator=generator) * (high - low) + low

    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    weight = uniform(-0.5, 1).clamp_min(0)
    pictures = pictures * (1 - weight) + blurred * weight
    coarse = torch.randn(batch, 3, pictures.shape[2] // 8, pictures.shape[3] // 8, generator=generator)
    smear = F.interpolate(coarse, size=pictures.shape[2:], mode="bilinear") * uniform(0, 0.12)
    grain = torch.randn(pictures.shape, generator=generator) * uniform(0, 0.08)
    pictures = pictures * uniform(0.85, 1.1) + uniform(-0.08, 0.08) + smear + grain
    shift = [int(value) for value in torch.randint(-3, 4, (2,), generator=generator)]
    padded = F.pad(pictures, (3, 3, 3, 3), mode="replicate")
    size = pictures.shape[-1]
    return padded[..., 3 + shift[0] : 3 + shift[0] + size, 3 + shift[1] : 3 + shift[1] + size]


@torch.no_grad()
def measure(model: SceneClassifier, data: LabelledPictures) -> Accuracy:
    """Return the accuracy of `model` on `data`."""
    subject, background = 0, 0
    for index in torch.arange(len(data)).split(256):
        logits = model(data.pictures[index].float().div(127.5).sub(1))
        subject += int((logits.subject.argmax(1) == data.subjects[index]).sum())
        background += int((logits.background.argmax(1) == data.backgrounds[index]).sum())
    return Accuracy(subject / len(data), background / len(data))


def train_classifier(data: LabelledPictures, steps: int, batch: int = 64, seed: int = 0) -> SceneClassifier:
    """Train a classifier on degraded pictures of `data` with a one-cycle learning rate."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SceneClassifier(len(SUBJECTS), len(BACKGROUNDS)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in (bar := tqdm(range(steps), desc="classifier", mininterval=5)):
        chosen = torch.randint(len(data), (batch,), generator=generator)
        pictures = degrade(data.pictures[chosen].float().div(127.5).sub(1), generator)
        with mixed_precision("cpu"):
            logits = model(pictures.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.subject.float(), data.subjects[chosen], label_smoothing=0.05)
        loss = loss + 0.3 * F.cross_entropy(logits.background.float(), data.backgrounds[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.eval()


def main(command_line: list[str] | None = None) -> None:
    """Train, measure on held-out renders, and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; its vae/ is used")
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--pictures", type=int, default=24000)
    parser.add_argument("--decoded", type=int, default=2048, help="training pictures that pass through the VAE")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--measure", action="store_true", help="train nothing: measure the weights that are there")
    arguments = parser.parse_args(command_line)
    renderer = Renderer(128, arguments.font)
    vae = AutoencoderKL.from_pretrained(arguments.out / "vae").to(memory_format=torch.channels_last).eval()
    if arguments.measure:
        model = load_classifier(arguments.weights)
    else:
        clean = render_labelled(renderer, TRAIN_SEED, 0, arguments.pictures)
        decoded = render_labelled(renderer, TRAIN_SEED, arguments.pictures, arguments.decoded, vae)
        model = train_classifier(join(clean, decoded), arguments.steps)
    held_out = measure(model, render_labelled(renderer, HELD_OUT_SEED, 0, 4000))
    through_vae = measure(model, render_labelled(renderer, HELD_OUT_SEED, 4000, 512, vae))
    if not arguments.measure:
        arguments.weights.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, arguments.weights)
        arguments.weights.chmod(0o644)
    result: dict[str, float] = {
        "held_out_pictures": 4000,
        "held_out_subject_accuracy": held_out.subject,
        "held_out_background_accuracy": held_out.background,
        "decoded_pictures": 512,
        "decoded_subject_accuracy": through_vae.subject,
        "decoded_background_accuracy": through_vae.background,
    }
    if not arguments.measure:
        result |= {"training_pictures": arguments.pictures + arguments.decoded, "steps": arguments.steps}
    write_json(result, arguments.out / "classifier_result.json")
    print(result)


def join(*parts: LabelledPictures) -> LabelledPictures:
    """Put labelled sets together."""
    return LabelledPictures(
        torch.cat([part.pictures for part in parts]),
        torch.cat([part.subjects for part in parts]),
        torch.cat([part.backgrounds for part in parts]),
    )


if __name__ == "__main__":
    main()
