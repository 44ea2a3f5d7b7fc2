"""The ledger: results count for one fingerprint only, and nothing of a forgotten case is left."""

from pathlib import Path

import pytest

from uge.cases.case import Case, Ledger
from uge.files import read_json
from uge.networks import build, weights_hash

CASE = Case(
    id="a", role="hacker", network="lenet", start="random", data="protected", seed=0, key=0, last=50, best=60,
    best_epoch=1, fingerprint="f",
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def test_a_case_counts_for_its_fingerprint_only(ledger: Ledger) -> None:
    assert ledger.finished("a", "f") is None
    ledger.keep(CASE)
    assert ledger.finished("a", "f") == CASE
    assert ledger.finished("a", "g") is None


def test_a_failure_is_noted_until_the_case_is_there(ledger: Ledger) -> None:
    ledger.fail("a", "no memory", fingerprint="f", tries=2)
    assert read_json(ledger.folder / "failed" / "a.json") == {
        "id": "a",
        "error": "no memory",
        "fingerprint": "f",
        "tries": 2,
    }
    assert (ledger.failure("a", "f"), ledger.failure("a", "g"), ledger.failure("b", "f")) == ("no memory", None, None)
    ledger.keep(CASE)
    assert ledger.failure("a", "f") is None


def test_a_trained_network_comes_back_for_its_fingerprint_only(ledger: Ledger) -> None:
    trained, other = (build("lenet", 3, seed=seed, size=16) for seed in (0, 1))
    assert not ledger.load("a", other, "f")
    ledger.save("a", trained, "f")
    assert not ledger.load("a", build("cnn", 3, seed=0, size=16), "f")
    assert not ledger.load("a", other, "g")
    assert ledger.load("a", other, "f")
    assert weights_hash(other) == weights_hash(trained)


def test_nothing_of_a_forgotten_case_is_left(ledger: Ledger) -> None:
    ledger.keep(CASE)
    ledger.save("a", build("lenet", 3, seed=0, size=16), "f")
    ledger.fail("a", "no memory")
    ledger.forget("a")
    assert [path for path in ledger.folder.rglob("*") if path.is_file()] == []


def test_a_kept_case_has_no_checkpoint_any_more(ledger: Ledger) -> None:
    path = ledger.checkpoint("a", "f")
    path.parent.mkdir()
    path.write_text("")
    ledger.keep(CASE)
    assert not path.exists()
