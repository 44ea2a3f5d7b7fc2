"""Data sets of the Hugging Face hub, through the library ``datasets``: ``owner/name[/config][@revision]``.

The library keeps what it fetched in its cache (``HF_HOME``) and maps it from disk; ``HF_HUB_OFFLINE=1`` works.
"""

import functools
from dataclasses import dataclass
from typing import Any

from uge import extras
from uge.data.formats.base import (
    COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Splits,
    UnlabelledError,
    choose_column,
    class_names,
    image_set,
    label_values,
    no_labels,
)
from uge.data.images import NO_LABEL, ImageSet, Pixels
from uge.data.pixels import decode
from uge.errors import DataError, UsageError
from uge.files import LARGEST, read_bytes


def splits(text: str) -> Splits:
    """Splits of a data set on the hub, which is fetched if it is not in the cache.

    Args:
        text: Id without the scheme: ``"owner/name/config@revision"``.

    Raises:
        MissingExtraError: The library ``datasets`` is not installed.
        UsageError: The id is malformed.
        DataError: The data set cannot be fetched.
    """
    repository, _, revision = text.partition("@")
    parts = repository.removeprefix("datasets/").strip("/").split("/")
    if not all(parts) or len(parts) > 3:
        raise UsageError(f"a hub id is hf://owner/name or hf://owner/name@revision, got 'hf://{text}'")
    library = extras.load("datasets", "hf", f"reading hf://{text}")
    try:
        tables = library.load_dataset("/".join(parts[:2]), *parts[2:], revision=revision or None)
    except Exception as error:  # Network, access, configuration: the library has no common base class.
        reason = (str(error).strip().splitlines() or [""])[0]
        raise DataError(
            f"cannot load hf://{text} ({type(error).__name__}: {reason}); check the id, the network and your access, "
            f"or download the Parquet files and give their folder"
        ) from error
    return {split: functools.partial(_open, library, parts[-1], tables, split) for split in tables}


def _open(library: Any, name: str, tables: Any, split: str) -> ImageSet:
    table = tables[split]
    names = list(table.features)
    columns = COLUMNS.get()
    pictures = [column for column in names if isinstance(table.features[column], library.Image)]
    if not pictures:
        raise DataError(f"{name} has no image column, there are: {', '.join(names)}; choose another set")
    image = choose_column("image", pictures, columns.image, IMAGE_COLUMNS, name, pictures)
    encoded = table.select_columns([image]).cast_column(image, library.Image(decode=False))
    reader = HubReader(encoded, image, name)
    ids = [str(value) for value in table["id"]] if "id" in table.features else None
    named = columns.label is not None or set(LABEL_COLUMNS) & set(names)
    if not columns.labels and not named:
        return image_set(name, split, no_labels(len(table)), (), reader, ids=ids)
    label = choose_column("label", names, columns.label, LABEL_COLUMNS, name)
    parts = [part for part in tables if label in tables[part].features]
    values = {part: list(tables[part][label]) for part in parts}
    if not columns.labels and set(values[split]) <= {None, NO_LABEL}:
        return image_set(name, split, no_labels(len(table)), (), reader, ids=ids)
    if set(values[split]) == {None}:
        raise UnlabelledError(f"{name} ({split}) has no labels in its column '{label}'; choose another split")
    labels = {
        part: label_values(values[part], f"{name} ({part})")
        for part in parts
        if part == split or None not in values[part]
    }
    return image_set(
        name,
        split,
        labels[split],
        getattr(table.features[label], "names", None) or class_names(split, labels),
        reader,
        ids=ids,
    )


@dataclass(frozen=True)
class HubReader:
    """Reads encoded images from a table that ``datasets`` maps from disk.

    Attributes:
        table: Table of the library.
        column: Its column of images.
        name: Name of the data set in an error.
    """

    table: Any
    column: str
    name: str

    def read(self, row: int) -> Pixels:
        """Image ``row`` of the split."""
        return decode(self.encoded(row), f"{row} of {self.name}")

    def encoded(self, row: int) -> bytes:
        """Encoded image ``row`` of the split."""
        image = self.table[row][self.column]
        data: bytes | None = image["bytes"]
        return read_bytes(image["path"], LARGEST) if data is None else data
