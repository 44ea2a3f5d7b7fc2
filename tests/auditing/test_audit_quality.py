"""Visual quality from pairs: figures that are known beforehand."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uge.auditing.quality import Quality, radial, write_quality
from uge.errors import DataError
from uge.publishing.quality import ssim


def pairs(
    count: int = 12, classes: int = 3, *, kind: str = "class", side: int = 32, channels: int = 3
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Images of mid colours with noise that is the same per class, or new for every image."""
    for number in range(count):
        label = number % classes
        rng = np.random.default_rng(number)
        clean = rng.integers(60, 190, (side, side, channels)).astype(np.uint8)
        source = np.random.default_rng([label, 77]) if kind == "class" else rng
        noise = source.choice([-6, 6], (side, side, channels))
        yield label, clean, (clean.astype(int) + noise).astype(np.uint8)


def test_class_wise_noise_is_recognised(tmp_path: Path) -> None:
    found = write_quality(tmp_path, pairs(), ["a", "b", "c"])
    assert found == json.loads((tmp_path / "quality" / "quality.json").read_text())
    assert found is not None
    assert (found["images"], found["linf_levels"], found["skipped"]) == (12, 6, 0)
    assert found["psnr_db"] == pytest.approx(10 * np.log10(255**2 / 36), abs=1e-3)
    assert found["class_share"] == pytest.approx(1.0)
    assert [one["class"] for one in found["class_means"]] == ["a", "b", "c"]
    shown = np.asarray(Image.open(tmp_path / "quality" / "class-0001.png")).astype(int)
    noise = np.random.default_rng([1, 77]).choice([-6, 6], (32, 32, 3))
    assert np.array_equal(shown, 128 + 127 * np.sign(noise))


def test_noise_of_its_own_for_every_image_shares_what_chance_gives() -> None:
    quality = Quality(["a", "b"])
    quality.add(list(pairs(400, 2, kind="sample", side=16)))
    assert quality.shared() == pytest.approx(2 / 400, rel=0.2)


@pytest.mark.parametrize("cycles", [2, 5, 9])
def test_a_wave_is_found_at_its_frequency(tmp_path: Path, cycles: int) -> None:
    wave = np.rint(8 * np.cos(2 * np.pi * cycles * np.arange(32) / 32)).astype(int)
    clean = np.full((32, 32, 1), 128, np.uint8)
    published = (clean + wave[:, None]).astype(np.uint8)
    found = write_quality(tmp_path, [(0, clean, published)], ["only"])
    assert found is not None
    spectrum = found["spectrum"]
    assert spectrum["frequency"][int(np.argmax(spectrum["noise"]))] == pytest.approx(cycles / 32)
    picture = np.asarray(Image.open(tmp_path / "quality" / "spectrum.png"))
    brightest = {tuple(place) for place in np.argwhere(picture == 255).tolist()}
    assert brightest == {(16, 16 - cycles), (16, 16 + cycles)}  # It runs across.


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40))
def test_radial_average_of_a_flat_spectrum_is_flat(side: int) -> None:
    frequencies, power = radial(np.full((side, side), 3.0))
    assert power == pytest.approx([3.0] * (side // 2 + 1))
    assert frequencies[-1] <= 0.5


def test_sizes_and_channels_may_vary(tmp_path: Path) -> None:
    mixed = [*pairs(3, side=40), *pairs(2, side=24), *pairs(2, side=48, channels=1), *pairs(2, side=80, channels=4)]
    label, clean, _ = mixed[0]
    found = write_quality(tmp_path, [*mixed, (label, clean, clean[:10])], ["a", "b", "c"])
    assert found is not None
    assert (found["images"], found["skipped"], found["side"]) == (9, 1, 40)


def test_nothing_to_compare_writes_nothing(tmp_path: Path) -> None:
    assert write_quality(tmp_path, [], ["a"]) is None
    assert not (tmp_path / "quality").exists()


def test_equal_images_have_no_spectrum(tmp_path: Path) -> None:
    clean = np.full((8, 8, 3), 7, np.uint8)
    found = write_quality(tmp_path, [(0, clean, clean)], ["a"])
    assert found is not None
    assert (found["linf_levels"], found["psnr_db"], found["class_share"], found["spectrum"]) == (0, None, None, None)


def test_ssim_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uge.auditing.quality.SSIM_SAMPLE", 10)
    everything = list(pairs(100, kind="sample", side=8))
    quality = Quality(["a", "b", "c"])
    for first in range(0, 100, 7):
        quality.add(everything[first : first + 7])
    expected = [ssim(clean, published) for _, clean, published in everything[:: quality.stride]]
    assert quality.stride == 16
    assert quality.tally.ssims == expected


def test_unknown_label() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(DataError, match="label below 1, got 3"):
        Quality(["a"]).add([(3, image, image)])
