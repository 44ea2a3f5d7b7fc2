"""A module imports only from its own floor or floors below it (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "uge"
FLOORS = [
    {"errors", "names", "preloading", "processes", "progress", "budget", "registry"},
    {"files"},
    {"runtime"},
    {"data"},
    {"networks"},
    {"learning"},
    {"encoders"},
    {"methods"},
    {"publishing"},
    {"attacks"},
    {"cases"},
    {"auditing"},
    {"report"},
    {"federated"},
    {"config"},
    {"session"},
    {"pipeline", "requests"},
    {"api", "paper"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem[0] != "_")
TORCH_FREE = [
    "uge",
    "uge.cli.main",
    "uge.config",
    "uge.publishing.manifest",
    "uge.cases.case",
    "uge.report",
    "uge.data",
]
TORCH_FREE += ["uge.cli.paper", "uge.paper.request"]


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("uge.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    above = {name for name in imports(path) if FLOOR[name] > FLOOR[room]}
    assert not above, f"{room} imports from floors above it: {sorted(above)}"
    assert room != "auditing" or "methods" not in imports(path)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
