"""First lines of docstrings follow the prose rule of CONTRIBUTING.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "uge"
PERSON = re.compile(
    r"\b(he|his|him|himself|she|her|who|whom|whose|whoever|nobody|somebody|everybody|anybody)\b", re.IGNORECASE
)
QUESTION = re.compile(r"^(What|Whether|Who|Whose|How|Where|When|Why)\b")
MODULES = sorted(SOURCE.rglob("*.py"))


def first_lines(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text.partition("\n")[0]


def against_the_rule(line: str) -> bool:
    return bool(QUESTION.match(line) or PERSON.search(line))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_first_lines_say_what_comes_back(path: Path) -> None:
    bad = [f"{line}: {text}" for line, text in first_lines(path.read_text("utf-8")) if against_the_rule(text)]
    assert not bad


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("What is left of a hacker who trains on the copy as he finds it.", True),
        ("Whether a network stands behind a wave key.", True),
        ("Images that nobody learns from.", True),
        ("Accuracy of plain training on the copy.", False),
        ("Shear the images; the here and now of whole words.", False),
    ],
)
def test_the_rule_itself(line: str, bad: bool) -> None:
    assert against_the_rule(line) is bad
