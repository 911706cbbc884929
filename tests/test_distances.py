"""Distances between sets: right on features that can be reckoned, and their intervals hold the truth."""

from __future__ import annotations

import pytest
import torch

from ras_dit.arena.distances import (
    FrechetDistance,
    KernelDistance,
    frechet_between,
    frechet_to,
    kernel_to,
    resampled_indices,
)

ROUNDING = 1e-6  # of square roots of eigenvalues that should be 0, in float64


def normal(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(count, width, dtype=torch.float64, generator=generator)


def whitened(count: int, width: int) -> torch.Tensor:
    """Features whose mean is 0 and whose covariance is 1, exactly."""
    features = normal(count, width, seed=99)
    features = features - features.mean(0)
    root = torch.linalg.cholesky(torch.cov(features.T))
    return torch.linalg.solve_triangular(root, features.T, upper=False).T


def textbook(first: torch.Tensor, second: torch.Tensor) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the trace of the root taken from the eigenvalues of C1 C2."""
    covariance, other = torch.cov(first.T), torch.cov(second.T)
    roots = torch.linalg.eigvals(covariance @ other).real.clamp_min(0).sqrt().sum()
    return float((first.mean(0) - second.mean(0)).square().sum() + covariance.trace() + other.trace() - 2 * roots)


@pytest.mark.parametrize(("count", "others"), [(200, 150), (10, 150), (10, 12), (200, 9)])
def test_frechet_is_the_textbooks_with_more_or_fewer_pictures_than_features(count: int, others: int) -> None:
    first, second = normal(count, 24, 0, 0.3, 1.4), normal(others, 24, 1)
    assert frechet_to(first, second).value == pytest.approx(textbook(first, second), rel=1e-5)
    assert frechet_to(first, first).value == pytest.approx(0, abs=ROUNDING)


def test_frechet_of_shifted_and_of_stretched_features_by_hand() -> None:
    first = normal(4000, 3, 0)
    assert frechet_to(first, first + 2).value == pytest.approx(12, abs=1e-4)
    stretched = 3 * first - 2 * first.mean(0)
    assert frechet_to(first, stretched).value == pytest.approx(4 * float(first.var(0).sum()), rel=1e-4)


def test_frechet_is_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.flatten(1)

    metric = fid.FrechetInceptionDistance(feature=Flat())
    pictures = [normal(count, 12, count, 0.2).view(count, 3, 2, 2) for count in (40, 50)]
    for part, is_real in zip(pictures, (False, True), strict=True):
        metric.update(part, real=is_real)
    expected = float(metric.compute())
    assert frechet_to(*(part.flatten(1) for part in pictures)).value == pytest.approx(expected, rel=1e-5)


def test_a_frechet_interval_holds_the_true_distance_where_percentiles_do_not() -> None:
    """8 features of standard deviation 1.1 and mean 0.3 against a standard normal: 8 (0.3^2 + 0.1^2) = 0.8."""
    true, reference, trials = 8 * (0.3**2 + 0.1**2), whitened(50, 8), 60
    held, held_by_percentiles, estimates = 0, 0, []
    for seed in range(trials):
        distance = frechet_to(normal(60, 8, seed, 0.3, 1.1), reference)
        estimate, low, high = distance.interval()
        assert low < estimate < high
        estimates.append(estimate)
        held += low <= true <= high
        held_by_percentiles += bool(distance.draw().quantile(0.025) <= true)
    assert held >= 0.88 * trials
    assert held_by_percentiles <= 0.5 * trials
    mean = torch.tensor(estimates).mean()
    assert float(mean) == pytest.approx(true, rel=0.1), "the bias is gone"


def test_a_frechet_interval_needs_as_many_pictures_as_features() -> None:
    reference = normal(50, 8, 0)
    assert [frechet_to(normal(count, 8, 1), reference).has_interval for count in (7, 8)] == [False, True]


def test_differences_are_paired_and_tell_methods_apart() -> None:
    """Two methods near each other and far from the reference: apart for sure, though each alone is not."""
    reference, features = whitened(100, 8), normal(80, 8, 5, 0.5)
    first, second = frechet_to(features, reference), frechet_to(features + 0.03, reference)
    assert first.interval()[2] > second.interval()[1]
    difference, low, high = second.difference(first)
    assert 0 < low < difference < high
    assert first.difference(first) == (0, 0, 0)
    assert first.interval() == frechet_to(features, reference).interval(), "the same again"
    assert torch.equal(resampled_indices(9, 5), resampled_indices(9, 5))


def test_methods_of_one_distribution_are_not_told_apart_though_pictures_are_few() -> None:
    """As features are many and pictures few, each distance is many times too large; their difference is not."""
    reference, wrong = normal(300, 40, 77), 0
    for seed in range(20):
        first, second = (frechet_to(normal(30, 40, 2 * seed + i), reference, 50) for i in range(2))
        _, low, high = first.difference(second)
        wrong += not low <= 0 <= high
    assert wrong <= 3


def test_frechet_between_resamples_the_scenes_of_both() -> None:
    features = normal(40, 6, 3)
    same = frechet_between(features, features)
    assert same.value == pytest.approx(0, abs=ROUNDING)
    assert float(same.draw().abs().max()) < ROUNDING, "resampled alike, they stay equal"
    moved = frechet_between(features + 0.5, features)
    assert moved.value == pytest.approx(6 * 0.25)
    assert moved.interval() == pytest.approx((1.5, 1.5, 1.5), abs=1e-4)


def test_kernel_distance_by_hand() -> None:
    first, second = normal(5, 3, 0), normal(4, 3, 1, 0.5)

    def mean(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        return sum(float((a @ b / 3 + 1) ** 3) for a, b in pairs) / len(pairs)

    own = [(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j]
    rest = [(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j]
    cross = [(a, b) for a in first for b in second]
    expected = mean(own) + mean(rest) - 2 * mean(cross)
    distance = kernel_to(first, second)
    assert distance.value == pytest.approx(expected)
    estimate, low, high = distance.interval()
    assert estimate == distance.value
    assert low < estimate < high


def test_kernel_distance_has_no_bias_however_few_the_pictures_and_its_interval_holds_the_truth() -> None:
    reference = normal(200, 40, 1000)
    true = kernel_to(normal(5000, 40, 1001, 0.3), reference).value
    found = [kernel_to(normal(12, 40, seed, 0.3), reference) for seed in range(150)]
    values = torch.tensor([distance.value for distance in found])
    assert abs(float(values.mean()) - true) < 3 * float(values.std()) / 150**0.5
    draws = torch.stack([distance.draw().mean() for distance in found])
    assert float((draws - values).mean().abs()) < 0.1 * float(values.std()), "nor has its bootstrap"
    held = sum(low <= true <= high for _, low, high in (distance.interval() for distance in found))
    assert held >= 0.85 * len(found)


def test_kernel_intervals_hold_0_for_one_distribution_and_are_not_too_wide() -> None:
    """Where pairs have rests and pictures no parts, plain resampling would be 1.7 times too wide."""
    reference = normal(400, 6, 1000)
    found = [kernel_to(normal(25, 6, seed), reference) for seed in range(120)]
    spread = float(torch.tensor([distance.value for distance in found]).std())
    widths = torch.tensor([high - low for _, low, high in (distance.interval() for distance in found)])
    assert 0.75 < float(widths.mean()) / (2 * 1.96 * spread) < 1.35
    held = sum(low <= 0 <= high for _, low, high in (distance.interval() for distance in found))
    assert held >= 0.88 * len(found)
    wrong = 0
    for first, second in zip(found[::2], found[1::2], strict=True):
        _, low, high = first.difference(second)
        wrong += not low <= 0 <= high
    assert wrong <= 8
    same = KernelDistance(found[0].pairs.clone())
    assert found[0].difference(same) == (0, 0, 0)


def test_a_distance_with_bias_is_corrected_by_its_draws() -> None:
    draws = torch.tensor([2.0, 4.0], dtype=torch.float64)
    estimate, low, high = FrechetDistance(2.0, lambda: draws).interval()
    assert estimate == 1.0
    assert (high - low) / 2 == pytest.approx(1.959964 * 2**0.5)
