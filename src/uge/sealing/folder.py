"""Sealed originals of a published folder, opened by a private key."""

import bisect
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from uge.data.images import NO_LABEL
from uge.errors import DataError, IntegrityError, UsageError
from uge.files import JSON, LARGEST, UnreadableError, read_bytes, read_json, recover
from uge.sealing.age import LARGEST_KEY, Identity, unwrap
from uge.sealing.content_key import ContentKey
from uge.sealing.record import RECIPIENTS, SEALED, SealedRecord, ShardRecord
from uge.sealing.shards import SealedRow, ShardReader

MANIFEST = "manifest.json"
CACHE_BYTES = 256 * 2**20
"""Bytes of row groups that random access keeps open in a process."""


@dataclass(frozen=True)
class SealedFolder:
    """Originals of one split of a published folder, read by row group or by row.

    It can be pickled and used after a fork: every process opens the shards anew. Threads may share it.

    Attributes:
        folder: The published folder.
        record: Its claims about what is sealed, checked by the content key.
        classes: Class names; a label is an index into them. Empty where every label is -1.
        split: Split whose rows are read.
        key: Content key.
    """

    folder: Path
    record: SealedRecord
    classes: tuple[str, ...]
    split: str
    key: ContentKey
    _open: "_Shards" = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_open", _Shards(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return SealedFolder, (self.folder, self.record, self.classes, self.split, self.key)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that hold sealed images."""
        return tuple(dict.fromkeys(shard.split for shard in self.record.shards))

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """Shards of this split, in order."""
        return tuple(shard for shard in self.record.shards if shard.split == self.split)

    @property
    def count(self) -> int:
        """Number of originals."""
        return sum(shard.count for shard in self.shards)

    @property
    def groups(self) -> int:
        """Number of row groups of all shards.

        Raises:
            IntegrityError: A shard is damaged or another one.
        """
        return len(self._open.groups)

    def of(self, split: str) -> "SealedFolder":
        """Originals of another split of the folder.

        Raises:
            UsageError: It has no such split.
        """
        if split not in self.splits:
            raise UsageError(f"{self.folder} has no sealed split '{split}'; there are: {', '.join(self.splits)}")
        return replace(self, split=split)

    @property
    def labels_expected(self) -> str:
        """Range of the labels in words."""
        return f"0..{len(self.classes) - 1}" if self.classes else str(NO_LABEL)

    def has_label(self, label: int) -> bool:
        """True for the index of a class; without classes, for -1."""
        return 0 <= label < len(self.classes) if self.classes else label == NO_LABEL

    def rows(self, group: int | None = None) -> Iterator[SealedRow]:
        """Originals in order, one row group in memory at a time.

        Args:
            group: One row group, counted over all shards; all of them by default.

        Raises:
            IntegrityError: A shard or row group is damaged; the message names it.
        """
        for index in range(self.groups) if group is None else [group]:
            yield from self._open.read(index)

    def row(self, index: int) -> SealedRow:
        """Original by its number; the last row groups are kept, up to 256 MB.

        Raises:
            IndexError: There is no such row.
            IntegrityError: Its shard or row group is damaged.
        """
        return self._open.row(index)

    def labels(self) -> NDArray[np.int64]:
        """Labels of all originals, int64; no image is read for it.

        Raises:
            IntegrityError: A shard or row group is damaged, or a label is out of range.
        """
        labels = np.array(self._open.column("label"), dtype=np.int64)
        if labels.size and not (self.has_label(labels.min()) and self.has_label(labels.max())):
            raise IntegrityError([f"{self.folder}: a sealed label is not {self.labels_expected}; publish again"])
        return labels

    def ids(self) -> list[str]:
        """Sample ids of all originals; no image is read for it.

        Raises:
            IntegrityError: A shard or row group is damaged.
        """
        return [str(id) for id in self._open.column("id")]


class _Shards:
    """Readers and row groups of a folder that the process has open."""

    def __init__(self, sealed: SealedFolder) -> None:
        self._sealed = sealed
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._readers: list[ShardReader] = []
        self._groups: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._kept: OrderedDict[int, list[SealedRow]] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def _opened(self) -> list[ShardReader]:
        if self._process != os.getpid():  # After a fork: files and locks belong to the parent.
            self._forget()
        with self._lock:
            if not self._readers:
                sealed = self._sealed
                readers = [
                    ShardReader(sealed.folder, shard, sealed.key, sealed.record.data_set) for shard in sealed.shards
                ]
                groups = [(shard, group) for shard, reader in enumerate(readers) for group in range(len(reader.groups))]
                self._starts = [0, *accumulate(rows for reader in readers for rows in reader.groups)]
                self._groups = groups
                self._readers = readers
            return self._readers

    @property
    def groups(self) -> list[tuple[int, int]]:
        self._opened()
        return self._groups

    def column(self, name: str) -> list[Any]:
        readers = self._opened()
        with self._lock:
            return [value for reader in readers for value in reader.column(name)]

    def read(self, index: int) -> list[SealedRow]:
        shard, group = self.groups[index]
        with self._lock:
            return self._readers[shard].read(group)

    def row(self, index: int) -> SealedRow:
        if not 0 <= index < self._sealed.count:
            raise IndexError(f"row {index} is not one of the {self._sealed.count} originals")
        self._opened()
        group = bisect.bisect_right(self._starts, index) - 1
        with self._lock:
            rows = self._kept.pop(group, None)
            if rows is None:
                rows = self.read(group)
                self._sizes[group] = sum(len(row.image) for row in rows)
            self._kept[group] = rows
            while sum(self._sizes[kept] for kept in self._kept) > CACHE_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
            return rows[index - self._starts[group]]


def sealed_record(folder: Path) -> tuple[SealedRecord, JSON]:
    """Claims of a published folder about its sealed originals, and its whole manifest as JSON values.

    Raises:
        UsageError: Nothing is sealed in the folder.
        IntegrityError: The manifest is damaged, or says that nothing is sealed beside sealed files.
    """
    recover(folder)
    try:
        claims = read_json(folder / MANIFEST, LARGEST)
    except DataError as error:
        if not folder.is_dir() or not os.path.lexists(folder / MANIFEST):
            raise UsageError(f"{folder} is no published folder; a key opens folders that were published") from None
        raise IntegrityError([f"{error}"]) from None
    if claims.get("sealed") is None:
        if (folder / SEALED).exists() or (folder / RECIPIENTS).exists():
            raise IntegrityError(
                [f"{MANIFEST} says that nothing is sealed, but {folder} holds sealed files; fetch the folder again"]
            )
        raise UsageError(
            f"{folder} holds nothing sealed, so that a key opens nothing; leave --key out, or get a folder whose "
            "owner sealed the originals"
        )
    try:
        return SealedRecord.model_validate(claims["sealed"], strict=False), claims
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("sealed", *first["loc"])))
        raise IntegrityError([f"{MANIFEST} is invalid at {place}: {first['msg']}; fetch the folder again"]) from None


def open_folder(out: Path, identity: Identity) -> SealedFolder:
    """Sealed originals of a published folder, opened by a private key.

    Wrapped keys, content key and claims are checked here; shards when they are first read.

    Args:
        out: The published folder.
        identity: Private key of a recipient, or the content key; see :func:`uge.sealing.age.read_identity`.

    Raises:
        UsageError: Nothing is sealed in the folder, or the key is that of no recipient.
        IntegrityError: A wrapped key, the content key or the manifest is not that which was sealed.
    """
    record, claims = sealed_record(out)
    key = content_key(out, record, identity)
    record.check(key, claims)
    # Both are covered by the MAC, so that they are as they were written.
    return SealedFolder(out, record, tuple(claims["classes"]), str(claims["split"]), key)


def content_key(out: Path, record: SealedRecord, identity: Identity) -> ContentKey:
    """Content key of a published folder, unwrapped by a private key; not compared with its commitment yet.

    Raises:
        UsageError: The key is that of no recipient.
        IntegrityError: A recipient's file is missing, damaged, or another one.
    """
    if identity.kind == "content-key":
        return ContentKey(unwrap(b"", identity))
    faults = []
    for name, recipient in record.recipients.items():
        path = f"{RECIPIENTS}/{name}.age"
        try:
            data = read_bytes(out / path, LARGEST_KEY)
        except UnreadableError as error:
            faults.append(f"{path} cannot be read: {error.reason}")
            continue
        if hashlib.sha256(data).hexdigest() != recipient.sha256:
            faults.append(f"{path} is not the file that {MANIFEST} lists; fetch the folder again")
            continue
        try:
            return ContentKey(unwrap(data, identity))
        except UsageError:
            continue  # It is wrapped to another recipient.
        except DataError as error:
            faults.append(f"{path}: {error}")
    if faults:
        raise IntegrityError(faults)
    raise UsageError(
        f"the key opens none of the recipients' files of {out} ({', '.join(record.recipients) or 'there are none'}); "
        "give the private key of a recipient, or ask the owner for: uge grant"
    )
