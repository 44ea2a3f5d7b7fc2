"""Keys come from the operating system's random source unless a seed is stated."""

import json
from pathlib import Path

import pytest
from tests.cli.command import contents, run_uge, tiny

import uge
from uge.networks import weights_hash
from uge.pipeline import protect as protecting

DRAWN = tiny(authorized_seed=None)
KEY = "authorized-0.key.safetensors"


def test_two_runs_on_the_same_images_have_different_keys(toy: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ran = run_uge("protect", toy, tmp_path / name, *DRAWN)
        assert ran.code == 0
        assert "reproduction" not in ran.err
    first, second = ((tmp_path / f"{name}.private" / KEY).read_bytes() for name in ("one", "two"))
    assert first != second


def test_a_drawn_seed_is_kept_for_resume_and_is_not_published(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, private = tmp_path / "copy", tmp_path / "copy.private"
    paper = tiny(method="uge", authorized_seed=None)
    with monkeypatch.context() as patch:
        patch.setattr(protecting, "publish_stream", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_uge("protect", toy, copy, *paper, "-q").code == 130
    key = (private / KEY).read_bytes()
    assert run_uge("protect", toy, copy, *paper, "--resume", "-q").code == 0
    assert (private / KEY).read_bytes() == key
    state = json.loads((private / "run" / "run.json").read_text())
    assert state["authorized_seed"].bit_length() > 200
    assert state["config"]["authorized_seed"] is None
    assert all(str(state["authorized_seed"]).encode() not in content for content in contents(copy).values())


def test_a_stated_seed_makes_the_same_key_and_is_said_to_be_for_reproduction(toy: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ran = run_uge("protect", toy, tmp_path / name, *tiny(authorized_seed=5))
        assert ran.err.count("--authorized-seed is for reproduction only") == 1
    first, second = ((tmp_path / f"{name}.private" / KEY).read_bytes() for name in ("one", "two"))
    assert first == second


def test_the_library_draws_keys_unless_a_seed_is_stated(toy: Path) -> None:
    images = uge.load_images(str(toy))
    drawn = {weights_hash(uge.authorize("keyed:lenet", images, size=16).theta0) for _ in range(2)}
    stated = {weights_hash(uge.authorize("keyed:lenet", images, size=16, seed=3).theta0) for _ in range(2)}
    assert (len(drawn), len(stated)) == (2, 1)


def test_a_resumed_federation_keeps_the_drawn_seed(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from uge.pipeline import federated

    monkeypatch.setattr(federated, "write_part", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    flags = ("--test", toy, "--networks", "lenet", "--servers", "2", "--split", "dirichlet", "--alpha", "100", *DRAWN)
    key = tmp_path / "fed" / "request" / KEY
    assert run_uge("federated", toy, tmp_path / "fed", *flags, "-q").code == 130
    before = key.read_bytes()
    assert run_uge("federated", toy, tmp_path / "fed", *flags, "--resume", "-q").code == 130
    assert key.read_bytes() == before
