"""Distances between sets of pictures in a network's features, and how sure one can be of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
FRECHET_RESAMPLES = 100  # they only give a mean and a standard error
KERNEL_RESAMPLES = 1000
MIN_KERNEL_PICTURES = 4


class Distance(ABC):
    """How far a set of pictures is from another, with its bootstrap.

    Attributes:
        value: as it is usually given.
        is_biased: the value is too large, by the more, the fewer pictures there are.
        has_interval: there are enough pictures for the interval to be believed. A difference's always is: both sides
            have the same bias.
    """

    value: float
    is_biased: bool
    has_interval: bool

    @abstractmethod
    def interval(self) -> tuple[float, float, float]:
        """Estimate and 95 % interval, free of bias to first order."""

    @abstractmethod
    def difference(self, other: Any) -> tuple[float, float, float]:
        """This less the other, of the same scenes painted by another method; estimate and 95 % interval.

        The same pictures are resampled in both.
        """


@dataclass(frozen=True)
class FrechetDistance(Distance):
    """A Frechet distance with `draw`, its values [R] for resampled pictures.

    A resampled set repeats pictures, which raises the distance once more by what sampling raised it in the first
    place: percentiles would lie wholly above the true distance. So twice the value less the draws' mean is the
    estimate, and 1.96 standard deviations of the draws go either way.

    Source: the bootstrap's normal interval, t - b +- z v^(1/2): Davison and Hinkley, "Bootstrap Methods and their
        Application", 1997, section 5.2.
    """

    value: float
    draw: Callable[[], Tensor]
    has_interval: bool = True
    is_biased: bool = True

    def interval(self) -> tuple[float, float, float]:
        """See `Distance`."""
        return _normal_interval(self.value, self.draw())

    def difference(self, other: FrechetDistance) -> tuple[float, float, float]:
        """See `Distance`."""
        return _normal_interval(self.value - other.value, self.draw() - other.draw())


def _normal_interval(value: float, draws: Tensor) -> tuple[float, float, float]:
    estimate, margin = 2 * value - float(draws.mean()), Z_95 * float(draws.std())
    return estimate, estimate - margin, estimate + margin


@dataclass(frozen=True)
class KernelDistance(Distance):
    """A kernel distance, the mean of `pairs` [N, N] of different pictures; the diagonal is 0 and does not count.

    What a pair has is split into a mean, a part of each picture and a rest of the pair. Plain resampling would take
    the noise of the rests for parts of the pictures too and, where two distributions are nearly alike, make the
    interval 1.7 times as wide as it should be. So the parts are shrunk to what is left of their variance without
    that noise, then both are resampled.

    Source: Hoeffding's decomposition; bootstrap of its parts: Huskova and Janssen, "Consistency of the Generalized
        Bootstrap for Degenerate U-Statistics", 1993; variances as in a diallel table: Griffing 1956, method 4.
    """

    pairs: Tensor
    has_interval: bool = True
    is_biased: bool = False

    @property
    def value(self) -> float:  # type: ignore[override]
        """Free of bias."""
        count = len(self.pairs)
        return float(self.pairs.sum() / (count * (count - 1)))

    def interval(self) -> tuple[float, float, float]:
        """See `Distance`."""
        margin = Z_95 * float(self.draw().std())
        return self.value, self.value - margin, self.value + margin

    def difference(self, other: KernelDistance) -> tuple[float, float, float]:
        """See `Distance`."""
        return KernelDistance(self.pairs - other.pairs).interval()

    def draw(self, resamples: int = KERNEL_RESAMPLES) -> Tensor:
        """Values [R] for resampled pictures."""
        count = len(self.pairs)
        parts = (self.pairs.sum(1) / (count - 1) - self.value) * (count - 1) / (count - 2)
        rests = (self.pairs - self.value - parts[:, None] - parts[None]).fill_diagonal_(0)
        rest_variance = rests.square().sum() / (count * (count - 3))
        variance = parts.square().sum() / (count - 1)
        true_share = (1 - rest_variance / (count - 2) / variance.clamp_min(1e-300)).clamp_min(0)
        rests = rests * ((count - 1) / (count - 3)) ** 0.5
        rows = resampled_indices(count, resamples)
        extra = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double()) - 1
        extra = extra.to(self.pairs.device)  # how much oftener than once each picture is drawn
        linear = true_share.sqrt() * 2 / count * (extra @ parts)
        return (self.value + linear + ((extra @ rests) * extra).sum(1) / (count * (count - 1))).cpu()


def resampled_indices(count: int, resamples: int) -> Tensor:
    """Pictures with replacement [R, N]: always the same ones for a count."""
    return torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))


def frechet_to(features: Tensor, reference: Tensor, resamples: int = FRECHET_RESAMPLES) -> FrechetDistance:
    """Frechet distance of features [N, D] to those of a reference [M, D], which is taken as given.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
    """
    features, other = features.double(), _Moments.of(reference.double())
    whole = _frechet(_Moments.of(features), other)
    return FrechetDistance(
        whole,
        lambda: torch.tensor(
            [
                _frechet(_Moments.of(features[rows]), other)
                for rows in resampled_indices(len(features), resamples).to(features.device)
            ]
        ),
        has_interval=len(features) >= features.shape[1],
    )


def frechet_between(features: Tensor, others: Tensor, resamples: int = FRECHET_RESAMPLES) -> FrechetDistance:
    """Frechet distance of features [N, D] to those of the same scenes painted otherwise; scenes are resampled."""
    features, others = features.double(), others.double()
    return FrechetDistance(
        _frechet(_Moments.of(features), _Moments.of(others)),
        lambda: torch.tensor(
            [
                _frechet(_Moments.of(features[rows]), _Moments.of(others[rows]))
                for rows in resampled_indices(len(features), resamples).to(features.device)
            ]
        ),
        has_interval=len(features) >= features.shape[1],
    )


@dataclass(frozen=True)
class _Moments:
    """Mean [D] and a root [K, D] of the covariance: C = root.T @ root, K at most D."""

    mean: Tensor
    root: Tensor

    @staticmethod
    def of(features: Tensor) -> _Moments:
        mean = features.mean(0)
        root = (features - mean) / (len(features) - 1) ** 0.5
        if len(root) > root.shape[1]:
            root = torch.linalg.qr(root, mode="r").R
        return _Moments(mean, root)


def _frechet(a: _Moments, b: _Moments) -> float:
    """|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2).

    With C = R^T R the last trace is the sum of the singular values of R1 R2^T, which is as small as the smaller set
    and never needs the root of a singular covariance.
    """
    cross = a.root @ b.root.T
    if cross.shape[0] > cross.shape[1]:
        cross = cross.T
    shared = torch.linalg.eigvalsh(cross @ cross.T).clamp_min(0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * shared)


def kernel_to(features: Tensor, reference: Tensor) -> KernelDistance:
    """Kernel distance (KID) of features [N, D] to those of a reference [M, D], which is taken as given; N at least 4.

    The squared maximum mean discrepancy under k(x, y) = (x . y / D + 1)^3, without the pairs of a picture with
    itself: free of bias for any number of pictures, and so now and then below 0.

    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, equation 4.
    """
    features, reference = features.double(), reference.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    count = len(reference)
    among = kernel(reference, reference).fill_diagonal_(0).sum() / (count * (count - 1))
    cross = kernel(features, reference).mean(1)
    pairs = kernel(features, features) + among - cross[:, None] - cross[None]
    return KernelDistance(pairs.fill_diagonal_(0))
