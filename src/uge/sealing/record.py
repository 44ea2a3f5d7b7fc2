"""Claims of a manifest about sealed originals, and the message that their MAC covers. Needs no torch."""

import hmac
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from uge.data.formats.base import SEALED as SEALED
from uge.errors import IntegrityError
from uge.files import canonical_json
from uge.sealing.content_key import ContentKey

RECIPIENTS = "recipients"
SHARD_NAME = r"[a-z0-9]+(?:[._-][a-z0-9]+)*\.parquet"
RECIPIENT_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"
CLAIMS = ("split", "classes", "class_counts", "count")
"""Fields of the manifest around a record that decide what an opened row means."""
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Token = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
RecipientName = Annotated[str, Field(pattern=rf"^{RECIPIENT_NAME}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardRecord(_Strict):
    """Encrypted Parquet file of originals.

    Attributes:
        path: Its path in the published folder.
        split: Split of its images.
        count: Number of its images.
        bytes: Its size.
        sha256: Of its bytes, as they lie there encrypted.
        salt: Of its file key, 16 bytes in hexadecimal.
    """

    path: Annotated[str, Field(pattern=rf"^{SEALED}/{SHARD_NAME}$")]
    split: str
    count: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: _Digest
    salt: _Token


class RecipientRecord(_Strict):
    """Content key wrapped to one recipient, in ``recipients/NAME.age``.

    Attributes:
        kind: Kind of the recipient's key; ``"wrapped"`` where the program ``age`` wrapped it.
        bytes: Size of the file.
        sha256: Of its bytes.
    """

    kind: Literal["x25519", "ssh-ed25519", "wrapped"]
    bytes: int = Field(ge=1)
    sha256: _Digest


class SealedRecord(_Strict):
    """Sealed originals of a published folder (docs/sealed.md).

    Attributes:
        version: Version of the derivations.
        data_set: Id of the published folder, 16 random bytes in hexadecimal.
        commitment: Digest that belongs to the content key alone.
        mac: HMAC under the content key of :meth:`message`.
        metadata: ``"dropped"``, or ``"kept"`` where originals are whole files, byte for byte.
        shards: The encrypted files, those of a split in the order of its images.
        recipients: Wrapped content keys by name. The MAC leaves them out, so that a recipient can be added; the
            owner's signature covers them.
    """

    version: Literal[1] = 1
    data_set: _Token
    commitment: _Digest
    mac: _Digest
    metadata: Literal["dropped", "kept"]
    shards: Annotated[tuple[ShardRecord, ...], Field(min_length=1)]
    recipients: dict[RecipientName, RecipientRecord]

    def summary(self) -> dict[str, Any]:
        """Number of ``images`` by split, ``recipients`` with the kinds of their keys, and ``metadata``."""
        images: dict[str, int] = {}
        for shard in self.shards:
            images[shard.split] = images.get(shard.split, 0) + shard.count
        kinds = {name: recipient.kind for name, recipient in self.recipients.items()}
        return {"images": images, "recipients": kinds, "metadata": self.metadata}

    def files(self) -> list[tuple[str, str, int]]:
        """Path, sha256 and size of every sealed file: shards and wrapped keys."""
        keys = [(f"{RECIPIENTS}/{name}.age", each.sha256, each.bytes) for name, each in self.recipients.items()]
        return [*((shard.path, shard.sha256, shard.bytes) for shard in self.shards), *keys]

    def message(self, claims: Mapping[str, Any]) -> bytes:
        """Bytes that the MAC covers: everything here but the MAC and the recipients, and the manifest's ``CLAIMS``.

        Args:
            claims: The manifest as JSON values.
        """
        own = self.model_dump(mode="json", exclude={"mac", "recipients"})
        return canonical_json({"sealed": own, **{name: claims.get(name) for name in CLAIMS}}).encode()

    def marked(self, key: ContentKey, claims: Mapping[str, Any]) -> "SealedRecord":
        """Same record with commitment and MAC by a content key."""
        committed = self.model_copy(update={"commitment": key.commitment(self.data_set)})
        return committed.model_copy(update={"mac": key.mac(self.data_set, committed.message(claims))})

    def check(self, key: ContentKey, claims: Mapping[str, Any]) -> None:
        """Do nothing where the content key and the claims are those that were sealed.

        Raises:
            IntegrityError: The key is that of another folder, or something that decides what a row means was changed.
        """
        if not hmac.compare_digest(key.commitment(self.data_set), self.commitment):
            raise IntegrityError(
                ["the content key is that of another folder (commitment in manifest.json); fetch the folder again"]
            )
        if not hmac.compare_digest(key.mac(self.data_set, self.message(claims)), self.mac):
            raise IntegrityError(
                [
                    "manifest.json: class names, counts, split, salts or shards are not those that were sealed; fetch "
                    "the folder again"
                ]
            )
