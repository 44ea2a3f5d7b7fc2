"""Test vector: a folder that an earlier version sealed opens to the same bytes, by code that is not this package's.

``vector/`` holds a published folder of three images, the private key of its recipient, its content key, and the
originals. It is not to be made anew: folders that were published once must stay readable.
"""

import hashlib
import hmac
import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet.encryption import create_decryption_properties

import uge
from uge.data import load_images
from uge.data.pixels import decode
from uge.sealing import open_folder, read_identity

VECTOR = Path(__file__).parent / "vector"
PUBLISHED = VECTOR / "published"
ORIGINALS = [path.read_bytes() for path in sorted((VECTOR / "originals").iterdir())]
MANIFEST: dict[str, Any] = json.loads((PUBLISHED / "manifest.json").read_text())
SEALED = MANIFEST["sealed"]
CONTENT_KEY = (VECTOR / "content.key").read_bytes()


def derived(purpose: str, *inputs: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) of the content key, written out: extraction without salt, expansion of one block."""
    parts = [b"uge-sealed-1", purpose.encode(), *inputs]
    info = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return hmac.digest(hmac.digest(bytes(32), CONTENT_KEY, "sha256"), info + b"\1", "sha256")


@pytest.mark.parametrize("key", ["me.agekey", "content.key"])
def test_the_vector_opens(key: str) -> None:
    images = uge.open(PUBLISHED, key=VECTOR / key)
    assert (images.split, images.classes, images.labels.tolist()) == ("train", ("ape", "bee", "cat"), [0, 1, 2])
    assert list(images.ids) == ["ape/0.jpg", "bee/1.png", "cat/2.webp"]
    assert [images.encoded(index) for index in range(3)] == ORIGINALS
    for index, data in enumerate(ORIGINALS):
        assert np.array_equal(images.read(index), decode(data, "it"))
    copies = load_images(PUBLISHED)
    for index, row in enumerate(open_folder(PUBLISHED, read_identity(VECTOR / key)).rows()):
        pixels = copies.read(index)
        assert row.sha256 == hashlib.sha256(struct.pack(">III", *pixels.shape) + pixels.tobytes()).digest()


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the program age")
def test_age_gives_the_content_key() -> None:
    command = ["age", "-d", "-i", VECTOR / "me.agekey", PUBLISHED / "recipients" / "me.age"]
    assert subprocess.check_output(command) == CONTENT_KEY


def test_pyarrow_gives_the_originals_by_keys_that_are_derived_as_documented() -> None:
    rows = []
    for shard in SEALED["shards"]:
        inputs = (SEALED["data_set"].encode(), shard["path"].encode(), bytes.fromhex(shard["salt"]))
        opener = create_decryption_properties(derived("file", *inputs))
        rows += pq.read_table(PUBLISHED / shard["path"], decryption_properties=opener).to_pylist()
    assert [row["image"] for row in rows] == ORIGINALS
    assert [row["label"] for row in rows] == [0, 1, 2]


def test_commitment_and_mac_are_as_documented() -> None:
    data_set = SEALED["data_set"].encode()
    assert derived("commitment", data_set).hex() == SEALED["commitment"]
    claims = {name: MANIFEST[name] for name in ("split", "classes", "class_counts", "count")}
    record = {name: value for name, value in SEALED.items() if name not in ("mac", "recipients")}
    message = json.dumps({**claims, "sealed": record}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hmac.digest(derived("mac", data_set), message.encode(), "sha256").hex() == SEALED["mac"]
