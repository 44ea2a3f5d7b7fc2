"""Tar shards: the own library of the format reads them, with names of classes; the same bytes each time."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import uge
from uge.data.images import ImageSet
from uge.errors import UsageError
from uge.publishing import Manifest
from uge.publishing.verify import verify

Make = Callable[..., Manifest]


def test_the_library_of_the_format_reads_them(make: Make, images: ImageSet, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    make(images, format="webdataset", rows_per_file=4)
    shards = sorted(map(str, (tmp_path / "out" / "data").glob("*.tar")))
    assert len(shards) == 3
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    assert [row["json"]["id"] for row in rows] == images.ids
    assert [row["cls"] for row in rows] == images.labels.tolist()
    assert {row["webp"].shape for row in rows} == {images.read(0).shape}
    assert json.loads((tmp_path / "out" / "data" / "classes.json").read_text()) == list(images.classes)
    again = uge.load_images(tmp_path / "out")
    assert (again.ids, again.classes) == (images.ids, images.classes)


def test_equal_images_give_equal_bytes(make: Make, images: ImageSet, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(images, out=tmp_path / name, format="webdataset")
    first, second = (sorted((tmp_path / name / "data").iterdir()) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_shards_that_were_changed_by_hand_are_found(make: Make, images: ImageSet, tmp_path: Path) -> None:
    manifest = make(images, format="webdataset")
    (shard,) = (tmp_path / "out" / "data").glob("*.tar")
    with tarfile.open(shard, "a") as archive:
        archive.add(tmp_path / "out" / "README.md", "notes.txt")
    problems = verify(tmp_path / "out").problems
    assert len(problems) == 1
    assert "fetch the file again" in problems[0]
    assert manifest.format == "webdataset"


def test_images_without_labels_are_refused(make: Make, images: ImageSet, tmp_path: Path) -> None:
    unlabelled = ImageSet(**{**vars(images), "classes": (), "labels": images.labels * 0 - 1})
    with pytest.raises(UsageError, match="tar shards need labels"):
        make(unlabelled, format="webdataset")
    assert not (tmp_path / "out").exists()
