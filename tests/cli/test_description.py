"""uge inspect in words: what is there, and what to type next."""

from pathlib import Path

import numpy as np
import pytest
from command import run_uge
from PIL import Image


def save(path: Path, mode: str, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], *((len(mode),) if len(mode) > 1 else ()))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode).save(path)


def test_a_source_is_a_table_and_names_the_next_command(toy: Path) -> None:
    lines = run_uge("inspect", toy).out.splitlines()
    assert lines[0] == f"{toy}: image source"
    assert lines[1].split() == ["split", "images", "classes", "sizes", "colours"]
    assert lines[2].split() == ["train", "36", "3", "16x16", "RGB"]
    assert lines[-2] == "classes: cat 12, dog 12, owl 12"
    assert lines[-1] == f"next: uge protect {toy} OUT"


def test_mixed_sizes_and_modes_are_said(tmp_path: Path) -> None:
    for number, (mode, size) in enumerate([("RGB", (20, 30)), ("L", (16, 16)), ("RGBA", (16, 16))] * 2):
        save(tmp_path / "mixed" / "train" / "ab"[number % 2] / f"{number}.png", mode, size)
    text = run_uge("inspect", tmp_path / "mixed").out
    assert "gray, RGB, RGBA" in text
    assert "OUT --size 64 (sizes differ" in text


def test_a_hundred_classes_are_one_line(tmp_path: Path) -> None:
    for number in range(100):
        save(tmp_path / "many" / f"class-{number:03d}" / "0.png", "RGB", (8, 8))
    text = run_uge("inspect", tmp_path / "many").out
    assert text.count("\n") < 8
    assert "class-011 1 and 88 more" in text


@pytest.mark.parametrize("words", ["originals: sealed for owner", "licence: none named", "rights: The rights", "PSNR"])
def test_a_published_folder_is_told_in_words(words: str, finished: Path) -> None:
    text = run_uge("inspect", finished).out
    assert words in text
    assert "36 images of toy (train), parquet" in text


def test_folders_without_labels_say_what_takes_the_place_of_classes(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "loose" / f"{number}.png", "RGB", (16, 16))
    text = run_uge("inspect", tmp_path / "loose").out
    assert "no labels" in text
    assert "clusters of features take their place" in text
