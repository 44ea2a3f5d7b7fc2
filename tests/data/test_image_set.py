from __future__ import annotations

import pkgutil
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import uge.data
from uge.data import ImageSet
from uge.errors import DataError, UsageError


@dataclass
class Rows:
    def read(self, row: int) -> np.ndarray:
        return np.full((2, 2, 3), row, dtype=np.uint8)


def make(labels: list[int], classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    count = len(labels)
    return ImageSet(
        name="set",
        split="train",
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        ids=[f"train/{row}" for row in range(count)],
        reader=Rows(),
        rows=np.arange(count, dtype=np.int64),
    )


def test_subsets_keep_pixels_labels_and_ids_together() -> None:
    images = make([0, 1, 0, 1]).subset([3, 0]).subset([0])
    (sample,) = images
    assert (sample.id, sample.label, sample.pixels[0, 0, 0]) == ("train/3", 1, 3)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), count=st.integers(1, 70))
def test_a_sample_gives_each_class_its_share(labels: list[int], count: int) -> None:
    images = make(labels, tuple("abcde"))
    part = images.sample(count)
    assert len(part) == min(count, len(labels))
    assert list(part.rows) == sorted(part.rows)
    for label in set(labels):
        assert abs(np.mean(part.labels == label) * len(part) - np.mean(images.labels == label) * len(part)) <= 1.5
        of_class = np.flatnonzero(images.labels == label)
        chosen = part.rows[part.labels == label]
        assert list(chosen) == list(of_class[: len(chosen)])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (make([]), "no image was found"),
        (make([0, 2]), "label 2 is out of range for 2 classes"),
        (make([0, -1]), "label -1 is out of range"),
        (make([0, 1], ("a", "a")), "both named 'a'"),
        (replace(make([0, 1]), ids=["x", "x"]), "ids repeat"),
    ],
)
def test_unsound_sets_are_refused(images: ImageSet, message: str) -> None:
    for check in (images.check, images.check_trainable):
        with pytest.raises(DataError, match=message):
            check()


@pytest.mark.parametrize(("labels", "message"), [([0, 0], "all images are of one class"), ([0, 0, 1], "has one image")])
def test_sets_that_teach_nothing_are_refused_for_training_only(labels: list[int], message: str) -> None:
    images = make(labels)
    assert images.check() is images
    with pytest.raises(DataError, match=message):
        images.check_trainable()
    with pytest.raises(UsageError, match="limit must be at least 1"):
        images.sample(0)


def test_reading_needs_no_torch() -> None:
    """Only what holds pixels as tensors imports torch: every format and the table of them do without."""
    modules = [
        module.name
        for module in pkgutil.walk_packages(uge.data.__path__, "uge.data.")
        if module.name not in ("uge.data.store", "uge.data.loader", "uge.data.augment", "uge.data.views")
    ]
    assert "uge.data.formats.parquet" in modules
    code = f"import sys, {', '.join(modules)}; uge.data.load_images('photos').read(0); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
