"""The two forms of a published folder: Parquet shards, or one folder of images per class."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from uge.files import file_sha256
from uge.publishing.manifest import INDEX, FileRecord, Format

COLUMNS = ("image", "label", "id")
INDEX_COLUMNS = ("path", "label", "id")
SHARD_ROWS, SHARD_BYTES = 25_000, 100_000_000
GROUP_ROWS, GROUP_BYTES = 1_000, 16_000_000
RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)


class Sink(Protocol):
    """Takes encoded images in order; ``close`` finishes the files and lists them."""

    def add(self, name: str, data: bytes, label: int, id: str) -> None:
        """Store one image under a neutral file name."""

    def close(self) -> list[FileRecord]:
        """Finish and return every file written, with its digest."""

    def abandon(self) -> None:
        """Let go of open files, finished or not."""


def default_rows(raw_bytes: int) -> int:
    """Rows per shard for images of ``raw_bytes`` each: about 100 MB (stored at two thirds of raw), at most 25,000."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES * 3 // (2 * max(raw_bytes, 1))))


def class_folders(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for every class that every file system takes, distinct even where case does not count."""
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for name in classes:
        plain = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]', "_", unicodedata.normalize("NFC", name))
        plain = re.sub(r"^[.\s]+", "_", plain.encode()[:150].decode(errors="ignore")).rstrip(". ") or "class"
        base = folder = f"_{plain}" if RESERVED.match(plain) else plain
        number = 2
        while folder.casefold() in taken:
            folder, number = f"{base}-{number}", number + 1
        taken.add(folder.casefold())
        folders[name] = folder
    return folders


def table_schema(classes: Sequence[str]) -> pa.Schema:
    """Columns of a shard, with the metadata from which Hugging Face ``datasets`` knows images and class names."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "id": {"dtype": "string", "_type": "Value"},
    }
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("image", image), pa.field("label", pa.int64()), pa.field("id", pa.string())]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


class ParquetSink:
    """``data/train-00000-of-0000N.parquet``, written in row groups of about 16 MB."""

    def __init__(self, folder: Path, *, classes: Sequence[str], count: int, rows_per_file: int) -> None:
        self._folder, self._schema, self._rows_per_file = folder, table_schema(classes), rows_per_file
        self._shards = -(-count // rows_per_file)
        self._records: list[FileRecord] = []
        self._group: list[tuple[str, bytes, int, str]] = []
        self._group_bytes = self._rows = 0
        self._open: tuple[str, Any, pq.ParquetWriter] | None = None
        (folder / "data").mkdir()

    def abandon(self) -> None:
        """Let go of open files, finished or not."""
        if self._open is not None:
            self._open[1].close()

    def add(self, name: str, data: bytes, label: int, id: str) -> None:
        """Store one image in the current shard."""
        self._group.append((name, data, label, id))
        self._group_bytes += len(data)
        self._rows += 1
        full = self._rows == self._rows_per_file
        if full or len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._flush()
        if full:
            self._finish()

    def close(self) -> list[FileRecord]:
        """Finish the last shard."""
        if self._group:
            self._flush()
        if self._open is not None:
            self._finish()
        return self._records

    def _flush(self) -> None:
        if self._open is None:
            path = f"data/train-{len(self._records):05d}-of-{self._shards:05d}.parquet"
            handle = (self._folder / path).open("wb")
            # Fixed options: equal images give equal bytes. The images are compressed already.
            options = {"compression": "none", "use_dictionary": False, "write_statistics": False, "version": "2.6"}
            self._open = path, handle, pq.ParquetWriter(handle, self._schema, **options)
        names, datas, labels, ids = zip(*self._group, strict=True)
        kind = self._schema.field("image").type
        image = pa.StructArray.from_arrays([pa.array(datas, pa.binary()), pa.array(names)], fields=list(kind))
        self._open[2].write_table(pa.table([image, pa.array(labels, pa.int64()), pa.array(ids)], schema=self._schema))
        self._group, self._group_bytes = [], 0

    def _finish(self) -> None:
        assert self._open is not None
        path, handle, writer = self._open
        writer.close()
        handle.close()
        full = self._folder / path
        self._records.append(
            FileRecord(path=path, sha256=file_sha256(full), bytes=full.stat().st_size, count=self._rows)
        )
        self._open, self._rows = None, 0


class ImageFolderSink:
    """``train/CLASS/NAME`` and ``index.csv`` with path, label and id of every image in order."""

    def __init__(self, folder: Path, *, classes: Sequence[str], count: int, rows_per_file: int) -> None:
        self._folder = folder
        self._folders = [f"train/{name}" for name in class_folders(classes).values()]
        self._records: list[FileRecord] = []
        for name in self._folders:
            (folder / name).mkdir(parents=True)
        self._index = (folder / INDEX).open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._index, lineterminator="\n")
        self._rows.writerow(INDEX_COLUMNS)

    def abandon(self) -> None:
        """Let go of open files, finished or not."""
        self._index.close()

    def add(self, name: str, data: bytes, label: int, id: str) -> None:
        """Store one image in its class's folder."""
        path = f"{self._folders[label]}/{name}"
        (self._folder / path).write_bytes(data)
        self._rows.writerow((path, label, id))
        self._records.append(FileRecord(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)))

    def close(self) -> list[FileRecord]:
        """Finish the index."""
        self._index.close()
        index = self._folder / INDEX
        record = FileRecord(path=INDEX, sha256=file_sha256(index), bytes=index.stat().st_size, count=len(self._records))
        return [record, *self._records]


SINKS: dict[Format, Callable[..., Sink]] = {"parquet": ParquetSink, "imagefolder": ImageFolderSink}
