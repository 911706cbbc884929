"""How near pictures are to others, how well they follow their prompts, and how sure one can be of either."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ras_dit.arena.distances import MIN_KERNEL_PICTURES, Distance, frechet_to, kernel_to
from ras_dit.quality import psnr, ssim

MAX_PSNR = 60.0
"""Pictures are compared as 8-bit files: what lies above is equal."""
RESAMPLES = 1000
MIN_FRECHET_PICTURES = 100
"""Of a Frechet distance: with fewer, sampling alone makes it several times as large as what it measures."""


def fidelity(pictures: torch.Tensor, others: torch.Tensor) -> dict[str, list[float]]:
    """PSNR (at most `MAX_PSNR`) and SSIM of every picture, uint8 [N, 3, H, W] each."""
    pairs = list(zip(pictures, others, strict=True))
    return {
        "psnr": [min(psnr(a, b), MAX_PSNR) for a, b in pairs],
        "ssim": [ssim(a, b) for a, b in pairs],
    }


def apart(features: torch.Tensor, others: torch.Tensor) -> list[float]:
    """How far each picture is from the other of its scene in a network's features, [N, D] each.

    The Euclidean distance over the mean norm of the others' features: 0 for equal pictures. With the classifier of
    the embedded model it is a perceptual distance like LPIPS, in the one network at hand that knows these pictures.
    """
    scale = others.double().norm(dim=1).mean().clamp_min(1e-12)
    return ((features.double() - others.double()).norm(dim=1) / scale).tolist()


class PromptJudge:
    """The embedded model's classifier: does a picture show what its prompt says, and how far from renders are all."""

    def __init__(self) -> None:
        from safetensors.torch import load_file

        from ras_dit.embedded.classifier import RENDERS, load_classifier

        self.classifier = load_classifier()
        self.renders = load_file(RENDERS)["features"].double() if RENDERS.is_file() else None

    @torch.no_grad()
    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features [N, 352] of pictures uint8 [N, 3, H, W]."""
        return torch.cat([self.classifier.features(self._input(part)) for part in pictures.split(64)])

    @torch.no_grad()
    def follows(
        self, pictures: torch.Tensor, subjects: Sequence[int], backgrounds: Sequence[int]
    ) -> dict[str, list[float]]:
        """Does each picture show what was asked for.

        Returns:
            ``subject`` and ``background``: 1.0 where the likeliest is the one asked for, else 0.0; ``certainty``: the
            log-likelihood of both in nats, at most 0, which tells pictures apart that are all recognised.
        """
        logits = [self.classifier(self._input(part)) for part in pictures.split(64)]
        values: dict[str, list[float]] = {}
        certainty = torch.zeros(len(pictures))
        for name, asked in (("subject", torch.tensor(subjects)), ("background", torch.tensor(backgrounds))):
            scores = torch.cat([getattr(part, name) for part in logits])
            values[name] = (scores.argmax(1) == asked).float().tolist()
            certainty += scores.log_softmax(1).gather(1, asked[:, None])[:, 0]
        return {**values, "certainty": certainty.tolist()}

    def distances(self, features: torch.Tensor) -> dict[str, Distance]:
        """Distances of features [N, 352] to held-out renders: ``kernel`` from 4, ``frechet`` from 100 pictures on."""
        if self.renders is None or len(features) < MIN_KERNEL_PICTURES:
            return {}
        found: dict[str, Distance] = {"kernel": kernel_to(features, self.renders)}
        if len(features) >= MIN_FRECHET_PICTURES:
            found["frechet"] = frechet_to(features, self.renders)
        return found

    @staticmethod
    def _input(pictures: torch.Tensor) -> torch.Tensor:
        """As the classifier saw pictures in its training: half the side, 8 bits, -1..1."""
        from ras_dit.embedded.classifier import halve

        return halve(pictures.float().div(127.5).sub(1)).float().div(127.5).sub(1)


def mean_interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Mean and its 95 % bootstrap interval (percentiles)."""
    means = _resampled(values, resamples).mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(torch.tensor(values, dtype=torch.float64).mean()), low, high


def quantile_interval(values: Sequence[float], share: float, resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """The value that this share of all lies below, and its 95 % bootstrap interval (percentiles)."""
    quantiles = torch.quantile(_resampled(values, resamples), share, dim=1)
    low, high = torch.quantile(quantiles, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), share)), low, high


def _resampled(values: Sequence[float], resamples: int) -> torch.Tensor:
    """Bootstrap samples [resamples, N] of N values, always the same."""
    data = torch.tensor(values, dtype=torch.float64)
    return data[torch.randint(len(data), (resamples, len(data)), generator=torch.Generator().manual_seed(0))]


def better_by(
    values: Sequence[float], others: Sequence[float], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Mean difference of paired values and its 95 % bootstrap interval; above 0 all of it: better for sure."""
    return mean_interval([a - b for a, b in zip(values, others, strict=True)], resamples)
