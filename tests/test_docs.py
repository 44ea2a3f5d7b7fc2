"""The docs keep up with the code: links resolve, commands and settings parse, flags exist."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest

from uge.cli.flags import settings_for
from uge.cli.main import app
from uge.cli.verbs import VERBS
from uge.learning.recipes import RECIPES
from uge.methods.baselines import BASELINES

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
SHELL = {"sh", "bash", "shell", "console"}
FOREIGN = {"--strict"}  # flags of other programs, where the line does not name the program
ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, languages: set[str]) -> Iterator[str]:
    yield from (match[4] for match in FENCE.finditer(page.read_text(encoding="utf-8")) if match[3] in languages)


def commands(page: Path) -> list[list[str]]:
    """Arguments of every ``uge`` line in a shell block; a shell variable stands for a number."""
    found = []
    for block in blocks(page, SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\$\w+", "7", line.removeprefix("$ ")), comments=True)
            if words and words[0] == "uge":
                found.append(words[1 : words.index(">") if ">" in words else None])
    return found


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@ids
def test_relative_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target)):
            broken.append(link)
    assert not broken


@ids
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "config", [])  # flags only, whatever another test has read
    for words in commands(page):
        try:
            app.parse_args(words, exit_on_error=False, print_error=False)
        except cyclopts.CycloptsError as error:
            pytest.fail(f"uge {shlex.join(words)}: {error}")


def test_the_tutorial_has_commands() -> None:
    verbs = {words[0] for words in commands(ROOT / "docs" / "tutorial.md")}
    assert verbs >= {"protect", "verify", "train", "audit", "report", "apply", "inspect"}


@ids
def test_settings_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"protect": ["a", "b"], "audit": ["a", "--test", "b"], "demo": [], "apply": ["a", "b", "c"]}
    for block in blocks(page, {"toml"}):
        path = tmp_path / "settings.toml"
        path.write_text(block)
        for verb in arguments.keys() & tomllib.loads(block).keys():
            words = [verb, *arguments[verb], "--config", str(path)]
            monkeypatch.setattr(app, "config", settings_for(words))
            app.parse_args(words, exit_on_error=False, print_error=False)


@ids
def test_flags_exist(page: Path) -> None:
    known = {"--help", "--help-all", "--version", "--install-completion"} | FOREIGN
    for verb in VERBS:
        arguments = app[verb].assemble_argument_collection()
        known |= {name for argument in arguments for name in argument.names}
    fields = {name for row in BASELINES for name in row.baseline.settings.model_fields} | {"kind"}
    known |= {f"--baseline.{name.replace('_', '-')}" for name in fields}
    text = re.sub(
        r"^.*\b(?:pip|python3?|pytest|ruff|docker|git|uv) .*$", "", page.read_text("utf-8"), flags=re.MULTILINE
    )
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]", text))
    assert not named - known


def test_named_recipes_exist() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(paper-[\w-]+)`", text)) == {name for name in RECIPES if name.startswith("paper-")}


def measured(cell: dict[str, Any]) -> str:
    """A cell as reproduce.md has it: ours (best, where it is higher) / the paper's."""
    text = f"{cell['ours']:.1f}"
    if cell["best"] is not None and cell["best"] - cell["ours"] >= 0.05:
        text += f" ({cell['best']:.1f})"
    return text if cell["paper"] is None else f"{text} / {cell['paper']:.1f}"


def test_table_1_is_that_of_the_published_results() -> None:
    file = ROOT / "results" / "reproduce" / "cpu-bf16" / "table1.json"
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    expected: dict[str, list[str]] = {}
    for cell in cells:
        if cell["section"].startswith("CIFAR-10") and "CIFAR-100" not in cell["section"] and cell["ours"] is not None:
            expected.setdefault(cell["row"], []).append(measured(cell))
    section = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").partition("\n### Table 1\n")[2]
    lines = [line.strip("|").split("|") for line in section.partition("\n### ")[0].splitlines() if line[:1] == "|"]
    shown = [[cell.strip() for cell in line[1:] if cell.strip()] for line in lines[2:]]
    assert sorted(shown) == sorted(expected.values())
