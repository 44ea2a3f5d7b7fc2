"""Image folders: ``ROOT/train/CLASS/*`` with ``test`` or ``val`` beside it, or ``ROOT/CLASS/*``."""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uge.data.decode import decode, is_image_name
from uge.data.formats.base import SPLIT_NAMES, Splits, choose_split
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileReader:
    """Decodes files below a folder; holds names only, so threads and processes may share it."""

    root: Path
    names: list[str]

    def read(self, row: int) -> Pixels:
        """Image ``row``, decoded from its file."""
        path = self.root / self.names[row]
        return decode(path, str(path))


def detect(path: Path) -> bool:
    """Whether the path is a folder; what is wrong with it is said when it is opened."""
    return path.is_dir()


def splits(path: Path) -> Splits:
    """The splits of an image folder; without split folders all images are the training split."""
    folders = {entry.name: Path(entry.path) for entry in _folders(path)}
    named = {name: folder for name, folder in folders.items() if name.lower() in SPLIT_NAMES}
    if not named or not (choose_split(named, "train") or len(named) == len(folders)):
        return {"train": lambda: _open(path, "train", path, path)}
    usable = {}
    for name, folder in named.items():
        if any(_folders(folder)) or choose_split([name], "train"):
            usable[name] = folder
        else:
            logger.warning("%s has no class sub-folders and is not used", folder)
    leading = usable[choose_split(usable, "train") or next(iter(usable))] if usable else path
    return {name: functools.partial(_open, path, name, folder, leading) for name, folder in usable.items()}


def _open(root: Path, split: str, folder: Path, leading: Path) -> ImageSet:
    # The training split decides the classes, so that a label means the same in every split.
    classes = class_folders(leading)
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise DataError(f"class folder '{unknown[0]}' of {folder} is not in {leading}; rename it or add it there")
    return open_classes(root, split, folder, {name: number for number, name in enumerate(classes)}, tuple(classes))


def open_classes(root: Path, split: str, folder: Path, labels: dict[str, int], classes: tuple[str, ...]) -> ImageSet:
    """The images below the class folders of ``folder``, in sorted order.

    Args:
        root: The source, for the set's name.
        split: The split's name.
        folder: Holds the class folders.
        labels: Class folder name → label.
        classes: Class names.
    """
    skipped: list[str] = []
    names: list[str] = []
    numbers: list[int] = []
    for name in sorted(labels):
        if (folder / name).is_dir():
            found = sorted(_images(folder / name, skipped))
            names += [f"{name}/{image}" for image in found]
            numbers += [labels[name]] * len(found)
    if skipped:
        logger.warning(
            "%s: %d files without an image extension are skipped, such as %s", folder, len(skipped), skipped[0]
        )
    return ImageSet(
        name=root.resolve().name,
        split=split,
        classes=classes,
        labels=np.array(numbers, dtype=np.int64),
        ids=names,
        reader=FileReader(folder, names),
        rows=np.arange(len(names), dtype=np.int64),
        root=root,
    )


def class_folders(folder: Path) -> list[str]:
    """Names of the sub-folders that hold images, sorted.

    Raises:
        DataError: There is none, or two names are the same but for case, spaces or Unicode form.
    """
    names = []
    for entry in _folders(folder):
        if any(_images(Path(entry.path), [])):
            names.append(entry.name)
        else:
            logger.warning("%s holds no image and is not used as a class", entry.path)
    if not names:
        loose = any(is_image_name(entry.name) for entry in os.scandir(folder))
        got = "images that lie in no class folder" if loose else "no image"
        raise DataError(f"expected one sub-folder of images per class in {folder}, got {got}; sort the images so")
    seen: dict[str, str] = {}
    for name in sorted(names):
        key = unicodedata.normalize("NFKC", name).strip().casefold()
        if key in seen:
            raise DataError(f"class folders '{seen[key]}' and '{name}' of {folder} have the same name; merge or rename")
        seen[key] = name
    return sorted(names)


def _folders(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX")) and not _leads_up(entry):
                yield entry


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a folder that it lies in, which would take every image once more."""
    return entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(os.path.realpath(entry.path))


def _images(folder: Path, skipped: list[str]) -> Iterator[str]:
    """Names of image files below a folder, relative to it, with forward slashes."""
    visited = set()
    pending = [("", folder)]
    while pending:
        prefix, here = pending.pop()
        real = os.path.realpath(here)
        if real in visited:  # a link that leads back
            continue
        visited.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith(".") or _leads_up(entry):
                    continue
                if entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", Path(entry.path)))
                elif is_image_name(entry.name):
                    yield _checked(prefix + entry.name, here)
                else:
                    skipped.append(entry.path)


def _checked(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"a file name in {folder} is not valid UTF-8: {name!r}; rename the file") from None
    return name
