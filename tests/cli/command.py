"""The command line as a function, and a tiny data set on disk."""

import contextlib
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from uge.cli.main import main
from uge.methods import METHODS

CLASSES = ("cat", "dog", "owl")
_SETTINGS = {
    "method": "keyed",
    "authorized": "lenet",
    "authorized-seed": 0,
    "hacker": "lenet",
    "size": 16,
    "recipe.epochs": 1,
    "encoder-recipe.epochs": 1,
    "generator.width": 8,
    "generator.blocks": 1,
    "generator.lr": 0.02,
    "max-steps": 6,
}


def tiny(**changes: object) -> tuple[str, ...]:
    """Flags under which a protection takes a fraction of a second; ``__`` is a dot in a name, None leaves it out."""
    wanted = _SETTINGS | {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    method = str(wanted["method"])
    if "authorized" not in changes and method in METHODS and not METHODS[method].authorizes:
        del wanted["authorized"]
    return tuple(f"--{name}={value}" for name, value in wanted.items() if value is not None)


TINY = tiny()
PAPER = tiny(method="uge")


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run_uge(*arguments: str | Path) -> Ran:
    """``uge ARGUMENTS`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return Ran(int(left.value.code or 0), out.getvalue(), err.getvalue())


def make_folder(root: Path, classes: tuple[str, ...] = CLASSES, train: int = 12, test: int = 4, size: int = 16) -> Path:
    """An image folder with a train and a test split; every class has a brightness of its own."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            place = root / split / name
            place.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                pixels = 50 + 60 * number + random.normal(0, 15, (size, size, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{image:03d}.png")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


DRAWN_ANEW = re.compile(
    r"(^|/)((sealed|recipients)/.*|owner\.agekey|(published|recipients)\.json|manifest\.dsse\.json)$"
)
"""Files that differ at every sealing: keys, salts, and what names them."""


def without_record(manifest: bytes) -> bytes:
    """Manifest without the record of what is sealed."""
    return json.dumps({**json.loads(manifest), "sealed": None}).encode()


def reproducible(folder: Path) -> dict[str, bytes]:
    """Files below a folder that equal inputs make again: nothing sealed or signed, nor the record of what is sealed."""
    return {
        name: without_record(data) if name.rpartition("/")[2] == "manifest.json" else data
        for name, data in contents(folder).items()
        if not DRAWN_ANEW.search(name)
    }


def refused(code: int, words: str, *arguments: str | Path, inside: Path) -> Ran:
    """Run and check that ``inside`` is as it was, and that one sentence with ``words`` came on stderr."""
    before = contents(inside), sorted(os.listdir(inside))
    ran = run_uge(*arguments, "-q")
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert ran.err.startswith("uge: ")
    assert ran.err.count("\n") == 1, ran.err
    assert words in ran.err
    assert (contents(inside), sorted(os.listdir(inside))) == before
    return ran
