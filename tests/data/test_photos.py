from __future__ import annotations

import socket

import numpy as np
import pytest

from uge.data import load_images
from uge.data.formats import photos
from uge.errors import DataError


def covered(name: str, split: str) -> np.ndarray:
    mask = np.zeros(photos.photograph(name).shape[:2], dtype=bool)
    for top, left in photos.positions(name, split):
        mask[top : top + photos.SIZE, left : left + photos.SIZE] = True
    return mask


def test_size_and_order_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was used"))
    photos.photograph.cache_clear()
    train, test = load_images("photos").check_trainable(), load_images("photos", "test").check_trainable()
    assert (len(train), len(test), len(train.classes), train.classes) == (7000, 1000, 10, test.classes)
    assert (train.channels(), train.native_size(), train.root) == (3, 32, None)
    assert train.labels[:20].tolist() == [*range(10), *range(10)]  # any first part is a fair sample
    assert (train.ids[10], test.ids[10]) == ("train/00000010", "test/00000010")


@pytest.mark.parametrize("name", photos.PHOTOS)
def test_the_splits_share_no_pixel(name: str) -> None:
    assert not (covered(name, "train") & covered(name, "test")).any()


def test_no_patch_is_empty_and_none_comes_twice() -> None:
    for split in photos.COUNTS:
        patches = [sample.pixels for sample in load_images("photos", split)]
        assert min(patch.std(axis=(0, 1)).max() for patch in patches) > 8
        assert len({patch.tobytes() for patch in patches}) == len(patches)


def test_every_patch_is_toned_alike() -> None:
    patches = np.stack([load_images("photos").read(row) for row in range(200)]).astype(float)
    assert np.abs(patches.mean((1, 2)) - photos.MEAN).max() < 6  # Cutting off at black and white moves it a little.
    assert np.abs(patches.std((1, 2)) - photos.CONTRAST).max() < 12


def test_a_plain_channel_is_not_blown_up() -> None:
    patch = np.full((32, 32, 3), 90, np.uint8)
    patch[0, 0] = 91
    assert np.ptp(photos.toned(patch).astype(int)) <= 10


def test_colour_alone_tells_no_class() -> None:
    gray = [name for name in photos.PHOTOS if np.ptp(photos.photograph(name), axis=2).max() == 0]
    assert len(gray) == len(photos.PHOTOS) / 2


def test_patches_may_be_changed_by_their_user() -> None:
    images = load_images("photos")
    images.read(0)[:] = 0
    assert images.read(0).any()


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(photos.PHOTOS, "brick", ("gone.png", 1))
    photos.photograph.cache_clear()
    photos.positions.cache_clear()
    with pytest.raises(DataError, match=r"without its photograph gone\.png"):
        load_images("photos").read(0)
    photos.positions.cache_clear()
