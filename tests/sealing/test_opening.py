"""Originals of a sealed folder as an image set, for this library and for others."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from toy_sealed import KeyPair

import uge
from uge.data import load_images
from uge.data.pixels import decode
from uge.errors import IntegrityError, UsageError
from uge.sealing import SealedRow, Sealing, SealWriter, open_folder, read_identity
from uge.sealing.opening import opened_by

CLASSES = ("ape", "bee", "cat")
COUNT = 10


def encoded(number: int) -> bytes:
    """A picture of noise; every third one is a JPEG."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if number % 3 == 0 else "PNG")
    return buffer.getvalue()


@pytest.fixture
def me(key_pair: Callable[[str], KeyPair]) -> KeyPair:
    return key_pair("me")


@pytest.fixture
def folder(tmp_path: Path, me: KeyPair) -> Path:
    """A folder with sealed pictures in two shards and no public ones."""
    folder = tmp_path / "out"
    claims = {"split": "train", "classes": list(CLASSES), "class_counts": [4, 3, 3], "count": COUNT}
    with SealWriter(folder, split="train", count=COUNT, rows_per_file=6) as writer:
        for number in range(COUNT):
            writer.write(SealedRow(encoded(number), number % 3, f"train/{number}", bytes(32)))
        record = writer.finish(claims, Sealing({"me": me.public}))
    (folder / "manifest.json").write_text(json.dumps({**claims, "sealed": record.model_dump(mode="json")}))
    return folder


def test_the_originals_are_an_image_set(folder: Path, me: KeyPair) -> None:
    for key in (me.path, str(me.path), me.identity):
        images = uge.open(folder, key=key)
        assert (images.name, images.split, images.classes, images.root) == ("out", "train", CLASSES, folder)
        assert images.labels.tolist() == [number % 3 for number in range(COUNT)]
        assert list(images.ids) == [f"train/{number}" for number in range(COUNT)]
        some = images.subset([7, 0, 9])
        for index, number in enumerate((7, 0, 9)):
            assert some.encoded(index) == encoded(number)
            assert np.array_equal(some.read(index), decode(encoded(number), "it"))


def test_the_content_key_opens_them_too(folder: Path, me: KeyPair, tmp_path: Path) -> None:
    key = tmp_path / "content.key"
    key.write_bytes(open_folder(folder, me.identity).key.secret)
    assert uge.open(folder, key=key).encoded(3) == encoded(3)


def test_opening_imports_no_torch(folder: Path, me: KeyPair) -> None:
    code = f"import sys, uge; uge.open({str(folder)!r}, key={str(me.path)!r}).read(0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_open_the_shards_anew_in_any_order(folder: Path, me: KeyPair, method: str) -> None:
    data = uge.open(folder, key=me.path).torch()
    data[0]  # The parent has its shards open when it forks.
    order = [9, 1, 5, 0, 7, 2, 8, 3, 6, 4]
    loader = DataLoader(data, 5, sampler=order, num_workers=1, multiprocessing_context=method)
    pixels, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert labels.tolist() == [number % 3 for number in order]
    for number, image in zip(order, pixels, strict=True):
        expected = decode(encoded(number), "it")
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), expected)


def test_they_are_a_hugging_face_set(folder: Path, me: KeyPair, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    table = uge.open(folder, key=me.path).hf(tmp_path / "cache")
    assert table.features["label"].names == list(CLASSES)
    for number, row in enumerate(table):
        assert row["label"] == number % 3
        assert np.array_equal(np.asarray(row["image"]), decode(encoded(number), "it"))


def test_they_are_a_source_where_a_key_was_given(folder: Path, me: KeyPair, tmp_path: Path) -> None:
    with opened_by(me.path):
        images = load_images(f"sealed:{folder}")
        assert uge.load_images(f"sealed:{folder}", limit=4).labels.tolist() == [0, 1, 2, 0]
        part = tmp_path / "some.part.json"
        part.write_text(json.dumps({"source": f"sealed:{folder}", "rows": [5, 2]}))
        assert load_images(part).encoded(1) == encoded(2)
    assert images.encoded(9) == encoded(9)
    with pytest.raises(UsageError, match=r"are sealed; give the private key of a recipient by --source-key FILE"):
        load_images(f"sealed:{folder}")


def test_another_key_and_another_split_are_refused(
    folder: Path, key_pair: Callable[[str], KeyPair], me: KeyPair
) -> None:
    with pytest.raises(UsageError, match=r"the key opens none of the recipients' files of .*out \(me\)"):
        uge.open(folder, key=key_pair("stranger").path)
    with pytest.raises(UsageError, match="has no sealed split 'test'; there are: train"):
        uge.open(folder, key=me.path, split="test")
    with pytest.raises(UsageError, match="expected a private key, got nothing"):
        uge.open(folder, key="nothing")


def test_damage_is_named_when_it_is_read(folder: Path, me: KeyPair) -> None:
    shard = folder / "sealed" / "train-00001-of-00002.parquet"
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"sealed/train-00001-of-00002\.parquet: row group 0 is damaged"):
        uge.open(folder, key=me.path).read(9)


def shards(folder: Path, me: KeyPair) -> Iterator[tuple[Path, bytes]]:
    sealed = open_folder(folder, read_identity(me.path))
    for shard in sealed.shards:
        yield folder / shard.path, sealed.key.file_key(sealed.record.data_set, shard.path, bytes.fromhex(shard.salt))


def test_duckdb_opens_a_shard_by_its_key(folder: Path, me: KeyPair) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = []
    for number, (path, key) in enumerate(shards(folder, me)):
        with duckdb.connect() as base:
            base.execute(f"PRAGMA add_parquet_key('shard{number}', '{base64.b64encode(key).decode()}')")
            query = f"SELECT image, label, id FROM read_parquet(?, encryption_config={{footer_key: 'shard{number}'}})"
            rows += base.execute(query, [str(path)]).fetchall()
    assert rows == [(encoded(number), number % 3, f"train/{number}") for number in range(COUNT)]


def test_polars_opens_a_shard_by_its_key(folder: Path, me: KeyPair) -> None:
    polars = pytest.importorskip("polars")
    encryption = pytest.importorskip("pyarrow.parquet.encryption")
    rows = []
    for path, key in shards(folder, me):
        options = {"decryption_properties": encryption.create_decryption_properties(key)}
        rows += (
            polars.read_parquet(path, use_pyarrow=True, pyarrow_options=options).select("image", "label", "id").rows()
        )
    assert rows == [(encoded(number), number % 3, f"train/{number}") for number in range(COUNT)]
