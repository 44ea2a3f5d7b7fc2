"""Other libraries read the public part of a folder as before where sealed originals lie beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy_sets import BUDGET, image_set, protect, random_pixels

from uge.publishing import Provenance, publish
from uge.sealing import Sealing, make_identity

CLASSES = ("cat", "dog", "owl")
FORMATS = ["parquet", "imagefolder"]


@pytest.fixture
def both(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Publishes the same images twice: sealed, with test images that are only sealed, and unsealed."""

    def make(format: str) -> tuple[Path, Path]:
        images = image_set(random_pixels(12), CLASSES)
        test = image_set(random_pixels(6, seed=5), CLASSES, split="test", ids=[f"test/{i}" for i in range(6)])
        options = {"images": images, "budget": BUDGET, "provenance": Provenance(method="noise"), "format": format}
        sealing = {"sealing": Sealing({"me": make_identity(tmp_path / "me.agekey")}), "sealed_only": test}
        publish(protect(images), tmp_path / "sealed-copy", rows_per_file=5, **options, **sealing)
        publish(protect(images), tmp_path / "plain", rows_per_file=5, **options)
        return tmp_path / "sealed-copy", tmp_path / "plain"

    return make


def rows(table: Any) -> list[tuple[bytes, int]]:
    return [(np.asarray(row["image"]).tobytes(), row["label"]) for row in table]


@pytest.mark.parametrize("with_card", [True, False], ids=["card", "no card"])
@pytest.mark.parametrize("format", FORMATS)
def test_hugging_face_datasets_reads_the_public_images_alone(
    format: str,
    with_card: bool,
    both: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    tables = []
    for folder in both(format):
        if not with_card:
            (folder / "README.md").unlink()
        tables.append(datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache" / folder.name)))
    sealed, plain = tables
    assert list(sealed) == list(plain) == ["train"]
    assert sealed["train"].features == plain["train"].features
    assert rows(sealed["train"]) == rows(plain["train"])
    assert len(sealed["train"]) == 12


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_names_public_files_alone(format: str, both: Callable[[str], tuple[Path, Path]]) -> None:
    folder, plain = both(format)
    cards = [yaml.safe_load((place / "README.md").read_text().split("---\n")[1]) for place in (folder, plain)]
    assert cards[0]["configs"] == cards[1]["configs"]
    (files,) = cards[0]["configs"][0]["data_files"]
    assert files["path"].partition("/")[0] == {"parquet": "data", "imagefolder": "train"}[format]


def test_folders_of_classes_are_the_only_ones_beside_which_images_lie(both: Callable[[str], tuple[Path, Path]]) -> None:
    folder, _ = both("imagefolder")
    assert sorted(path.name for path in (folder / "train").iterdir()) == sorted(CLASSES)
