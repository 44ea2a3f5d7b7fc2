import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toy_sets import image_set, random_pixels

from uge.data.codec import PNG_MAGIC, decode, encode
from uge.data.images import ImageSet
from uge.errors import IntegrityError, UsageError
from uge.files import file_sha256
from uge.publishing import read_manifest, verify
from uge.publishing.card import dataset_card
from uge.publishing.croissant import CROISSANT, croissant
from uge.publishing.verify import Verification

SHARD = "data/train-00001-of-00003.parquet"
PICTURE = "train/cat/00000002.png"
UNKNOWN = "0" * 64


@pytest.fixture
def parquet(make, images, tmp_path) -> Path:
    make(images, rows_per_file=4)
    return tmp_path / "out"


@pytest.fixture
def pictures(make, images, tmp_path) -> Path:
    make(images, tmp_path / "pictures", format="imagefolder")
    return tmp_path / "pictures"


def rehash(folder: Path, **claims: Any) -> None:
    """Make the manifest agree with the files, and the page with the manifest, as a careful forger would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, value in claims.items():
        manifest[name] = {**manifest[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))
    if claims:
        (folder / "README.md").write_text(dataset_card(read_manifest(folder)))

    def digest() -> None:
        for file in manifest["files"]:
            place = folder / file["path"]
            if file["sha256"] != UNKNOWN and place.is_file():
                file["sha256"], file["bytes"] = file_sha256(place), place.stat().st_size
        path.write_text(json.dumps(manifest))

    digest()
    if (folder / CROISSANT).is_file():  # It names the digests of the others.
        (folder / CROISSANT).write_text(croissant(read_manifest(folder)))
        digest()


def edit_shard(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    table = pq.read_table(folder / SHARD)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / SHARD)
    rehash(folder)


def only_problem(found: Verification) -> str:
    assert len(found.problems) == 1, found.problems
    with pytest.raises(IntegrityError) as caught:
        found.raise_for_problems()
    assert caught.value.problems == list(found.problems)
    return found.problems[0]


def test_sound_folder(parquet, pictures, images):
    done: list[int] = []
    for folder in (parquet, pictures):
        found = verify(folder, progress=done.append)
        found.raise_for_problems()
        assert (found.ok, found.images, found.measured) == (True, 10, None)
        assert done[-1] == 10
        shuffled = images.subset(np.random.default_rng(0).permutation(10))
        measured = verify(folder, against=shuffled).measured
        assert measured is not None
        assert measured.linf_levels == 10


def test_published_part_of_a_larger_set(make, images, tmp_path):
    make(images.take(4))
    assert verify(tmp_path / "out", against=images).ok


@pytest.mark.parametrize("place", [0, 100, -1])
def test_flipped_byte_names_the_file(parquet, images, place):
    data = bytearray((parquet / SHARD).read_bytes())
    data[place] ^= 1
    (parquet / SHARD).write_bytes(data)
    found = verify(parquet, against=images)
    assert only_problem(found).startswith(f"{SHARD} was changed")
    assert found.images == 6


def test_missing_and_shortened_files(parquet, pictures):
    (parquet / SHARD).unlink()
    assert only_problem(verify(parquet)).startswith(f"{SHARD} is missing")
    (pictures / PICTURE).write_bytes(b"")
    assert only_problem(verify(pictures)).startswith(f"{PICTURE} has 0 bytes")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("notes.txt", "not listed"),
        ("data/generator.safetensors", "looks like a secret"),
        ("trajectory-0/3.json", "looks like a secret"),
        ("noise.npz", "looks like a secret"),
        ("data/.cache/x", "hidden file"),
        ("train/monkey/0.png", "not listed"),
    ],
)
def test_unlisted_files(parquet, name, message):
    (parquet / name).parent.mkdir(parents=True, exist_ok=True)
    (parquet / name).write_bytes(b"x")
    problem = only_problem(verify(parquet))
    assert problem.startswith(name)
    assert message in problem


def test_files_that_a_hub_adds_are_known(parquet):
    downloads = parquet / ".cache" / "huggingface" / "download"
    downloads.mkdir(parents=True)
    assert verify(parquet).ok
    (parquet / ".gitattributes").write_text("*.parquet filter=lfs diff=lfs merge=lfs -text\n")
    (downloads / "README.md.metadata").write_text("x")
    (downloads.parent / ".gitignore").write_text("*")
    assert verify(parquet).ok
    (downloads / "lab.agekey").write_text("AGE-SECRET-KEY-1QQ")
    assert "holds a private key" in only_problem(verify(parquet))
    (downloads / "lab.agekey").unlink()
    (parquet / "data" / ".gitattributes").write_text("x")
    assert only_problem(verify(parquet)).startswith("data/.gitattributes is a hidden file")


def test_empty_folders(parquet, make, images, tmp_path):
    (parquet / "data" / "notes").mkdir()
    assert only_problem(verify(parquet)).startswith("data/notes is an empty folder")
    (parquet / "data" / "notes").rmdir()
    (parquet / ".git" / "refs").mkdir(parents=True)
    assert only_problem(verify(parquet)).startswith(".git/refs is a hidden file")
    unused = ImageSet(**{**vars(images), "classes": ("cat", "dog", "owl")})
    make(unused, tmp_path / "unused", format="imagefolder")
    assert not (tmp_path / "unused" / "train" / "owl").exists()
    assert verify(tmp_path / "unused").ok


def without(manifest: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The manifest's files but one."""
    return [file for file in manifest["files"] if file["path"] != name]


@pytest.mark.parametrize("name", ["README.md", "TRAINING.md"])
def test_pages_that_do_not_follow_from_the_manifest(parquet, name):
    (parquet / name).write_text("pip install something-else")
    rehash(parquet)
    assert only_problem(verify(parquet)).startswith(f"{name} is not the page that follows")
    path = parquet / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "tool_version": "9.9"}))  # How that wrote its pages is not known here.
    checked = verify(parquet)
    assert checked.ok
    assert [sentence.split()[0] for sentence in checked.not_compared] == [name, "manifest.json"]
    assert "was not compared with manifest.json: version 9.9 wrote it" in checked.not_compared[0]
    (parquet / name).unlink()
    path.write_text(json.dumps({**manifest, "tool_version": "9.9", "files": without(manifest, name)}))
    assert only_problem(verify(parquet)).startswith(f"{name} is not listed")
    path.write_text(json.dumps({**manifest, "files": without(manifest, name)}))
    assert only_problem(verify(parquet)).startswith(f"{name} is not listed")


def test_listed_secret_and_path_out_of_the_folder(parquet):
    (parquet / "key.pt").write_bytes(b"x")
    (parquet.parent / "outside").write_bytes(b"x")
    files = json.loads((parquet / "manifest.json").read_text())["files"]
    blank = {"sha256": UNKNOWN, "bytes": 1}
    rehash(parquet, files=[*files, {"path": "key.pt", **blank}, {"path": "../outside", **blank}])
    problems = verify(parquet).problems
    assert problems[0].startswith("key.pt looks like a secret")
    assert problems[1].startswith("../outside")


def test_link_that_leads_outside(parquet, tmp_path):
    shutil.move(parquet / SHARD, tmp_path / "elsewhere")
    (parquet / SHARD).symlink_to(tmp_path / "elsewhere")
    assert any("leads outside" in problem for problem in verify(parquet).problems)


def set_label(rows):
    rows[1]["label"] = 1 - rows[1]["label"]


def set_two_labels(rows):
    rows[0]["label"], rows[1]["label"] = rows[1]["label"], rows[0]["label"]


def set_pixels(rows):
    rows[1]["image"]["bytes"] = encode(random_pixels(1, seed=9)[0], "webp")


def set_black(rows):
    rows[1]["image"]["bytes"] = encode(np.zeros((8, 8, 3), np.uint8), "webp")


def set_lossy(rows):
    buffer = io.BytesIO()
    Image.fromarray(random_pixels(1)[0]).save(buffer, "WEBP")
    rows[1]["image"]["bytes"] = buffer.getvalue()


def set_float_tiff(rows):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(buffer, "TIFF")
    rows[1]["image"]["bytes"] = buffer.getvalue()


def set_deep_png(rows):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 999, np.uint16)).save(buffer, "PNG")
    rows[1]["image"]["bytes"] = buffer.getvalue()


def set_cut(rows):
    rows[1]["image"]["bytes"] = encode(random_pixels(1)[0], "png")[:-40]


def set_field(name, value):
    def change(rows):
        rows[1][name] = value

    return change


def set_path(rows):
    rows[1]["image"]["path"] = "/home/me/cat.webp"


TAMPERED = {
    "label": (set_label, False, "manifest.json: claims 5 images of class 'cat'"),
    "labels swapped": (set_two_labels, True, f"{SHARD} row 0: the label is not that of the original"),
    "label range": (set_field("label", 2), False, f"{SHARD} row 1: the label 2 is not 0..1"),
    "id twice": (set_field("id", "cat/0"), False, f"{SHARD} row 1: the id 'cat/0' came before"),
    "id unknown": (set_field("id", "x"), True, f"{SHARD} row 1: the originals have no image 'x'"),
    "id missing": (set_field("id", None), False, f"{SHARD}: row 1 lacks"),
    "over budget": (set_pixels, True, "more than the budget of 10"),
    "black": (set_black, False, f"{SHARD} row 1: the image is of one single colour"),
    "lossy": (set_lossy, False, f"{SHARD} row 1: is stored as lossy WebP"),
    "float": (set_float_tiff, False, f"{SHARD} row 1: is no well-formed"),
    "16 bit": (set_deep_png, False, f"{SHARD} row 1: expected 8-bit"),
    "cut": (set_cut, False, f"{SHARD} row 1: is no well-formed PNG"),
    "private path": (set_path, False, f"{SHARD} row 1: is stored under the name '/home/me/cat.webp'"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_with_a_rehashed_manifest(parquet, images, case):
    change, against, message = TAMPERED[case]
    edit_shard(parquet, change)
    problems = verify(parquet, against=images if against else None).problems
    assert any(message in problem for problem in problems), problems


def test_wrong_claims_are_caught_by_the_originals(parquet, images):
    rehash(parquet, measured={"psnr_db": 50.0})
    assert verify(parquet).ok
    assert "claims psnr_db = 50.0" in only_problem(verify(parquet, against=images))


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"budget": {"levels": 200}}, "rho and levels"),
        ({"measured": {"linf_levels": 11}}, "exceeds the budget"),
        ({"measured": {"unchanged_images": 10**9}}, "more images are claimed to be unchanged"),
        ({"count": 11}, "claims 11 images"),
        ({"size": {"height": [8, 9]}}, "image sizes"),
        ({"codec": "png"}, "claims the codec png, the images are webp"),
    ],
)
def test_contradictory_claims(parquet, claims, message):
    rehash(parquet, **claims)
    assert any(message in problem for problem in verify(parquet).problems)


def test_further_column_is_refused(parquet):
    table = pq.read_table(parquet / SHARD)
    pq.write_table(table.append_column("clean", table["image"]), parquet / SHARD)
    rehash(parquet)
    assert any(problem.startswith(f"{SHARD}: expected the columns") for problem in verify(parquet).problems)


def test_metadata_in_a_picture(pictures):
    text = PngInfo()
    text.add_text("Artist", "me")
    Image.open(pictures / PICTURE).save(pictures / PICTURE, pnginfo=text)
    rehash(pictures)
    assert only_problem(verify(pictures)).startswith(f"{PICTURE}: holds more than pixels (tEXt)")
    with (pictures / PICTURE).open("ab") as handle:
        handle.write(b"more")
    rehash(pictures)
    assert "4 bytes after the end" in only_problem(verify(pictures))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("where", ["after the stream", "after the rows", "in the end"])
def test_bytes_hidden_in_the_chunks_of_a_picture(pictures, images, where):
    rows = b"".join(b"\0" + row.tobytes() for row in images.read(2))
    stream = {"after the stream": zlib.compress(rows) + b"more", "after the rows": zlib.compress(rows + b"more")}
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", stream.get(where, zlib.compress(rows)))
    data = PNG_MAGIC + header + pixels + chunk(b"IEND", b"more" if where == "in the end" else b"")
    assert np.array_equal(decode(data), images.read(2))
    (pictures / PICTURE).write_bytes(data)
    rehash(pictures)
    found = "4 bytes in its last chunk" if where == "in the end" else "bytes after its pixels"
    assert f"{PICTURE}: holds more than pixels ({found})" in only_problem(verify(pictures))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f"{PICTURE},0", f"{PICTURE},1", f"{PICTURE}: lies in another folder"),
        (f"{PICTURE},0", f"{PICTURE},cat", "index.csv: the label 'cat'"),
        (f"{PICTURE},0", "train/cat/00000000.png,0", "index.csv: names train/cat/00000000.png"),
        (f"{PICTURE},0", "../../etc/passwd,0", "index.csv: names ../../etc/passwd"),
        (f"{PICTURE},0,cat/2\n", "", f"{PICTURE}: index.csv does not name it"),
        ("path,label,id", "path,id,label", "index.csv: expected the columns"),
    ],
)
def test_index_must_fit(pictures, old, new, message):
    index = pictures / "index.csv"
    index.write_text(index.read_text().replace(old, new))
    rehash(pictures)
    assert any(problem.startswith(message) for problem in verify(pictures).problems)


def test_shape_and_alpha_against_the_originals(make, tmp_path):
    images = image_set(random_pixels(4, (8, 8, 4)))
    make(images)
    assert "shape" in verify(tmp_path / "out", against=image_set(random_pixels(4))).problems[0]
    assert "alpha" in verify(tmp_path / "out", against=image_set(random_pixels(4, (8, 8, 4), 5))).problems[0]
    other = ImageSet(**{**vars(images), "classes": ("dog", "cat")})
    assert "classes are not those" in verify(tmp_path / "out", against=other).problems[0]


def test_constant_originals_may_stay_constant(make, tmp_path):
    images = image_set([np.full((8, 8, 3), value, np.uint8) for value in range(4)])
    make(images, pairs=((i, images.read(i), images.read(i) + np.uint8(i == 0)) for i in range(4)))
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.measured.constant_images, manifest.measured.unchanged_images) == (4, 3)
    assert verify(tmp_path / "out").ok
    assert verify(tmp_path / "out", against=images).ok


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, IntegrityError, "missing"),
        ("{", IntegrityError, "cannot be read"),
        ("[]", IntegrityError, "invalid"),
        ('{"schema_version": 1}', IntegrityError, "invalid at method"),
        ('{"schema_version": 2}', UsageError, "upgrade"),
    ],
)
def test_bad_manifests(parquet, text, error, message):
    path = parquet / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(error, match=message):
        read_manifest(parquet)
    with pytest.raises(error, match=message):
        verify(parquet).raise_for_problems()


def test_no_such_folder(tmp_path):
    with pytest.raises(UsageError, match="not a folder"):
        verify(tmp_path / "nowhere")
