"""The example package in examples/plugin, installed as a user would, is part of the command line."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from command import Ran, make_folder

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed example; a copy of the sources is built, since a build leaves files in them."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)
    if int(version("setuptools").split(".")[0]) >= 77:
        flags = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--target", target]
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *flags, source], check=True)
        return target
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    info = target / "uge_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(source / "uge_example.py", target)
    return target


def uge(installed: Path, *arguments: str | Path) -> Ran:
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "uge", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def test_the_module_is_short() -> None:
    assert len((EXAMPLE / "uge_example.py").read_text().splitlines()) <= 25


SCRIPT = """
import sys, uge

@uge.attack("negative")
def negative(images, labels):
    return 255 - images

if __name__ == "__main__":
    toy, folder = sys.argv[1:]
    attacks = ["direct", "negative"]
    summary = uge.audit(toy, test=toy, networks=["lenet"], attacks=attacks, epochs=1, workers=2, folder=folder)
    sys.exit({hacker.scheme for hacker in summary.hackers} != set(attacks))
"""


def test_an_attack_of_a_script_runs_in_worker_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    toy = make_folder(tmp_path / "toy")
    ran = subprocess.run([sys.executable, script, toy, tmp_path / "audit"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_it_is_listed_with_its_package(installed: Path) -> None:
    rows = uge(installed, "list", "attacks", "--json").json["rows"]
    assert rows[-1] == {"name": "posterize", "about": "Keeps four of 256 levels", "package": "uge-example"}
    rows = uge(installed, "list", "methods", "--json").json["rows"]
    assert (rows[-1]["name"], rows[-1]["package"]) == ("checkerboard", "uge-example")


def test_it_protects_and_attacks_in_worker_processes(installed: Path, tmp_path: Path) -> None:
    toy = make_folder(tmp_path / "toy")
    ran = uge(
        installed, "protect", toy, tmp_path / "copy", "--method", "checkerboard", "--rho", "4/255", "--json", "-q"
    )
    assert ran.code == 0, ran.err
    assert ran.json["measured"]["linf_levels"] == 4
    attacks = ("--attacks", "direct,posterize,posterize+grayscale")
    flags = ("--networks", "lenet", "--epochs", "1", "--workers", "2", "--folder", tmp_path / "audit")
    ran = uge(installed, "audit", tmp_path / "copy", "--test", toy, *attacks, *flags, "--json", "-q")
    assert ran.code == 0, ran.err
    case = json.loads((tmp_path / "audit" / "cases" / "hacker-lenet-posterize-protected-s0.json").read_text())
    assert (case["about"], case["family"]) == ("Keeps four of 256 levels", "preprocess")
    assert {hacker["scheme"] for hacker in ran.json["hackers"]} == {"direct", "posterize", "posterize+grayscale"}
    assert "Keeps four of 256 levels" in (tmp_path / "audit" / "report.html").read_text()
