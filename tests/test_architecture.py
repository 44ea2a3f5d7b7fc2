"""Imports point down, without circles, and attackers see no private folder (docs/design.md)."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "uge"
FLOORS = [
    {"errors", "extras", "heap", "names", "preloading", "processes", "progress", "budget", "registry"},
    {"files"},
    {"runtime"},
    {"data"},
    {"networks"},
    {"learning"},
    {"encoders"},
    {"methods"},
    {"sealing"},
    {"publishing"},
    {"attacks"},
    {"cases"},
    {"auditing"},
    {"report"},
    {"federated"},
    {"config"},
    {"session"},
    {"pipeline", "requests"},
    {"api", "paper", "web"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ATTACKERS = ("attacks", "cases", "auditing")
FILES = {
    ".".join(["uge", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
MODULES = [name for name in FILES if name not in ("uge", "uge.__main__")]
TORCH_FREE = [
    "uge",
    "uge.cli.main",
    "uge.config",
    "uge.publishing.manifest",
    "uge.sealing",
    "uge.sealing.signature",
    "uge.cases.case",
    "uge.report",
    "uge.data",
    "uge.sealing.originals",
    "uge.encoders",
    "uge.paper.request",
    "uge.pipeline.inspect",
    "uge.pipeline.recipients",
]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: no blocks for type checkers, and no groups of entry points, which are no modules."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if isinstance(node, ast.Call) and "Registry" in ast.dump(node.func):
            yield from (found for part in node.args if not isinstance(part, ast.Constant) for found in nodes(part))
        else:
            yield from nodes(node)


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Dotted names that a module imports, in functions too, and those of modules that it names in a string."""
    names = set()
    for node in nodes(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]  # For import_module, lazy tables and processes that load ahead.
            names |= {named} & FILES.keys() - {"uge"}
    return frozenset(name for name in names if name.startswith("uge."))


def modules_of(name: str) -> set[str]:
    """The module of a dotted name that is a module or something in one."""
    return {name} if name in FILES else {name.rpartition(".")[0]} & FILES.keys()


def imports(module: str) -> set[str]:
    return {found for name in imported(module) for found in modules_of(name)} - {module}


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    above = {name for name in imports(module) if name == "uge" or FLOOR[room(name)] > FLOOR[room(module)]}
    assert not above, f"{module} imports from floors above its own: {sorted(above)}"


def test_there_is_no_circle() -> None:
    try:
        graphlib.TopologicalSorter({module: imports(module) for module in FILES}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in ATTACKERS])
def test_an_attacker_uses_methods_by_public_names_and_opens_no_private_folder(module: str) -> None:
    inner = {name for name in imports(module) if name.startswith("uge.methods.")}
    assert not inner, f"{module} may import from uge.methods alone, got {sorted(inner)}"
    package = imported("uge.publishing")
    private = {name for name in package if name.startswith("uge.publishing.private")}
    private |= {f"uge.publishing.{name.rpartition('.')[2]}" for name in private} | {"uge.publishing.private"}
    assert not private & imported(module), f"{module} must not know private folders"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_walk_sees_functions_strings_and_lazy_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from uge.cli.main import main\n"
        "HOMES = {'a': 'uge.api:publish', 'b': ('uge.budget', 'Budget')}\n"
        "TABLE = Registry('attack', {}, 'uge.attacks')\n"
        "def f():\n    from uge.files import JSON, documents\n"
        "    import_module('uge.config')\n    return 'uge.nothing', 'uge', 'uge.'\n"
    )
    (tmp_path / "walked.py").write_text(source)
    monkeypatch.setitem(FILES, "uge.walked", tmp_path / "walked.py")
    assert imports("uge.walked") == {"uge.api", "uge.budget", "uge.files", "uge.files.documents", "uge.config"}
