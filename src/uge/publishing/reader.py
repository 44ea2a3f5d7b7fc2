"""The rows of a published folder as they lie on disk: encoded bytes, label and id, in the order of publication."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uge.errors import DataError
from uge.publishing.layout import INDEX_COLUMNS, table_schema
from uge.publishing.manifest import INDEX, FileRecord, Format, Manifest

ROWS = 64
Problem = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """One published image; ``where`` names it in messages, ``name`` is the file name that is stored with it."""

    where: str
    name: str
    data: bytes
    label: int
    id: str


def records(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> Iterator[Record]:
    """Every image in files that are as the manifest lists them.

    Args:
        folder: The published folder.
        manifest: Its manifest.
        sound: Paths of the files to read.
        problem: Takes one sentence per file or row that cannot be read.
    """
    return _READERS[manifest.format](folder, manifest, sound, problem)


def _parquet(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> Iterator[Record]:
    for file in manifest.files:
        if file.path in sound and file.path.endswith(".parquet"):
            try:
                yield from _shard(folder, manifest, file)
            except (pa.ArrowException, DataError, OSError, ValueError) as error:
                problem(f"{file.path}: {error}; publish again")


def _shard(folder: Path, manifest: Manifest, file: FileRecord) -> Iterator[Record]:
    with pq.ParquetFile(folder / file.path) as shard:
        _check_schema(shard.schema_arrow, manifest.classes)
        if shard.metadata.num_rows != file.count:
            raise DataError(f"holds {shard.metadata.num_rows} images instead of {file.count}")
        number = 0
        for batch in shard.iter_batches(batch_size=ROWS):
            for row in batch.to_pylist():
                image = row["image"] or {}
                name, data, label, id = image.get("path"), image.get("bytes"), row["label"], row["id"]
                if name is None or data is None or label is None or id is None:
                    raise DataError(f"row {number} lacks its image, path, label or id")
                yield Record(f"{file.path} row {number}", name, data, label, id)
                number += 1


def _check_schema(schema: pa.Schema, classes: tuple[str, ...]) -> None:
    wanted = table_schema(classes)
    if not schema.remove_metadata().equals(wanted.remove_metadata()):
        raise DataError(f"expected the columns {', '.join(wanted.names)} only, got {', '.join(schema.names)}")
    metadata = dict(schema.metadata or {})
    features = json.loads(metadata.pop(b"huggingface", b"null"))
    if metadata or features != json.loads(wanted.metadata[b"huggingface"]):
        raise DataError("its metadata does not hold the class names of manifest.json and nothing else")


def _imagefolder(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> Iterator[Record]:
    if INDEX not in sound:
        if all(file.path != INDEX for file in manifest.files):
            problem(f"{INDEX} is not listed in manifest.json; publish again")
        return
    folders = [f"train/{(manifest.class_folders or {}).get(name)}" for name in manifest.classes]
    waiting = Counter(file.path for file in manifest.files if file.path.startswith("train/"))
    try:
        with (folder / INDEX).open(newline="", encoding="utf-8") as handle:
            rows = csv.reader(handle)
            if tuple(next(rows, ())) != INDEX_COLUMNS:
                raise DataError(f"expected the columns {', '.join(INDEX_COLUMNS)}")
            for path, label, id in rows:
                waiting[path] -= 1
                if waiting[path] < 0:
                    raise DataError(f"names {path}, which manifest.json does not list or which came before")
                if not (label.isdecimal() and int(label) < len(folders)):
                    raise DataError(f"the label '{label}' of {path} is not one of 0..{len(folders) - 1}")
                if path.rpartition("/")[0] != folders[int(label)]:
                    problem(f"{path}: lies in another folder than that of its class in {INDEX}; publish again")
                if path in sound:
                    yield Record(path, path.rpartition("/")[2], (folder / path).read_bytes(), int(label), id)
    except (csv.Error, DataError, OSError, ValueError) as error:
        problem(f"{INDEX}: {error}; publish again")
        return
    for path in +waiting:
        problem(f"{path}: {INDEX} does not name it; publish again")


_READERS: dict[Format, Callable[[Path, Manifest, frozenset[str], Problem], Iterator[Record]]] = {
    "parquet": _parquet,
    "imagefolder": _imagefolder,
}
