"""Encoded images of a set are the bytes that its source holds."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encode, parquet, picture

from uge.data import load_images
from uge.data.formats.hub import HubReader
from uge.data.pixels import decode
from uge.errors import DataError

IMAGES = [encode(picture(seed), form) for seed, form in enumerate(["PNG", "JPEG", "WEBP", "BMP"])]
LABELS = [0, 0, 1, 1]


def folder(root: Path) -> Path:
    for number, (data, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        path = root / "ab"[label] / f"{number}.{('png', 'jpg', 'webp', 'bmp')[number]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def shards(root: Path) -> Path:
    root.mkdir()
    with tarfile.open(root / "train-0.tar", "w") as archive:
        for number, (data, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            for name, content in ((f"{number}.png", data), (f"{number}.cls", str(label).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return root


@pytest.mark.parametrize(
    "make",
    [folder, shards, lambda root: parquet(root / "train.parquet", IMAGES, LABELS, rows=3)],
    ids=["folder", "tar shards", "Parquet"],
)
def test_encoded_images_are_the_sources_bytes_in_any_order(tmp_path: Path, make: object) -> None:
    images = load_images(make(tmp_path / "source"))  # type: ignore[operator]
    assert [images.encoded(index) for index in range(4)] == IMAGES
    some = images.subset([3, 0, 2])
    assert [some.encoded(index) for index in range(3)] == [IMAGES[3], IMAGES[0], IMAGES[2]]
    assert np.array_equal(decode(some.encoded(0) or b"", "it"), some.read(0))


def test_a_part_has_the_bytes_of_its_source(tmp_path: Path) -> None:
    source = folder(tmp_path / "source")
    part = tmp_path / "some.part.json"
    part.write_text(json.dumps({"source": str(source), "rows": [2, 1], "classes": ["a", "b"]}))
    images = load_images(part)
    assert [images.encoded(0), images.encoded(1)] == [IMAGES[2], IMAGES[1]]


def test_sets_of_the_hub_give_bytes_or_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(IMAGES[1])
    table = [{"image": {"bytes": IMAGES[0], "path": None}}, {"image": {"bytes": None, "path": str(path)}}]
    reader = HubReader(table, "image", "owner/name")
    assert [reader.encoded(0), reader.encoded(1)] == IMAGES[:2]


def test_arrays_have_no_encoded_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.stack([picture(seed) for seed in range(4)]), labels=LABELS)
    assert load_images(tmp_path / "set.npz").encoded(0) is None
    assert load_images("photos").encoded(0) is None


def test_a_file_that_went_away_is_named(tmp_path: Path) -> None:
    images = load_images(folder(tmp_path / "source"))
    (tmp_path / "source" / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be read: it is missing"):
        images.encoded(0)
