"""Owners sign their folders, and receivers who know the owner's key find every other folder."""

import json
import shutil
from pathlib import Path

import pytest
from command import contents, refused, run_uge, tiny

from uge.files import file_sha256
from uge.sealing.signature import SIGNATURE, write_signature
from uge.sealing.signing_key import key_fingerprint, open_identity, public_bytes


@pytest.fixture(scope="module")
def unsealed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that holds nothing sealed, and is not signed; not to be changed."""
    out = tmp_path_factory.mktemp("unsealed") / "copy"
    assert run_uge("protect", toy, out, *tiny(), "--no-seal", "-q").code == 0
    assert not (out / SIGNATURE).exists()
    return out


@pytest.fixture
def copy(unsealed: Path, tmp_path: Path) -> Path:
    """A copy of it and its private folder that a test may change."""
    for suffix in ("", ".private"):
        shutil.copytree(f"{unsealed}{suffix}", tmp_path / f"copy{suffix}")
    return tmp_path / "copy"


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    """The owner's key."""
    return tmp_path / "keys" / "owner.pem"


def signed(out: Path, identity: Path, *flags: str) -> str:
    """``uge sign``; gives the fingerprint."""
    ran = run_uge("sign", out, f"--identity={identity}", *flags, "--json")
    assert ran.code == 0, ran.err
    return str(ran.json["fingerprint"])


def test_a_signed_folder_is_known_by_its_owners_key(copy: Path, identity: Path) -> None:
    shutil.rmtree(copy.with_name("copy.private"))
    before = contents(copy)
    fingerprint = signed(copy, identity)
    assert {name for name in contents(copy) if name not in before} == {SIGNATURE}
    assert fingerprint == key_fingerprint(public_bytes(open_identity(identity)))
    ran = run_uge("verify", copy, "--signed-by", fingerprint, "--json")
    assert (ran.code, ran.json["problems"], ran.json["not_compared"]) == (0, [], [])
    assert ran.json["signed_by"] == fingerprint


def test_a_signer_that_is_not_pinned_is_told(copy: Path, identity: Path) -> None:
    shutil.rmtree(copy.with_name("copy.private"))
    assert "is not signed" in run_uge("verify", copy).out
    signed(copy, identity)
    ran = run_uge("verify", copy)
    assert ran.code == 0
    assert "is trusted on first use" in ran.out


def test_the_pages_of_another_version_are_proven_by_the_pinned_key(copy: Path, identity: Path) -> None:
    shutil.rmtree(copy.with_name("copy.private"))
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "README.md").write_text("in other words\n")
    for record in manifest["files"]:
        if record["path"] == "README.md":
            record |= {"sha256": file_sha256(copy / "README.md"), "bytes": (copy / "README.md").stat().st_size}
    (copy / "manifest.json").write_text(json.dumps({**manifest, "tool_version": "9.9"}))
    fingerprint = signed(copy, identity)
    assert run_uge("verify", copy, "--signed-by", fingerprint, "--json").json["not_compared"] == []
    assert len(run_uge("verify", copy, "--json").json["not_compared"]) == 2


def test_a_whole_folder_made_by_somebody_else_is_found_by_the_pinned_key(
    copy: Path, toy: Path, identity: Path, tmp_path: Path
) -> None:
    fingerprint = signed(copy, identity)
    forged = tmp_path / "forged"
    assert run_uge("protect", toy, forged, *tiny(authorized_seed=9), "--no-seal", "-q").code == 0
    signed(forged, tmp_path / "keys" / "forger.pem")
    assert run_uge("verify", forged).code == 0
    ran = run_uge("verify", forged, "--signed-by", fingerprint)
    assert ran.code == 1
    assert "is signed by the key" in ran.err
    shutil.copy(copy / SIGNATURE, forged / SIGNATURE)  # The owner's own signature, of another folder.
    ran = run_uge("verify", forged, "--signed-by", fingerprint)
    assert ran.code == 1
    assert "is not the one that manifest.dsse.json was made for" in ran.err
    (forged / SIGNATURE).unlink()
    assert run_uge("verify", forged, "--signed-by", fingerprint).code == 1


def test_a_signature_is_replaced_only_when_asked(copy: Path, identity: Path, tmp_path: Path) -> None:
    first = signed(copy, identity)
    words = "is signed already; give --overwrite"
    refused(2, words, "sign", copy, f"--identity={tmp_path / 'keys' / 'other.pem'}", inside=tmp_path)
    assert signed(copy, tmp_path / "keys" / "other.pem", "--overwrite") != first


def test_a_folder_that_was_changed_is_not_signed(copy: Path, identity: Path, tmp_path: Path) -> None:
    (copy / "README.md").write_text("changed")
    refused(1, "missing or changed", "sign", copy, f"--identity={identity}", inside=tmp_path)
    refused(2, "is not a folder", "sign", tmp_path / "none", f"--identity={identity}", inside=tmp_path)


def test_a_dry_run_of_signing_writes_nothing(copy: Path, identity: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert run_uge("sign", copy, f"--identity={identity}", "--dry-run").code == 0
    assert contents(tmp_path) == before


def test_a_signature_of_nothing_in_the_folder_does_not_count(copy: Path, identity: Path) -> None:
    """A statement that names other files only proves nothing about the manifest."""
    write_signature(copy, {"README.md": file_sha256(copy / "README.md")}, open_identity(identity))
    ran = run_uge("verify", copy, "-q")
    assert ran.code == 1
    assert "is not the one that manifest.dsse.json was made for" in ran.err


def test_an_identity_is_a_path_on_this_machine(toy: Path, tmp_path: Path) -> None:
    words = "expected a path on this machine to write to, got the address 's3://bucket/x'"
    refused(2, words, "protect", toy, tmp_path / "out", "--identity", "s3://bucket/x", inside=tmp_path)


def test_a_wrong_pin_is_wrong_use(copy: Path, tmp_path: Path) -> None:
    refused(2, "expected a fingerprint of 64 hexadecimal digits", "verify", copy, "--signed-by=12", inside=tmp_path)
