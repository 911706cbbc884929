"""PSNR and SSIM against values computed by hand and a naive twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

import ras_dit
from ras_dit.quality import psnr, ssim

EXACT = 1e-12  # float64 sums in another order


def random_pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    first = generator.random(shape)
    return first, np.clip(first + 0.1 * generator.standard_normal(shape), 0, 1)


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 13 of Wang et al., one window [11, 11] after the other, one plane [H, W]."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 0.01**2) * (2 * cov + 0.03**2)
            values.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    return float(np.mean(values))


def test_both_are_names_of_the_package() -> None:
    assert (ras_dit.psnr, ras_dit.ssim) == (psnr, ssim)


def test_psnr_by_hand() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, np.full_like(black, 255)) == pytest.approx(0)
    assert psnr(torch.zeros(3, 4, 4), torch.full((3, 4, 4), 0.1)) == pytest.approx(20, abs=1e-5)
    one = black.copy()
    one[0, 0, 0] = 255
    assert psnr(black, one) == pytest.approx(10 * math.log10(48))
    assert psnr(one, one) == math.inf


def test_ssim_of_flat_pictures_by_hand() -> None:
    a, b = torch.full((1, 11, 11), 0.2, dtype=torch.float64), torch.full((1, 11, 11), 0.8, dtype=torch.float64)
    assert ssim(a, b) == pytest.approx((2 * 0.16 + 1e-4) / (0.04 + 0.64 + 1e-4), abs=1e-9)


def test_ssim_equals_the_naive_twin() -> None:
    a, b = random_pair((16, 21, 3))
    expected = np.mean([naive_ssim(a[..., channel], b[..., channel]) for channel in range(3)])
    assert ssim(a, b) == pytest.approx(expected, abs=EXACT)
    assert ssim(b, a) == pytest.approx(expected, abs=EXACT)
    assert ssim(a, a) == pytest.approx(1, abs=EXACT)


def test_ssim_equals_scikit_image() -> None:
    """Recorded: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)."""
    a, b = random_pair((40, 52, 3))
    assert ssim(a, b) == pytest.approx(0.9464431568699513, abs=EXACT)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_forms_agree(measure: object) -> None:
    a, b = (np.rint(255 * picture).astype(np.uint8) for picture in random_pair((14, 17, 3)))
    expected = measure(a, b)
    assert measure(Image.fromarray(a), Image.fromarray(b)) == expected
    assert measure(a / 255, b / 255) == pytest.approx(expected)
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in (a, b)]
    assert measure(*tensors) == expected
    assert measure(*(tensor[None] for tensor in tensors)) == expected


def test_bad_pictures() -> None:
    a = np.zeros((12, 12, 3))
    with pytest.raises(ValueError, match=r"12 x 12 pixels.* and 13 x 12"):
        psnr(a, np.zeros((12, 13, 3)))
    with pytest.raises(ValueError, match="outside the range"):
        psnr(a, a + 2)
    with pytest.raises(ValueError, match="outside the range"):
        psnr(a, a * np.nan)
    with pytest.raises(ValueError, match="at least 11"):
        ssim(a[:10], a[:10])
