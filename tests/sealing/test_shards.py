"""Shards: written and read, standard for other programs, and damage that is named."""

import base64
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet import encryption
from toy_sealed import row

from uge.data.images import Strips
from uge.errors import IntegrityError
from uge.sealing import ContentKey, SealedRow, ShardReader, ShardWriter, pixels_sha256, shards

ID = "ab" * 16
PATH = "sealed/train-00000-of-00001.parquet"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ContentKey, object]]:
    """Writes a shard of three row groups."""
    monkeypatch.setattr(shards, "GROUP_ROWS", 4)

    def make(count: int = 13, key: ContentKey | None = None, folder: Path = tmp_path) -> tuple[ContentKey, object]:
        key = key or ContentKey.new()
        with ShardWriter(folder, PATH, key, ID, split="train", count=count) as writer:
            for number in range(count):
                writer.write(row(number))
            return key, writer.close()

    return make


def test_rows_come_back_by_row_group(tmp_path: Path, write: Callable) -> None:
    key, record = write()
    reader = ShardReader(tmp_path, record, key, ID)
    assert reader.groups == (4, 4, 5)
    rows = [each for group in range(3) for each in reader.read(group)]
    assert rows == [row(number) for number in range(13)]
    assert reader.column("label") == [each.label for each in rows]


def test_no_row_group_shows_the_length_of_a_single_image(tmp_path: Path, write: Callable) -> None:
    for count in range(4, 14):
        key, record = write(count)
        assert min(ShardReader(tmp_path, record, key, ID).groups) >= shards.LEAST_ROWS
    large = 3_000_000  # Larger than the pages that Arrow makes by itself.
    with ShardWriter(tmp_path, PATH, key, ID, split="train", count=8) as writer:
        for number in range(8):
            writer.write(SealedRow(bytes(large), 0, f"{number}", None))
        record = writer.close()
    lengths = modules(tmp_path / PATH)
    assert all(not large <= length < 2 * large for length in lengths), lengths
    assert max(lengths) > 4 * large


def modules(path: Path) -> list[int]:
    """Lengths of the encrypted modules of a file, which anybody can read."""
    data = path.read_bytes()
    at, lengths = 4, []
    while at < len(data) - 8:
        (length,) = struct.unpack_from("<I", data, at)
        if not length or at + 4 + length > len(data):
            break
        lengths.append(length)
        at += 4 + length
    return lengths


def test_equal_rows_never_have_one_key_or_one_nonce_twice(tmp_path: Path, write: Callable) -> None:
    key, first = write()
    one = (tmp_path / PATH).read_bytes()
    _, second = write(key=key)
    two = (tmp_path / PATH).read_bytes()
    assert first.salt != second.salt
    assert key.file_key(ID, PATH, bytes.fromhex(first.salt)) != key.file_key(ID, PATH, bytes.fromhex(second.salt))
    with pytest.raises(IntegrityError, match="footer cannot be opened"):  # Under the first key the second is noise.
        ShardReader(tmp_path, first, key, ID)
    differ = sum(a != b for a, b in zip(one, two, strict=False)) / min(len(one), len(two))
    assert differ > 0.95
    nonces = [data[at : at + 12] for data in (one, two) for at in starts(data)]
    assert len(set(nonces)) == len(nonces) > 20


def starts(data: bytes) -> list[int]:
    at, found = 4, []
    while at < len(data) - 8:
        (length,) = struct.unpack_from("<I", data, at)
        if not length or at + 4 + length > len(data):
            break
        found.append(at + 4)
        at += 4 + length
    return found


def test_the_key_alone_opens_a_shard_in_pyarrow_and_in_duckdb(tmp_path: Path, write: Callable) -> None:
    duckdb = pytest.importorskip("duckdb")
    key, record = write()
    secret = key.file_key(ID, PATH, bytes.fromhex(record.salt))
    table = pq.read_table(tmp_path / PATH, decryption_properties=encryption.create_decryption_properties(secret))
    assert table.column_names == ["image", "label", "id", "sha256"]
    assert table.to_pylist() == [row(number)._asdict() for number in range(13)]
    connection = duckdb.connect()
    connection.execute(f"PRAGMA add_parquet_key('shard', '{base64.b64encode(secret).decode()}')")
    found = connection.execute(
        f"SELECT image, label, id, sha256 FROM read_parquet('{tmp_path / PATH}', "
        "encryption_config = {footer_key: 'shard'})"
    ).fetchall()
    assert found == [tuple(row(number)) for number in range(13)]


def test_any_flipped_bit_is_found_and_named(tmp_path: Path, write: Callable) -> None:
    key, record = write()
    data = (tmp_path / PATH).read_bytes()
    random = np.random.default_rng(0)
    named = []
    for at in random.choice(len(data), 80, replace=False).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(random.integers(8))
        (tmp_path / PATH).write_bytes(changed)
        with pytest.raises(IntegrityError) as caught:
            ShardReader(tmp_path, record, key, ID)
        assert PATH in str(caught.value)
        named.append("row group" in str(caught.value) and int(str(caught.value).split("row group ")[1].split()[0]))
    assert {0, 1, 2} <= set(named)


def test_damage_is_named_by_its_row_group_and_others_stay_readable(tmp_path: Path, write: Callable) -> None:
    key, record = write()
    whole = ShardReader(tmp_path, record, key, ID)
    data = bytearray((tmp_path / PATH).read_bytes())
    data[whole._parquet.metadata.row_group(1).column(0).data_page_offset + 100] ^= 1
    (tmp_path / PATH).write_bytes(data)
    assert whole.read(0) == [row(number) for number in range(4)]
    with pytest.raises(IntegrityError, match=f"{PATH}: row group 1 is damaged"):
        whole.read(1)


def test_a_plaintext_shard_in_its_place_is_refused(tmp_path: Path, write: Callable) -> None:
    key, record = write()
    secret = key.file_key(ID, PATH, bytes.fromhex(record.salt))
    table = pq.read_table(tmp_path / PATH, decryption_properties=encryption.create_decryption_properties(secret))
    pq.write_table(table, tmp_path / PATH)
    plain = record.model_copy(
        update={
            "sha256": hashlib.sha256((tmp_path / PATH).read_bytes()).hexdigest(),
            "bytes": (tmp_path / PATH).stat().st_size,
        }
    )
    for claimed in (record, plain):
        with pytest.raises(IntegrityError, match="is not encrypted"):
            ShardReader(tmp_path, claimed, key, ID)


def test_a_shard_of_another_folder_another_key_or_another_count_is_refused(tmp_path: Path, write: Callable) -> None:
    key, record = write()
    for claimed, id, other in (
        (record, "cd" * 16, key),
        (record, ID, ContentKey.new()),
        (record.model_copy(update={"salt": "00" * 16}), ID, key),
    ):
        with pytest.raises(IntegrityError, match="footer cannot be opened"):
            ShardReader(tmp_path, claimed, other, id)
    with pytest.raises(IntegrityError, match="holds 13 rows instead of 12"):
        ShardReader(tmp_path, record.model_copy(update={"count": 12}), key, ID)
    (tmp_path / PATH).unlink()
    with pytest.raises(IntegrityError, match="cannot be read: it is missing"):
        ShardReader(tmp_path, record, key, ID)


def write_all(folder: Path, rows: int) -> None:
    with ShardWriter(folder, PATH, ContentKey.new(), ID, split="train", count=1) as writer:
        for number in range(rows):
            writer.write(row(number))
        writer.close()


@pytest.mark.parametrize(("rows", "message"), [(0, "0 came"), (2, "more came")])
def test_rows_that_were_not_announced_are_a_fault_of_the_program(tmp_path: Path, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_all(tmp_path, rows)


def test_the_digest_of_public_pixels_knows_their_shape() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    header = (2).to_bytes(4, "big") + (4).to_bytes(4, "big") + (3).to_bytes(4, "big")
    assert (
        pixels_sha256(pixels) == hashlib.sha256(header + pixels.tobytes()).digest() == pixels_sha256(Strips.of(pixels))
    )
    assert pixels_sha256(pixels) != pixels_sha256(pixels.reshape(4, 2, 3))
