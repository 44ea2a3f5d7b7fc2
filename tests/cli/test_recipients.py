"""Recipients of a published folder: granted, listed, left out; and changes that only the owner can sign."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import contents, make_folder, refused, run_uge, tiny

from uge.files import recover
from uge.publishing import read_manifest
from uge.sealing import RecipientRecord, open_folder, parse_recipients, read_identity
from uge.sealing.signature import SIGNATURE
from uge.sealing.signing_key import key_fingerprint, open_identity, public_bytes
from uge.sealing.writer import wrapped

sys.path.append(str(Path(__file__).parents[1] / "campaign"))

from faults import Kill, killed_at

from uge.cli.main import main


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder sealed for its owner and ``lab``, private keys of ``lab`` and ``new``; not to be changed."""
    place = tmp_path_factory.mktemp("world")
    images = make_folder(tmp_path_factory.mktemp("six") / "six", train=2, test=1)
    for name in ("lab", "new"):
        public = run_uge("keygen", place / f"{name}.agekey", "--json").json["public_key"]
        (place / f"{name}.pub").write_text(public + "\n")
    flags = ("--to", place / "lab.pub", f"--identity={place / 'owner.pem'}", "-q")
    ran = run_uge("protect", images, place / "copy", *tiny(), *flags)
    assert ran.code == 0, ran.err
    return place


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(world, tmp_path / "place")
    return tmp_path / "place"


def opens(place: Path, name: str) -> bool:
    """True where the private key of that name opens every original, and the folder is as its owner signed it."""
    owner = key_fingerprint(public_bytes(open_identity(place / "owner.pem")))
    ran = run_uge("verify", place / "copy", "--key", place / f"{name}.agekey", "--signed-by", owner, "--json")
    if ran.code == 2 and "opens none of the recipients' files" in ran.err:
        return False
    assert ran.code == 0, ran.err
    return bool(ran.json["opened"] == 6)


def change(place: Path, verb: str, *flags: str | Path) -> None:
    ran = run_uge(verb, place / "copy", *flags, f"--identity={place / 'owner.pem'}", "-q")
    assert (ran.code, ran.out) == (0, ""), ran.err


def test_protect_signs_a_sealed_copy(place: Path) -> None:
    assert opens(place, "lab")
    ran = run_uge("recipients", place / "copy", "--json")
    assert ran.code == 0
    assert [(row["name"], row["covered"]) for row in ran.json["recipients"]] == [("owner", True), ("lab", True)]


def test_a_recipient_is_added_without_touching_images(place: Path) -> None:
    before = contents(place / "copy")
    assert not opens(place, "new")
    change(place, "grant", "--to", place / "new.pub")
    assert opens(place, "new")
    assert opens(place, "lab")
    after = contents(place / "copy")
    assert sorted(set(after) - set(before)) == ["recipients/new.age"]
    same = [name for name in before if name.startswith(("data/", "sealed/", "recipients/"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert run_uge("verify", place / "copy").code == 0  # Its private folder knows the new manifest.


def test_the_owner_can_use_a_recipients_key_to_open(place: Path) -> None:
    (place / "copy.private" / "owner.agekey").unlink()
    change(place, "grant", "--to", place / "new.pub", "--key", place / "lab.agekey", "--name", "other")
    assert opens(place, "new")
    assert (place / "copy" / "recipients" / "other.age").is_file()


@pytest.mark.skipif(shutil.which("age") is None, reason="needs the program age")
def test_what_age_wrapped_is_taken(place: Path) -> None:
    """The way for keys that only the program ``age`` can use; here for an ordinary one."""
    owner, copy = place / "copy.private" / "owner.agekey", place / "copy"
    content = subprocess.run(
        ["age", "-d", "-i", owner, copy / "recipients" / "owner.age"], check=True, capture_output=True
    ).stdout
    public = (place / "new.pub").read_text().strip()
    subprocess.run(["age", "-r", public, "-o", place / "new.age"], input=content, check=True)
    change(place, "grant", "--wrapped", place / "new.age")
    assert opens(place, "new")
    subprocess.run(["age", "-a", "-r", public, "-o", place / "armoured.age"], input=content, check=True)
    words = "an age file in binary form"
    refused(
        2, words, "grant", copy, "--wrapped", place / "armoured.age", f"--identity={place / 'owner.pem'}", inside=place
    )


def test_a_new_content_key_leaves_recipients_out(place: Path) -> None:
    change(place, "grant", "--to", place / "new.pub")
    before = contents(place / "copy")
    old = open_folder(place / "copy", read_identity(place / "lab.agekey"))
    originals = [row.image for row in old.rows()]
    change(place, "rekey", "--drop", "lab")
    assert opens(place, "new")
    assert not opens(place, "lab")
    after = contents(place / "copy")
    assert "recipients/lab.age" not in after
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed >= {"sealed/train-00000-of-00001.parquet", "recipients/new.age", "recipients/owner.age"}
    assert not any(name.startswith("data/") for name in changed)
    fresh = open_folder(place / "copy", read_identity(place / "new.agekey"))
    assert fresh.key.secret != old.key.secret
    assert {shard.salt for shard in fresh.record.shards}.isdisjoint(shard.salt for shard in old.record.shards)
    assert [row.image for row in fresh.rows()] == originals
    assert json.loads((place / "copy.private" / "recipients.json").read_text()).keys() == {"owner", "new"}


def test_a_recipient_whose_key_is_not_known_must_be_left_out(place: Path) -> None:
    (place / "copy.private" / "recipients.json").unlink()
    identity = f"--identity={place / 'owner.pem'}"
    refused(2, "the public key of recipient 'owner' is not known", "rekey", place / "copy", identity, inside=place)


REFUSED = [
    (("--to", "lab.pub"), "is sealed for that key already"),
    (("--to", "new.pub", "--name", "lab"), "there is a recipient named 'lab' already"),
    (("--to", "new.pub", "--name", "LAB"), "there is a recipient named 'LAB' already"),
    (("--to", "new.pub", "--name", "../x"), "letters, digits, dots and dashes"),
    (("--to", "new.agekey"), "private key"),
    (("--to", "new.pub", "--wrapped", "new.pub"), "give --to KEY or --wrapped FILE"),
    ((), "give --to KEY or --wrapped FILE"),
    (("--wrapped", "new.pub"), "an age file in binary form"),
    (("--to", "new.pub", "--key", "new.agekey"), "opens none of the recipients' files"),
]


@pytest.mark.parametrize(("flags", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_grants_that_are_refused(
    flags: tuple[str, ...], words: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    refused(2, words, "grant", "copy", *flags, "--identity=owner.pem", inside=place)


def test_only_the_owners_key_signs_changes(place: Path) -> None:
    mallory = f"--identity={place / 'mallory.pem'}"
    open_identity(place / "mallory.pem")
    words = "only that key may sign its changes"
    key = ("--key", place / "lab.agekey")
    refused(2, words, "grant", place / "copy", "--to", place / "new.pub", *key, mallory, inside=place)
    refused(2, words, "rekey", place / "copy", *key, mallory, inside=place)
    (place / "copy" / SIGNATURE).unlink()
    owner = f"--identity={place / 'owner.pem'}"
    refused(2, "is not signed", "grant", place / "copy", "--to", place / "new.pub", owner, inside=place)


def test_a_recipient_that_somebody_else_added_is_found(place: Path) -> None:
    """A recipient knows the content key: it wraps it to others, and marks the manifest as the folder's own."""
    copy = place / "copy"
    owner = key_fingerprint(public_bytes(open_identity(place / "owner.pem")))
    (copy / "recipients" / "stray.age").write_bytes((copy / "recipients" / "lab.age").read_bytes())
    ran = run_uge("recipients", copy, "--owner", owner, "--json")
    assert ran.code == 1
    assert [row["name"] for row in ran.json["recipients"] if not row["covered"]] == ["stray"]
    (copy / "recipients" / "stray.age").unlink()
    manifest = read_manifest(copy)
    assert manifest.sealed is not None
    key = open_folder(copy, read_identity(place / "lab.agekey")).key
    entry = wrapped(copy, "friend", key, parse_recipients(place / "new.pub")[0])
    assert isinstance(entry, RecipientRecord)
    sealed = manifest.sealed.model_copy(update={"recipients": {**manifest.sealed.recipients, "friend": entry}})
    manifest.model_copy(update={"sealed": sealed}).write(copy)
    assert run_uge("verify", copy, "--signed-by", owner, "-q").code == 1
    ran = run_uge("recipients", copy, "--owner", owner)
    assert ran.code == 1
    assert "recipients/friend.age opens the originals, but the signature of" in ran.err
    assert ran.err.count("\n") == 1


def test_a_whole_folder_forged_for_a_recipient_is_found_by_the_pinned_key(place: Path) -> None:
    """Anybody who knows a recipient's public key can make a folder that the recipient opens without any complaint."""
    images = make_folder(place / "others", train=2, test=1)
    forged = place / "forged"
    arguments = ("--to", place / "lab.pub", f"--identity={place / 'mallory.pem'}", "-q")
    assert run_uge("protect", images, forged, *tiny(), *arguments).code == 0
    assert run_uge("verify", forged, "--key", place / "lab.agekey").code == 0
    owner = key_fingerprint(public_bytes(open_identity(place / "owner.pem")))
    ran = run_uge("verify", forged, "--key", place / "lab.agekey", "--signed-by", owner)
    assert ran.code == 1
    assert "is signed by the key" in ran.err
    assert run_uge("recipients", forged, "--owner", owner).code == 1
    key = ("--key", place / "lab.agekey")
    for verb in (("export", forged, place / "e", *key), ("train", forged, *key), ("audit", forged, "--test", images)):
        ran = run_uge(*verb, "--owner", owner, "-q")
        assert (ran.code, "is signed by the key" in ran.err) == (1, True), ran
    assert not (place / "e").exists()


def test_dry_runs_change_nothing(place: Path) -> None:
    before = contents(place)
    identity = f"--identity={place / 'owner.pem'}"
    assert run_uge("grant", place / "copy", "--to", place / "new.pub", identity, "--dry-run").code == 0
    assert run_uge("rekey", place / "copy", "--drop", "lab", identity, "--dry-run").code == 0
    assert contents(place) == before


@pytest.mark.parametrize(
    ("verb", "flags", "step"), [("grant", ("--to", "new.pub"), 11), ("rekey", ("--drop", "lab"), 13)]
)
def test_a_kill_leaves_the_old_folder_or_the_new_one(
    verb: str, flags: tuple[str, str], step: int, world: Path, tmp_path: Path
) -> None:
    arguments = [verb, "copy", *flags, "--identity=owner.pem", "-q"]

    def state(place: Path) -> tuple[bool, ...]:
        return tuple(opens(place, name) for name in ("lab", "new"))

    with pytest.MonkeyPatch.context() as patch:
        whole = tmp_path / "whole"
        shutil.copytree(world, whole)
        patch.chdir(whole)
        before = state(whole)
        with killed_at(0, whole) as operations:
            assert run_uge(*arguments).code == 0
        after, names = state(whole), sorted(contents(whole))
        assert after != before
        swaps = [number for number, name in enumerate(operations.names, 1) if name.startswith("rename")]
        seen = set()
        for number in sorted({*range(1, len(operations.names) + 1, step), *swaps}):
            place = tmp_path / str(number)
            shutil.copytree(world, place)
            patch.chdir(place)
            with killed_at(number, place), pytest.raises(Kill):
                main(arguments)
            recover(place / "copy")
            found = state(place)
            assert found in (before, after), operations.names[number - 1]
            assert sorted(contents(place)) == (names if found == after else sorted(contents(world)))
            assert not list(place.rglob(".*")), operations.names[number - 1]
            assert run_uge("verify", place / "copy", "-q").code == 0
            seen.add(found)
            shutil.rmtree(place)
        assert seen == {before, after}


def test_granting_needs_no_torch(world: Path) -> None:
    code = "import sys, uge.pipeline.recipients, uge.publishing.signing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
