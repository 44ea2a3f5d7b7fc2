"""WebDataset shards: tar files of ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``, read in place, never extracted."""

import functools
import itertools
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uge.data.formats.base import Splits, by_split, class_names, data_errors, image_set, label_values, source_files
from uge.data.images import ImageSet, Pixels
from uge.data.pixels import IMAGE_EXTENSIONS, decode
from uge.errors import DataError
from uge.files import LARGEST, parse, read_bytes, read_text

logger = logging.getLogger(__name__)


def splits(path: Path, classes: Sequence[str] = ()) -> Splits | None:
    """Splits of a tar file or of a folder of them, by the names of files and folders; None where there is no tar.

    Args:
        path: The file or folder.
        classes: Class names, where they are known from elsewhere.
    """
    groups = by_split(source_files(path, ".tar", *(("data",) if classes else ())), path)
    return {split: functools.partial(_open, path, split, groups, classes) for split in groups} or None


def _open(root: Path, split: str, groups: dict[str, list[Path]], classes: Sequence[str]) -> ImageSet:
    samples = {name: list(_samples(files)) for name, files in groups.items()}
    labels = {name: _labels(samples[name], groups[name][0]) for name in groups}
    chosen = samples[split]
    return image_set(
        root,
        split,
        labels[split],
        classes or _class_file(root.parent if root.is_file() else root) or class_names(split, labels),
        TarReader(groups[split], np.array([sample[:3] for sample in chosen], dtype=np.int64).reshape(-1, 3)),
        ids=None if any(sample.id is None for sample in chosen) else [str(sample.id) for sample in chosen],
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
        return decode(self.encoded(row), f"{row} of {self.files[self.places[row, 0]]}")

    def encoded(self, row: int) -> bytes:
        """Bytes of the member of image ``row``."""
        shard, offset, size = (int(value) for value in self.places[row])
        with self.files[shard].open("rb") as handle:
            handle.seek(offset)
            return handle.read(size)


class _Sample(NamedTuple):
    shard: int
    offset: int
    size: int
    label: int | str
    id: Any


def _samples(files: Sequence[Path]) -> Iterator[_Sample]:
    for shard, file in enumerate(files):
        with (
            data_errors(
                f"tar file {file} cannot be read", "fetch or write it again", (tarfile.TarError, EOFError, OSError)
            ),
            tarfile.open(file, "r:") as archive,
            file.open("rb") as raw,
        ):
            end = file.stat().st_size
            for key, parts in _groups(archive):
                where = f"'{key}' in {file}"
                image = _image_of(parts)
                if image is None:
                    logger.warning("%s has no image and is skipped", where)
                    continue
                for part in (image, *(parts[kind] for kind in ("cls", "json") if kind in parts)):
                    if part.issparse() or part.size > (LARGEST if part is image else 1 << 20):
                        raise tarfile.ReadError(f"its member {part.name} is sparse or too large")
                if image.offset_data + image.size > end:
                    raise tarfile.ReadError(f"it ends within {image.name}")
                texts = {kind: _text(raw, parts[kind], where) for kind in ("cls", "json") if kind in parts}
                yield _Sample(shard, image.offset_data, image.size, *_label_and_id(texts, where))
            raw.seek(archive.offset)
            if len(raw.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends without the mark of its end, so that members may be missing")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Files of an archive with their keys (all up to the first dot of the file name) and lower-case endings."""
    for member in iter(archive.next, None):
        archive.members.clear()  # type: ignore[attr-defined]  # Else every header would stay in memory.
        folder, slash, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        if member.isreg() and stem:
            yield folder + slash + stem, kind.lower(), member


def _groups(archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Members of each sample by their endings, with the sample's key.

    A key ends at the first dot of the file name, as in the format's own library. Where that gives no image, or mixes
    several labelled ones, names have dots within, and the key ends at the last dot.
    """
    for key, members in itertools.groupby(_members(archive), key=lambda member: member[0]):
        short: dict[str, tarfile.TarInfo] = {}
        long: dict[str, dict[str, tarfile.TarInfo]] = {}
        for _, kind, member in members:
            short[kind] = member
            stem, _, ending = member.name.rpartition(".")
            long.setdefault(stem, {})[ending.lower()] = member
        pictured = [parts for parts in long.values() if _image_of(parts)]
        labelled = [parts for parts in pictured if {"cls", "json"} & parts.keys()]
        if len(labelled) > 1 or (pictured and not _image_of(short)):
            yield from long.items()
        else:
            yield key, short


def _image_of(parts: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | None:
    return next((part for kind, part in parts.items() if f".{kind}" in IMAGE_EXTENSIONS), None)


def _text(raw: IO[bytes], member: tarfile.TarInfo, where: str) -> str:
    raw.seek(member.offset_data)
    with data_errors(f"the label of {where} is no UTF-8 text", "write it anew", (UnicodeDecodeError,)):
        return raw.read(member.size).decode().strip()


def _label_and_id(texts: Mapping[Any, str], where: str) -> tuple[int | str, Any]:
    with data_errors(f"the .json of {where} cannot be read", "write it anew", (ValueError,)):
        record = parse(json.loads, texts.get("json", "{}"))
    record = record if isinstance(record, dict) else {}
    label = texts.get("cls", record.get("label"))
    if not isinstance(label, int | str) or label == "":
        raise DataError(f'{where} needs a label in .cls, or in .json as {{"label": ...}}; add it')
    return label, record.get("id")


def _labels(samples: Sequence[_Sample], file: Path) -> NDArray[Any]:
    # Numbers if all labels are numbers, else texts.
    texts = [sample.label if isinstance(sample.label, str) else f"{sample.label:d}" for sample in samples]
    try:
        numbers = {text: int(text) for text in texts}
    except ValueError:
        return label_values(texts, str(file))
    spelled: dict[int, str] = {}
    for text, number in numbers.items():
        if spelled.setdefault(number, text) != text:
            raise DataError(f"labels '{spelled[number]}' and '{text}' of {file} are one number; write them alike")
    return label_values([numbers[text] for text in texts], str(file))


def _class_file(folder: Path) -> list[str]:
    names = folder / "classes.txt"
    if names.is_file():
        return [line.strip() for line in read_text(names).splitlines() if line.strip()]
    listed = folder / "classes.json"
    if not listed.is_file():
        return []
    with data_errors(f"{listed} cannot be read", "write it anew", (ValueError,)):
        values = parse(json.loads, read_bytes(listed))
    if not isinstance(values, list):
        raise DataError(f"{listed} must be a list of class names, got {type(values).__name__}")
    return [str(name) for name in values]
