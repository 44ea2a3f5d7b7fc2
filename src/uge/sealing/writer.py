"""Originals sealed while a folder is published: shards, wrapped keys, and the record for the manifest."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uge.errors import UsageError, refuse
from uge.files import write_atomic
from uge.sealing.age import Recipient, wrap
from uge.sealing.content_key import ContentKey
from uge.sealing.record import RECIPIENT_NAME, RECIPIENTS, SEALED, RecipientRecord, SealedRecord, ShardRecord
from uge.sealing.shards import SealedRow, ShardWriter

OWNER = "owner"
"""Name of the owner among the recipients."""


@dataclass(frozen=True)
class Sealing:
    """Recipients of the originals of one publication.

    Attributes:
        recipients: Public keys by the name of their file, ``recipients/NAME.age``.
        keep_metadata: Seal files of images as they are, byte for byte.
        signer: Key of the owner, who signs the manifest; None signs nothing.
    """

    recipients: Mapping[str, Recipient]
    keep_metadata: bool = False
    signer: Ed25519PrivateKey | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        refuse({"expected at least one recipient, got none; give the owner's own key": not self.recipients})
        texts = [recipient.text for recipient in self.recipients.values()]
        if len(set(texts)) < len(texts):
            raise UsageError("the same public key was given twice; give each recipient once")


def recipient_name(text: str, recipient: Recipient) -> str:
    """Name of a recipient: that of its key's file, else the first digits of the key's fingerprint."""
    if Path(text).is_file():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name.split(".")[0]).strip("._-")
        if re.fullmatch(RECIPIENT_NAME, name):
            return name
    return f"key-{recipient.fingerprint[:8]}"


def wrapped(folder: Path, name: str, key: ContentKey, recipient: Recipient) -> RecipientRecord:
    """Write ``recipients/NAME.age`` in a folder; gives its claims.

    Raises:
        StorageError: The disk is full or read-only.
    """
    data = wrap(key, recipient)
    write_atomic(folder / RECIPIENTS / f"{name}.age", data)
    return RecipientRecord(kind=recipient.kind, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


class SealWriter:
    """Seals originals one after another, in shards; use it as a context manager.

    Every publication draws a content key and an id of its own. Shards that are added to a publication later have its
    key and id; no file key meets a nonce twice even so, since every writing of a shard draws a salt, and a file key
    follows from the content key, the shard's path and that salt (:class:`uge.sealing.shards.ShardWriter`).

    Args:
        folder: The published folder under way.
        split: Split of the images.
        count: Number of images that will come.
        rows_per_file: Images of a shard.
        stem: Start of the shards' names.
        key: Content key of the publication to which shards are added; a new one by default.
        data_set: Id of that publication; a new one by default.

    Attributes:
        key: The content key.
        data_set: Id of the published folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        split: str,
        count: int,
        rows_per_file: int,
        stem: str = "train",
        key: ContentKey | None = None,
        data_set: str | None = None,
    ) -> None:
        self.key = key or ContentKey.new()
        self.data_set = data_set or secrets.token_hex(16)
        self._folder = folder
        self._shards: list[ShardRecord] = []
        self._writer: ShardWriter | None = None
        self._done = self._count = 0
        self.begin(split, count, rows_per_file, stem)

    def begin(self, split: str, count: int, rows_per_file: int, stem: str) -> None:
        """Go on with another split, when all images of the one before have come; arguments as of the class.

        Raises:
            ValueError: Fewer images came than were announced.
        """
        self._check_done()
        self._split = split
        self._count = count
        self._rows_per_file = rows_per_file
        self._stem = stem
        self._done = 0

    def write(self, row: SealedRow) -> None:
        """Seal the next original.

        Raises:
            StorageError: The disk is full.
        """
        if self._writer is None:
            number = self._done // self._rows_per_file
            shards = -(-self._count // self._rows_per_file)
            self._writer = ShardWriter(
                self._folder,
                f"{SEALED}/{self._stem}-{number:05d}-of-{shards:05d}.parquet",
                self.key,
                self.data_set,
                split=self._split,
                count=min(self._rows_per_file, self._count - self._done),
            )
        self._writer.write(row)
        self._done += 1
        if self._done % self._rows_per_file == 0 or self._done == self._count:
            self._shards.append(self._writer.close())
            self._writer = None

    def shards(self) -> tuple[ShardRecord, ...]:
        """Claims of all shards, in order.

        Raises:
            ValueError: Fewer images came than were announced.
        """
        self._check_done()
        return tuple(self._shards)

    def finish(self, claims: Mapping[str, Any], sealing: Sealing) -> SealedRecord:
        """Wrap the content key to every recipient; gives the record for the manifest.

        Args:
            claims: The manifest as JSON values, without the record.
            sealing: Recipients.

        Raises:
            StorageError: The disk is full.
            ValueError: Fewer images came than were announced.
        """
        shards = self.shards()
        record = SealedRecord(
            data_set=self.data_set,
            commitment="0" * 64,
            mac="0" * 64,
            metadata="kept" if sealing.keep_metadata else "dropped",
            shards=shards,
            recipients={
                name: wrapped(self._folder, name, self.key, recipient) for name, recipient in sealing.recipients.items()
            },
        )
        return record.marked(self.key, claims)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)

    def _check_done(self) -> None:
        if self._done != self._count:
            raise ValueError(f"{self._count} originals were announced, and {self._done} came")
