"""Sealing on the command line: recipients, the owner's key, what is refused, and resuming."""

import json
import os
import stat
from pathlib import Path

import pytest
from command import TINY, make_folder, refused, run_uge, tiny

from uge.publishing import read_manifest
from uge.sealing import make_identity, open_folder, read_identity


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Private key of a recipient, whose public key lies in ``lab.pub`` beside it."""
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "lab.pub").write_text(make_identity(folder / "lab.agekey").text)
    return folder / "lab.agekey"


def test_originals_are_sealed_for_the_owner_and_for_those_who_are_named(toy: Path, lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    other = make_identity(tmp_path / "keys" / "other.agekey")
    ran = run_uge("protect", toy, out, *TINY, "--to", lab.with_suffix(".pub"), "--to", other.text, "--json")
    assert ran.code == 0, ran.err
    names = ["owner", "lab", f"key-{other.fingerprint[:8]}"]
    assert ran.json["sealed"] == names
    assert sorted(os.listdir(out / "recipients")) == sorted(f"{name}.age" for name in names)
    owner = tmp_path / "copy.private" / "owner.agekey"
    assert stat.S_IMODE(owner.stat().st_mode) == 0o600
    for key in (owner, lab, tmp_path / "keys" / "other.agekey"):
        found = run_uge("verify", out, "--key", key, "--against", toy, "--json")
        assert (found.code, found.json["opened"], found.json["problems"]) == (0, 36, []), found.err
    assert run_uge("verify", out).out.count("the originals are sealed for: owner, lab") == 1
    make_identity(tmp_path / "keys" / "stranger.agekey")
    refused(2, "opens none of the recipients", "verify", out, "--key", tmp_path / "keys/stranger.agekey", inside=out)


def test_no_seal_leaves_everything_out(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert run_uge("protect", toy, out, *TINY, "--no-seal").code == 0
    assert read_manifest(out).sealed is None
    assert sorted(os.listdir(out)) == [
        "README.md",
        "TRAINING.md",
        "croissant.json",
        "data",
        "manifest.json",
        "tdmrep.json",
    ]
    assert not (tmp_path / "copy.private" / "owner.agekey").exists()
    key = tmp_path / "me.agekey"
    make_identity(key)
    refused(2, "holds nothing sealed, so that a key opens nothing", "verify", out, "--key", key, inside=tmp_path)


def test_anonymous_recipients_are_numbered(toy: Path, lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    assert run_uge("protect", toy, out, *TINY, "--to", lab.with_suffix(".pub"), "--anonymous").code == 0
    assert sorted(os.listdir(out / "recipients")) == ["1.age", "2.age"]
    assert b"lab" not in (out / "manifest.json").read_bytes()
    assert run_uge("verify", out, "--key", lab, "-q").code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--to", "ssh-rsa AAAA"), "'ssh-rsa' are not taken"),
        (("--to", "nothing.pub"), "expected a public key"),
        (("--to", "{lab}"), "is a private key"),
        (("--to", "{pub}", "--to", "{pub}"), "two recipients are named 'lab'"),
        (("--to", "{pub}", "--to", "{text}"), "the same public key was given twice"),
        (("--to", "{pub}", "--no-seal"), "which --no-seal leaves out"),
        (("--keep-metadata", "--no-seal"), "which --no-seal leaves out"),
        (("--sealed-only", "train"), "is the split that is published"),
        (("--sealed-only", "validation"), "validation"),
    ],
)
def test_what_cannot_be_sealed_is_refused_before_anything_is_done(
    flags: tuple[str, ...], words: str, toy: Path, lab: Path, tmp_path: Path
) -> None:
    public = lab.with_suffix(".pub")
    known = {"lab": str(lab), "pub": str(public), "text": public.read_text()}
    given = [flag.format(**known) for flag in flags]
    ran = run_uge("protect", toy, tmp_path / "copy", *TINY, *given, "-q")
    assert ran.code in (1, 2)
    assert words in ran.err
    assert sorted(os.listdir(tmp_path)) == ["keys"]


def test_a_test_split_is_sealed_and_not_published(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    ran = run_uge("protect", toy, out, *TINY, "--sealed-only", "test")
    assert ran.code == 0, ran.err
    sealed = open_folder(out, read_identity(tmp_path / "copy.private" / "owner.agekey"))
    assert sealed.splits == ("train", "test")
    assert sealed.of("test").count == sum(1 for path in (toy / "test").rglob("*") if path.is_file())
    assert "sealed and have no public copy" in (out / "README.md").read_text()
    found = run_uge("verify", out, "--key", tmp_path / "copy.private" / "owner.agekey", "--json").json
    assert (found["problems"], found["count"], found["opened"]) == ([], 36, 36 + sealed.of("test").count)


def test_apply_seals_for_an_owner_of_its_own_and_keeps_that_key(toy: Path, finished: Path, tmp_path: Path) -> None:
    out, key = tmp_path / "more", tmp_path / "more.private" / "owner.agekey"
    generator = finished.with_name("copy.private") / "generator.safetensors"
    assert run_uge("apply", generator, toy, out, "-q").code == 0
    assert sorted(os.listdir(key.parent)) == ["owner.agekey", "published.json", "recipients.json"]
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    first = key.read_bytes(), read_manifest(out).sealed.data_set
    assert run_uge("verify", out, "--key", key, "-q").code == 0
    (key.parent / "kept").write_text("mine")
    assert run_uge("apply", generator, toy, out, "--overwrite", "-q").code == 0
    assert key.read_bytes() == first[0]
    assert read_manifest(out).sealed.data_set != first[1]
    assert run_uge("verify", out, "--key", key, "-q").code == 0
    assert (key.parent / "kept").read_text() == "mine"
    assert run_uge("apply", generator, toy, tmp_path / "plain", "--no-seal", "-q").code == 0
    assert not (tmp_path / "plain.private").exists()


def test_a_resumed_run_keeps_the_owners_key_and_draws_another_content_key(toy: Path, copy: Path) -> None:
    key = copy.with_name("copy.private") / "owner.agekey"
    before = key.read_bytes(), read_manifest(copy).sealed
    (copy / before[1].shards[0].path).unlink()
    ran = run_uge("protect", toy, copy, *TINY, "--resume")
    assert ran.code == 0, ran.err
    assert "published again" in ran.err
    after = read_manifest(copy).sealed
    assert key.read_bytes() == before[0]
    assert (after.data_set, after.shards[0].salt) != (before[1].data_set, before[1].shards[0].salt)
    assert run_uge("verify", copy, "--key", key, "-q").code == 0
    other = run_uge("protect", toy, copy, *TINY, "--resume", "--no-seal", "-q")
    assert (other.code, "has other settings" in other.err) == (2, True)


def test_public_ids_are_no_file_names(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos")
    names = {path.stem for path in source.rglob("*") if path.is_file()}
    out = tmp_path / "copy"
    assert run_uge("protect", source, out, *tiny(), "--format", "imagefolder", "-q").code == 0
    ids = [line.rpartition(",")[2] for line in (out / "index.csv").read_text().splitlines()[1:]]
    assert len(set(ids)) == 36
    assert not [id for id in ids if "." in id or "/" in id or id in names]
    found = json.loads(run_uge("verify", out, "--against", source, "--json").out)
    assert found["problems"] == []
