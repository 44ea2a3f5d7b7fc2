"""Data sets of the Hugging Face hub, through the library ``datasets``: ``owner/name[/config][@revision]``.

The library keeps what it fetched in its cache (``HF_HOME``) and maps it from disk; ``HF_HUB_OFFLINE=1`` works.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from uge.data.decode import decode
from uge.data.formats.base import Splits, class_names, encode_labels, label_values, row_ids
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, MissingExtraError, UsageError

_LABELS = ("label", "labels", "fine_label", "target", "class")


def splits(text: str) -> Splits:
    """The splits of a data set on the hub, fetched if they are not in the cache.

    Raises:
        MissingExtraError: The library ``datasets`` is not installed.
        UsageError: The id is malformed.
        DataError: The data set cannot be fetched.
    """
    repository, _, revision = text.partition("@")
    parts = repository.removeprefix("datasets/").strip("/").split("/")
    if not all(parts) or len(parts) > 3:
        raise UsageError(f"a hub id is hf://owner/name or hf://owner/name@revision, got 'hf://{text}'")
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtraError("datasets", "hf", f"reading hf://{text}") from None
    try:
        tables = library.load_dataset("/".join(parts[:2]), *parts[2:], revision=revision or None)
    except Exception as error:  # network, access, configuration: the library has no common base class
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"cannot load hf://{text} ({type(error).__name__}: {reason}); check the id, the network and your access, "
            f"or download the Parquet files and give their folder"
        ) from error
    return {split: functools.partial(_open, library, parts[-1], tables, split) for split in tables}


def _open(library: Any, name: str, tables: Any, split: str) -> ImageSet:
    table = tables[split]
    images = [column for column, feature in table.features.items() if isinstance(feature, library.Image)]
    label = next((column for column in _LABELS if column in table.features), None)
    if not images or label is None:
        columns = ", ".join(table.features)
        raise DataError(f"{name} needs an image column and a label column, there are: {columns}; choose another set")
    parts = [part for part in tables if label in tables[part].features]
    values = {part: label_values(list(tables[part][label]), f"{name} ({part})") for part in parts}
    names = getattr(table.features[label], "names", None)
    classes = tuple(names) if names else class_names(values.get("train", values[split]), values.values())
    encoded = table.select_columns(images[:1]).cast_column(images[0], library.Image(decode=False))
    return ImageSet(
        name=name,
        split=split,
        classes=classes,
        labels=encode_labels(values[split], classes, name),
        ids=[str(value) for value in table["id"]] if "id" in table.features else row_ids(split, len(table)),
        reader=HubReader(encoded, images[0], name),
        rows=np.arange(len(table), dtype=np.int64),
    )


class HubReader:
    """Reads encoded images from a table that ``datasets`` maps from disk."""

    def __init__(self, table: Any, column: str, name: str) -> None:
        self._table, self._column, self._name = table, column, name

    def read(self, row: int) -> Pixels:
        """Image ``row`` of the split."""
        image = self._table[row][self._column]
        data = image["bytes"]
        return decode(Path(image["path"]) if data is None else data, f"{row} of {self._name}")
