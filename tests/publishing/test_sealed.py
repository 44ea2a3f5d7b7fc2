"""Originals sealed while a folder is published, and every threat to them that verification must find."""

import json
import math
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy_sets import Arrays, image_set, protect, random_pixels

from uge.data import load_images
from uge.data.images import ImageSet
from uge.data.pixels import decode
from uge.errors import DataError, IntegrityError, UsageError
from uge.publishing import Manifest, is_complete, private_folder, read_manifest, verify
from uge.publishing.private import keep_claims
from uge.sealing import (
    Identity,
    Recipient,
    Sealing,
    make_identity,
    open_folder,
    parse_recipients,
    pixels_sha256,
    read_identity,
)

FORMATS = ["parquet", "imagefolder", "webdataset"]
SECRET_NAME = "grandmother-at-the-lake"
SECRET_EXIF = "Photographed at 52.5163 N 13.3777 E"


@pytest.fixture
def owner(tmp_path: Path) -> tuple[Recipient, Identity]:
    public = make_identity(tmp_path / "owner.agekey")
    return public, read_identity(tmp_path / "owner.agekey")


@pytest.fixture
def seal(make: Callable[..., Manifest], owner: tuple[Recipient, Identity]) -> Callable[..., Manifest]:
    """Publishes sealed folders: 12 images in shards of 5 unless told otherwise."""

    def run(images: ImageSet | None = None, keep_metadata: bool = False, **changes: Any) -> Manifest:
        sealing = Sealing({"owner": owner[0]}, keep_metadata)
        arguments = {"rows_per_file": 5, "sealing": sealing, **changes}
        return make(image_set(random_pixels(12)) if images is None else images, **arguments)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An image folder of JPEG files with EXIF data and telling names."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for number in range(8):
        place = folder / ("cat" if number % 2 else "dog") / f"{SECRET_NAME}-{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x010E] = SECRET_EXIF
        smooth = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(smooth).resize((24, 24)).save(place, exif=exif, quality=80)
    return folder


def test_public_bytes_are_the_same_with_and_without_sealing(seal: Callable, make: Callable, tmp_path: Path) -> None:
    for format in FORMATS:
        sealed, plain = tmp_path / f"{format}-sealed", tmp_path / f"{format}-plain"
        images = image_set(random_pixels(12))
        seal(images, out=sealed, format=format)
        make(images, out=plain, format=format, rows_per_file=5)
        public = [path.relative_to(plain) for path in plain.rglob("*") if path.is_file() and path.parent != plain]
        assert len(public) >= 3
        assert all((sealed / path).read_bytes() == (plain / path).read_bytes() for path in public)


@pytest.mark.parametrize("format", FORMATS)
def test_originals_come_back_and_both_checks_pass(
    seal: Callable, owner: tuple[Recipient, Identity], tmp_path: Path, format: str
) -> None:
    images = image_set(random_pixels(12))
    manifest = seal(images, format=format)
    out = tmp_path / "out"
    sealed = open_folder(out, owner[1])
    rows = list(sealed.rows())
    assert [row.id for row in rows] == images.ids
    assert [row.label for row in rows] == images.labels.tolist()
    assert all(np.array_equal(decode(row.image, row.id), images.read(n)) for n, row in enumerate(rows))
    public = load_images(str(out))
    assert [row.sha256 for row in rows] == [pixels_sha256(public.read(number)) for number in range(12)]
    assert [shard.count for shard in manifest.sealed.shards] == [5, 5, 2]
    assert manifest == read_manifest(out)
    assert is_complete(out)
    without, with_key = verify(out), verify(out, key=owner[1], against=images)
    assert without.problems == with_key.problems == ()
    assert (without.opened, with_key.opened) == (0, 12)
    assert any("not opened" in sentence for sentence in without.not_compared)
    assert not any("not opened" in sentence for sentence in with_key.not_compared)


def test_image_files_are_sealed_without_metadata_or_byte_for_byte(
    seal: Callable, owner: tuple[Recipient, Identity], photos: Path, tmp_path: Path
) -> None:
    images = load_images(str(photos))
    for keep in (False, True):
        out = tmp_path / f"out-{keep}"
        seal(images, keep_metadata=keep, out=out)
        for number, row in enumerate(open_folder(out, owner[1]).rows()):
            assert (row.image == images.encoded(number)) is keep
            assert (SECRET_EXIF.encode() in row.image) is keep
            assert np.array_equal(decode(row.image, row.id), images.read(number))
        assert verify(out, key=owner[1], against=images).problems == ()


def test_a_large_image_file_is_passed_through_and_a_large_array_is_sealed_in_strips(
    seal: Callable, owner: tuple[Recipient, Identity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uge.data import images as module
    from uge.data.images import Strips

    monkeypatch.setattr(module, "LARGE", 60 * 80 - 1)
    pixels = random_pixels(8, (60, 80, 3))
    images = image_set(pixels)

    def pairs() -> Iterator[tuple[int, Strips, Strips]]:
        for index, clean, protected in protect(images):
            yield index, Strips.of(clean), Strips.of(protected)

    seal(images, pairs=pairs())
    rows = list(open_folder(tmp_path / "out", owner[1]).rows())
    assert all(np.array_equal(decode(row.image, row.id), clean) for row, clean in zip(rows, pixels, strict=True))
    assert verify(tmp_path / "out", key=owner[1], against=images).problems == ()


def test_a_split_is_sealed_without_public_images(
    seal: Callable, owner: tuple[Recipient, Identity], tmp_path: Path
) -> None:
    apart = image_set(random_pixels(7, seed=5), split="test", ids=[f"test/{number}" for number in range(7)])
    seal(sealed_only=apart)
    out = tmp_path / "out"
    sealed = open_folder(out, owner[1])
    assert sealed.splits == ("train", "test")
    rows = list(sealed.of("test").rows())
    assert [(row.id, row.label, row.sha256) for row in rows] == [
        (id, label, None) for id, label in zip(apart.ids, apart.labels, strict=True)
    ]
    assert all(np.array_equal(decode(row.image, row.id), apart.read(n)) for n, row in enumerate(rows))
    found = verify(out, key=owner[1])
    assert (found.problems, found.opened, found.images) == ((), 19, 12)
    assert len(load_images(str(out))) == 12


def test_each_publication_has_its_own_key_id_and_salts(seal: Callable, owner: Any, tmp_path: Path) -> None:
    one, two = (seal(out=tmp_path / name).sealed for name in ("one", "two"))
    keys = [open_folder(tmp_path / name, owner[1]).key for name in ("one", "two")]
    assert keys[0] != keys[1]
    assert one.data_set != two.data_set
    salts = [shard.salt for shard in (*one.shards, *two.shards)]
    assert len(set(salts)) == len(salts) == 6


def entropy(data: bytes) -> float:
    """Bits a byte."""
    counts = np.array(list(Counter(data).values()))
    return float(-(counts / len(data) * np.log2(counts / len(data))).sum())


def test_nothing_of_the_originals_is_readable_without_a_key(seal: Callable, photos: Path, tmp_path: Path) -> None:
    images = load_images(str(photos))
    manifest = seal(images, keep_metadata=True, rows_per_file=100)
    (shard,) = (tmp_path / "out" / each.path for each in manifest.sealed.shards)
    data = shard.read_bytes()
    # As many random bytes have this entropy, up to the sampling error of 255 degrees of freedom.
    assert entropy(data) > 8 - 4 * 255 / (2 * len(data) * math.log(2))
    originals = [images.encoded(number) for number in range(len(images))]
    for original in originals:
        assert all(original[at : at + 8] not in data for at in range(0, len(original) - 8, 8))
    words = [SECRET_NAME, SECRET_EXIF, "image", "label", "sha256", *images.classes, *images.ids]
    everything = b"".join(path.read_bytes() for path in sorted((tmp_path / "out" / "sealed").iterdir()))
    assert not [word for word in words if word.encode() in everything]
    assert not re.findall(rb"[ -~]{12,}", everything.replace(b"PARE", b""))
    numbers = [length.to_bytes(4, "little") for length in map(len, originals)]
    assert not [number for number in numbers if number in everything]


# Threats: each finds its way to a sentence that names the part, with and without a key where both can tell.


def edit(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    change(manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))


def problems(out: Path, key: Identity | None = None) -> str:
    return "\n".join(verify(out, key=key).problems)


def forge_hash(out: Path, path: str) -> None:
    """Let a manifest list a changed sealed file as it is now, as an attacker would."""
    import hashlib

    data = (out / path).read_bytes()
    new = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def change(manifest: dict[str, Any]) -> None:
        sealed = manifest["sealed"]
        listed = {shard["path"]: shard for shard in sealed["shards"]}
        listed |= {f"recipients/{name}.age": each for name, each in sealed["recipients"].items()}
        listed[path].update(new)

    edit(out, change)


def shard_paths(out: Path) -> list[str]:
    return [shard.path for shard in read_manifest(out).sealed.shards]


def swap(out: Path, other: Path) -> None:
    one, two, _ = shard_paths(out)
    kept = (out / one).read_bytes()
    (out / one).write_bytes((out / two).read_bytes())
    (out / two).write_bytes(kept)


def drop(out: Path, other: Path) -> None:
    (out / shard_paths(out)[1]).unlink()


def of_another_folder(out: Path, other: Path) -> None:
    shutil.copy(other / shard_paths(other)[0], out / shard_paths(out)[0])


def plaintext(out: Path, other: Path) -> None:
    rows = [{"image": b"x", "label": 0, "id": "0", "sha256": b"y"}] * 5
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(rows), out / shard_paths(out)[0])


@pytest.mark.parametrize("threat", [swap, drop, of_another_folder, plaintext])
def test_an_exchanged_shard_is_named(seal: Callable, owner: Any, tmp_path: Path, threat: Callable) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    seal(out=out)
    seal(out=other)
    path = shard_paths(out)[1 if threat is drop else 0]
    threat(out, other)
    assert path in problems(out)
    assert path in problems(out, owner[1])
    with pytest.raises(IntegrityError, match=re.escape(path)):
        list(open_folder(out, owner[1]).rows())
    assert not is_complete(out)
    if threat is drop:
        edit(out, lambda manifest: manifest["sealed"]["shards"].pop(1))
        assert "7 originals are sealed of 12" in problems(out)
    else:
        for each in shard_paths(out):
            forge_hash(out, each)
    assert "are not those that were sealed" in problems(out, owner[1])


def test_a_plaintext_shard_that_the_manifest_lists_is_found_without_a_key(seal: Callable, tmp_path: Path) -> None:
    seal()
    out = tmp_path / "out"
    plaintext(out, out)
    forge_hash(out, shard_paths(out)[0])
    assert f"{shard_paths(out)[0]} is not encrypted" in problems(out)


def test_permuted_class_names_are_found_by_the_key(seal: Callable, owner: Any, tmp_path: Path) -> None:
    seal()
    edit(tmp_path / "out", lambda manifest: manifest["classes"].reverse())
    assert "class names, counts, split" in problems(tmp_path / "out", owner[1])
    with pytest.raises(IntegrityError, match="class names"):
        open_folder(tmp_path / "out", owner[1])


@pytest.mark.parametrize("format", FORMATS)
def test_rows_moved_inside_the_public_copy_are_found_by_the_key(
    make: Callable, seal: Callable, owner: Any, tmp_path: Path, format: str
) -> None:
    images = image_set(random_pixels(12))
    out, forged = tmp_path / "out", tmp_path / "forged"
    seal(images, out=out, format=format)
    # Two images of one class change their pixels, everything else stays.
    swapped = list(range(12))
    swapped[0], swapped[2] = 2, 0
    moved = replace(images, reader=Arrays([images.read(number) for number in swapped]))
    published = {id: pixels for id, (_, _, pixels) in zip(images.ids, protect(images), strict=True)}
    pairs = [(n, moved.read(n), published[images.ids[swapped[n]]]) for n in range(12)]
    make(moved, out=forged, pairs=pairs, format=format, rows_per_file=5)
    graft(forged, out)
    assert problems(out) == ""
    found = problems(out, owner[1])
    assert found.count("its pixels are not those that were sealed with its original") == 2
    # Rows in another order, each with its own id, label and pixels.
    order = [1, 0, *range(2, 12)]
    moved = images.subset(order)
    pairs = [(n, moved.read(n), published[id]) for n, id in enumerate(moved.ids)]
    make(moved, out=forged, pairs=pairs, format=format, rows_per_file=5, overwrite=True)
    graft(forged, out)
    assert "stands at place 0, its sealed original at 1" in problems(out, owner[1])


def graft(forged: Path, out: Path) -> None:
    """Replace the public part of a sealed folder by that of another one, with a manifest that fits."""
    sealed = json.loads((out / "manifest.json").read_text())["sealed"]
    for part in ("data", "train", "index.csv", "manifest.json", "README.md", "TRAINING.md", "croissant.json"):
        target = out / part
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        if (forged / part).is_dir():
            shutil.copytree(forged / part, target)
        elif (forged / part).exists():
            shutil.copy(forged / part, target)
    edit(out, lambda manifest: manifest.update(sealed=sealed))
    for name in ("README.md", "TRAINING.md", "croissant.json"):
        rewrite_page(out, name)


def rewrite_page(out: Path, name: str) -> None:
    from uge.publishing.layout import file_record
    from uge.publishing.writer import PAGES

    make = dict(PAGES)[name]
    (out / name).write_text(make(read_manifest(out)))
    record = file_record(out, name).model_dump(mode="json")
    edit(out, lambda manifest: [file.update(record) for file in manifest["files"] if file["path"] == name])


def test_a_manifest_that_says_nothing_is_sealed_is_found(seal: Callable, owner: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = seal()
    private = private_folder(out)
    private.mkdir()
    keep_claims(private, manifest)
    edit(out, lambda claims: claims.update(sealed=None))
    found = problems(out)
    assert "sealed/train-00000-of-00003.parquet is not listed in manifest.json" in found
    assert "manifest.json: sealed.data_set is missing since the copy was published" in found
    with pytest.raises(IntegrityError, match="says that nothing is sealed, but"):
        open_folder(out, owner[1])
    for name in ("sealed", "recipients"):
        shutil.rmtree(out / name)
    assert "sealed.data_set is missing since" in problems(out)
    shutil.rmtree(private)
    with pytest.raises(UsageError, match="holds nothing sealed"):
        verify(out, key=owner[1])


def test_the_content_key_and_the_wrapped_key_of_another_folder_do_not_open_this_one(
    seal: Callable, owner: Any, tmp_path: Path
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    seal(out=out)
    seal(out=other)
    (tmp_path / "content.key").write_bytes(open_folder(other, owner[1]).key.secret)
    assert "content key is that of another folder" in problems(out, read_identity(tmp_path / "content.key"))
    shutil.copy(other / "recipients" / "owner.age", out / "recipients" / "owner.age")
    assert re.search(r"recipients/owner\.age (was changed|has \d+ bytes instead of)", problems(out))
    assert "recipients/owner.age is not the file that manifest.json lists" in problems(out, owner[1])
    forge_hash(out, "recipients/owner.age")
    assert "content key is that of another folder" in problems(out, owner[1])


def test_a_wrong_private_key_is_refused(seal: Callable, tmp_path: Path) -> None:
    seal()
    make_identity(tmp_path / "other.agekey")
    with pytest.raises(UsageError, match="opens none of the recipients' files"):
        verify(tmp_path / "out", key=read_identity(tmp_path / "other.agekey"))


def test_a_flipped_bit_is_named_by_shard_and_row_group_and_the_rest_is_checked(
    seal: Callable, owner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uge.sealing import ShardReader, shards

    monkeypatch.setattr(shards, "GROUP_ROWS", 4)
    manifest = seal(rows_per_file=12)
    out = tmp_path / "out"
    (shard,) = manifest.sealed.shards
    key = open_folder(out, owner[1]).key
    reader = ShardReader(out, shard, key, manifest.sealed.data_set)
    at = reader._parquet.metadata.row_group(1).column(0).data_page_offset + 200
    data = bytearray((out / shard.path).read_bytes())
    data[at] ^= 4
    (out / shard.path).write_bytes(data)
    found = verify(out, key=owner[1])
    assert f"{shard.path}: row group 1 is damaged" in "\n".join(found.problems)
    assert found.opened == 8


def test_originals_that_are_not_those_of_the_source_are_found(seal: Callable, owner: Any, tmp_path: Path) -> None:
    images = image_set(random_pixels(12))
    seal(images)
    other = random_pixels(12)
    other[7] = other[7] ^ 1
    found = verify(tmp_path / "out", key=owner[1], against=replace(images, reader=Arrays(other)))
    assert any(f"the original of '{images.ids[7]}' is not that of toy" in sentence for sentence in found.problems)


@pytest.mark.parametrize("name", ["me.agekey", "notes.txt", "README.md"])
def test_a_private_key_in_a_folder_is_refused(seal: Callable, tmp_path: Path, name: str) -> None:
    seal()
    with (tmp_path / "out" / name).open("ab") as handle:
        handle.write((tmp_path / "owner.agekey").read_bytes())
    assert f"{name} holds a private key; never publish it" in problems(tmp_path / "out")


def test_nothing_is_left_when_an_original_cannot_be_sealed(seal: Callable, photos: Path, tmp_path: Path) -> None:
    images = load_images(str(photos))

    class Cut:
        """Reader whose files end early although their pixels were read."""

        def read(self, row: int) -> Any:
            return images.read(row)

        def encoded(self, row: int) -> bytes:
            return images.encoded(row)[:-20]

    with pytest.raises(DataError, match=r"cannot seal image '.*': its JPG file is cut off"):
        seal(replace(images, reader=Cut()))
    assert not (tmp_path / "out").exists()


def test_recipients_are_needed_and_come_once(owner: tuple[Recipient, Identity]) -> None:
    with pytest.raises(UsageError, match="at least one recipient"):
        Sealing({})
    with pytest.raises(UsageError, match="given twice"):
        Sealing({"a": owner[0], "b": parse_recipients(owner[0].text)[0]})


def test_wrapped_keys_and_shards_are_ordinary_files(seal: Callable, tmp_path: Path) -> None:
    seal()
    for folder in ("sealed", "recipients"):
        for path in (tmp_path / "out" / folder).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
