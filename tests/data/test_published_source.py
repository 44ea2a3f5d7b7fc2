from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, parquet, picture, tree

from uge.data import load_images
from uge.errors import DataError

CLASSES = ["b/w", "colour"]


def manifest(root: Path, form: str, **more: object) -> Path:
    content = {"schema_version": 1, "classes": CLASSES, "format": form, "split": "train", "files": [], **more}
    (root / "manifest.json").write_text(json.dumps(content))
    return root


def test_parquet(tmp_path: Path) -> None:
    images = [encode(picture(seed)) for seed in range(2)]
    parquet(tmp_path / "data/train-00000-of-00001.parquet", images, [1, 0], id=["u/1", "u/0"])
    published = load_images(manifest(tmp_path, "parquet"))
    assert (published.classes, published.labels.tolist(), published.ids) == (("b/w", "colour"), [1, 0], ["u/1", "u/0"])


def test_imagefolder_with_index(tmp_path: Path) -> None:
    tree(tmp_path, ["train/b_w/0.png", "train/colour/1.png"])
    (tmp_path / "index.csv").write_text('path,label,id\ntrain/colour/1.png,1,"an id, quoted"\ntrain/b_w/0.png,0,x\n')
    published = load_images(manifest(tmp_path, "imagefolder", class_folders={"b/w": "b_w", "colour": "colour"}))
    assert (published.classes, published.labels.tolist()) == (("b/w", "colour"), [1, 0])
    assert list(published.ids) == ["an id, quoted", "x"]
    assert np.array_equal(published.read(0), picture(1))


def test_imagefolder_without_index(tmp_path: Path) -> None:
    tree(tmp_path, ["train/b_w/0.png", "train/colour/1.png"])
    published = load_images(manifest(tmp_path, "imagefolder", class_folders={"b/w": "b_w", "colour": "colour"}))
    assert (published.classes, list(published.ids)) == (("b/w", "colour"), ["b_w/0.png", "colour/1.png"])


@pytest.mark.parametrize(
    "line", ["/etc/x.png,0,a", "../x.png,0,a", "train/../../x.png,0,a", "a.png,cat,a", "a.png", ",0,a", "a\\b.png,0,a"]
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "index.csv").write_text(f"path,label,id\n{line}\n")
    with pytest.raises(DataError, match=r"line 2 of .*index\.csv"):
        load_images(manifest(tmp_path, "imagefolder"))


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": ["a"]}', '{"classes": 1, "format": "parquet"}'])
def test_another_manifest_is_no_published_folder(tmp_path: Path, content: str) -> None:
    root = tree(tmp_path, ["train/a/1.png", "train/b/2.png"])
    (root / "manifest.json").write_text(content)
    assert load_images(root).classes == ("a", "b")
