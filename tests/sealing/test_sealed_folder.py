"""Sealed folders: opened by their recipients alone, and every exchange of a part is found."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toy_sealed import KeyPair, row

from uge.errors import IntegrityError, UsageError
from uge.sealing import folder as opened_folder
from uge.sealing import open_folder, read_identity, wrap


@pytest.fixture
def owner(key_pair: Callable[[str], KeyPair]) -> KeyPair:
    return key_pair("owner")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_every_recipient_reads_all_rows_in_any_order(seal: Callable, key_pair: Callable, owner: KeyPair) -> None:
    lab = key_pair("lab")
    folder = seal("out", {"owner": owner.public, "lab": lab.public})
    for each in (owner, lab):
        sealed = open_folder(folder, each.identity)
        assert (sealed.count, sealed.classes, sealed.split, sealed.splits) == (
            10,
            ("ape", "bee", "cat"),
            "train",
            ("train",),
        )
        assert list(sealed.rows()) == [row(number) for number in range(10)]
        assert [sealed.row(number) for number in (9, 0, 5, 6)] == [row(number) for number in (9, 0, 5, 6)]
        assert sealed.labels().tolist() == [number % 3 for number in range(10)]
        assert sealed.ids() == [f"train/{number:08d}" for number in range(10)]
        assert list(sealed.rows(group=1)) == [row(number) for number in range(6, 10)]
    with pytest.raises(IndexError):
        sealed.row(10)
    with pytest.raises(UsageError, match="no sealed split 'test'; there are: train"):
        sealed.of("test")


def test_a_folder_survives_pickling_and_forks(seal: Callable, owner: KeyPair) -> None:
    sealed = open_folder(seal("out", {"owner": owner.public}), owner.identity)
    assert sealed.row(3) == row(3)
    copy = pickle.loads(pickle.dumps(sealed))
    assert copy == sealed
    assert copy.row(7) == row(7)
    child = os.fork()
    if child == 0:
        os._exit(0 if sealed.row(8) == row(8) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_random_access_keeps_a_bounded_number_of_row_groups(
    seal: Callable, owner: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = open_folder(seal("out", {"owner": owner.public}, rows_per_file=4), owner.identity)
    monkeypatch.setattr(opened_folder, "CACHE_BYTES", 1)
    assert [sealed.row(number) for number in (0, 9, 4, 1)] == [row(number) for number in (0, 9, 4, 1)]
    assert len(sealed._open._kept) == 1


def test_the_content_key_opens_its_own_folder_and_no_other(seal: Callable, owner: KeyPair, tmp_path: Path) -> None:
    folder, other = (seal(name, {"owner": owner.public}) for name in ("out", "other"))
    (tmp_path / "content.key").write_bytes(open_folder(folder, owner.identity).key.secret)
    identity = read_identity(tmp_path / "content.key")
    assert open_folder(folder, identity).row(0) == row(0)
    with pytest.raises(IntegrityError, match="content key is that of another folder"):
        open_folder(other, identity)


def test_a_key_of_no_recipient_is_refused(seal: Callable, key_pair: Callable, owner: KeyPair) -> None:
    folder = seal("out", {"owner": owner.public})
    with pytest.raises(UsageError, match=r"opens none of the recipients' files of .*\(owner\)"):
        open_folder(folder, key_pair("stranger").identity)


def test_a_replaced_or_missing_recipients_file_is_named(seal: Callable, key_pair: Callable, owner: KeyPair) -> None:
    lab = key_pair("lab")
    folder = seal("out", {"owner": owner.public, "lab": lab.public})
    key = open_folder(folder, owner.identity).key
    (folder / "recipients" / "lab.age").write_bytes(wrap(key, lab.public))  # Opens, but is not what was listed.
    with pytest.raises(IntegrityError, match=r"recipients/lab\.age is not the file that manifest\.json lists"):
        open_folder(folder, lab.identity)
    (folder / "recipients" / "lab.age").unlink()
    with pytest.raises(IntegrityError, match=r"recipients/lab\.age cannot be read"):
        open_folder(folder, lab.identity)
    assert open_folder(folder, owner.identity).row(0) == row(0)


def test_the_wrapped_key_of_another_folder_does_not_pass(seal: Callable, owner: KeyPair) -> None:
    folder, other = (seal(name, {"owner": owner.public}) for name in ("out", "other"))
    shutil.copy(other / "recipients" / "owner.age", folder / "recipients" / "owner.age")
    theirs = json.loads((other / "manifest.json").read_text())["sealed"]["recipients"]
    edit(folder, lambda manifest: manifest["sealed"].update(recipients=theirs))
    with pytest.raises(IntegrityError, match="content key is that of another folder"):
        open_folder(folder, owner.identity)


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "class names": lambda manifest: manifest["classes"].reverse(),
    "counts": lambda manifest: manifest["class_counts"].reverse(),
    "count": lambda manifest: manifest.update(count=9),
    "split": lambda manifest: manifest.update(split="test"),
    "metadata": lambda manifest: manifest["sealed"].update(metadata="kept"),
    "a shard dropped": lambda manifest: manifest["sealed"]["shards"].pop(),
    "shards swapped": lambda manifest: manifest["sealed"]["shards"].reverse(),
    "a salt": lambda manifest: manifest["sealed"]["shards"][0].update(salt="00" * 16),
    "a hash": lambda manifest: manifest["sealed"]["shards"][0].update(sha256="00" * 32),
    "a shard's split": lambda manifest: manifest["sealed"]["shards"][0].update(split="test"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_claim_that_decides_the_meaning_of_a_row_is_covered(seal: Callable, owner: KeyPair, change: str) -> None:
    folder = seal("out", {"owner": owner.public})
    edit(folder, CHANGES[change])
    with pytest.raises(IntegrityError, match="are not those that were sealed"):
        open_folder(folder, owner.identity)


def test_a_folder_id_of_another_folder_is_found(seal: Callable, owner: KeyPair) -> None:
    folder = seal("out", {"owner": owner.public})
    edit(folder, lambda manifest: manifest["sealed"].update(data_set="00" * 16))
    with pytest.raises(IntegrityError, match="that of another folder"):
        open_folder(folder, owner.identity)


def test_shards_swapped_on_disk_or_taken_from_another_folder_are_found(seal: Callable, owner: KeyPair) -> None:
    folder, other = (seal(name, {"owner": owner.public}, count=12) for name in ("out", "other"))
    first, second = sorted((folder / "sealed").iterdir())
    kept = first.read_bytes(), second.read_bytes()
    first.write_bytes(kept[1])
    second.write_bytes(kept[0])
    with pytest.raises(IntegrityError, match=f"sealed/{first.name}: its footer cannot be opened"):
        list(open_folder(folder, owner.identity).rows())
    first.write_bytes((other / "sealed" / first.name).read_bytes())
    with pytest.raises(IntegrityError, match=f"sealed/{first.name}: its footer cannot be opened"):
        list(open_folder(folder, owner.identity).rows())
    first.unlink()
    with pytest.raises(IntegrityError, match=f"sealed/{first.name}: cannot be read: it is missing"):
        list(open_folder(folder, owner.identity).rows())


def test_a_manifest_that_says_nothing_is_sealed_is_not_believed(seal: Callable, owner: KeyPair) -> None:
    folder = seal("out", {"owner": owner.public})
    edit(folder, lambda manifest: manifest.pop("sealed"))
    with pytest.raises(IntegrityError, match=r"says that nothing is sealed, but .* holds sealed files"):
        open_folder(folder, owner.identity)
    for name in ("sealed", "recipients"):
        shutil.rmtree(folder / name)
    with pytest.raises(UsageError, match="holds nothing sealed"):
        open_folder(folder, owner.identity)


@pytest.mark.parametrize(
    ("field", "value"),
    [("data_set", "x"), ("recipients", {"../me": {}}), ("version", 2), ("shards", []), ("more", 1), ("recipients", [])],
)
def test_claims_of_another_form_are_refused(seal: Callable, owner: KeyPair, field: str, value: object) -> None:
    folder = seal("out", {"owner": owner.public})
    edit(folder, lambda manifest: manifest["sealed"].update({field: value}))
    with pytest.raises(IntegrityError, match=f"invalid at sealed.{field}"):
        open_folder(folder, owner.identity)


def test_a_path_that_leads_out_of_the_folder_is_refused(seal: Callable, owner: KeyPair) -> None:
    folder = seal("out", {"owner": owner.public})
    edit(folder, lambda manifest: manifest["sealed"]["shards"][0].update(path="sealed/../../x.parquet"))
    with pytest.raises(IntegrityError, match=r"invalid at sealed\.shards\.0\.path"):
        open_folder(folder, owner.identity)


def test_other_folders_hold_nothing_to_open(owner: KeyPair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no published folder"):
        open_folder(tmp_path / "nothing", owner.identity)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(IntegrityError, match="cannot be read as JSON"):
        open_folder(tmp_path, owner.identity)
