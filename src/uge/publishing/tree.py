"""The files of a published folder against its manifest: present, unchanged, and nothing else."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from uge.errors import IntegrityError
from uge.files import file_sha256
from uge.publishing.manifest import MANIFEST, Manifest, read_manifest

PUBLISHABLE = re.compile(
    r"README\.md|TRAINING\.md|index\.csv|data/train-\d{5}-of-\d{5}\.parquet|train/(?!\.)[^/\\]+/\d{8}\.(png|webp)"
)
SECRET_WORDS = re.compile(
    r"\.(safetensors|pt|pth|ckpt|pkl|pickle|npy|npz|key|pem)$|(?<![a-z])(trajectory|generator|encoder|private|authorized)(?![a-z])",
    re.IGNORECASE,
)


def check_files(folder: Path, manifest: Manifest, problem: Callable[[str], None]) -> frozenset[str]:
    """Compare every file with the manifest, byte for byte.

    Args:
        folder: The published folder.
        manifest: Its manifest.
        problem: Takes one sentence per deviation.

    Returns:
        The listed files that are exactly as listed.
    """
    found = dict(_files(folder, manifest, problem))
    listed: set[str] = set()
    sound: set[str] = set()
    for record in manifest.files:
        path = found.get(record.path)
        if not PUBLISHABLE.fullmatch(record.path):
            problem(_unwanted(record.path, "has no place in a published folder, but manifest.json lists it; remove it"))
        elif record.path in listed:
            problem(f"{MANIFEST}: {record.path} is listed twice; publish again")
        elif path is None:
            problem(f"{record.path} is missing; fetch the folder again")
        elif (size := path.stat().st_size) != record.bytes:
            problem(f"{record.path} has {size} bytes instead of {record.bytes}; fetch the file again")
        elif file_sha256(path) != record.sha256:
            problem(f"{record.path} was changed: its sha256 is not that in manifest.json; fetch the file again")
        else:
            sound.add(record.path)
        listed.add(record.path)
    for name in sorted(set(found) - listed - {MANIFEST}):
        problem(_unwanted(name, "is not listed in manifest.json; remove it"))
    return frozenset(sound)


def is_complete(folder: Path) -> bool:
    """Whether a published folder has every file that its manifest lists, unchanged."""
    try:
        manifest = read_manifest(folder)
    except IntegrityError:
        return False
    return len(check_files(folder, manifest, lambda sentence: None)) == len(manifest.files)


def _files(folder: Path, manifest: Manifest, problem: Callable[[str], None]) -> Iterator[tuple[str, Path]]:
    """Regular files by their path in the folder; links out of it, devices and empty folders are problems instead."""
    root = folder.resolve()
    classes = {f"train/{name}" for name in (manifest.class_folders or {}).values()}
    for here, folders, names in os.walk(folder):
        relative = Path(here).relative_to(folder).as_posix()
        if not folders and not names and relative not in classes:
            problem(_unwanted(relative, "is an empty folder that is not part of the data set; remove it"))
        for name in [*names, *(name for name in folders if Path(here, name).is_symlink())]:
            path = Path(here, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                problem(f"{relative} is a link that leads outside the folder; replace it by the file itself")
            elif path.is_file():
                yield relative, path
            else:
                problem(f"{relative} is neither a file nor a folder; remove it")


def _unwanted(path: str, otherwise: str) -> str:
    if SECRET_WORDS.search(path):
        return f"{path} looks like a secret (key, weights, trajectory or noise); never publish it, move it away"
    if any(part.startswith(".") for part in path.split("/")):
        return f"{path} is a hidden file that is not part of the data set; remove it"
    return f"{path} {otherwise}"
