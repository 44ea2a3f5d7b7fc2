"""Sealed originals by the command line: exported, trained on, audited with, and read by every verb."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import TINY, contents, refused, run_uge, tiny
from PIL import ExifTags, Image

import uge
from uge.data import load_images
from uge.data.pixels import public_id
from uge.errors import IntegrityError
from uge.sealing import make_identity
from uge.sealing.signature import read_signature

QUICK = ("--network", "lenet", "--epochs", "1")


@pytest.fixture(scope="session")
def sealed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published copy whose originals are sealed for the key ``me.agekey`` beside it, test images too; read only."""
    out = tmp_path_factory.mktemp("sealed") / "copy"
    public = make_identity(out.with_name("me.agekey"))
    out.with_name("me.pub").write_text(public.text)
    ran = run_uge("protect", toy, out, *TINY, "--to", out.with_name("me.pub"), "--sealed-only", "test", "-q")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="session")
def unsealed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published copy in which nothing is sealed; read only."""
    out = tmp_path_factory.mktemp("unsealed") / "copy"
    ran = run_uge("protect", toy, out, *TINY, "--no-seal", "-q")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def me(sealed: Path) -> Path:
    return sealed.with_name("me.agekey")


@pytest.fixture
def key(sealed: Path) -> Path:
    """Weights key of ``sealed``."""
    return sealed.with_name("copy.private") / "authorized-0.key.safetensors"


def test_an_export_has_the_originals_and_is_closed_to_others(toy: Path, sealed: Path, me: Path, tmp_path: Path) -> None:
    out = tmp_path / "originals"
    ran = run_uge("export", sealed, out, "--key", me, "-q", "--json")
    assert (ran.code, ran.json) == (0, {"out": str(out), "images": {"train": 36, "test": 12}, "metadata": "dropped"})
    assert out.stat().st_mode & 0o777 == 0o700
    for split, count in (("train", 36), ("test", 12)):
        originals, exported = load_images(toy, split), load_images(out, split)
        assert exported.classes == originals.classes
        assert exported.labels.tolist() == originals.labels.tolist()
        encoded = [[images.encoded(index) for index in range(count)] for images in (originals, exported)]
        assert encoded[0] == encoded[1]
    lines = (out / "index.csv").read_text().splitlines()
    assert lines[:2] == ["path,label,id", f"train/cat/00000000.png,0,{public_id(load_images(toy).ids[0])}"]
    assert len(lines) == 49


def test_an_export_keeps_the_sample_ids(
    sealed: Path, me: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "originals"
    assert run_uge("export", sealed, out, "--key", me).code == 0
    ids = uge.load_images(sealed).ids
    assert sorted(uge.load_images(out).ids) == sorted(ids)
    index = out / "index.csv"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join([lines[0], *lines[2:]]))
    assert sorted(uge.load_images(out).ids) != sorted(ids)
    assert "does not name every image" in caplog.text


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "dropped"])
@pytest.mark.parametrize("format", ["parquet", "imagefolder", "webdataset"])
def test_photographs_come_back_pixel_by_pixel_or_byte_by_byte(format: str, keep: bool, tmp_path: Path) -> None:
    photos, out, back = tmp_path / "photos", tmp_path / "copy", tmp_path / "back"
    random = np.random.default_rng(0)
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    tags[ExifTags.Base.Make] = "SECRET-CAMERA"
    for number in range(12):
        path = photos / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = 60 + 90 * (number % 2) + random.normal(0, 20, (20, 28, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, exif=tags, comment=b"SECRET-COMMENT")
    flags = (*tiny(), "--format", format, *(("--keep-metadata",) if keep else ()))
    assert run_uge("protect", photos, out, *flags, "-q").code == 0
    ran = run_uge("export", out, back, "--key", f"{out}.private/owner.agekey", "-q", "--json")
    assert (ran.code, ran.json["metadata"]) == (0, "kept" if keep else "dropped")
    originals, exported = load_images(photos), load_images(back)
    for index in range(12):
        before, after = originals.encoded(index) or b"", exported.encoded(index) or b""
        assert (before == after) == keep
        assert (b"SECRET" in after) == keep
        assert np.array_equal(exported.read(index), originals.read(index))
        stored = [np.asarray(Image.open(io.BytesIO(data))) for data in (before, after)]
        assert np.array_equal(*stored)


def test_an_export_replaces_only_an_export(sealed: Path, me: Path, toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "originals"
    assert run_uge("export", sealed, out, "--key", me, "-q").code == 0
    before = contents(out)
    refused(2, "is not empty", "export", sealed, out, "--key", me, inside=tmp_path)
    assert run_uge("export", sealed, out, "--key", me, "--overwrite", "-q").code == 0
    assert contents(out) == before
    other = shutil.copytree(toy, tmp_path / "other")
    words = "holds what this command did not write"
    refused(2, words, "export", sealed, other, "--key", me, "--overwrite", inside=tmp_path)
    words = "overlap; choose an output outside the source"
    refused(2, words, "export", sealed, sealed / "originals", "--key", me, inside=sealed)


def test_a_damaged_shard_is_named_and_nothing_is_written(sealed: Path, me: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sealed, tmp_path / "copy")
    shard = copy / "sealed" / "train-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 8
    shard.write_bytes(data)
    words = "sealed/train-00000-of-00001.parquet: row group 0 is damaged"
    refused(1, words, "export", copy, tmp_path / "out", "--key", me, inside=tmp_path)


def test_any_network_trains_on_the_originals(toy: Path, sealed: Path, me: Path, tmp_path: Path) -> None:
    save = tmp_path / "trained.safetensors"
    ran = run_uge("train", sealed, "--key", me, *QUICK, "--test", toy, "--save", save, "-q", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["network"], ran.json["trained_on"], save.is_file()) == ("lenet", "originals", True)
    again = run_uge("train", toy, "--key", me, *QUICK, "-q")
    assert (again.code, "is no published folder" in again.err) == (2, True)
    planned = run_uge("train", sealed, "--key", me, "--recipe", "short", "--size", "20", "--dry-run", "--json")
    assert planned.json == planned.json | {"network": "cnn", "images": 36, "trained_on": "originals"}


def test_a_weights_key_trains_on_the_published_images_as_ever(toy: Path, sealed: Path, key: Path) -> None:
    ran = run_uge("train", sealed, "--key", key, "--test", toy, "-q", "--json")
    assert (ran.code, ran.json["trained_on"]) == (0, "published")
    words = "--network is for training on sealed originals, got the weights file"
    refused(2, words, "train", sealed, "--key", key, "--network", "cnn", inside=sealed)


def test_a_private_key_never_trains_on_the_published_images(
    toy: Path, unsealed: Path, me: Path, tmp_path: Path
) -> None:
    words = "holds nothing sealed, so that a key opens nothing"
    refused(2, words, "train", unsealed, "--key", me, *QUICK, inside=unsealed)
    refused(2, words, "audit", unsealed, "--key", me, "--test", toy, "--folder", tmp_path / "a", inside=tmp_path)
    refused(2, words, "export", unsealed, tmp_path / "out", "--key", me, inside=tmp_path)


def test_a_strangers_key_is_refused(sealed: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.agekey"
    make_identity(stranger)
    words = "the key opens none of the recipients' files"
    refused(2, words, "train", sealed, "--key", stranger, *QUICK, inside=tmp_path)
    refused(2, words, "export", sealed, tmp_path / "out", "--key", stranger, inside=tmp_path)
    refused(2, words, "inspect", f"sealed:{sealed}", "--source-key", stranger, inside=tmp_path)


def test_an_audit_by_a_private_key_has_the_originals_as_control(
    toy: Path, sealed: Path, me: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test"
    shutil.copytree(toy / "test", test)
    networks = ("--networks", "lenet", "--attacks", "direct", "--epochs", "1", "--variants", "none")
    ran = run_uge(
        "audit", sealed, "--key", me, "--test", test, *networks, "--folder", tmp_path / "audit", "-q", "--json"
    )
    assert ran.code == 0, ran.err
    cases = [json.loads(path.read_text()) for path in (tmp_path / "audit" / "cases").glob("*.json")]
    assert {case["data"] for case in cases} == {"protected", "clean"}
    assert (tmp_path / "audit" / "pictures" / "pictures.json").is_file()
    assert ran.json["facts"]["originals_opened"] == 48
    assert "no-key" not in [doubt["check"] for doubt in ran.json["doubts"]]


def test_a_folder_that_deviates_is_audited_without_calling_originals_compared(
    toy: Path, sealed: Path, me: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(sealed, folder)
    (folder / "added.txt").write_text("by somebody")
    ran = run_uge(
        *("audit", folder, "--key", me, "--test", toy / "test", "--networks", "lenet", "--attacks", "direct"),
        *("--epochs", "1", "--variants", "none", "--json"),
    )
    assert ran.code == 0, ran.err
    assert "originals_opened" not in ran.json["facts"]
    assert "added.txt" in ran.err


def test_the_library_opens_the_published_split_unless_another_is_named(toy: Path, sealed: Path, me: Path) -> None:
    for split, count in ((None, 36), ("train", 36), ("test", 12)):
        images, originals = uge.open(sealed, key=me, split=split), load_images(toy, split or "train")
        assert (len(images), list(images.ids)) == (count, [public_id(id) for id in originals.ids])
        assert images.encoded(5) == originals.encoded(5)


def test_test_images_that_are_only_sealed_measure_a_training(sealed: Path, me: Path, key: Path) -> None:
    test = ("--test", f"sealed:{sealed}", "-q", "--json")
    by_originals = run_uge("train", sealed, "--key", me, *QUICK, *test)
    by_copy = run_uge("train", sealed, "--key", key, "--source-key", me, *test)
    for ran in (by_originals, by_copy):
        assert ran.code == 0, ran.err
        assert ran.json["last"] is not None


def test_sealed_originals_are_a_source_of_every_verb(toy: Path, sealed: Path, me: Path, tmp_path: Path) -> None:
    source = f"sealed:{sealed}"
    ran = run_uge("inspect", source, "--source-key", me, "--json")
    assert ran.json["splits"]["train"]["images"] == 36
    out = tmp_path / "new"
    ran = run_uge("protect", source, out, "--source-key", me, *tiny(), "-q")
    assert ran.code == 0, ran.err
    originals = load_images(toy)
    assert [sample.label for sample in load_images(out)] == originals.labels.tolist()
    ran = run_uge("verify", out, "--against", source, "--source-key", me, "--json")
    assert (ran.code, ran.json["problems"]) == (0, [])
    words = "are sealed; give the private key of a recipient by --source-key"
    refused(2, words, "protect", source, tmp_path / "other", *tiny(), inside=tmp_path)


def test_servers_of_a_federation_read_their_parts_by_the_key(toy: Path, sealed: Path, me: Path, tmp_path: Path) -> None:
    flags = (
        *tiny(),
        "--servers",
        "2",
        "--split",
        "iid",
        "--networks",
        "lenet",
        "--source-key",
        me,
        "--test",
        toy,
        "-q",
        "--json",
    )
    ran = run_uge("federated", f"sealed:{sealed}", tmp_path / "fed", *flags)
    assert ran.code == 0, ran.err
    assert sum(server["images"] for server in ran.json["servers"]) == 36


def test_inspecting_says_to_whom_a_folder_is_sealed(sealed: Path, unsealed: Path) -> None:
    shown = run_uge("inspect", sealed, "--json").json["sealed"]
    assert shown == {
        "images": {"train": 36, "test": 12},
        "recipients": {"owner": "x25519", "me": "x25519"},
        "metadata": "dropped",
    }
    assert run_uge("inspect", unsealed, "--json").json["sealed"] is None


def test_a_folder_of_another_owner_is_refused_where_the_owner_is_pinned(
    toy: Path, sealed: Path, me: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = read_signature(sealed)
    assert signed is not None
    pinned = ("--owner", signed.fingerprint)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    forged = tmp_path / "in" / "copy"
    ran = run_uge("protect", toy, forged, *TINY, "--to", sealed.with_name("me.pub"), "-q")
    assert ran.code == 0, ran.err
    audit = ("--test", toy, "--networks", "lenet", "--attacks", "direct", "--dry-run")
    for verb in (("train", *QUICK, "--dry-run"), ("export", tmp_path / "out"), ("audit", *audit)):
        name, *flags = verb
        words = "is signed by the key"
        refused(1, words, name, forged, *flags, "--key", me, *pinned, inside=tmp_path / "in")
        ran = run_uge(name, sealed, *flags, "--key", me, *pinned)
        assert (ran.code, "first use" in ran.err) == (0, False), ran.err
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        ran = run_uge(name, forged, *flags, "--key", me)
        assert (ran.code, ran.err.count("trusted on first use")) == (0, 1), ran.err
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with pytest.raises(IntegrityError, match="is signed by the key"):
        uge.open(forged, key=me, owner=signed.fingerprint)
    assert len(uge.open(sealed, key=me, owner=signed.fingerprint)) == 36
