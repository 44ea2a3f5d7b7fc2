"""Large images are published and verified strip by strip: the same pixels, and a fraction of the memory."""

import functools
import io
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_sets import BUDGET, image_set, random_pixels

from uge.budget import Budget
from uge.data import images as images_module
from uge.data.codec import decode, decode_strips, encode, metadata_problem, storable
from uge.data.images import Pixels, Strips, whole
from uge.errors import DataError
from uge.files import Region
from uge.publishing import Manifest, Protected
from uge.publishing.verify import verify

SHAPE = (60, 90, 3)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "LARGE", 60 * 90 - 1)
    monkeypatch.setattr(images_module, "_STRIP", 7 * 90)


def smooth(height: int, width: int, channels: int) -> Pixels:
    rows = np.arange(height)[:, None, None] * 3 + np.arange(width)[:, None] + np.arange(channels) * 50
    return ((rows + random_pixels(1, (height, width, channels))[0] % 5) % 256).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_in_strips_holds_the_pixels(channels: int) -> None:
    pixels = smooth(60, 91, channels)
    region = encode(pixels, storable(pixels, "webp"))
    assert isinstance(region, Region)
    data = region[:]
    assert data == encode(Strips.of(pixels), "png")[:]
    assert np.array_equal(whole(decode_strips(region)), pixels)
    assert metadata_problem(data) is None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(pixels.shape), pixels)
    assert isinstance(decode_strips(data), Strips)
    assert np.array_equal(whole(decode_strips(data)), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_any_png_is_decoded_in_strips(channels: int, level: int) -> None:
    pixels = smooth(75, 90, channels)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(buffer, "PNG", compress_level=level)
    strips = list(decode_strips(buffer.getvalue()))
    assert [len(strip) for strip in strips] == [7] * 10 + [5]
    assert np.array_equal(np.concatenate(strips), decode(buffer.getvalue()))


def test_small_images_keep_their_bytes() -> None:
    pixels = smooth(59, 90, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    assert encode(pixels, "png") == buffer.getvalue()
    assert storable(pixels, "webp") == "webp"


@pytest.mark.parametrize("end", [20, 40, 200, -20])
def test_a_png_that_was_cut_off_is_no_image(end: int) -> None:
    data = encode(smooth(60, 90, 3), "png")
    with pytest.raises(DataError, match="cannot be decoded"):
        whole(decode_strips(data[:end]))


def in_strips(pixels: list[Pixels], levels: int = 10) -> Iterator[Protected]:
    for index, clean in enumerate(pixels):
        noise = np.random.default_rng(index).choice([-levels, levels], clean.shape)
        protected = (clean + noise).clip(0, 255).astype(np.uint8)
        large = images_module.is_large(clean.shape)
        yield index, *((Strips.of(clean), Strips.of(protected)) if large else (clean, protected))


@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_strips_are_published_and_verified(make: Callable[..., Manifest], tmp_path: Path, format: str) -> None:
    pixels = [smooth(60, 90, 3), smooth(20, 30, 3), smooth(60, 91, 3), smooth(91, 60, 3)]
    images = image_set(pixels)
    manifest = make(images, pairs=in_strips(pixels), format=format)
    assert manifest.codec == ("png" if format == "imagefolder" else "mixed")
    assert manifest.measured.linf_levels == 10
    result = verify(tmp_path / "out", against=images)
    assert (result.problems, result.measured) == ((), manifest.measured)
    assert verify(tmp_path / "out").ok


def test_strips_beyond_the_budget_are_refused(make: Callable[..., Manifest], tmp_path: Path) -> None:
    pixels = [smooth(60, 90, 3)] * 2
    with pytest.raises(DataError, match="changed by 11 levels"):
        make(image_set(pixels), pairs=in_strips(pixels, 11), budget=BUDGET)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_number_of_images(
    make: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images_module, "_STRIP", 2**11)
    side = 600
    size = side * side * 3

    class Made:
        """Makes an image anew for each reading."""

        def read(self, row: int) -> Pixels:
            rows = np.arange(side, dtype=np.uint8)
            return np.ascontiguousarray(np.broadcast_to((rows[:, None] + row)[..., None], (side, side, 3)))

    def protected(clean: Strips) -> Iterator[Pixels]:
        return (strip // 2 + 60 for strip in clean)

    def pairs(images: images_module.ImageSet) -> Iterator[Protected]:
        for index in range(len(images)):
            clean = Strips.of(images.read(index))
            yield index, clean, Strips(clean.shape, functools.partial(protected, clean))

    for module in ("uge.publishing.writer", "uge.publishing.verify"):
        # Every image is as large as a photograph that is ahead alone.
        monkeypatch.setattr(sys.modules[module], "_bytes_of", lambda _: 2**40)
    peaks = []
    for count in (2, 8):
        images = image_set([np.zeros((1, 1, 3), np.uint8)] * count, reader=Made())
        tracemalloc.start()
        make(images, out=tmp_path / str(count), pairs=pairs(images), codec="png", budget=Budget(1))
        publishing = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert verify(tmp_path / str(count), against=images).ok
        peaks.append((publishing, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    for few, many in zip(*peaks, strict=True):
        assert many < 5 * size  # Floats of the whole image would be 16 times as large.
        assert many < few + size / 2
