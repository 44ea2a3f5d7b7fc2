"""What each filter keeps and what it takes away, for gray and colour images of even and odd sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uge.attacks import preprocess as filters
from uge.attacks.augment import chromatic
from uge.attacks.notch import filtered, spectral_mask
from uge.attacks.waves import without_waves
from uge.data.store import PixelStore, Records

FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "grayscale": filters.grayscale,
    "jpeg": lambda pixels: filters.jpeg(pixels, 50),
    "posterise": lambda pixels: filters.posterise(pixels, 2),
    "gaussian-blur": lambda pixels: filters.gaussian_blur(pixels, 1.0),
    "median-blur": filters.median_blur,
    "sharpen": filters.sharpen,
    "low-pass": filters.low_pass,
    "resize": filters.resize_down_up,
    "colour-projection": lambda pixels: filters.colour_projection(pixels, torch.Generator().manual_seed(0)),
    "wave-removal": without_waves,
    "other-key": lambda pixels: filters.other_key(pixels, classes=2, seed=3),
}
shapes = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), st.integers(16, 35))


def noise(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    count, channels, size = shape
    return torch.randint(0, 256, (count, channels, size, size), generator=generator(seed), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def natural(count: int, channels: int = 3, size: int = 32, seed: int = 0, spread: float = 30.0) -> Tensor:
    """Float pictures with amplitudes that fall with frequency, as photographs' do."""
    waves = torch.fft.fftfreq(size, 1 / size)
    radius = torch.sqrt(waves[:, None] ** 2 + torch.fft.rfftfreq(size, 1 / size) ** 2).clamp_min(1)
    x = torch.fft.irfft2(
        torch.fft.rfft2(torch.randn(count, channels, size, size, generator=generator(seed))) / radius, s=(size, size)
    )
    return 128 + spread * x / x.std()


def make_store(pixels: Tensor, labels: Tensor) -> PixelStore:
    records = Records(len(pixels), tuple(pixels.shape[1:]), torch.uint8)
    records.write(torch.arange(len(pixels)), filters.stored(pixels.float()))
    return PixelStore(records, labels, tuple(map(str, range(int(labels.max()) + 1))))


@pytest.mark.parametrize("name", FILTERS)
@given(shape=shapes)
@settings(max_examples=8, deadline=None)
def test_filters_keep_shape_and_flat_pictures(name: str, shape: tuple[int, int, int]) -> None:
    pixels = noise(shape)
    before = pixels.clone()
    found = FILTERS[name](pixels)
    assert (found.shape, found.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)
    flat = torch.full_like(pixels, 85)  # one of the levels of two bits
    assert (FILTERS[name](flat).int() - 85).abs().max() <= 1


@given(shape=shapes, bits=st.integers(1, 7))
@settings(max_examples=15, deadline=None)
def test_posterising_leaves_so_many_levels(shape: tuple[int, int, int], bits: int) -> None:
    found = filters.posterise(noise(shape), bits)
    assert len(found.unique()) <= 2**bits
    assert torch.equal(filters.posterise(found, bits), found)
    assert (found.int() - noise(shape).int()).abs().max() <= math.ceil(255 / (2**bits - 1) / 2)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (2, 1, 5, 9), (2, 3, 1, 1), (1, 3, 2, 7)])
@pytest.mark.parametrize("side", [3, 5])
def test_a_median_is_that_of_scipy_to_the_border(shape: tuple[int, ...], side: int) -> None:
    from scipy.ndimage import median_filter

    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = median_filter(pixels.numpy(), size=(1, 1, side, side), mode="nearest")
    assert np.array_equal(filters.median_blur(pixels, side).numpy(), expected)


def test_a_median_forgets_single_pixels_and_a_blur_spreads_them() -> None:
    dot = torch.zeros(1, 1, 17, 17, dtype=torch.uint8)
    dot[..., 8, 8] = 255
    assert filters.median_blur(dot).max() == 0
    blurred = filters.gaussian_blur(dot, 1.0).float()
    assert blurred[..., 8, 8] == pytest.approx(255 / (2 * math.pi), abs=1.5)
    assert blurred.sum() == pytest.approx(255, rel=0.05)
    assert filters.sharpen(blurred.to(torch.uint8)).max() > blurred.max()


@given(shape=shapes)
@settings(max_examples=10, deadline=None)
def test_a_low_pass_drops_checkers_and_keeps_what_it_left(shape: tuple[int, int, int]) -> None:
    size = shape[2]
    place = torch.arange(size)
    checkers = 128 + 60 * (-1.0) ** (place[:, None] + place)
    assert (filters.low_pass(filters.stored(checkers.expand(1, 1, size, size))).float() - 128).abs().mean() < 5
    soft = filters.low_pass(noise(shape).div(4, rounding_mode="floor") + 96)
    assert (filters.low_pass(soft).int() - soft.int()).abs().max() <= 1


def test_colour_projection_drops_one_direction_and_keeps_brightness() -> None:
    pixels = filters.stored(natural(4))
    direction = chromatic(1, generator(0))[0]
    found = filters.colour_projection(pixels, generator(0)).float()
    assert direction.norm() == pytest.approx(1)
    assert torch.einsum("bchw,c->bhw", found, direction).abs().max() < 1
    assert (found.mean(1) - pixels.float().mean(1)).abs().max() < 1
    # Two directions of brightness-free colour are left: it is no conversion to gray.
    assert (found - found.mean(1, keepdim=True)).abs().mean() > 2


class TestNotch:
    @pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (3, 33), (1, 17)])
    def test_clean_pictures_stay(self, channels: int, size: int) -> None:
        clean = make_store(natural(300, channels, size), torch.arange(300) % 3)
        mask = spectral_mask(clean)
        pixels = clean.pixels.read(torch.arange(40))
        assert (mask == 0).float().mean() < 0.01
        assert (filtered(pixels, mask).float() - pixels.float()).abs().mean() < 1

    @pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (3, 33)])
    def test_a_wave_in_every_picture_is_taken_out(self, channels: int, size: int) -> None:
        clean, place = natural(300, channels, size), torch.arange(size)
        wave = 8 * torch.cos(2 * math.pi * (6 * place[:, None] + 9 * place) / size)
        phases = torch.where(torch.rand(300, 1, 1, 1, generator=generator(1)) < 0.5, -1.0, 1.0)
        marked = make_store(clean + phases * wave, torch.arange(300) % 3)
        assert along(filtered(marked.pixels.read(torch.arange(300)), spectral_mask(marked)) - clean, wave) < 0.25

    def test_waves_of_classes_are_taken_out_though_each_is_weak(self) -> None:
        labels, place = torch.arange(600) % 3, torch.arange(32)
        waves = torch.stack([torch.cos(2 * math.pi * (k * place[:, None] + 7 * place) / 32) for k in (5, 8, 11)])
        clean = natural(600, 1)
        marked = make_store(clean + 4 * waves[labels][:, None], labels)
        found = filtered(marked.pixels.read(torch.arange(600)), spectral_mask(marked))
        assert along((found - clean)[labels == 1], 4 * waves[1]) < 0.3
        shuffled = make_store(clean, labels)
        assert (spectral_mask(shuffled) == 0).float().mean() < 0.01

    def test_low_frequencies_always_stay(self) -> None:
        place = torch.arange(32)
        slow = 60 * torch.cos(2 * math.pi * 2 * place / 32).expand(1, 32, 32)
        mask = spectral_mask(make_store(natural(100, 1) + slow, torch.arange(100) % 2))
        assert mask[0, 0, :3].all()

    def test_one_class_has_no_class_means(self) -> None:
        assert spectral_mask(make_store(natural(50), torch.zeros(50, dtype=torch.int64))).mean() > 0.99


def along(change: Tensor, wave: Tensor) -> float:
    """Size of a wave within a change, averaged over images and channels, relative to the wave."""
    return float(((change * wave).sum((2, 3)).abs() / (wave * wave).sum()).mean())
