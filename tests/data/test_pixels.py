from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encode, picture
from numpy.typing import NDArray
from PIL import Image

from uge.data import images as images_module
from uge.data import pixels as module
from uge.data.images import Pixels
from uge.data.pixels import decode, is_image_name, resize, to_channels
from uge.errors import DataError, UsageError


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.integers(1, 4),
    form=st.sampled_from(["PNG", "TIFF", "WEBP", "BMP"]),
)
def test_lossless_formats_come_back_as_they_were(height: int, width: int, channels: int, form: str) -> None:
    pixels = picture(height * 100 + width, height, width, channels)
    if form == "WEBP":
        pixels = picture(height * 100 + width, height, width, 3)
    if form == "BMP" and channels in (2, 4):
        pixels = pixels[:, :, : channels - 1]
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode(encode(pixels, form, **options), "x"), pixels)


def test_exif_orientation_is_applied() -> None:
    pixels = picture(0, 4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    data = saved(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(decode(data, "x"), np.rot90(pixels, -1))


def test_damaged_exif_loses_no_image() -> None:
    pixels = picture(0)
    assert np.array_equal(decode(saved(Image.fromarray(pixels), exif=b"Exif\x00\x00rubbish"), "x"), pixels)


def test_palette_becomes_rgb_or_rgba() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert decode(saved(image), "x").tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert decode(saved(image, transparency=1), "x").tolist() == [[[255, 0, 0, 255], [0, 0, 255, 0]]]


def test_transparent_colour_becomes_alpha() -> None:
    assert decode(saved(Image.new("L", (1, 1), 7), transparency=7), "x").tolist() == [[[7, 0]]]
    assert decode(saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), "x").tolist() == [[[1, 2, 3, 0]]]


def test_one_bit_cmyk_and_animation() -> None:
    assert decode(saved(Image.new("1", (1, 1), 1)), "x").tolist() == [[[255]]]
    assert decode(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), "x").shape == (8, 8, 3)
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    first = decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert first[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    module._warn_once.cache_clear()
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = saved(Image.fromarray(values))
    with caplog.at_level(logging.WARNING):
        assert decode(data, "x")[0, :, 0].tolist() == [0, 1, 128, 255]
        decode(data, "y")
    assert len(caplog.records) == 1
    assert "8 bits" in caplog.text


def test_float_tiff() -> None:
    fine = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert decode(saved(fine, "TIFF"), "x")[0, :, 0].tolist() == [0, 128, 255]
    for bad in (np.nan, -0.5, 200.0):
        broken = Image.fromarray(np.array([[0.0, bad]], dtype=np.float32))
        with pytest.raises(DataError, match=r"image x has values.*convert"):
            decode(saved(broken, "TIFF"), "x")


@pytest.mark.parametrize("data", [b"", b"no image", encode(picture(0, 64, 64))[:500]])
def test_damaged_images_are_named(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cannot decode image cat/1.png: .*; replace or remove it"):
        decode(data, "cat/1.png")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png: the file is gone"):
        decode(tmp_path / "gone.png", str(tmp_path / "gone.png"))


@pytest.mark.parametrize("limit", [63, 20])  # Pillow only warns at the first, refuses at the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    data = encode(picture(0, 8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match="decompression bomb"):
        decode(data, "x")


def test_formats_that_start_programs_are_not_opened() -> None:
    with pytest.raises(DataError, match="is no PNG"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), form=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]))
def test_any_damage_gives_pixels_or_a_data_error(place: int, value: int, form: str) -> None:
    data = bytearray(encode(picture(1, 16, 16), form))
    data[place % len(data)] = value
    try:
        pixels = decode(bytes(data), "x")
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3


def test_image_names() -> None:
    assert is_image_name("a.JPG")
    assert not any(map(is_image_name, [".a.png", "Thumbs.db", "png", "a.txt"]))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 4), size=st.sampled_from([1, 8, 33])
)
def test_resize_gives_the_size_and_keeps_flat_images(height: int, width: int, channels: int, size: int) -> None:
    flat = np.full((height, width, channels), 255, dtype=np.uint8)
    assert np.array_equal(resize(flat, size), np.full((size, size, channels), 255, dtype=np.uint8))


def test_resize_takes_the_centre_and_averages() -> None:
    pixels = np.zeros((4, 8, 1), dtype=np.uint8)
    pixels[:, 2:6] = 200
    assert np.array_equal(resize(pixels, 4), np.full((4, 4, 1), 200, dtype=np.uint8))
    stripes = np.tile(np.array([0, 200], dtype=np.uint8), (8, 4))[:, :, None]
    assert abs(int(resize(stripes, 2)[0, 0, 0]) - 100) < 15  # antialiased, not one stripe picked
    assert resize(pixels[:, :4], 4).base is pixels
    with pytest.raises(UsageError, match="at least 1"):
        resize(pixels, 0)


def test_resize_does_not_bleed_hidden_colours() -> None:
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0] = [255, 0, 0, 255]
    pixels[1] = [0, 255, 0, 0]
    assert resize(pixels, 1)[0, 0, :2].tolist() == [255, 0]


def test_to_channels() -> None:
    colours = np.array([[[255, 255, 255, 0], [255, 0, 0, 9], [0, 0, 0, 255], [12, 200, 31, 255]]], dtype=np.uint8)
    assert np.array_equal(to_channels(colours, 3), colours[..., :3])
    as_pillow = np.asarray(Image.fromarray(colours[..., :3]).convert("L"))
    assert np.array_equal(to_channels(colours, 1)[..., 0], as_pillow)
    gray = picture(0, 3, 3, 2)
    assert np.array_equal(to_channels(gray, 1), gray[..., :1])
    assert np.array_equal(to_channels(gray, 3), np.repeat(gray[..., :1], 3, axis=2))
    batch = np.stack([colours, colours])
    assert to_channels(batch, 1).shape == (2, 1, 4, 1)
    with pytest.raises(UsageError, match=r"1 .gray. or 3"):
        to_channels(gray, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("channels", "form"), [(1, "PNG"), (2, "PNG"), (3, "PNG"), (4, "PNG"), (3, "JPEG")])
def test_a_large_image_is_decoded_like_a_small_one(
    orientation: int, channels: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(3, 20, 31, channels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    data = saved(image, form, exif=exif)
    small = decode(data, "x")
    monkeypatch.setattr(images_module, "LARGE", 1)
    large = decode(data, "x")
    assert large.shape == small.shape == ((20, 31, channels) if orientation < 5 else (31, 20, channels))
    assert np.array_equal(large, small)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(40, 40), (33, 90), (90, 33)])
@pytest.mark.parametrize("size", [1, 16, 33, 70])
def test_a_large_image_is_resized_like_a_small_one(
    channels: int, shape: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(5, *shape, channels)
    small = resize(pixels, size)
    monkeypatch.setattr(images_module, "LARGE", 1)
    monkeypatch.setattr(images_module, "_STRIP", 7 * shape[1])
    large = resize(pixels, size)
    # Pillow starts with the other direction where an image is high, and rounds to levels after each.
    assert np.abs(weighed(large) - weighed(small)).max() <= (2 if shape[0] > shape[1] else 0)


def weighed(pixels: Pixels) -> NDArray[np.float64]:
    """Colours times alpha, where there is any."""
    alpha = pixels[..., -1:] / 255 if pixels.shape[2] in (2, 4) else 1
    return np.asarray(pixels * alpha, float)
