"""Random filters: close to the real ones, differentiable, one for each image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from uge.methods.robust.filters import FILTERS, NUMBERS, bits, blur, filtered, gray, half, jpeg
from uge.methods.robust.settings import FilterShares


def smooth(size: int, channels: int = 3, count: int = 4) -> Tensor:
    """Images like photographs: waves of a few pixels and a little noise, in whole levels."""
    rng = np.random.default_rng(size)
    rows, columns = np.indices((size, size)) / size
    waves = [np.sin(6 * (rng.random() * rows + rng.random() * columns) + k) for k in range(count * channels)]
    noise = rng.normal(0, 4, (count, channels, size, size))
    levels = 128 + 90 * np.reshape(waves, (count, channels, size, size)) + noise
    return torch.from_numpy(levels.clip(0, 255).round()).float() / 255


def by_pillow(x: Tensor, quality: int) -> Tensor:
    decoded = []
    for image in (255 * x).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 27, 40])
@pytest.mark.parametrize("quality", [8, 30, 50])
def test_jpeg_is_that_of_pillow(quality: int, size: int, channels: int) -> None:
    x = smooth(size, channels, count=16)
    ours = jpeg(x, torch.full((len(x),), quality))
    theirs = by_pillow(x, quality)
    error = (ours - theirs).abs().mean()
    assert error < 0.25 * (theirs - x).abs().mean()
    assert 255 * error < 1.5


def test_every_image_has_its_own_quality() -> None:
    x = smooth(32)
    qualities = torch.tensor([8, 20, 35, 50])
    together = jpeg(x, qualities)
    for row, quality in enumerate(qualities):
        torch.testing.assert_close(together[row : row + 1], jpeg(x[row : row + 1], quality[None]))


def test_gradients_pass_the_rounding_of_coefficients() -> None:
    x = smooth(16, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(jpeg(x, torch.full((4,), 10)).clamp(0.2, 0.8).sum(), x)
    assert set(gradient.unique().tolist()) <= {0.0, 1.0}
    assert gradient.mean() > 0.2


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (5, 1, 17, 17), (5, 3, 19, 19)])
def test_pixels_stay_pixels_and_gradients_are_finite(name: str, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=draw).requires_grad_()
    out = FILTERS[name](x, torch.rand(len(x), NUMBERS, generator=draw))
    assert out.shape == x.shape
    assert out.amin() >= -1e-6
    assert out.amax() <= 1 + 1e-6
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_blur_is_that_of_pillow() -> None:
    x = smooth(24)
    ours = blur(x, torch.full((4,), 1.2))
    for image, own in zip((255 * x).byte(), ours, strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(1.2))
        inside = np.s_[6:-6, 6:-6]  # Pillow takes boxes for a Gaussian.
        assert np.abs(255 * own.permute(1, 2, 0).numpy() - np.asarray(theirs))[inside].mean() < 1


def test_gray_is_brightness_in_every_channel() -> None:
    x = smooth(16)
    expected = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    for channel in gray(x).unbind(1):
        torch.testing.assert_close(channel, expected)
    torch.testing.assert_close(gray(x[:, :1]), x[:, :1])


def test_half_size_keeps_the_mean_of_an_image_and_drops_a_fine_pattern() -> None:
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * torch.ones(1, 3, 1, 1)
    out = half(board)
    torch.testing.assert_close(out.mean(), board.mean())
    assert out[:, :, 2:-2, 2:-2].std() < 0.05 * board.std()


def test_bits_are_evenly_spaced_levels() -> None:
    x = torch.linspace(0, 1, 64).expand(2, 3, 8, 64)
    out = bits(x, torch.tensor([2, 3]))
    assert [len(each.unique()) for each in out] == [4, 8]
    assert (out - x).abs().max() <= 1 / 6 + 1e-6


def test_an_image_passes_the_filter_that_its_numbers_choose() -> None:
    x = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    numbers = torch.rand(40, NUMBERS, generator=torch.Generator().manual_seed(2))
    together = filtered(x, numbers, FilterShares())
    alone = torch.cat([filtered(x[row : row + 1], numbers[row : row + 1], FilterShares()) for row in range(40)])
    torch.testing.assert_close(together, alone)
    assert torch.equal(filtered(x, numbers, FilterShares(jpeg=0, gray=0, blur=0, half=0, bits=0, colour=0)), x)
    only = FilterShares(none=0, jpeg=0, gray=0.5, blur=0, half=0, bits=0, colour=0)
    torch.testing.assert_close(filtered(x, numbers, only), gray(x))


def test_shares_are_frequencies() -> None:
    count = 4000
    x = torch.full((count, 3, 8, 8), 0.4)
    x[:, 0] = 0.6
    numbers = torch.rand(count, NUMBERS, generator=torch.Generator().manual_seed(3))
    shares = FilterShares(none=3, jpeg=0, gray=1, blur=0, half=0, bits=0, colour=0)
    out = filtered(x, numbers, shares)
    changed = (out != x).flatten(1).any(1).float().mean()
    assert changed == pytest.approx(0.25, abs=0.03)
