"""A folder that this project published: its manifest knows the class names, its index the ids."""

from __future__ import annotations

import csv
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from uge.data.formats import folder, parquet
from uge.data.formats.base import Splits
from uge.data.images import ImageSet
from uge.errors import DataError

MANIFEST = "manifest.json"
INDEX = "index.csv"


def detect(path: Path) -> bool:
    """Whether the path is a folder with a manifest of this project."""
    return path.is_dir() and _manifest(path) is not None


def splits(path: Path) -> Splits:
    """The one split of a published folder, or those of its Parquet files."""
    manifest = _manifest(path) or {}
    classes = tuple(str(name) for name in manifest["classes"])
    if manifest["format"] == "parquet":
        return parquet.splits(path, classes)
    if (path / INDEX).is_file():
        return {"train": lambda: _indexed(path, classes)}
    folders = manifest.get("class_folders") or {name: name for name in classes}
    labels = {folders[name]: label for label, name in enumerate(classes) if name in folders}
    return {"train": lambda: folder.open_classes(path, "train", path / "train", labels, classes)}


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(value, dict) and isinstance(value.get("classes"), list)
    return value if ours and value.get("format") in {"parquet", "imagefolder"} else None


def _indexed(root: Path, classes: tuple[str, ...]) -> ImageSet:
    paths, labels, ids = [], [], []
    with (root / INDEX).open(newline="", encoding="utf-8") as handle:
        rows = csv.DictReader(handle)
        try:
            for row in rows:
                paths.append(_inside(row["path"]))
                labels.append(int(row["label"]))
                ids.append(row["id"])
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise DataError(
                f"line {rows.line_num} of {root / INDEX} is no image path within the folder, label number and id "
                f"({error}); publish the folder again"
            ) from error
    return ImageSet(
        name=root.resolve().name,
        split="train",
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        ids=ids,
        reader=folder.FileReader(root, paths),
        rows=np.arange(len(paths), dtype=np.int64),
        root=root,
    )


def _inside(path: str) -> str:
    """The path, unless it leads out of the folder: published folders come from strangers."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.name:
        raise ValueError(f"bad path '{path}'")
    return path
