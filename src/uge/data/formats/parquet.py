"""Parquet files in the layout of the Hugging Face hub, read through pyarrow by batches of rows."""

from __future__ import annotations

import bisect
import functools
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from uge.data.decode import decode
from uge.data.formats.base import SPLIT_NAMES, Splits, by_split, class_names, encode_labels, label_values, row_ids
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

_IMAGE_COLUMNS = ("image", "img", "images")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "class")
_BATCH_BYTES = 64 << 20
_KEPT_BATCHES = 2
_KEPT_FILES = 4


def detect(path: Path) -> bool:
    """Whether the path is a Parquet file or a folder of them."""
    return path.suffix == ".parquet" if path.is_file() else bool(_files(path))


def splits(path: Path, classes: tuple[str, ...] | None = None) -> Splits:
    """The splits of a Parquet source.

    Args:
        path: One file, or a folder with Parquet files in it, in ``data/`` or in ``train/``, ``test/`` ...
        classes: Class names that take the place of those in the files.
    """
    groups = by_split([path], path.parent) if path.is_file() else by_split(_files(path), path)
    return {split: functools.partial(_open, path, split, groups, classes) for split in groups}


def _files(folder: Path) -> list[Path]:
    places = [folder, *(folder / name for name in ("data", *SPLIT_NAMES))]
    return [file for place in places if place.is_dir() for file in place.glob("*.parquet") if file.name[0] != "."]


def _open(root: Path, split: str, groups: dict[str, list[Path]], classes: tuple[str, ...] | None) -> ImageSet:
    shards = [_Shard.open(file) for file in groups[split]]
    values = _labels(shards)
    names = _names(shards, classes) or _names_from_labels(values, split, groups)
    ids = [name for shard in shards for name in shard.ids()] if all(shard.has_ids for shard in shards) else None
    return ImageSet(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        split=split,
        classes=names,
        labels=encode_labels(values, names, str(root)),
        ids=ids or row_ids(split, len(values)),
        reader=ParquetReader(shards),
        rows=np.arange(len(values), dtype=np.int64),
        root=root,
    )


def _names_from_labels(values: NDArray[Any], split: str, groups: dict[str, list[Path]]) -> tuple[str, ...]:
    labels = {
        name: values if name == split else _labels([_Shard.open(file) for file in files])
        for name, files in groups.items()
    }
    leading = next((name for name in ("train", "training") if name in labels), split)
    return class_names(labels[leading], labels.values())


def _labels(shards: Sequence[_Shard]) -> NDArray[Any]:
    """Labels of all shards; numbers and texts would make wrong classes together."""
    labels = [shard.labels() for shard in shards]
    kinds = {one.dtype.kind: shard.path for shard, one in zip(shards, labels, strict=True) if one.size}
    if len(kinds) > 1:
        first, second = kinds.values()
        raise DataError(f"{first} and {second} must both have numbers or both texts as labels; convert one")
    return np.concatenate(labels)


def _names(shards: Sequence[_Shard], given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The class names that all shards agree on; a label means something else where their order differs."""
    named = [(shard.path, shard.classes) for shard in shards if shard.classes]
    names = given or (named[0][1] if named else None)
    other = next((path for path, found in named if found != names), None)
    if other:
        first = "manifest.json" if given else named[0][0]
        raise DataError(
            f"{other} has other class names than {first}, or another order; write all files with one list of classes"
        )
    return names


@dataclass(frozen=True)
class _Shard:
    """One file's columns and row groups, from its footer."""

    path: Path
    image: str
    label: str
    has_ids: bool
    classes: tuple[str, ...] | None
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]

    @classmethod
    def open(cls, path: Path) -> _Shard:
        with _arrow_errors(path), pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        features = _features(schema, path)
        image = _image_column(schema, path)
        label = _column(schema, _LABEL_COLUMNS, "label", path)
        names = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
        return cls(
            path=path,
            image=image,
            label=label,
            has_ids="id" in schema.names,
            classes=tuple(str(name) for name in names) if isinstance(names, list) and names else None,
            group_rows=tuple(group.num_rows for group in groups),
            group_bytes=tuple(
                sum(
                    column.total_uncompressed_size
                    for column in (group.column(i) for i in range(group.num_columns))
                    if column.path_in_schema == image
                )
                for group in groups
            ),
        )

    def labels(self) -> NDArray[Any]:
        column = self._read(self.label)
        where = f"{self.path} (column '{self.label}')"
        if column.null_count:
            raise DataError(f"{where}: {column.null_count} labels are missing; remove these rows or label them")
        texts = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        return label_values(np.array(column.to_pylist(), dtype=np.str_) if texts else column.to_numpy(), where)

    def ids(self) -> list[str]:
        return [str(value) for value in self._read("id").to_pylist()]

    def _read(self, name: str) -> Any:
        with _arrow_errors(self.path):
            column = pq.read_table(self.path, columns=[name], partitioning=None).column(0)
            return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


@dataclass(frozen=True)
class _Batch:
    start: int
    stop: int
    values: Any


class ParquetReader:
    """Reads encoded images by batches of at most one row group, and of about 64 MiB at most.

    Only the last few batches stay in memory. Reading rows in order reads every batch once; a row
    in a distant part of a very large row group is reached by skipping through that group. Threads
    may share a reader; a forked or pickled reader opens its files anew.
    """

    def __init__(self, shards: Sequence[_Shard]) -> None:
        self._shards = list(shards)
        self._groups = [(shard, index) for shard in shards for index in range(len(shard.group_rows))]
        rows = [shard.group_rows[index] for shard, index in self._groups]
        self._starts = np.concatenate([[0], np.cumsum(rows)]).tolist()
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._batches: deque[_Batch] = deque(maxlen=_KEPT_BATCHES)
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._cursor: tuple[int, Iterator[_Batch]] | None = None
        self._next_row = 0

    def __getstate__(self) -> list[_Shard]:
        return self._shards

    def __setstate__(self, shards: list[_Shard]) -> None:
        self.__init__(shards)  # type: ignore[misc]

    def read(self, row: int) -> Pixels:
        """Image ``row``, counted over all shards."""
        group = bisect.bisect_right(self._starts, row) - 1
        shard, index = self._groups[group]
        name = f"{row - self._starts[group - index]} of {shard.path}"
        with self._lock, _arrow_errors(shard.path):
            batch = self._batch(row, group)
            data = batch.values[row - batch.start].as_py()
        if data is None:
            raise DataError(f"image {name} has no bytes, only a path perhaps; embed the images in the Parquet file")
        return decode(data, name)

    def _batch(self, row: int, group: int) -> _Batch:
        for batch in self._batches:
            if batch.start <= row < batch.stop:
                return batch
        if self._cursor is None or self._cursor[0] != group or self._next_row > row:
            self._cursor = (group, self._iterate(group))
        for batch in self._cursor[1]:
            self._next_row = batch.stop
            if row < batch.stop:
                self._batches.append(batch)
                return batch
        raise DataError(f"row {row} is missing in {self._groups[group][0].path}; the file has changed, load it anew")

    def _iterate(self, group: int) -> Iterator[_Batch]:
        shard, index = self._groups[group]
        rows, size = shard.group_rows[index], max(shard.group_bytes[index], 1)
        count = max(1, min(rows, rows * _BATCH_BYTES // size))
        start = self._starts[group]
        for batch in self._file(shard.path).iter_batches(count, row_groups=[index], columns=[shard.image]):
            values = batch.column(0)
            values = values.field(0) if pa.types.is_struct(values.type) else values
            yield _Batch(start, start + len(values), values)
            start += len(values)

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            # A buffered stream: pages are read one after another, not a whole column chunk at once.
            self._files[path] = pq.ParquetFile(path, buffer_size=1 << 20)
            if len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]


class _arrow_errors:  # noqa: N801 - reads as a function
    """Turns what pyarrow says of a damaged file into one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            raise DataError(f"cannot read Parquet file {self._path}: {error}; fetch or write it again") from error


def _features(schema: Any, path: Path) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(raw)["info"]["features"] if raw else {}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"the 'huggingface' metadata of {path} is no JSON with features; write the file again"
        ) from None
    return features if isinstance(features, dict) else {}


def _column(schema: Any, known: Sequence[str], what: str, path: Path) -> str:
    for name in known:
        if name in schema.names:
            return name
    raise DataError(
        f"{path} has no {what} column (expected one of {', '.join(known)}; "
        f"there are: {', '.join(schema.names)}); rename the column"
    )


def _image_column(schema: Any, path: Path) -> str:
    """The column to read: ``image`` for binary, ``image.bytes`` for a struct."""
    name = _column(schema, _IMAGE_COLUMNS, "image", path)
    kind = schema.field(name).type
    inner = kind
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, inner = f"{name}.bytes", kind.field("bytes").type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise DataError(
            f"column '{name}' of {path} must hold encoded images as bytes, got {kind}; write PNG bytes into it"
        )
    return name
