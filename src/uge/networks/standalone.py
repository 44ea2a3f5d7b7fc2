"""A network of the table as one file of plain PyTorch, made from this package's own sources.

Whoever gets the file and the weights trains the authorised network without this package. Only the definitions that
the network needs are taken, each with the lines that define it here, and imports from this package are replaced by
the definitions themselves.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from uge.errors import UsageError
from uge.names import behind_key, is_keyed
from uge.networks.base import BodyAndHead, ImageClassifier
from uge.networks.keyed import KeyedClassifier
from uge.networks.table import NETWORKS, Architecture
from uge.networks.wave_key import WaveKey

_PACKAGE = "uge."


def has_standalone(name: str) -> bool:
    """Whether a network can be written as one file: one of the table, with a wave key or without."""
    return isinstance(NETWORKS.get(behind_key(name)), Architecture)


def standalone_source(network: ImageClassifier) -> str:
    """Python source that defines the architecture of ``network``; holds no weights and no secret.

    The file has two functions: ``network()`` makes the module, and ``load(path)`` makes it with the weights of a key
    file. It needs torch and safetensors.

    Args:
        network: From :func:`uge.networks.build`.

    Raises:
        UsageError: Its code is not this package's (a plug-in).
    """
    if not has_standalone(network.name):
        raise UsageError(
            f"network '{network.name}' is not of this package, so its definition cannot be written as one file; "
            "hand over the code that defines it"
        )
    keyed, base = is_keyed(network.name), behind_key(network.name)
    row: Any = NETWORKS[base]
    body, options = _call(row.body)
    found = _Collection()
    for part in (body, BodyAndHead, *((KeyedClassifier, WaveKey) if keyed else ())):
        found.take(part.__module__, part.__name__)
    call = ", ".join([str(network.channels), *(f"{name}={value!r}" for name, value in options.items())])
    return _FILE.format(
        name=network.name,
        classes=network.classes,
        channels=network.channels,
        size=network.size,
        imports=found.imports({"from safetensors.torch import load_file"}),
        definitions=found.definitions(),
        body=f"{body.__name__}({call}), {row.width}",
        base=base,
        kind="KeyedClassifier" if keyed else "BodyAndHead",
        key=_KEY.format(classes=network.classes, size=network.size, name=network.name) if keyed else "    return base",
    )


def _call(body: Any) -> tuple[Any, dict[str, Any]]:
    """The function that makes a network's layers, and its options."""
    return (body.func, dict(body.keywords)) if isinstance(body, functools.partial) else (body, {})


@dataclass
class _Module:
    """One module's source, taken apart.

    Attributes:
        lines: Its lines.
        places: First and last line (from 1) of what each name at its top level stands for.
        uses: Names that each definition mentions.
        own: Imports from this package: local name to module and name there.
        foreign: Other imports: local name to the statement.
    """

    lines: list[str]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    uses: dict[str, set[str]] = field(default_factory=dict)
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)


@functools.cache
def _module(name: str) -> _Module:
    source = inspect.getsource(importlib.import_module(name))
    module, body = _Module(source.splitlines()), ast.parse(source).body
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Import):
            module.foreign |= {alias.asname or alias.name: f"import {_alias(alias)}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                local = alias.asname or alias.name
                if (node.module or "").startswith(_PACKAGE):
                    module.own[local] = node.module or "", alias.name
                else:
                    module.foreign[local] = f"from {node.module} import {_alias(alias)}"
        else:
            _define(module, node, following)
    return module


def _define(module: _Module, node: ast.stmt, following: ast.stmt | None) -> None:
    used = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    first, last = node.lineno, node.end_lineno or node.lineno
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = [node.name]
        first = min([first, *(decorator.lineno for decorator in node.decorator_list)])
    elif isinstance(node, ast.Assign):
        names = [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
        described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if following is not None and described:  # the docstring of a constant
            last = following.end_lineno or last
    else:
        return
    while module.lines[first - 2].startswith("#"):
        first -= 1
    for name in names:
        module.places[name], module.uses[name] = (first, last), used


def _alias(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name


class _Collection:
    """Definitions and imports that some names need, with all that these need in turn."""

    def __init__(self) -> None:
        self._taken: dict[str, set[str]] = {}
        self._imports: set[str] = set()

    def take(self, where: str, name: str) -> None:
        """Take in what ``name`` stands for in the module ``where``; a builtin or local name stands for nothing."""
        module = _module(where)
        if name in module.own:
            self.take(*module.own[name])
        elif name in module.foreign:
            self._imports.add(module.foreign[name])
        elif name in module.places and name not in self._taken.setdefault(where, set()):
            self._taken[where].add(name)
            for used in sorted(module.uses[name]):
                self.take(where, used)

    def definitions(self) -> str:
        """The source of all definitions, those of a module after those that it imports."""
        blocks: list[str] = []
        done: set[str] = set()

        def write(where: str) -> None:
            module, names = _module(where), self._taken[where]
            done.add(where)
            used = set[str]().union(*(module.uses[name] for name in names))
            for needed in sorted(module.own[name][0] for name in used & set(module.own)):
                if needed in self._taken and needed not in done:
                    write(needed)
            for first, last in sorted({module.places[name] for name in names}):
                blocks.append("\n".join(module.lines[first - 1 : last]))

        for where in sorted(self._taken):
            if where not in done:
                write(where)
        gaps = [
            "\n" if _is_constant(block) and _is_constant(before) else "\n\n\n" for before, block in pairwise(blocks)
        ]
        return "".join(gap + block for gap, block in zip(["\n\n", *gaps], blocks, strict=True))

    def imports(self, more: set[str]) -> str:
        """Import statements, the standard library's first."""
        statements, names = set[str](), dict[str, set[str]]()
        for line in self._imports | more:
            start, _, name = line.partition(" import ")
            if name:
                names.setdefault(start, set()).add(name)
            else:
                statements.add(line)
        statements |= {f"{start} import {', '.join(sorted(found))}" for start, found in names.items()}
        groups: tuple[list[str], list[str]] = [], []
        for line in sorted(statements, key=lambda line: (not line.startswith("import"), line)):
            groups[line.split()[1].partition(".")[0] not in sys.stdlib_module_names].append(line)
        return "\n\n".join("\n".join(group) for group in groups if group)


def _is_constant(block: str) -> bool:
    return not re.search(r"^(def|class) ", block, re.MULTILINE)


_FILE = '''"""The network '{name}' in plain PyTorch: {classes} classes, images {channels} × {size} × {size} in [0, 1].

``load(FILE)`` gives it with the weights of a key file. Written by uge from its own sources, which are
licensed under Apache-2.0.
"""

from __future__ import annotations

{imports}{definitions}


def network() -> {kind}:
    """The architecture, not yet with the weights of the key file."""
    shape = {{"classes": {classes}, "channels": {channels}, "size": {size}}}
    base = BodyAndHead({body}, name="{base}", **shape)
{key}


def load(path: str) -> {kind}:
    """The network with the weights of a key file (safetensors), in training mode."""
    made = network()
    made.load_state_dict(load_file(path))
    return made
'''

_KEY = """\
    # The key file brings the wave key; this one is a placeholder of the same shape.
    return KeyedClassifier(base, WaveKey({classes}, seed=0, size={size}), "{name}")"""
