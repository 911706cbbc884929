"""A small classifier of the embedded model's scenes: which subject, which background.

It measures how well samples follow their prompts, and its features serve a Frechet distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ras_dit.embedded import embedded_backgrounds, embedded_subjects

INPUT_SIZE = 64  # pixels per side; larger pictures are reduced to it
WEIGHTS = Path(__file__).parent / "classifier" / "classifier.safetensors"
RENDERS = WEIGHTS.with_name("renders.safetensors")
"""Features [1000, 352] of held-out renders (recipes/embedded_model/evaluate.py writes them)."""


@dataclass(frozen=True)
class SceneLogits:
    """Logits of both heads: subject [B, num_subjects] and background [B, num_backgrounds]."""

    subject: Tensor
    background: Tensor


class SceneClassifier(nn.Module):
    """Five strided convolutions, mean and maximum pooling, two linear heads.

    Args:
        num_subjects: size of the subject head.
        num_backgrounds: size of the background head.
        channels: channels of the five levels.
    """

    def __init__(
        self, num_subjects: int, num_backgrounds: int, channels: tuple[int, ...] = (32, 64, 96, 128, 176)
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            if after >= 96:
                layers += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.subject_head = nn.Linear(2 * channels[-1], num_subjects)
        self.background_head = nn.Linear(2 * channels[-1], num_backgrounds)

    def features(self, pictures: Tensor) -> Tensor:
        """Return features [B, 352] of pictures [B, 3, H, W] in -1..1."""
        if pictures.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            pictures = F.interpolate(pictures, (INPUT_SIZE, INPUT_SIZE), mode="area")
        maps = self.trunk(pictures)  # [B, 176, 2, 2]
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)

    def forward(self, pictures: Tensor) -> SceneLogits:
        """Classify pictures [B, 3, H, W] in -1..1."""
        features = self.features(pictures)
        return SceneLogits(self.subject_head(features), self.background_head(features))


def load_classifier(weights: Path = WEIGHTS) -> SceneClassifier:
    """Load the classifier that ships with the package, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: the weights are not there.
    """
    from safetensors.torch import load_file

    if not weights.is_file():
        raise FileNotFoundError(
            f"No classifier at {weights}. Train it with `python -m recipes.embedded_model.classifier --out RUN`."
        )
    model = SceneClassifier(len(embedded_subjects()), len(embedded_backgrounds()))
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()})
    return model.eval()


def halve(pictures: Tensor) -> Tensor:
    """Reduce pictures [N, 3, S, S] in -1..1 to half the side, as uint8: what the classifier was trained on."""
    small = F.avg_pool2d(pictures, 2)
    return small.add(1).mul(127.5).round().clamp(0, 255).byte()
