"""Sealing: originals that named recipients get back by a private key; needs no torch.

A published folder holds them as standard encrypted Parquet in ``sealed/``, and their content key as age files in
``recipients/``; :func:`open_folder` opens them.
"""

from uge.sealing.age import Identity, Recipient, make_identity, parse_recipients, read_identity, unwrap, wrap
from uge.sealing.content_key import ContentKey
from uge.sealing.folder import SealedFolder, open_folder, sealed_record
from uge.sealing.record import RecipientRecord, SealedRecord, ShardRecord
from uge.sealing.shards import SealedRow, ShardReader, ShardWriter, pixels_sha256
from uge.sealing.writer import OWNER, Sealing, SealWriter

__all__ = [
    "OWNER",
    "ContentKey",
    "Identity",
    "Recipient",
    "RecipientRecord",
    "SealWriter",
    "SealedFolder",
    "SealedRecord",
    "SealedRow",
    "Sealing",
    "ShardReader",
    "ShardRecord",
    "ShardWriter",
    "make_identity",
    "open_folder",
    "parse_recipients",
    "pixels_sha256",
    "read_identity",
    "sealed_record",
    "unwrap",
    "wrap",
]
