from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uge.data import has_split, load_images
from uge.errors import DataError

LABELS = np.array([0, 1, 1])


def images_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, compressed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 4),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    channels=st.integers(0, 4),
    first=st.booleans(),
    compressed=st.booleans(),
    floats=st.booleans(),
)
def test_every_layout_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    height: int,
    width: int,
    channels: int,
    first: bool,
    compressed: bool,
    floats: bool,
) -> None:
    pixels = images_of((count, height, width, max(channels, 1)))
    stored = pixels[..., 0] if channels == 0 else np.moveaxis(pixels, 3, 1) if first else pixels
    values = (stored / 255).astype(np.float32) if floats else stored
    path = write(tmp_path_factory.mktemp("npz") / "x.npz", compressed, images=values, labels=np.arange(count))
    images = load_images(path)
    assert images.classes == tuple(str(label) for label in range(count))
    for index, sample in enumerate(images):
        assert np.array_equal(sample.pixels, pixels[index])
        assert sample.pixels.flags.writeable


@pytest.mark.parametrize("form", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_splits_names_and_text_labels(tmp_path: Path, form: tuple[str, str]) -> None:
    pixels = images_of((3, 5, 5))
    arrays = {
        form[0].format("train"): pixels,
        form[1].format("train"): np.array([["b"], ["a"], ["b"]]),
        form[0].format("val"): pixels[:1],
        form[1].format("val"): np.array([["b"]]),
    }
    path = write(tmp_path / "set.npz", **arrays)
    train, test = load_images(path), load_images(path, "test")
    assert (train.name, train.classes, train.labels.tolist()) == ("set", ("a", "b"), [1, 0, 1])
    assert (test.labels.tolist(), test.ids) == ([1], ["val/00000000"])
    assert not has_split(write(tmp_path / "y.npz", x=pixels, y=LABELS), "test")
    named = write(tmp_path / "z.npz", x=pixels, y=LABELS, classes=np.array(["cat", "dog"]))
    assert load_images(named).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images_of((3, 5, 5))}, "needs arrays 'images' and 'labels'"),
        ({"images": images_of((3, 25)), "labels": LABELS}, r"must be N×H×W.*got \(3, 25\)"),
        ({"images": images_of((3, 3, 9, 3)), "labels": LABELS}, "first or last"),
        ({"images": images_of((3, 9, 9, 9)), "labels": LABELS}, "must be N×H×W"),
        ({"images": images_of((3, 0, 5)), "labels": LABELS}, r"must be N×H×W.*got \(3, 0, 5\)"),
        ({"images": images_of((2, 5, 5)), "labels": LABELS}, "2 images but 3 labels"),
        ({"images": np.full((3, 5, 5), np.nan), "labels": LABELS}, "values from nan"),
        ({"images": np.full((3, 5, 5), 200.0), "labels": LABELS}, "expected 0 to 1"),
        ({"images": np.full((3, 5, 5), 256), "labels": LABELS}, "expected 0 to 255"),
        ({"images": np.full((3, 5, 5), 1j), "labels": LABELS}, "got complex128"),
        ({"images": images_of((3, 5, 5)), "labels": LABELS / 2}, "one whole number or one text"),
        ({"images": images_of((3, 5, 5)), "labels": np.eye(3, dtype=int)}, "one whole number or one text"),
        ({"images": images_of((3, 5, 5)), "labels": LABELS - 1}, "label -1 is out of range"),
        ({"images": images_of((3, 5, 5)), "labels": np.array([0, "a", None], dtype=object)}, "allow_pickle=False"),
    ],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str, compressed: bool
) -> None:
    with pytest.raises(DataError, match=message):
        load_images(write(tmp_path / "x.npz", compressed, **arrays))


def test_a_nan_anywhere_is_found_when_it_is_read(tmp_path: Path) -> None:
    pixels = np.zeros((100, 5, 5), dtype=np.float32)
    pixels[1, 2, 3] = np.nan
    images = load_images(write(tmp_path / "x.npz", images=pixels, labels=np.arange(100) % 2))
    with pytest.raises(DataError, match=r"image 1 of .* has values from nan"):
        images.read(1)


def test_labels_and_class_names_stored_as_bytes(tmp_path: Path) -> None:
    texts = np.array([b"dog", b"cat", "ö".encode()])
    images = load_images(write(tmp_path / "b.npz", images=images_of((3, 8, 8, 3)), labels=texts))
    assert (images.classes, images.labels.tolist()) == (("cat", "dog", "ö"), [1, 0, 2])
    file = write(tmp_path / "a.npz", images=images_of((3, 8, 8, 3)), labels=LABELS, classes=np.array([b"cat", b"dog"]))
    assert load_images(file).classes == ("cat", "dog")


def test_a_label_far_above_the_number_of_images_is_refused(tmp_path: Path) -> None:
    for largest, fits in ((9_999, True), (10_000, False), (10**12, False)):
        file = write(tmp_path / "a.npz", images=images_of((3, 8, 8, 3)), labels=np.array([0, 1, largest]))
        if fits:
            assert len(load_images(file).classes) == 10_000
        else:
            with pytest.raises(DataError, match=f"the label {largest} of 3 images"):
                load_images(file)


@pytest.mark.parametrize("compressed", [True, False])
def test_pickles_inside_are_never_loaded(tmp_path: Path, compressed: bool) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    path = write(tmp_path / "x.npz", compressed, images=np.array([Evil()], dtype=object), labels=LABELS[:1])
    with pytest.raises(DataError):
        load_images(path)
    assert not (tmp_path / "touched").exists()


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", images=images_of((3, 50, 50)), labels=LABELS)
    images = load_images(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="ends before image 2"):
        images.read(2)
    with pytest.raises(DataError, match="is no NumPy archive"):
        load_images(path)


def test_stored_arrays_are_read_in_place(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", images=images_of((64, 200, 200)), labels=np.arange(64) % 2)
    tracemalloc.start()
    images = load_images(path)
    for _ in images:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # of 2,560,000
    assert np.array_equal(pickle.loads(pickle.dumps(images)).read(5), images.read(5))


def test_compressed_arrays_say_that_they_are_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_images(write(tmp_path / "x.npz", True, images=images_of((3, 5, 5)), labels=LABELS))
    assert "held in memory" in caplog.text
