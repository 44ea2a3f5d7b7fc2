import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from toy_sets import random_pixels

from uge.publish.quality import compare, psnr, ssim, ssim_positions


def test_agrees_with_scikit_image():
    clean, other = random_pixels(2, (20, 30, 3))
    assert psnr(clean, other) == pytest.approx(peak_signal_noise_ratio(clean, other))
    assert ssim(clean, other) == pytest.approx(structural_similarity(clean, other, channel_axis=2))


@pytest.mark.parametrize("shape", [(3, 9, 3), (4, 4, 1), (6, 7, 2), (5, 5, 4)])
def test_small_images_have_an_ssim(shape):
    clean = random_pixels(1, shape)[0]
    assert ssim(clean, clean) == pytest.approx(1)
    assert psnr(clean, clean) == math.inf


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


@pytest.mark.parametrize(("count", "size"), [(1, 1), (50, 50), (1500, 50), (4000, 80), (60_000, 1000)])
def test_ssim_sample_is_spread(count, size):
    positions = sorted(ssim_positions(count))
    assert len(positions) == size
    assert (positions[0], positions[-1]) == (0, count - 1)
    assert np.ptp(np.diff(positions)) <= 1 if size > 1 else True
