"""Distances between sets of pictures in a network's features, and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Z_95 = 1.959964  # two-sided 95 % quantile of the normal distribution
FRECHET_RESAMPLES = 100  # they only give a mean and a standard error
KERNEL_RESAMPLES = 1000


@dataclass(frozen=True)
class Distance:
    """How far a set of pictures is from another, with its bootstrap.

    Attributes:
        value: as it is usually given.
        draw: values [R] for resampled pictures; draw r takes the same pictures of every set of as many, so that
            differences of two methods are paired.
        is_biased: the value is too large by about as much as its bootstrap's mean is above it.
        has_interval: there are enough pictures for the interval to be believed. A difference's always is: both sides
            have the same bias.
    """

    value: float
    draw: Callable[[], Tensor]
    is_biased: bool
    has_interval: bool = True

    def interval(self) -> tuple[float, float, float]:
        """Estimate and 95 % interval, free of bias to first order.

        A resampled set repeats pictures, which raises a Frechet distance once more by what sampling raised it in the
        first place: percentiles would lie wholly above the true distance. So twice the value less the draws' mean is
        the estimate, and 1.96 standard deviations of the draws go either way.

        Source: the bootstrap's normal interval, t - b +- z v^(1/2): Davison and Hinkley, "Bootstrap Methods and their
            Application", 1997, section 5.2.
        """
        return _interval(self.value, self.draw(), self.is_biased)

    def difference(self, other: Distance) -> tuple[float, float, float]:
        """This less the other, of the same scenes painted by another method; estimate and 95 % interval."""
        return _interval(self.value - other.value, self.draw() - other.draw(), self.is_biased)


def _interval(value: float, draws: Tensor, is_biased: bool) -> tuple[float, float, float]:
    estimate = 2 * value - float(draws.mean()) if is_biased else value
    margin = Z_95 * float(draws.std())
    return estimate, estimate - margin, estimate + margin


def resampled_indices(count: int, resamples: int) -> Tensor:
    """Pictures with replacement [R, N]: always the same ones for a count."""
    return torch.randint(count, (resamples, count), generator=torch.Generator().manual_seed(0))


def frechet_to(features: Tensor, reference: Tensor, resamples: int = FRECHET_RESAMPLES) -> Distance:
    """Frechet distance of features [N, D] to those of a reference [M, D], which is taken as given.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017.
    """
    features, other = features.double(), _Moments.of(reference.double())
    whole = _frechet(_Moments.of(features), other)
    return Distance(
        whole,
        lambda: torch.tensor(
            [
                _frechet(_Moments.of(features[rows]), other)
                for rows in resampled_indices(len(features), resamples).to(features.device)
            ]
        ),
        is_biased=True,
        has_interval=len(features) >= features.shape[1],
    )


def frechet_between(features: Tensor, others: Tensor, resamples: int = FRECHET_RESAMPLES) -> Distance:
    """Frechet distance of features [N, D] to those of the same scenes painted otherwise; scenes are resampled."""
    features, others = features.double(), others.double()
    return Distance(
        _frechet(_Moments.of(features), _Moments.of(others)),
        lambda: torch.tensor(
            [
                _frechet(_Moments.of(features[rows]), _Moments.of(others[rows]))
                for rows in resampled_indices(len(features), resamples).to(features.device)
            ]
        ),
        is_biased=True,
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


def kernel_to(features: Tensor, reference: Tensor, resamples: int = KERNEL_RESAMPLES) -> Distance:
    """Kernel distance (KID) of features [N, D] to those of a reference [M, D], which is taken as given.

    The squared maximum mean discrepancy under k(x, y) = (x . y / D + 1)^3, without the pairs of a picture with
    itself: free of bias for any number of pictures, and so now and then below 0. Resampled sets leave out the pairs
    of a picture with its own copies too, which would bring the bias back.

    Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018, equation 4.
    """
    own, cross, rest = _kernels(features.double(), reference.double())

    def weighted(weights: Tensor) -> Tensor:
        """Distances [R] of sets that hold each picture so often, weights [R, N]."""
        pairs = weights.sum(1).square() - weights.square().sum(1)
        among = ((weights @ own) * weights).sum(1) / pairs
        return among + rest - 2 * (weights @ cross) / weights.sum(1)

    def draw() -> Tensor:
        rows = resampled_indices(len(features), resamples)
        counts = torch.zeros(rows.shape, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
        counts = counts[(counts > 0).sum(1) > 1]  # of one picture alone there is no pair
        return weighted(counts.to(own.device)).cpu()

    return Distance(float(weighted(torch.ones_like(cross)[None])[0]), draw, is_biased=False)


def _kernels(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels within the set [N, N] (0 from a picture to itself), means to the reference [N], mean within it []."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    own = kernel(features, features).fill_diagonal_(0)
    among = kernel(reference, reference).fill_diagonal_(0)
    count = len(reference)
    return own, kernel(features, reference).mean(1), among.sum() / (count * (count - 1))
