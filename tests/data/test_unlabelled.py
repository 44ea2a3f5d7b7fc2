"""Sets without labels: read where they are allowed, refused elsewhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uge.data import load_images
from uge.errors import DataError

PIXELS = np.full((16, 16, 3), 90, np.uint8)


def tree(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS).save(root / name)
    return root


def test_images_of_a_flat_folder_come_sorted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path / "set", ["b.png", "a.png", ".hidden.png", "c.png"])
    (root / "notes.txt").write_text("no image")
    images = load_images(root, labels=False)
    assert (images.classes, images.labels.tolist(), list(images.ids)) == ((), [-1] * 3, ["a.png", "b.png", "c.png"])
    assert images.class_counts == ()
    assert "notes.txt" in caplog.text
    assert list(load_images(root, limit=2, labels=False).ids) == ["a.png", "b.png"]
    assert list(images.sample(2).ids) == ["a.png", "b.png"]
    with pytest.raises(DataError, match="no labels, which training needs"):
        images.check_trainable()


def test_split_folders_of_loose_images_are_splits(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", ["train/a.png", "train/b.png", "test/c.png"])
    assert list(load_images(root, labels=False).ids) == ["a.png", "b.png"]
    assert list(load_images(root, "test", labels=False).ids) == ["c.png"]


def test_class_folders_are_classes_as_ever(tmp_path: Path) -> None:
    root = tree(tmp_path / "set", ["cat/a.png", "dog/b.png"])
    assert load_images(root, labels=False).classes == ("cat", "dog")


@pytest.mark.parametrize("columns", [{}, {"label": [-1, -1]}, {"label": [None, None]}], ids=["none", "-1", "null"])
def test_tables_without_labels(columns: dict[str, list[int]], tmp_path: Path) -> None:
    png = (tree(tmp_path, ["a.png"]) / "a.png").read_bytes()
    image = pa.array([{"bytes": png, "path": None}] * 2)
    labels = {name: pa.array(values, pa.int64()) for name, values in columns.items()}
    pq.write_table(pa.table({"image": image, **labels}), tmp_path / "train.parquet")
    images = load_images(tmp_path / "train.parquet", labels=False)
    assert (images.classes, images.labels.tolist()) == ((), [-1, -1])
    assert np.array_equal(images.read(1), PIXELS)
    with pytest.raises(DataError):
        load_images(tmp_path / "train.parquet")


def test_a_flat_folder_is_refused_where_labels_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got images that lie in no class folder"):
        load_images(tree(tmp_path / "set", ["a.png", "b.png"]))
