"""Folder that this project published: its manifest has the class names, its index the ids."""

import csv
from pathlib import Path, PurePosixPath

import numpy as np

from uge.data.formats import folder, parquet, webdataset
from uge.data.formats.base import COLUMNS, Splits, UnlabelledError, image_set
from uge.data.images import NO_LABEL, ImageSet
from uge.errors import DataError
from uge.files import LARGEST, read_json

MANIFEST = "manifest.json"


def splits(path: Path) -> Splits | None:
    """Single split of a published folder, or those of its Parquet files; None without a manifest of this project."""
    try:
        manifest = read_json(path / MANIFEST, LARGEST)
    except DataError:
        return None
    if not isinstance(manifest.get("classes"), list) or manifest.get("format") not in (
        "parquet",
        "imagefolder",
        "webdataset",
    ):
        return None
    classes = tuple(str(name) for name in manifest["classes"])
    if not classes and COLUMNS.get().labels:
        raise UnlabelledError(
            f"{path} was published without labels, which are needed here; label its images, or open the originals by "
            "uge.open and label these"
        )
    if manifest["format"] == "parquet":
        return parquet.splits(path, classes) or {}
    if manifest["format"] == "webdataset":
        return webdataset.splits(path, classes) or {}
    if (path / folder.INDEX).is_file():
        return {"train": lambda: _indexed(path, classes)}
    if not classes:
        return {"train": lambda: folder.open_unlabelled(path, "train", path / "train")}
    folders = manifest.get("class_folders") or {name: name for name in classes}
    labels = {folders[name]: label for label, name in enumerate(classes) if name in folders}
    return {"train": lambda: folder.open_classes(path, "train", path / "train", labels, classes)}


def _indexed(root: Path, classes: tuple[str, ...]) -> ImageSet:
    with (root / folder.INDEX).open(newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        try:
            images = [(_inside(row["path"]), int(row["label"]) if classes else NO_LABEL, row["id"]) for row in rows]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(
                f"line {rows.line_num} of {root / folder.INDEX} is no image path within the folder, label number and "
                f"id ({error}); publish the folder again"
            ) from error
    return image_set(
        root,
        "train",
        np.array([label for _, label, _ in images], dtype=np.int64),
        classes,
        folder.FileReader(root, [path for path, _, _ in images]),
        ids=[name for _, _, name in images],
    )


def _inside(path: str) -> str:
    # Published folders come from strangers: a path must not lead out of them.
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.name:
        raise ValueError(f"bad path '{path}'")
    return path
