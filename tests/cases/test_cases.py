"""Case files: the contract, the names, and errors that name the file."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uge.cases.case import Case, case_id, read_case, read_cases, write_case
from uge.errors import DataError, UsageError

CONTRACT = {
    "schema": 1,
    "id": "hacker-resnetc20-distill-protected-s0",
    "role": "hacker",
    "network": "resnetc20",
    "start": "random",
    "scheme": "distill",
    "data": "protected",
    "seed": 0,
    "key": 1,
    "recipe": {"epochs": 1},
    "history": [{"epoch": 1, "loss": 2.1, "train_accuracy": 20.1, "test_accuracy": 19.5}],
    "last": 19.5,
    "best": 19.5,
    "best_epoch": 1,
    "seconds": 12.3,
    "environment": {"torch": "2"},
    "fingerprint": "ab",
    "family": "knowledge",
    "needs": ["key"],
    "about": "trains with the answers of the authorised network",
    "start_accuracy": 9.5,
    "parts": [20.0, None],
}
RESULTS = Path(__file__).parents[2] / "results"


def test_the_contract_survives_a_round_trip(tmp_path: Path) -> None:
    case = Case.model_validate(CONTRACT)
    assert case.as_json() == CONTRACT
    path = write_case(tmp_path / "cases", case)
    assert json.loads(path.read_text()) == CONTRACT
    assert read_cases(tmp_path) == read_cases(tmp_path / "cases") == [case]


def test_published_cases_hold_every_field_of_the_contract() -> None:
    """A reader in another language can rely on them."""
    files = sorted(RESULTS.glob("**/cases/*.json"))
    assert len(files) > 400
    for path in files:
        # These are there only where a case has something of the kind.
        optional = {"long", "figures", "tested"}
        assert [name for name in json.loads(path.read_text()) if name not in optional] == list(CONTRACT), path
    assert {read_case(path).key for path in files} <= {0, 1}


def test_a_diverged_loss_becomes_null() -> None:
    case = Case.model_validate({**CONTRACT, "history": [{"epoch": 1, "loss": float("nan"), "test_accuracy": 10.0}]})
    assert case.history[0].loss is None
    assert "NaN" not in json.dumps(case.as_json())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "expected a case in JSON"),
        (json.dumps({**CONTRACT, "role": "spy"}), "'role'"),
        (json.dumps({**CONTRACT, "last": 120}), "'last'"),
        (json.dumps({**CONTRACT, "lsat": 12}), "'lsat'"),
        (json.dumps({**CONTRACT, "schema": 2}), "'schema'"),
        (json.dumps({name: value for name, value in CONTRACT.items() if name != "key"}), "'key'"),
        ("[]", "the top level"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(DataError, match=r"broken\.json") as caught:
        read_cases(tmp_path)
    assert expected in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        read_cases(tmp_path / "nowhere")


def test_case_id() -> None:
    assert case_id("hacker", "resnetc20", "distill", "protected", 0) == CONTRACT["id"]
    assert case_id("clean", "cnn", "direct", "clean", 1, start="theta0") == "clean-cnn-direct-clean-theta0-s1"
    assert (
        case_id("authorized", "cnn", "direct", "protected", 1, start="theta0") == "authorized-cnn-direct-protected-s1"
    )
    assert case_id("hacker", "cnn", "direct", "protected", 2, variant="slow") == "hacker-cnn-direct-protected-slow-s2"
    assert "/" not in case_id("hacker", "../etc/passwd", "direct", "protected", 0)


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_networks_have_different_ids(a: str, b: str) -> None:
    one, two = (case_id("hacker", name, "direct", "protected", 0) for name in (a, b))
    assert (one == two) == (a == b)
    assert one.isascii()
    assert not set("/\\:\0 ") & set(one)
