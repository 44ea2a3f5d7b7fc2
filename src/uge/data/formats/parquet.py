"""Parquet files in the layout of the Hugging Face hub, read through pyarrow by batches of rows."""

from __future__ import annotations

import bisect
import contextlib
import functools
import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uge.data.formats.base import (
    COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    Columns,
    Splits,
    UnlabelledError,
    by_split,
    choose_column,
    class_names,
    data_errors,
    image_set,
    label_values,
    no_labels,
    source_files,
)
from uge.data.formats.parquet_pages import Sizes, only_value
from uge.data.images import NO_LABEL, ImageSet, Pixels
from uge.data.pixels import decode
from uge.errors import DataError
from uge.files import LARGEST, Region

_BATCH_BYTES = 64 << 20
_KEPT_BATCHES = 2
_KEPT_FILES = 4
_MOST_PACKED = 500  # Bytes of a column per byte in the file.
_UNDOUBTED_ROWS = 1 << 20  # Rows that a file of any size may have.
_LONGEST = 4096  # Bytes of a label or an id.
_reading = functools.partial(data_errors, advice="fetch or write it again", kinds=(pa.ArrowException, OSError))


def splits(path: Path, classes: tuple[str, ...] | None = None) -> Splits | None:
    """Splits of a Parquet source, by the names of its files and folders; None where there is no Parquet file.

    Args:
        path: One file, or a folder with Parquet files in it, in ``data/`` or in ``train/``, ``test/`` ...
        classes: Class names from a manifest, which those in the files must equal; none where it has no labels.
    """
    groups = by_split(source_files(path, ".parquet", "data"), path)
    columns = COLUMNS.get()
    if classes is not None:  # A published folder has the columns of this project.
        columns = Columns(labels=columns.labels)
    return {split: functools.partial(_open, path, split, groups, classes or (), columns) for split in groups} or None


def _open(
    root: Path, split: str, groups: dict[str, list[Path]], classes: tuple[str, ...], columns: Columns
) -> ImageSet:
    shards = [_Shard.open(file, columns) for file in groups[split]]
    try:
        labels = {split: _labels(shards)}
    except UnlabelledError:
        if columns.labels:
            raise
        labels = {split: no_labels(sum(map(sum, (shard.groups for shard in shards))))}
    unlabelled = (labels[split] == NO_LABEL).all() and not columns.labels
    names = () if unlabelled else _agreed_names(shards, classes)
    if not names and not unlabelled:
        for other in groups.keys() - {split}:
            with contextlib.suppress(UnlabelledError):
                labels[other] = _labels([_Shard.open(file, columns) for file in groups[other]])
    with_ids = all(shard.has_ids for shard in shards)
    return image_set(
        root,
        split,
        labels[split],
        names or class_names(split, labels),
        ParquetReader(shards),
        ids=[str(value) for shard in shards for value in shard.column("id")] if with_ids else None,
    )


def _labels(shards: Sequence[_Shard]) -> NDArray[Any]:
    labels = [shard.labels() for shard in shards]
    kinds = {values.dtype.kind: shard.path for shard, values in zip(shards, labels, strict=True) if values.size}
    if len(kinds) > 1:  # Numbers and texts would make wrong classes together.
        first, second = kinds.values()
        raise DataError(f"{first} and {second} must both have numbers or both texts as labels; convert one")
    return np.concatenate(labels)


def _agreed_names(shards: Sequence[_Shard], given: tuple[str, ...]) -> tuple[str, ...]:
    # A label means something else where the order of names differs.
    named = {Path("manifest.json"): given} if given else {}
    named |= {shard.path: shard.classes for shard in shards if shard.classes}
    names = next(iter(named.values()), ())
    other = next((path for path, classes in named.items() if classes != names), None)
    if other:
        raise DataError(
            f"{other} has other class names than {next(iter(named))}, or another order; "
            "write all files with one list of classes"
        )
    return names


@dataclass(frozen=True)
class _Shard:
    """Columns and row groups of one file, from its footer."""

    path: Path
    image: str
    label: str | None
    has_ids: bool
    classes: tuple[str, ...]
    groups: tuple[int, ...]  # Rows of every row group.

    @classmethod
    def open(cls, path: Path, columns: Columns) -> _Shard:
        with _reading(f"cannot read Parquet file {path}"), pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            metadata = file.metadata
        check_sizes(metadata, path)
        label = None
        if columns.label is not None or set(LABEL_COLUMNS) & set(schema.names):
            label = choose_column("label", schema.names, columns.label, LABEL_COLUMNS, str(path))
        elif columns.labels:
            listed = ", ".join(schema.names)
            raise UnlabelledError(
                f"{path} has no label column (expected one of {', '.join(LABEL_COLUMNS)}; there are: {listed}); "
                "rename the column, or name it by --label-column"
            )
        place = _image_place(schema, metadata.schema, path, columns.image)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return cls(
            path=path,
            image=metadata.schema.column(place).path,
            label=label,
            has_ids="id" in schema.names,
            classes=() if label is None else _class_names(schema, label, path),
            groups=tuple(group.num_rows for group in groups),
        )

    def labels(self) -> NDArray[Any]:
        if self.label is None:
            raise UnlabelledError(f"{self.path} has no label column")
        values = self.column(self.label)
        where = f"{self.path} (column '{self.label}')"
        missing = values.count(None)
        if values and missing == len(values):
            raise UnlabelledError(f"{where}: all labels are missing; label the images")
        if missing:
            raise DataError(f"{where}: {missing} labels are missing; remove these rows or label them")
        longest = max((len(value) for value in values if isinstance(value, str)), default=0)
        if 4 * longest * len(values) > LARGEST:  # NumPy gives each text the room of the longest.
            raise DataError(f"{where}: {len(values)} labels of up to {longest} characters are too many; number them")
        return label_values(values, where)

    def column(self, name: str) -> list[Any]:
        """Values of a column of labels or ids."""
        values: list[Any] = []
        with _reading(f"cannot read Parquet file {self.path}"), pq.ParquetFile(self.path) as file:
            for index in range(file.metadata.num_row_groups):
                count = min((_rows_at_once(self.path, part) for part in _columns(file, index, name)), default=1)
                for batch in file.iter_batches(count, row_groups=[index], columns=[name]):
                    part = batch.column(0)
                    texts = part.dictionary if pa.types.is_dictionary(part.type) else part
                    if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
                        longest = pc.max(pc.binary_length(texts)).as_py() or 0
                        if longest > _LONGEST:
                            raise DataError(
                                f"{self.path}: the column '{name}' has a text of {longest} bytes, where labels and "
                                f"ids have at most {_LONGEST}; shorten it"
                            )
                    values += part.to_pylist()
        return values


def check_sizes(metadata: Any, path: Path) -> None:
    """Refuse a file that would take far more memory than disk.

    Args:
        metadata: Its footer, as pyarrow reads it.
        path: Name of the file in the message.

    Raises:
        DataError: A column of a row group is large and packed more tightly than images and labels can be, or its
            values are too large for images.
    """
    if metadata.num_rows > max(_UNDOUBTED_ROWS, path.stat().st_size):
        raise DataError(
            f"{path} says that it has {metadata.num_rows:,} rows, out of all proportion; fetch it from another place"
        )
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    for column in (group.column(place) for group in groups for place in range(group.num_columns)):
        _check_size(path, column, column.total_uncompressed_size)


def _check_size(path: Path, column: Any, size: int) -> None:
    most = min(max(_BATCH_BYTES, _MOST_PACKED * column.total_compressed_size), LARGEST * max(column.num_values, 1))
    if size > most:
        raise DataError(
            f"{path} says that its column '{column.path_in_schema}' has {size:,} bytes in a row group, out of all "
            "proportion; fetch it from another place"
        )


def _columns(file: pq.ParquetFile, index: int, name: str) -> list[Any]:
    """Metadata of the leaves of a column in a row group."""
    group = file.metadata.row_group(index)
    leaves = [group.column(place) for place in range(group.num_columns)]
    return [leaf for leaf in leaves if leaf.path_in_schema.split(".")[0] == name or leaf.path_in_schema == name]


def _rows_at_once(path: Path, column: Any) -> int:
    """Rows of a row group that can be read together, by the headers of the pages; the footer may say less.

    Raises:
        DataError: The pages are damaged, or larger than they can be.
    """
    with data_errors(f"the pages of {path} cannot be read", "fetch or write it again", (ValueError, OSError)):
        sizes = Sizes.of(path, column)
    _check_size(path, column, sizes.unpacked)
    rows: int = max(1, column.num_values)
    at_once = max(1, rows * _BATCH_BYTES // max(sizes.unpacked, 1))
    return min(rows, at_once, max(1, LARGEST // sizes.shared) if sizes.shared else rows)


class ParquetReader:
    """Reads encoded images by batches of at most one row group, and of about 64 MiB at most.

    Only the last few batches stay in memory. Reading rows in order reads every batch once; a row
    in a distant part of a very large row group is reached by skipping through that group. Threads
    may share a reader; a pickled reader opens its files anew.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = list(shards)
        self._groups = [(shard, index) for shard in shards for index in range(len(shard.groups))]
        self._starts = np.cumsum([0, *(rows for shard in shards for rows in shard.groups)]).tolist()
        self._lock = threading.Lock()
        # First row and encoded images of a batch.
        self._batches: deque[tuple[int, Any]] = deque(maxlen=_KEPT_BATCHES)
        # A buffered stream: pages are read one after another, not a whole column chunk at once.
        self._file = functools.lru_cache(_KEPT_FILES)(functools.partial(pq.ParquetFile, buffer_size=1 << 20))
        self._group = -1
        self._rest: Iterator[tuple[int, Any]] = iter(())

    def __reduce__(self) -> tuple[type[ParquetReader], tuple[list[_Shard]]]:
        return ParquetReader, (self._shards,)

    def read(self, row: int) -> Pixels:
        """Image ``row``, counted over all shards."""
        return decode(*self._image(row))

    def encoded(self, row: int) -> bytes:
        """Encoded image ``row``, counted over all shards."""
        return self._image(row)[0][:]

    def _image(self, row: int) -> tuple[bytes | Region, str]:
        """Encoded image and its name in messages."""
        group = bisect.bisect_right(self._starts, row) - 1
        shard, index = self._groups[group]
        name = f"{row - self._starts[group - index]} of {shard.path}"
        with self._lock, _reading(f"cannot read Parquet file {shard.path}"):
            data = self._alone(shard, index)
            if data is None:
                start, values = self._batch(row, group)
                data = values[row - start].as_py()
        if data is None:
            raise DataError(f"image {name} has no bytes, only a path perhaps; embed the images in the Parquet file")
        return data, name

    def _alone(self, shard: _Shard, index: int) -> Any:
        """Bytes of an image that is a row group of its own, in the file; Arrow would copy a large one three times."""
        if shard.groups[index] > 1:
            return None
        return only_value(shard.path, _columns(self._file(shard.path), index, shard.image)[0])

    def _batch(self, row: int, group: int) -> tuple[int, Any]:
        for start, values in self._batches:
            if start <= row < start + len(values):
                return start, values
        if group != self._group or not self._batches or row < self._batches[-1][0]:
            self._group = group
            self._rest = self._iterate(group)
        for start, values in self._rest:
            if row < start + len(values):
                self._batches.append((start, values))
                return start, values
        raise DataError(f"row {row} is missing in {self._groups[group][0].path}; the file has changed, load it anew")

    def _iterate(self, group: int) -> Iterator[tuple[int, Any]]:
        shard, index = self._groups[group]
        file = self._file(shard.path)
        column = _columns(file, index, shard.image)[0]
        count = _rows_at_once(shard.path, column)
        start = self._starts[group]
        for batch in file.iter_batches(count, row_groups=[index], columns=[shard.image]):
            values = batch.column(0)
            values = values.field(0) if pa.types.is_struct(values.type) else values
            yield start, values
            start += len(values)


def _class_names(schema: Any, label: str, path: Path) -> tuple[str, ...]:
    raw = (schema.metadata or {}).get(b"huggingface")
    what = f"the 'huggingface' metadata of {path} is no JSON with features"
    with data_errors(what, "write the file again", (ValueError, KeyError, TypeError)):
        features = json.loads(raw)["info"]["features"] if raw else {}
    feature = features.get(label) if isinstance(features, dict) else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _image_place(schema: Any, leaves: Any, path: Path, given: str | None) -> int:
    name = choose_column("image", schema.names, given, IMAGE_COLUMNS, str(path))
    columns = [leaves.column(place) for place in range(len(leaves))]
    # Places of columns of plain bytes, by their paths.
    places = {
        column.path: place
        for place, column in enumerate(columns)
        if (column.physical_type, column.logical_type.type) == ("BYTE_ARRAY", "NONE")
    }
    place = places.get(f"{name}.bytes", places.get(name))
    if place is None:
        raise DataError(
            f"column '{name}' of {path} must hold encoded images as bytes, got {schema.field(name).type}; "
            "write PNG bytes into it"
        )
    return place
