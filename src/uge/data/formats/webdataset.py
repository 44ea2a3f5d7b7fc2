"""WebDataset shards: tar files of ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``, read in place, never extracted."""

from __future__ import annotations

import functools
import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from uge.data.decode import IMAGE_EXTENSIONS, decode
from uge.data.formats.base import SPLIT_NAMES, Splits, by_split, class_names, encode_labels, label_values, row_ids
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError

logger = logging.getLogger(__name__)


def detect(path: Path) -> bool:
    """Whether the path is a tar file or a folder of them."""
    return path.suffix == ".tar" if path.is_file() else bool(_files(path))


def splits(path: Path) -> Splits:
    """The splits that the names of the shards or of their folders mention."""
    groups = by_split([path], path.parent) if path.is_file() else by_split(_files(path), path)
    return {split: functools.partial(_open, path, split, groups) for split in groups}


def _files(folder: Path) -> list[Path]:
    places = [folder, *(folder / name for name in SPLIT_NAMES)]
    return [file for place in places if place.is_dir() for file in place.glob("*.tar") if file.name[0] != "."]


def _open(root: Path, split: str, groups: dict[str, list[Path]]) -> ImageSet:
    index = _Index.of(groups[split])
    labels = {name: (index if name == split else _Index.of(files)).values() for name, files in groups.items()}
    leading = next((labels[name] for name in ("train", "training") if name in labels), labels[split])
    classes = _class_file(root.parent if root.is_file() else root) or class_names(leading, labels.values())
    count = len(index.labels)
    return ImageSet(
        name=root.resolve().stem if root.is_file() else root.resolve().name,
        split=split,
        classes=classes,
        labels=encode_labels(labels[split], classes, str(root)),
        ids=[str(i) for i in index.ids] if count and all(i is not None for i in index.ids) else row_ids(split, count),
        reader=TarReader(index.files, np.array(index.places, dtype=np.int64).reshape(-1, 3)),
        rows=np.arange(count, dtype=np.int64),
        root=root,
    )


@dataclass(frozen=True)
class TarReader:
    """Reads members by seeking; keeps no file open, so threads and processes may share it.

    Attributes:
        files: The shards.
        places: int64, N × 3: shard, offset and size in bytes.
    """

    files: list[Path]
    places: NDArray[np.int64]

    def read(self, row: int) -> Pixels:
        """Image ``row``, counted over all shards."""
        shard, offset, size = (int(value) for value in self.places[row])
        with self.files[shard].open("rb") as handle:
            handle.seek(offset)
            return decode(handle.read(size), f"{row} of {self.files[shard]}")


@dataclass
class _Index:
    """Where the images of some shards lie, and their labels."""

    files: list[Path]
    places: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    ids: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, files: list[Path]) -> _Index:
        index = cls(files)
        for number, file in enumerate(files):
            try:
                with tarfile.open(file, "r:") as archive, file.open("rb") as raw:
                    for key, parts in _samples(archive):
                        index._add(number, key, parts, raw)
                    raw.seek(archive.offset)
                    if len(raw.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                        raise tarfile.ReadError("it ends without the mark of its end, so that members may be missing")
            except (tarfile.TarError, EOFError, OSError) as error:
                raise DataError(f"tar file {file} cannot be read: {error}; fetch or write it again") from error
        return index

    def _add(self, number: int, key: str, parts: dict[str, tarfile.TarInfo], raw: IO[bytes]) -> None:
        image = next((part for kind, part in parts.items() if f".{kind}" in IMAGE_EXTENSIONS), None)
        where = f"'{key}' in {self.files[number]}"
        if image is None:
            logger.warning("%s has no image and is skipped", where)
            return
        raw.seek(0, 2)
        if image.offset_data + image.size > raw.tell():
            raise tarfile.ReadError(f"it ends within {image.name}")
        content = {kind: _text(raw, parts[kind], where) for kind in ("cls", "json") if kind in parts}
        record = _record(content.get("json", "{}"), where)
        label = content.get("cls", record.get("label"))
        if not isinstance(label, int | str) or label == "":
            raise DataError(f'{where} needs a label in .cls, or in .json as {{"label": ...}}; add it')
        self.places.append((number, image.offset_data, image.size))
        self.labels.append(label)
        self.ids.append(record.get("id"))

    def values(self) -> NDArray[Any]:
        """Labels as numbers if all of them are, else as texts."""
        texts = [label if isinstance(label, str) else f"{label:d}" for label in self.labels]
        try:
            numbers = {text: int(text) for text in texts}
        except ValueError:
            return label_values(texts, "")
        spelled = dict[int, str]()
        for text, number in numbers.items():
            if spelled.setdefault(number, text) != text:
                raise DataError(
                    f"labels '{spelled[number]}' and '{text}' of {self.files[0]} are one number; write them alike"
                )
        return label_values([numbers[text] for text in texts], "")


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Consecutive members of one key: everything up to the first dot of the file name."""
    key = ""
    parts: dict[str, tarfile.TarInfo] = {}
    for member in iter(archive.next, None):
        archive.members.clear()  # type: ignore[attr-defined]  # else every header would stay in memory
        folder, slash, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        if not member.isreg() or not stem:
            continue
        if folder + slash + stem != key and parts:
            yield key, parts
            parts = {}
        key = folder + slash + stem
        parts[kind.lower()] = member
    if parts:
        yield key, parts


def _text(raw: IO[bytes], member: tarfile.TarInfo, where: str) -> str:
    raw.seek(member.offset_data)
    try:
        return raw.read(member.size).decode().strip()
    except UnicodeDecodeError:
        raise DataError(f"the label of {where} is no UTF-8 text; write it anew") from None


def _record(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"the .json of {where} cannot be read: {error}; write it anew") from None
    return record if isinstance(record, dict) else {}


def _class_file(folder: Path) -> tuple[str, ...] | None:
    """Class names from ``classes.txt`` (a name a line) or ``classes.json`` (a list)."""
    if (folder / "classes.txt").is_file():
        lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if (folder / "classes.json").is_file():
        try:
            names = json.loads((folder / "classes.json").read_bytes())
        except ValueError as error:
            raise DataError(f"{folder / 'classes.json'} cannot be read: {error}; write it anew") from None
        if not isinstance(names, list):
            raise DataError(f"{folder / 'classes.json'} must be a list of class names, got {type(names).__name__}")
        return tuple(str(name) for name in names)
    return None
