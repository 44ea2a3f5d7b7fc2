"""Secret files can be read by their owner alone, whatever the umask."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.command import PAPER, TINY, make_folder, run_uge


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """Leave new files open to everybody for the duration of a test."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """Files and folders that others could read, the folder itself included."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("flags", [TINY, PAPER], ids=["keyed", "uge"])
def test_a_private_folder_is_closed_to_others(flags: tuple[str, ...], tmp_path: Path) -> None:
    source = make_folder(tmp_path / "images")
    assert run_uge("protect", source, tmp_path / "copy", *flags, "-q").code == 0
    assert open_to_others(tmp_path / "copy.private") == []
    assert (tmp_path / "copy" / "manifest.json").stat().st_mode & 0o044 == 0o044


def test_trained_weights_and_their_audit_are_closed_to_others(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "images")
    copy, weights, audit = (tmp_path / name for name in ("copy", "trained.safetensors", "copy.audit"))
    assert run_uge("protect", source, copy, *TINY, "-q").code == 0
    key = tmp_path / "copy.private" / "authorized-0.key.safetensors"
    assert run_uge("train", copy, "--key", key, "--save", weights, "-q").code == 0
    audit.mkdir()
    flags = ("--test", source, "--networks", "lenet", "--attacks", "direct,distill", "--variants", "none", "-q")
    assert run_uge("audit", copy, *flags).code == 0
    trained = list((audit / "weights").iterdir())
    assert trained
    assert [oct(path.stat().st_mode & 0o777) for path in (weights, *trained)] == ["0o600"] * (1 + len(trained))
    assert audit.stat().st_mode & 0o777 == 0o700
