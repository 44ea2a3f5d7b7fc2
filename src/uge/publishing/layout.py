"""Layouts of a published folder: Parquet shards, or a folder of images for each class.

This module alone knows which files a layout has, how they are written and how they are read.
"""

import csv
import hashlib
import io
import itertools
import json
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from uge.data.codec import Encoded
from uge.data.formats.parquet import check_sizes
from uge.data.formats.parquet_pages import fill, only_value
from uge.data.images import NO_LABEL
from uge.errors import DataError, refuse
from uge.files import LARGEST, Region, file_sha256, open_regular, parse, parts_of, read_bytes, read_text, reader_of
from uge.publishing.manifest import INDEX, Codec, FileRecord, Format, Manifest
from uge.publishing.stream import batches
from uge.sealing.record import RECIPIENT_NAME, RECIPIENTS, SEALED, SHARD_NAME

INDEX_COLUMNS = ("path", "label", "id")
"""Columns of the list of images; without labels there is no column ``label``."""
CLASSES = "data/classes.json"
"""Class names beside tar shards."""
MEMBER_BYTES = 1 << 20
"""Most bytes of a label or an id in a tar shard."""
LARGEST_TAR = 1 << 40
SHARD_ROWS = 25_000
SHARD_BYTES = 100_000_000
GROUP_ROWS = 1_000
GROUP_BYTES = 16_000_000
ROWS_READ_AT_ONCE = 64
# Fixed options: equal images give equal bytes. The images are compressed already.
PARQUET = {"compression": "none", "use_dictionary": False, "write_statistics": False, "version": "2.6"}
IMAGE_NAME = re.compile(r"\d{8}\.(?:png|webp)")
"""Names of image files: neutral, since a name may tell the source of an image."""
PUBLISHABLE = re.compile(
    r"README\.md|TRAINING\.md|croissant\.json|tdmrep\.json|index\.csv|data/classes\.json|data/train-(?:added-\d{5}-)?\d{5}-of-\d{5}\.(?:parquet|tar)|train/(?:(?!\.)[^/\\]+/)?"
    + IMAGE_NAME.pattern
    + rf"|{SEALED}/{SHARD_NAME}|{RECIPIENTS}/{RECIPIENT_NAME}\.age"
)
"""Paths of files that may lie in a published folder beside its manifest."""
RESERVED = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
Problem = Callable[[str], None]
"""Takes one sentence on a file or image that is not as it should be."""


@dataclass(frozen=True)
class Record:
    """Published image as it lies on disk.

    Attributes:
        where: Place of the image in messages.
        name: File name that is stored with the image.
        data: Encoded bytes; those of a large image in the file.
        label: Index of its class; -1 without labels.
        id: Sample id.
    """

    where: str
    name: str
    data: Encoded
    label: int
    id: str


Row: TypeAlias = tuple[str, Encoded, int, str]
"""File name, encoded bytes, label and sample id of an image to write."""


@dataclass(frozen=True)
class Layout:
    """Form of a published folder.

    Attributes:
        codec: Codec of its images unless another is asked for.
        pattern: Paths of its images, as Hugging Face ``datasets`` takes them.
        write: Writes images in order and returns the files that it wrote: ``write(folder, rows, classes, count,
            rows_per_file, addition)``. ``addition`` is 0 for a new folder. Further images have the number of their
            addition, and the files that are there keep their names and bytes, except an index.
        records: Reads them: ``records(folder, manifest, sound, problem)`` yields every image of the files in
            ``sound``, in the order of publication, and calls ``problem`` for each file or row that cannot be read.
    """

    codec: Codec
    pattern: str
    write: Callable[[Path, Iterable[Row], Sequence[str], int, int, int], list[FileRecord]]
    records: Callable[[Path, Manifest, frozenset[str], Problem], Iterator[Record]]


def file_record(folder: Path, path: str, count: int | None = None) -> FileRecord:
    """Size and digest of a finished file at ``path`` in ``folder``."""
    file = folder / path
    return FileRecord(path=path, sha256=file_sha256(file), bytes=file.stat().st_size, count=count)


def default_rows(raw_bytes: int) -> int:
    """Rows per shard for images of ``raw_bytes`` each: about 100 MB (stored at two thirds of raw), at most 25,000."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES * 3 // (2 * max(raw_bytes, 1))))


def stem_of(stem: str, addition: int) -> str:
    """Start of the names of shards; names of further additions sort behind those before them.

    Example:
        >>> stem_of("train", 0), stem_of("train", 2)
        ('train', 'train-added-00002')
    """
    return f"{stem}-added-{addition:05d}" if addition else stem


def class_folders(classes: Sequence[str]) -> dict[str, str]:
    """Folder name of every class: valid on every file system, and distinct even without regard to case.

    Names that do not sort in the order of the classes get the label in front (``02_cat``), so that readers that number
    sorted folders get the labels of the manifest.
    """
    folders: dict[str, str] = {}
    taken: set[str] = set()
    for name in classes:
        plain = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|\ud800-\udfff]', "_", unicodedata.normalize("NFC", name))
        plain = re.sub(r"^[.\s]+", "_", plain.encode()[:150].decode(errors="ignore")).rstrip(". ") or "class"
        base = f"_{plain}" if RESERVED.match(plain) else plain
        candidates = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
        folder = next(candidate for candidate in candidates if candidate.casefold() not in taken)
        taken.add(folder.casefold())
        folders[name] = folder
    if list(folders.values()) != sorted(folders.values()):
        width = len(str(len(folders) - 1))
        folders = {name: f"{label:0{width}d}_{folder}" for label, (name, folder) in enumerate(folders.items())}
    return folders


def index_columns(classes: Sequence[str]) -> tuple[str, ...]:
    """Columns of ``index.csv``, as :data:`INDEX_COLUMNS` says."""
    return INDEX_COLUMNS if classes else tuple(name for name in INDEX_COLUMNS if name != "label")


def table_schema(classes: Sequence[str]) -> pa.Schema:
    """Columns of a shard, with the metadata from which Hugging Face ``datasets`` knows images and class names.

    Without classes there is no column ``label``.
    """
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(classes), "_type": "ClassLabel"},
        "id": {"dtype": "string", "_type": "Value"},
    }
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = {"image": image, "label": pa.int64(), "id": pa.string()}
    if not classes:
        del features["label"], fields["label"]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _write_parquet(
    folder: Path, rows: Iterable[Row], classes: Sequence[str], count: int, rows_per_file: int, addition: int
) -> list[FileRecord]:
    """Write ``data/train-00000-of-0000N.parquet``, or ``train-added-…``, in row groups of about 16 MB."""
    schema = table_schema(classes)
    shards = -(-count // rows_per_file)
    records = []
    (folder / "data").mkdir(exist_ok=bool(addition))
    for number, shard in itertools.groupby(enumerate(rows), key=lambda numbered: numbered[0] // rows_per_file):
        path = f"data/{stem_of('train', addition)}-{number:05d}-of-{shards:05d}.parquet"
        (folder / path).open("wb").close()  # Arrow opens it itself, since it would copy what a file of Python takes.
        large: dict[int, Region] = {}
        with pq.ParquetWriter(folder / path, schema, **PARQUET) as writer:
            for place, group in enumerate(_groups(row for _, row in shard)):
                names, encoded, labels, ids = zip(*group, strict=True)
                if isinstance(encoded[0], Region):
                    large[place] = encoded[0]
                    encoded = (b"",)  # Arrow would take it four times into memory.
                columns = [pa.array(encoded, pa.binary()), pa.array(names)]
                image = pa.StructArray.from_arrays(columns, fields=list(schema.field("image").type))
                written = {"image": image, "label": pa.array(labels, pa.int64()), "id": pa.array(ids)}
                writer.write_table(pa.table([written[name] for name in schema.names], schema=schema))
        if large:
            fill(folder / path, large)
        records.append(file_record(folder, path, min(rows_per_file, count - number * rows_per_file)))
    return records


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows by row groups; each large image has one of its own."""
    for large, run in itertools.groupby(rows, lambda row: isinstance(row[1], Region)):
        yield from batches(run, lambda row: len(row[1]), most=1 if large else GROUP_ROWS, most_bytes=GROUP_BYTES)


def _parquet_records(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> Iterator[Record]:
    for file in manifest.files:
        if file.path in sound and file.path.endswith(".parquet"):
            try:
                yield from _shard_records(folder, manifest, file)
            except (pa.ArrowException, DataError, OSError, ValueError) as error:
                problem(f"{file.path}: {error}; publish again")


def _shard_records(folder: Path, manifest: Manifest, file: FileRecord) -> Iterator[Record]:
    with pq.ParquetFile(folder / file.path) as shard:
        schema = shard.schema_arrow
        wanted = table_schema(manifest.classes)
        count = shard.metadata.num_rows
        check_sizes(shard.metadata, folder / file.path)
        refuse(
            {
                f"expected the columns {', '.join(wanted.names)} only, got {', '.join(schema.names)}": (
                    not schema.remove_metadata().equals(wanted.remove_metadata())
                ),
                "its metadata does not hold the class names of manifest.json and nothing else": (
                    schema.metadata != wanted.metadata
                ),
                f"holds {count} images instead of {file.count}": count != file.count,
            },
            DataError,
        )
        for number, row in enumerate(_rows(folder / file.path, shard)):
            image = row["image"] or {}
            label = row["label"] if manifest.classes else NO_LABEL
            fields: tuple[Any, ...] = (image.get("path"), image.get("bytes"), label, row["id"])
            if None in fields:
                raise DataError(f"row {number} lacks its image, path, label or id")
            yield Record(f"{file.path} row {number}", *fields)
            del row, image, fields  # A large image is not kept while the next one is read.


def _rows(path: Path, shard: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    for group in range(shard.metadata.num_row_groups):
        if shard.metadata.row_group(group).num_rows == 1 and (row := _only_row(path, shard, group)):
            yield row
            continue
        for batch in shard.iter_batches(batch_size=ROWS_READ_AT_ONCE, row_groups=[group]):
            rows = batch.to_pylist()
            del batch
            while rows:
                yield rows.pop(0)


def _only_row(path: Path, shard: pq.ParquetFile, group: int) -> dict[str, Any] | None:
    """Row of a group that may hold a large image, with its bytes left in the file; None where they cannot be."""
    data = only_value(path, shard.metadata.row_group(group).column(0))
    if data is None:
        return None
    columns = ["image.path", *(name for name in shard.schema_arrow.names if name != "image")]
    row: dict[str, Any] = shard.read_row_group(group, columns=columns).to_pylist()[0]
    return {**row, "image": {**(row["image"] or {}), "bytes": data}}


def image_folders(classes: Sequence[str], split: str = "train") -> dict[int, str]:
    """Folder of every label; without classes that of the split alone."""
    folders = {label: f"{split}/{name}" for label, name in enumerate(class_folders(classes).values())}
    return folders or {NO_LABEL: split}


def _write_image_folder(
    folder: Path, rows: Iterable[Row], classes: Sequence[str], count: int, rows_per_file: int, addition: int
) -> list[FileRecord]:
    """Write ``train/CLASS/NAME``, and ``index.csv`` with path, label and id of every image in order.

    Lines of an addition come behind those of the index that is there.

    A class without images gets no folder, since torchvision refuses empty ones. Without classes all images lie in
    ``train``.
    """
    folders = image_folders(classes)
    records = []
    before = read_bytes(folder / INDEX, LARGEST).decode() if addition else f"{','.join(index_columns(classes))}\n"
    (folder / "train").mkdir(exist_ok=bool(addition))
    (folder / INDEX).unlink(missing_ok=True)  # It may be one file with that of the folder to which images are added.
    with (folder / INDEX).open("w", newline="", encoding="utf-8") as handle:
        handle.write(before)
        index = csv.writer(handle, lineterminator="\n")
        for name, data, label, id in rows:
            path = f"{folders[label]}/{name}"
            (folder / folders[label]).mkdir(exist_ok=True)
            digest = hashlib.sha256()
            with (folder / path).open("wb") as image:
                for part in parts_of(data):
                    image.write(part)
                    digest.update(part)
            index.writerow((path, label, id) if classes else (path, id))
            records.append(FileRecord(path=path, sha256=digest.hexdigest(), bytes=len(data)))
    return [file_record(folder, INDEX, _lines(before) + len(records)), *records]


def _lines(index: str) -> int:
    """Number of images in the text of an index."""
    return sum(1 for _ in csv.reader(io.StringIO(index, newline=""))) - 1


def _image_folder_records(
    folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem
) -> Iterator[Record]:
    if INDEX not in sound:
        if all(file.path != INDEX for file in manifest.files):
            problem(f"{INDEX} is not listed in manifest.json; publish again")
        return
    classes = manifest.classes
    named = manifest.class_folders or {}
    folders = {label: f"train/{named.get(name)}" for label, name in enumerate(classes)} or {NO_LABEL: "train"}
    waiting = Counter(file.path for file in manifest.files if file.path.startswith("train/"))
    try:
        with (folder / INDEX).open(newline="", encoding="utf-8") as handle:
            rows = csv.reader(handle)
            columns = index_columns(classes)
            if tuple(next(rows, ())) != columns:
                raise DataError(f"expected the columns {', '.join(columns)}")
            for row in rows:
                path, label, id = row if classes else (row[0], str(NO_LABEL), *row[1:])
                waiting[path] -= 1
                if waiting[path] < 0:
                    raise DataError(f"names {path}, which manifest.json does not list or which came before")
                if classes and not (label.isdecimal() and int(label) < len(folders)):
                    raise DataError(f"the label '{label}' of {path} is not one of 0..{len(folders) - 1}")
                parent, _, name = path.rpartition("/")
                if parent != folders[int(label)]:
                    problem(f"{path}: lies in another folder than that of its class in {INDEX}; publish again")
                if path in sound:
                    yield Record(path, name, _stored(folder / path), int(label), id)
    except (csv.Error, DataError, OSError, ValueError) as error:
        problem(f"{INDEX}: {error}; publish again")
    else:
        for path in +waiting:
            problem(f"{path}: {INDEX} does not name it; publish again")


def _stored(path: Path) -> Encoded:
    size = path.stat().st_size
    return read_bytes(path, LARGEST) if size <= GROUP_BYTES else Region(open_regular(path, LARGEST), 0, size)


def _write_tar(
    folder: Path, rows: Iterable[Row], classes: Sequence[str], count: int, rows_per_file: int, addition: int
) -> list[FileRecord]:
    """Write ``data/train-00000-of-0000N.tar``: NAME.webp or .png, NAME.cls and NAME.json; and ``data/classes.json``.

    Equal images give equal bytes: members have no time, no owner, and stand in the order of publication.
    """
    shards = -(-count // rows_per_file)
    records = []
    (folder / "data").mkdir(exist_ok=bool(addition))
    for number, shard in itertools.groupby(enumerate(rows), key=lambda numbered: numbered[0] // rows_per_file):
        path = f"data/{stem_of('train', addition)}-{number:05d}-of-{shards:05d}.tar"
        with (
            (folder / path).open("wb") as handle,
            tarfile.open(fileobj=handle, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for _, (name, data, label, id) in shard:
                stem = name.rpartition(".")[0]
                members = {name: data, f"{stem}.cls": b"%d" % label, f"{stem}.json": json.dumps({"id": id}).encode()}
                for member, content in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, reader_of(content))
        records.append(file_record(folder, path, min(rows_per_file, count - number * rows_per_file)))
    (folder / CLASSES).write_text(json.dumps(list(classes)), "utf-8")
    return [file_record(folder, CLASSES), *records]


def _tar_records(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> Iterator[Record]:
    if CLASSES in sound and parse(json.loads, read_text(folder / CLASSES)) != list(manifest.classes):
        problem(f"{CLASSES}: its names are not those of manifest.json; publish again")
    for file in manifest.files:
        if file.path in sound and file.path.endswith(".tar"):
            try:
                yield from _archive_records(folder, manifest, file)
            except (tarfile.TarError, DataError, OSError, ValueError) as error:
                problem(f"{file.path}: {error}; publish again")


def _archive_records(folder: Path, manifest: Manifest, file: FileRecord) -> Iterator[Record]:
    last = len(manifest.classes) - 1
    found = 0
    with tarfile.open(folder / file.path, "r:") as archive:
        members = iter(archive.next, None)
        for image in members:
            archive.members.clear()  # type: ignore[attr-defined]  # Else every header would stay in memory.
            parts = [image, next(members, None), next(members, None)]
            stem = image.name.rpartition(".")[0]
            names = [part.name if part is not None and part.isreg() and not part.issparse() else "" for part in parts]
            if names[1:] != [f"{stem}.cls", f"{stem}.json"] or not names[0]:
                raise DataError(f"expected {stem}.cls and {stem}.json behind {image.name}, got {names[1:]}")
            texts = []
            for part in parts[1:]:
                handle = None if part is None or part.size > MEMBER_BYTES else archive.extractfile(part)
                texts.append("" if handle is None else handle.read().decode())
            label, about = texts
            if not (label.isdecimal() and int(label) <= last):
                raise DataError(f"the label '{label}' of {image.name} is not one of 0..{last}")
            record = parse(json.loads, about)
            if not isinstance(record, dict) or record.keys() != {"id"}:
                raise DataError(f"{stem}.json holds other things than an id")
            found += 1
            yield Record(
                f"{file.path} {image.name}",
                image.name,
                _member(folder / file.path, image),
                int(label),
                str(record["id"]),
            )
    if found != file.count:
        raise DataError(f"holds {found} images instead of {file.count}")


def _member(path: Path, member: tarfile.TarInfo) -> Encoded:
    region = Region(open_regular(path, LARGEST_TAR), member.offset_data, member.size)
    return region if member.size > GROUP_BYTES else bytes(region[: member.size])


LAYOUTS: dict[Format, Layout] = {
    "parquet": Layout("webp", "data/train-*.parquet", _write_parquet, _parquet_records),
    "imagefolder": Layout("png", "train/**", _write_image_folder, _image_folder_records),
    "webdataset": Layout("webp", "data/train-*.tar", _write_tar, _tar_records),
}
"""Layouts by the manifest's ``format``."""
