"""Previews: what they show, relative to the training size, and that nothing else is claimed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import uge
from uge.data.images import ImageSet
from uge.errors import UnknownNameError, UsageError
from uge.methods import METHODS, MethodSettings
from uge.methods.preview import KINDS, RELATIVE, Previewer, blurred, noisy, pixelated
from uge.runtime import Runtime

MakeImages = Callable[..., ImageSet]


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_cells_have_the_mean_colour_of_their_pixels() -> None:
    image = photograph(32, 64)
    found = pixelated(image, 8)
    for row, column in ((0, 0), (3, 9), (7, 15)):
        cell = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert np.abs(found[cell] - image[cell].mean((0, 1))).max() <= 1
    assert np.array_equal(pixelated(image[:8, :8], 8), image[:8, :8])


def test_blur_keeps_a_flat_picture_and_spreads_a_point() -> None:
    flat = np.full((20, 20, 1), 77, np.uint8)
    assert np.array_equal(blurred(flat, 2), flat)
    point = np.zeros((41, 41, 1), np.uint8)
    point[20, 20] = 255
    spread = blurred(np.repeat(np.repeat(point, 9, 0), 9, 1), 18)[4::9, 4::9, 0].astype(float)
    place = np.arange(41) - 20.0
    assert (spread.sum(0) * place**2).sum() / spread.sum() == pytest.approx(2**2, rel=0.25)


def test_noise_has_its_deviation_and_is_the_same_in_a_cell() -> None:
    gray = np.full((96, 96, 3), 128, np.uint8)
    change = noisy(gray, 0.1, 3, np.random.default_rng(0)).astype(float) - 128
    assert change.std() == pytest.approx(25.5, rel=0.05)
    cells = change.reshape(32, 3, 32, 3, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    assert np.abs(np.corrcoef(cells[:, 0, :, 0, 0].ravel(), cells[:, 0, :, 0, 1].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (47, 90, 4), (33, 31, 1), (20, 40, 2)])
def test_any_image_gets_a_preview_of_its_own_size(kind: str, height: int, width: int, channels: int) -> None:
    image = photograph(height, width, channels)
    previewer = Previewer(kind, 16, seed=3)
    (change,) = previewer.levels([image], [0], ["a"])
    shown = image.astype(int) + change
    assert (change.shape, change.dtype) == (image.shape, np.int16)
    assert 0 <= shown.min() <= shown.max() <= 255
    assert change.any()
    if channels in (2, 4):
        assert not change[..., -1].any()
    assert np.array_equal(next(previewer.levels([image], [5], ["a"])), change)
    same = np.array_equal(next(previewer.levels([image], [0], ["b"])), change)
    assert same != kind.startswith("noise")


@pytest.mark.parametrize("kind", ["blur2", "noise0.1"])
def test_a_photograph_looks_like_its_small_form_does(kind: str) -> None:
    """A picture of four times the training size, scaled down after its preview, is as blurred or noisy."""
    small = photograph(16, 16, 1).astype(float) / 4 + 96
    large = np.repeat(np.repeat(small, 4, 0), 4, 1).astype(np.uint8)
    previewer = Previewer(kind, 16, seed=3)
    (at_once,) = previewer.levels([large], [0], ["a"])
    down = (large.astype(float) + at_once).reshape(16, 4, 16, 4).mean((1, 3))
    (directly,) = previewer.levels([small.astype(np.uint8)[..., :1]], [0], ["a"])
    expected = small.astype(np.uint8)[..., 0] + directly[..., 0].astype(float)
    assert np.abs(down - expected).mean() < 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_preview_claims_no_bound(
    kind: str, make_images: MakeImages, runtime: Runtime, tmp_path: Path
) -> None:
    images = make_images(count=12, size=32)
    protected = uge.protect(images, method="preview", baseline={"kind": kind}, runtime=runtime)
    manifest = uge.publish(protected, tmp_path / "copy")
    assert (manifest.budget.rho, manifest.budget.levels, manifest.method_details["linf_claimed"]) == (1, 255, False)
    assert manifest.method_details["settings"] == {"kind": kind}
    assert manifest.measured.linf_levels > 10
    card = (tmp_path / "copy" / "README.md").read_text()
    assert KINDS[kind][1] in card
    assert "Budget: none" in card
    assert "changed slightly" not in card
    assert "same pictures as before" not in card
    assert uge.verify(tmp_path / "copy", against=images).ok


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_mixed_sizes_need_a_size_where_the_preview_does(
    kind: str, make_images: MakeImages, runtime: Runtime
) -> None:
    images = make_images(count=4, size=(20, 32))
    if kind in RELATIVE:
        with pytest.raises(UsageError, match="give --size"):
            uge.protect(images, method="preview", baseline={"kind": kind}, runtime=runtime)
        return
    details = uge.protect(images, method="preview", baseline={"kind": kind}, runtime=runtime).provenance.method_details
    assert details["training_size"] == 64


def test_settings_that_a_preview_cannot_follow_are_refused() -> None:
    row = METHODS["preview"]
    row.check(MethodSettings(method="preview", baseline={"kind": "pixel8"}))
    with pytest.raises(UsageError, match="bounds nothing"):
        row.check(MethodSettings(method="preview", rho="0.04"))
    with pytest.raises(UnknownNameError, match="pixel8"):
        row.check(MethodSettings(method="preview", baseline={"kind": "pixel9"}))
    with pytest.raises(UnknownNameError, match="kind"):
        row.check(MethodSettings(method="preview", baseline={"form": "pixel8"}))
