import io
from pathlib import Path

import numpy as np
import pytest
from image_files import tree
from PIL import Image

from uge.data import load_images
from uge.data.depth import probed
from uge.data.pixels import _warn_once, decode
from uge.errors import DataError


def deep_folder(root: Path, tops: list[int]) -> Path:
    for number, top in enumerate(tops):
        values = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
        place = root / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(place)
    return root


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383])
def test_a_set_that_uses_a_part_of_16_bits_is_refused(tmp_path: Path, top: int) -> None:
    images = load_images(deep_folder(tmp_path, [top] * 4))
    with pytest.raises(DataError, match=r"images of more than 8 bits reach \d+ of 255 at most"):
        list(probed(images))


def test_one_bright_image_shows_the_range_of_all(tmp_path: Path) -> None:
    images = load_images(deep_folder(tmp_path, [4095] * 150 + [65535, 4095]))
    assert len(list(probed(images))) == 64


def test_bright_8_bit_images_do_not_hide_dark_ones_of_more_bits(tmp_path: Path) -> None:
    images = load_images(tree(deep_folder(tmp_path, [4095] * 4), ["a/plain.png", "b/plain.png"]))
    with pytest.raises(DataError, match="images of more than 8 bits reach 16 of 255"):
        list(probed(images))


@pytest.mark.parametrize(("scale", "refused"), [(1.0, False), (1 / 16, True), (1 / 255, True)])
def test_floats_that_were_scaled_twice_are_refused(tmp_path: Path, scale: float, refused: bool) -> None:
    values = np.random.default_rng(0).random((6, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=values * np.float32(scale), labels=[0, 1] * 3)
    images = load_images(tmp_path / "a.npz")
    if refused:
        with pytest.raises(DataError, match="scaled twice"):
            list(probed(images))
    else:
        assert len(list(probed(images))) == 6


def test_dark_8_bit_images_are_said_to_be_dark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", images=np.ones((6, 8, 8, 3), np.uint8), labels=[0, 1] * 3)
    list(probed(load_images(tmp_path / "a.npz")))
    assert "nearly black: the brightest value of the images looked at is 1 of 255" in caplog.text


@pytest.mark.parametrize("form", ["TIFF", "GIF"])
def test_further_pages_are_said_to_be_left_out(form: str, caplog: pytest.LogCaptureFixture) -> None:
    _warn_once.cache_clear()
    pages = [Image.new("L", (8, 8), level) for level in (200, 10)]
    buffer = io.BytesIO()
    pages[0].save(buffer, form, save_all=True, append_images=pages[1:])
    assert decode(buffer.getvalue(), "x").max() == 200
    assert f"some {form} files hold several images; the first of each is used" in caplog.text
