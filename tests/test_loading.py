"""The garbage collector while libraries load."""

import atexit
import gc
import sys
from collections.abc import Iterator

import pytest

from uge.loading import loading


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has not loaded torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.enable()
    gc.unfreeze()
    atexit.unregister(gc.freeze)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_comes_back_and_leaves_what_was_loaded_alone(fails: bool) -> None:
    before = gc.get_freeze_count()
    try:
        with loading():
            assert not gc.isenabled()
            loaded = [[] for _ in range(1000)]  # type: ignore[var-annotated]
            if fails:
                raise ImportError
    except ImportError:
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(loaded)


@pytest.mark.usefixtures("alone")
def test_a_program_without_a_collector_gets_none() -> None:
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()


def test_the_collector_of_a_program_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
