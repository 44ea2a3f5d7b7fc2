"""README and docs show the figures of the worst case that lie in the results."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def worst_case(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "worst_case", raising=False)
    import worst_case as module

    return module


def test_pages_are_current(worst_case: object) -> None:
    pages: dict[Path, str] = worst_case.pages()  # type: ignore[attr-defined]
    assert len(pages) == 3
    for path, content in pages.items():
        assert path.read_text("utf-8") == content, f"run python benchmarks/worst_case.py pages: {path.name} is old"


@pytest.mark.parametrize("script", ["verdict", "results_page", "fidelity"])
def test_other_pages_are_current(script: str, worst_case: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, script, raising=False)
    for path, content in importlib.import_module(script).pages().items():
        assert path.read_text("utf-8") == content, f"run python benchmarks/{script}.py: {path.name} is old"


def test_a_page_without_the_block_is_refused(worst_case: object) -> None:
    filled = worst_case.filled  # type: ignore[attr-defined]
    assert filled("a <!-- b -->old<!-- /b --> c", "b", "new") == "a <!-- b -->\nnew\n<!-- /b --> c"
    with pytest.raises(SystemExit, match="no block"):
        filled("a", "b", "new")
