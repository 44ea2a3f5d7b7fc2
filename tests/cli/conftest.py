"""A tiny data set and one protected copy of it that tests share."""

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import PAPER, TINY, make_folder, run_uge


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set; not to be changed."""
    return make_folder(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture(scope="session")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published copy of it with its private folder; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "copy"
    ran = run_uge("protect", toy, out, *TINY, "-q")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="session")
def paper(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy, by the paper's losses; not to be changed."""
    out = tmp_path_factory.mktemp("paper") / "copy"
    ran = run_uge("protect", toy, out, *PAPER, "-q")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` and its private folder that a test may change."""
    for suffix in ("", ".private"):
        shutil.copytree(f"{finished}{suffix}", tmp_path / f"copy{suffix}")
    return tmp_path / "copy"


@pytest.fixture
def key(finished: Path) -> Path:
    """The key of ``finished``."""
    return finished.with_name("copy.private") / "authorized-0.key.safetensors"


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a function of the package raise at its n-th call."""

    def patch(target: str, error: BaseException | type[BaseException], call: int = 1) -> None:
        module, _, name = target.rpartition(".")
        home = importlib.import_module(module)
        real, calls = getattr(home, name), [0]

        def raising(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(home, name, raising)

    return patch
