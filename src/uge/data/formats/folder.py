"""Image folders: ``ROOT/train/CLASS/*`` with ``test`` or ``val`` beside it, or ``ROOT/CLASS/*``.

Where sets without labels are taken: ``ROOT/train/*`` and ``ROOT/*``, too.
"""

import csv
import functools
import logging
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uge.data.formats.base import (
    COLUMNS,
    SAME_SPLIT,
    SPLIT_NAMES,
    Splits,
    UnlabelledError,
    choose_split,
    image_set,
    no_labels,
)
from uge.data.images import ImageSet, Pixels
from uge.data.pixels import decode, is_image_name
from uge.errors import DataError
from uge.files import LARGEST, read_bytes

logger = logging.getLogger(__name__)

INDEX = "index.csv"


@dataclass(frozen=True)
class FileReader:
    """Decodes files below a folder; holds names only, so threads and processes may share it."""

    root: Path
    names: list[str]

    def read(self, row: int) -> Pixels:
        """Image ``row``, decoded from its file."""
        path = self.root / self.names[row]
        return decode(path, str(path))

    def encoded(self, row: int) -> bytes:
        """Bytes of the file of image ``row``."""
        return read_bytes(self.root / self.names[row], LARGEST)


def splits(path: Path) -> Splits | None:
    """Splits of any folder; without split folders all images are the training split. None for a file.

    Folders are splits where the whole level consists of them; a class may be called ``train``.

    Raises:
        DataError: Some folders are named like several splits, and others beside them are not.
    """
    if not path.is_dir():
        return None
    folders = {name: path / name for name in _folders(path)}
    holding = {name: folders[name] for name in _holding(path)}
    named = {name: folder for name, folder in folders.items() if name.lower() in SPLIT_NAMES}
    divided = {name: folder for name, folder in named.items() if any(_folders(folder))}
    if not divided:
        if not COLUMNS.get().labels and holding and holding.keys() <= named.keys():
            _warn_of_loose_images(path)
            return {name: functools.partial(open_unlabelled, path, name, folder) for name, folder in holding.items()}
        return {"train": lambda: _open(path, "train", path, path)}
    others = sorted(holding.keys() - named.keys())
    several = len({SAME_SPLIT[name.lower()] for name in divided}) > 1
    if others and (several or not any(any(_folders(folders[name])) for name in others)):
        raise DataError(
            f"{path} has folders of splits ({', '.join(sorted(divided))}) and others beside them "
            f"({', '.join(others[:5])}); move the others out, or put all classes into one folder"
        )
    if others:
        logger.warning("%s: '%s' is read as a class like '%s' beside it", path, min(divided), others[0])
        return {"train": lambda: _open(path, "train", path, path)}
    for name in named.keys() - divided.keys():
        logger.warning("%s has no class sub-folders and is not used", named[name])
    _warn_of_loose_images(path)
    leading = divided[choose_split(divided, "train") or next(iter(divided))]
    return {name: functools.partial(_open, path, name, folder, leading) for name, folder in divided.items()}


def _open(root: Path, split: str, folder: Path, leading: Path) -> ImageSet:
    # The training split decides the classes, so that a label means the same in every split.
    if not COLUMNS.get().labels and not _holding(leading) and _holds_images(folder):
        return open_unlabelled(root, split, folder)
    classes = _class_folders(leading)
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise DataError(f"class folder '{unknown[0]}' of {folder} is not in {leading}; rename it or add it there")
    return open_classes(root, split, folder, {name: number for number, name in enumerate(classes)}, tuple(classes))


def open_classes(root: Path, split: str, folder: Path, labels: dict[str, int], classes: tuple[str, ...]) -> ImageSet:
    """Images below the class folders of ``folder``, in the order of torchvision's ``ImageFolder``.

    Classes are sorted by name; in a class come its own files, sorted, then its sub-folders, sorted by path.

    Args:
        root: The source, for the set's name.
        split: The split's name.
        folder: Holds the class folders.
        labels: Class folder name → label.
        classes: Class names.
    """
    names: list[str] = []
    numbers: list[int] = []
    skipped: list[str] = []
    for name in sorted(labels):
        for file in sorted(_files(folder / name), key=_place):
            if is_image_name(file):
                names.append(_checked(f"{name}/{file}", folder))
                numbers.append(labels[name])
            else:
                skipped.append(f"{name}/{file}")
    _warn_of_skipped(folder, skipped)
    ids = _ids(root, folder, names)
    return image_set(root, split, np.array(numbers, dtype=np.int64), classes, FileReader(folder, names), ids=ids)


def open_unlabelled(root: Path, split: str, folder: Path) -> ImageSet:
    """Images without labels: those in ``folder`` itself, sorted by name.

    Args:
        root: The source, for the set's name.
        split: The split's name.
        folder: Holds the images.
    """
    files = sorted(name for name in os.listdir(folder) if name[0] != "." and not os.path.isdir(folder / name))
    names = [_checked(name, folder) for name in files if is_image_name(name)]
    _warn_of_skipped(folder, [name for name in files if not is_image_name(name)])
    return image_set(root, split, no_labels(len(names)), (), FileReader(folder, names), ids=_ids(root, folder, names))


def _ids(root: Path, folder: Path, names: list[str]) -> list[str]:
    """Sample ids of files: those in the ``index.csv`` of an export, where every file has its own; else the names.

    A perturbation belongs to an id, which so survives a way through image files.
    """
    index = root / INDEX
    if not index.is_file():
        return names
    with index.open(newline="", encoding="utf-8", errors="replace") as handle:
        known = {str(row.get("path")): row.get("id") for row in csv.DictReader(handle)}
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    ids = [known.get(prefix + name) for name in names]
    if not all(ids) or len({*ids}) < len(ids):
        logger.warning("%s does not name every image in %s; file names are taken for ids", index, folder)
        return names
    return [str(name) for name in ids]


def _warn_of_skipped(folder: Path, names: list[str]) -> None:
    if names:
        logger.warning("%s: %d files without an image extension are skipped, such as %s", folder, len(names), names[0])


def _place(file: str) -> tuple[str, str]:
    parent, _, name = file.rpartition("/")
    return parent, name


def _warn_of_loose_images(folder: Path) -> None:
    loose = sum(map(is_image_name, os.listdir(folder)))
    if loose:
        logger.warning("%s: %d images lie in no class folder and are skipped", folder, loose)


def _class_folders(folder: Path) -> list[str]:
    names: dict[str, str] = {}
    for name in sorted(_folders(folder)):
        if not any(map(is_image_name, _files(folder / name))):
            logger.warning("%s holds no image and is not used as a class", folder / name)
            continue
        twin = names.setdefault(unicodedata.normalize("NFKC", name).strip().casefold(), name)
        if twin != name:
            raise DataError(f"class folders '{twin}' and '{name}' of {folder} have the same name; merge or rename")
    if names:
        _warn_of_loose_images(folder)
    else:
        expected = f"expected one sub-folder of images per class in {folder}, got"
        if _holds_images(folder):
            raise UnlabelledError(f"{expected} images that lie in no class folder; sort the images so")
        raise DataError(f"{expected} no image; sort the images so")
    return list(names.values())


def _holds_images(folder: Path) -> bool:
    return any(map(is_image_name, os.listdir(folder)))


def _holding(folder: Path) -> list[str]:
    """Sub-folders with an image somewhere below."""
    return [name for name in _folders(folder) if any(map(is_image_name, _files(folder / name)))]


def _folders(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if os.path.isdir(entry) and not entry.name.startswith((".", "__MACOSX")) and not _leads_up(entry):
                yield entry.name


def _leads_up(entry: os.DirEntry[str]) -> bool:
    # A link to a folder that it lies in would take every image once more.
    return entry.is_symlink() and Path(entry.path).parent.resolve().is_relative_to(os.path.realpath(entry.path))


def _files(folder: Path) -> Iterator[str]:
    """Names of the files below a folder, relative to it, with forward slashes; none where there is no folder."""
    visited = set()
    pending = [""] if folder.is_dir() else []
    while pending:
        prefix = pending.pop()
        real = os.path.realpath(folder / prefix)
        if real in visited:  # A link that leads back.
            continue
        visited.add(real)
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.name.startswith(".") or _leads_up(entry):
                    continue
                if os.path.isdir(entry):  # False for a link to itself, where entry.is_dir() fails.
                    pending.append(f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name


def _checked(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"a file name in {folder} is not valid UTF-8: {name!r}; rename the file") from None
    return name
