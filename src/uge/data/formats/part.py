"""Part of another source: a small file ``NAME.part.json`` that lists some of its images and their class names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from uge.data.formats.base import Columns, Splits, data_errors, read_columns
from uge.data.images import ImageSet
from uge.errors import DataError

SUFFIX = ".part.json"
Load = Callable[[str, str, int | None], ImageSet]


def splits(path: Path, load: Load) -> Splits | None:
    """Single split of a part, ``train``; None for what is no part.

    Args:
        path: File or folder.
        load: ``uge.data.load_images``, which opens the source that the part is of.

    Raises:
        DataError: The file is damaged, or does not name its source.
    """
    if not (path.is_file() and path.name.endswith(SUFFIX)):
        return None
    expected = f'{path} must hold {{"source": ..., "classes": [...], "rows": [...]}}'
    with data_errors(expected, "make the part again", (OSError, ValueError, KeyError, TypeError)):
        part = json.loads(path.read_bytes())
        source = str(part["source"])
    return {"train": lambda: _open(path, source, part, load)}


def _open(path: Path, source: str, part: dict[str, Any], load: Load) -> ImageSet:
    with read_columns(Columns(part.get("image_column"), part.get("label_column"))):
        images = load(source, "train", part.get("limit"))
    expected = part.get("images", len(images))
    if expected != len(images):
        raise DataError(f"{path} is a part of {expected} images, but {source} has {len(images)}; make the part again")
    if part.get("rows") is not None:
        rows = np.asarray(part["rows"])
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or not len(rows):
            raise DataError(f"'rows' in {path} must be a list of whole numbers; make the part again")
        if int(rows.min()) < 0 or int(rows.max()) >= len(images):
            raise DataError(f"'rows' in {path} must lie within 0..{len(images) - 1}; make the part again")
        images = images.subset(rows)
    return images.relabelled(part["classes"]) if part.get("classes") else images
