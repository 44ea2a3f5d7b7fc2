"""A newcomer's walk: the README's commands run as they are written there, and print what it shows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
SHELL, PYTHON = (re.search(rf"```{kind}\n(.*?)```", README, re.DOTALL)[1] for kind in ("sh", "python"))  # type: ignore[index]
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def steps() -> Iterator[tuple[str, list[str]]]:
    """Commands, each with the lines that the README shows below it."""
    command, shown = "", list[str]()
    for line in SHELL.splitlines():
        if line.startswith("# "):
            shown.append(line.removeprefix("# "))
            continue
        if command:
            yield command, shown
        command, shown = line.partition("   #")[0].strip(), []
    yield command, shown


def run(command: str, here: Path) -> str:
    """Output of a line of shell, in which ``uge`` is this checkout's."""
    (here / "bin").mkdir(exist_ok=True)
    program = here / "bin" / "uge"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uge "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(here),
    }
    done = subprocess.run(command, shell=True, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def same(shown: str, printed: str) -> bool:
    """True for lines that differ in measured numbers at most."""
    return NUMBER.sub("N", shown) == NUMBER.sub("N", printed)


def test_the_commands_of_the_readme_print_what_it_shows(tmp_path: Path) -> None:
    walk = list(steps())
    assert [command.split()[1] for command, _ in walk] == ["keygen", "protect", "verify", "export", "audit"]
    for command, shown in walk[:-1]:
        printed = run(command, tmp_path).splitlines()
        for line in shown:
            assert any(same(line, other) for other in printed), f"{command} does not print: {line}"
    assert "would run" in run(f"{walk[-1][0]} --dry-run", tmp_path)


@pytest.mark.heavy
def test_the_audit_and_the_python_of_the_readme_run(tmp_path: Path) -> None:
    walk = list(steps())
    for command, _ in walk[:2]:
        run(command, tmp_path)
    assert "The strongest of" in run(walk[-1][0].replace("10m", "2m"), tmp_path)
    code = PYTHON.replace('load_images("photos")', 'load_images("photos").take(300)').replace(
        "worst_case=True", 'budget="90s"'
    )
    (tmp_path / "walk.py").write_text(code)
    assert "points" in run(f'"{sys.executable}" walk.py', tmp_path)
