"""Encrypted Parquet files of originals: written as a stream, read by row group.

The files are standard encrypted Parquet (Parquet Modular Encryption, AES_GCM_V1, one key for footer and columns,
encrypted footer) with the columns image, label, id and sha256. pyarrow, pandas, Polars and DuckDB open them by the file
key alone. Decryption properties cannot be pickled, so that a reader opens its file in the process that reads.
"""

import hashlib
import secrets
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.parquet import encryption

from uge.data.formats.parquet import check_sizes
from uge.data.images import Pixels, Strips, bytes_of
from uge.errors import DataError, IntegrityError
from uge.files import UnreadableError, file_sha256, open_regular, storage_errors
from uge.sealing.content_key import ContentKey
from uge.sealing.record import ShardRecord

SALT_BYTES = 16
GROUP_ROWS = 1_000
GROUP_BYTES = 4_000_000
LEAST_ROWS = 4
"""Images of a row group, at least, where the shard has as many: the length of a group is visible, that of one image in
it is not."""
MOST_BYTES = 256_000_000
SCHEMA = pa.schema({"image": pa.binary(), "label": pa.int64(), "id": pa.string(), "sha256": pa.binary()})
_PAGE_BYTES = 2**30
"""One page for a column of a row group: lengths of pages are visible, and a page of one image would show its length."""
_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False, "version": "2.6"}
_MAGIC = b"PARE"


class SealedRow(NamedTuple):
    """Original as it is sealed.

    Attributes:
        image: Encoded bytes of the original.
        label: Index of its class; -1 without labels.
        id: Sample id.
        sha256: Digest of the public pixels (:func:`pixels_sha256`); None where no public image exists.
    """

    image: bytes
    label: int
    id: str
    sha256: bytes | None


def pixels_sha256(pixels: Pixels | Strips) -> bytes:
    """Sha256 of height, width and channels (4 bytes each, big-endian) and the uint8 values of an image, row by row."""
    digest = hashlib.sha256(struct.pack(">III", *pixels.shape))
    for part in bytes_of(pixels):
        digest.update(part)
    return digest.digest()


class ShardWriter:
    """Writes one shard in row groups of about 4 MB; use it as a context manager.

    Every writer draws a salt, and with it a file key that no other writing has. AES-GCM gives its content away where
    one key meets one nonce twice, which a key by the shard's name and a nonce by the row's number would do as soon as
    a shard is made again.

    Args:
        folder: The published folder under way.
        path: Path of the shard in it.
        key: Content key.
        data_set: Id of the published folder.
        split: Split of the images.
        count: Number of images that will come.

    Raises:
        StorageError: The disk is full or read-only.
    """

    def __init__(self, folder: Path, path: str, key: ContentKey, data_set: str, *, split: str, count: int) -> None:
        self._file = folder / path
        self._path = path
        self._split = split
        self._count = count
        self._written = 0
        self._rows: list[SealedRow] = []
        self._bytes = 0
        self._salt = secrets.token_bytes(SALT_BYTES)
        properties = encryption.create_encryption_properties(key.file_key(data_set, path, self._salt))
        with storage_errors(self._file):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.open("wb").close()  # Arrow opens it itself, since it would copy what a file of Python takes.
            self._writer = pq.ParquetWriter(
                self._file, SCHEMA, encryption_properties=properties, data_page_size=_PAGE_BYTES, **_OPTIONS
            )

    def write(self, row: SealedRow) -> None:
        """Add one original.

        Raises:
            StorageError: The disk is full.
            ValueError: More come than were announced.
        """
        self._rows.append(row)
        self._bytes += len(row.image)
        left = self._count - self._written - len(self._rows)
        if left < 0:
            raise ValueError(f"{self._path} was announced with {self._count} rows, and more came")
        full = len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES
        # A last group of fewer rows would show the lengths of single images.
        apart = len(self._rows) >= LEAST_ROWS and (left >= LEAST_ROWS or not left)
        if (full and apart) or self._bytes >= MOST_BYTES:
            self._flush()

    def close(self) -> ShardRecord:
        """Finish the file; gives its claims for the manifest.

        Raises:
            StorageError: The disk is full.
            ValueError: Fewer rows came than were announced.
        """
        self._flush()
        with storage_errors(self._file):
            self._writer.close()
        if self._written != self._count:
            raise ValueError(f"{self._path} was announced with {self._count} rows, and {self._written} came")
        return ShardRecord(
            path=self._path,
            split=self._split,
            count=self._count,
            bytes=self._file.stat().st_size,
            sha256=file_sha256(self._file),
            salt=self._salt.hex(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self._file):
            self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        images, labels, ids, digests = zip(*self._rows, strict=True)
        columns = [pa.array(images, pa.binary()), pa.array(labels, pa.int64()), pa.array(ids, pa.string())]
        self._written += len(self._rows)
        self._rows.clear()
        self._bytes = 0
        del images
        group = pa.table([*columns, pa.array(digests, pa.binary())], schema=SCHEMA)
        del columns
        with storage_errors(self._file):
            self._writer.write_table(group, row_group_size=len(group))


class ShardReader:
    """Reads one shard by row group.

    Args:
        folder: The published folder.
        record: The shard's claims; its hash is compared before anything is opened.
        key: Content key.
        data_set: Id of the published folder.
        check_all: Where the hash differs, open all row groups at once to name the damaged one; False leaves that to
            :meth:`read`.

    Attributes:
        groups: Number of rows of each row group.

    Raises:
        IntegrityError: The shard is missing, not encrypted, another one, or damaged; the message names the shard, and
            the row group where that can be told.
    """

    def __init__(
        self, folder: Path, record: ShardRecord, key: ContentKey, data_set: str, *, check_all: bool = True
    ) -> None:
        self.path = record.path
        self._file = folder / record.path
        try:
            with open_regular(self._file) as handle:
                if handle.read(4) != _MAGIC:
                    raise self._fault("is not encrypted: another file lies in the place of the sealed one")
            same = file_sha256(self._file) == record.sha256
        except UnreadableError as error:
            raise self._fault(f"cannot be read: {error.reason}") from None
        self._properties = encryption.create_decryption_properties(
            key.file_key(data_set, record.path, bytes.fromhex(record.salt))
        )
        footer = "its footer cannot be opened: the shard is damaged, or another one lies in its place"
        with self._opening(footer):
            # A file of Python would be slower, and pre-buffering keeps every row group that was read.
            self._parquet = pq.ParquetFile(self._file, decryption_properties=self._properties, pre_buffer=False)
            metadata = self._parquet.metadata
            check_sizes(metadata, self._file)
        self.groups = tuple(metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
        if not same and check_all:
            self._name_damage()
        if self._parquet.schema_arrow.remove_metadata() != SCHEMA:
            raise self._fault(f"expected the columns {', '.join(SCHEMA.names)}, got {self._parquet.schema_arrow.names}")
        if sum(self.groups) != record.count:
            raise self._fault(f"holds {sum(self.groups)} rows instead of {record.count}")

    def read(self, group: int) -> list[SealedRow]:
        """Rows of one row group.

        Raises:
            IntegrityError: It is damaged, or a row is incomplete.
        """
        image, label, id, digest = (column.to_pylist() for column in self._columns(group, SCHEMA.names))
        if None in image or None in label or None in id:
            raise self._fault(f"row group {group} has a row without image, label or id")
        return list(map(SealedRow, image, label, id, digest))

    def column(self, name: str) -> list[Any]:
        """One column of all row groups, such as ``"label"``; images are not read for it.

        Raises:
            IntegrityError: A row group is damaged.
        """
        return [value for group in range(len(self.groups)) for value in self._columns(group, [name])[0].to_pylist()]

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()

    def _columns(self, group: int, names: Sequence[str]) -> list[Any]:
        with self._opening(f"row group {group} is damaged"):
            return list(self._parquet.read_row_group(group, columns=list(names), use_threads=False).columns)

    def _name_damage(self) -> None:
        for group in range(len(self.groups)):
            self.read(group)
        raise self._fault("has another sha256 than in manifest.json, though every row group can be opened")

    def _fault(self, sentence: str) -> IntegrityError:
        return IntegrityError([f"{self.path}: {sentence}; fetch the file again"])

    def _opening(self, sentence: str) -> "_Opening":
        return _Opening(lambda: self._fault(sentence))


class _Opening:
    """Turns what the library raises on damaged files into one sentence."""

    def __init__(self, fault: Callable[[], IntegrityError]) -> None:
        self._fault = fault

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, pa.ArrowException | OSError | ValueError | DataError | MemoryError | UnicodeError):
            raise self._fault() from error
