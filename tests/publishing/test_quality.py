import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from toy_sets import random_pixels

from uge.data import images as images_module
from uge.data.images import Pixels, Strips
from uge.publishing.quality import compare, ssim, ssim_positions, unpaired


def test_agrees_with_scikit_image():
    clean, other = random_pixels(2, (20, 30, 3))
    assert compare(clean, other).psnr == pytest.approx(peak_signal_noise_ratio(clean, other))
    assert ssim(clean, other) == pytest.approx(structural_similarity(clean, other, channel_axis=2))


@pytest.mark.parametrize("shape", [(32, 32, 3), (7, 40, 1), (6, 31, 3), (50, 20, 4)])
def test_ssim_is_scikit_images(shape):
    clean = random_pixels(1, shape)[0]
    near = (clean // 2 + random_pixels(1, shape, seed=1)[0] // 8).astype(np.uint8)
    colours = slice(0, 1 if shape[2] <= 2 else 3)
    window = min(7, min(shape[:2]) - (min(shape[:2]) + 1) % 2)
    options = {"win_size": window, "channel_axis": 2, "data_range": 255}
    wanted = structural_similarity(*(pixels[..., colours].astype(float) for pixels in (clean, near)), **options)
    assert ssim(clean, near) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("shape", [(3, 9, 3), (4, 4, 1), (6, 7, 2), (5, 5, 4)])
def test_small_images_have_an_ssim(shape):
    clean = random_pixels(1, shape)[0]
    assert ssim(clean, clean) == pytest.approx(1)
    assert compare(clean, clean).psnr == math.inf


def test_tiny_images_have_none():
    clean = random_pixels(1, (2, 9, 3))[0]
    assert ssim(clean, clean) is None


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3, 4]), st.integers(0, 99))
def test_counts(height, width, channels, seed):
    clean, other = random_pixels(2, (height, width, channels), seed)
    colours = slice(0, 1 if channels <= 2 else 3)
    difference = clean[..., colours].astype(int) - other[..., colours]
    found = compare(clean, other)
    assert found.levels == abs(difference).max()
    assert found.squared == (difference**2).sum()
    assert found.changed == (difference != 0).any(axis=2).sum()
    alone = unpaired(other)
    assert (found.shape, found.constant, found.brightest) == (clean.shape, alone.constant, alone.brightest)
    assert alone.brightest == other[..., colours].max()
    assert compare(clean, other, with_ssim=True).ssim == ssim(clean, other)


@pytest.mark.parametrize(("pixels", "constant"), [([1, 1, 1, 1], True), ([1, 1, 2, 1], False), ([1, 2, 2, 2], False)])
def test_constant_is_one_colour(pixels, constant):
    assert unpaired(np.array(pixels, dtype=np.uint8).reshape(2, 2, 1)).constant == constant


@pytest.mark.parametrize(("count", "size"), [(1, 1), (50, 50), (1500, 50), (4000, 80), (60_000, 1000)])
def test_ssim_sample_is_spread(count, size):
    positions = sorted(ssim_positions(count))
    assert len(positions) == size
    assert (positions[0], positions[-1]) == (0, count - 1)
    assert np.ptp(np.diff(positions)) <= 1 if size > 1 else True


def in_floats(clean: Pixels, published: Pixels) -> float:
    """SSIM of 7 × 7 windows over whole images in single precision, as scikit-image filters them."""
    a, b = (np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) for pixels in (clean, published))
    means: NDArray[np.float32] = np.stack([a, b, a * a + b * b, a * b])
    for axis in (2, 3):
        means = uniform_filter1d(means, 7, axis)
    mean_a, mean_b, squares, products = means[..., 3:-3, 3:-3]
    variances = 49 / 48 * (squares - mean_a * mean_a - mean_b * mean_b)
    covariance = 49 / 48 * (products - mean_a * mean_b)
    c1 = 2.55**2
    c2 = 7.65**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean(dtype=np.float64))


def near_pair(shape: tuple[int, int, int]) -> tuple[Pixels, Pixels]:
    """A picture of smooth brightness with grain, and one with ±8 levels of noise more."""
    rng = np.random.default_rng(3)
    smooth = np.linspace(20, 230, shape[1])[:, None] * np.linspace(0.5, 1, shape[0])[:, None, None]
    clean = (smooth + rng.normal(0, 4, shape)).clip(0, 255).astype(np.uint8)
    return clean, (clean + rng.choice([-8, 8], shape)).clip(0, 255).astype(np.uint8)


def test_ssim_is_the_formula_to_six_decimals():
    clean, near = near_pair((90, 130, 3))
    assert ssim(clean, near) == pytest.approx(in_floats(clean, near), abs=5e-7)
    wanted = structural_similarity(clean.astype(float), near.astype(float), channel_axis=2, data_range=255)
    assert ssim(clean, near) == pytest.approx(wanted, abs=5e-7)


@pytest.mark.parametrize("shape", [(90, 130, 3), (61, 70, 1), (50, 40, 4), (5, 90, 3), (2, 90, 3)])
@pytest.mark.parametrize("rows", [1, 3, 8, 50])
def test_strips_measure_the_same(shape, rows, monkeypatch):
    clean, near = near_pair(shape)
    near[-1, -1, -1] ^= 1
    whole = compare(clean, near, with_ssim=True)
    monkeypatch.setattr(images_module, "LARGE", 1)
    monkeypatch.setattr(images_module, "_STRIP", rows * shape[1])
    for published in (near, Strips.of(near)):
        parts = compare(clean, published, with_ssim=True)
        assert parts.ssim == pytest.approx(whole.ssim, abs=1e-7) if whole.ssim else parts.ssim is None
        assert [getattr(parts, name) for name in ("levels", "squared", "changed", "shape", "constant")] == [
            getattr(whole, name) for name in ("levels", "squared", "changed", "shape", "constant")
        ]
        assert parts.same_alpha == whole.same_alpha == (shape[2] != 4)
    assert unpaired(np.full(shape, 7, np.uint8)).constant
    assert not unpaired(near).constant
