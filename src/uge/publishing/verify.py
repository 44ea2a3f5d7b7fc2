"""Check a published folder from disk, trusting nothing but the bytes that are there."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, IntegrityError
from uge.files import code_version, file_sha256
from uge.publishing.codec import decode_strips, kind_of, metadata_problem
from uge.publishing.layout import IMAGE_NAME, LAYOUTS, PUBLISHABLE, Problem, Record
from uge.publishing.manifest import MANIFEST, Manifest, Measured, SizeRecord, read_manifest
from uge.publishing.quality import Change, Tally, compare, is_constant, ssim_positions
from uge.publishing.stream import batches, ordered_map
from uge.publishing.writer import PAGES

PROBLEM_LIMIT = 1000
TOLERANCE = 1e-3
SECRET_WORDS = re.compile(
    r"\.(safetensors|pt|pth|ckpt|pkl|pickle|npy|npz|key|pem)$|(?<![a-z])(trajectory|generator|encoder|private|authorized)(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verification:
    """Findings on a published folder.

    Attributes:
        folder: The folder.
        manifest: Its manifest; ``None`` if that is missing or invalid.
        images: Number of images that were decoded and checked.
        measured: Measured anew against the originals; ``None`` without them.
        problems: One sentence per deviation, each naming its file; empty if all is well.
    """

    folder: Path
    manifest: Manifest | None = field(repr=False)
    images: int = 0
    measured: Measured | None = None
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if nothing deviates."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Do nothing if all is well.

        Raises:
            IntegrityError: Something deviates; it lists all deviations.
        """
        if self.problems:
            raise IntegrityError(list(self.problems))

    def to_json(self) -> dict[str, Any]:
        """Findings as JSON values."""
        return {
            "ok": self.ok,
            "folder": str(self.folder),
            "images": self.images,
            "measured": self.measured.model_dump(mode="json") if self.measured else None,
            "problems": list(self.problems),
        }


def verify(
    folder: Path,
    *,
    against: ImageSet | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Read a published folder again and compare it with its manifest, and with its originals where they are given.

    Files must be those listed, byte for byte, and nothing else; every image must decode to 8-bit pixels without
    metadata; labels, ids and counts must be as claimed. Images in a file that was changed are not decoded.

    Args:
        folder: The published folder.
        against: The originals, in any order, found by id; more than were published do no harm. With them the
            change of every image is measured, and must keep the budget and equal the manifest's claims.
        workers: Threads that decode.
        progress: Called with the number of images checked so far.

    Returns:
        The findings. Ask ``ok`` or call ``raise_for_problems``.

    Raises:
        UsageError: There is no such folder, or a newer version published it.
        DataError: An original cannot be read.
    """
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        return Verification(folder, None, problems=tuple(error.problems))
    problems = _Problems()
    _check_claims(manifest, problems.add)
    sound = check_files(folder, manifest, problems.add)
    _check_pages(folder, manifest, sound, problems.add)
    images = _Images(manifest, against, problems)
    rows = images.paired(LAYOUTS[manifest.format].records(folder, manifest, sound, problems.add))
    grouped = batches(rows, _bytes_of)
    checked_batches = ordered_map(
        lambda batch: [images.check(*row) for row in batch],
        grouped,
        workers=workers,
        size_of=lambda batch: sum(map(_bytes_of, batch)),
    )
    with closing(checked_batches) as results:
        for batch in results:
            while batch:  # A large image is not kept while the next one is decoded.
                images.add(*batch.pop(0))
            if progress is not None:
                progress(images.count)
    if len(sound) == len(manifest.files):
        images.check_totals()
    measured = images.tally.measured() if against is not None and images.tally.changes else None
    return Verification(folder, manifest, images.count, measured, problems.listed())


@dataclass
class _Problems:
    count: int = 0
    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.sentences) < PROBLEM_LIMIT:
            self.sentences.append(sentence)

    def listed(self) -> tuple[str, ...]:
        left = self.count - len(self.sentences)
        return (*self.sentences, *([f"{MANIFEST}: {left} further deviations are not listed"] if left else []))


def check_files(folder: Path, manifest: Manifest, problem: Problem) -> frozenset[str]:
    """Compare every file with the manifest, byte for byte.

    Args:
        folder: The published folder.
        manifest: Its manifest.
        problem: Takes one sentence per deviation.

    Returns:
        The listed files that are exactly as listed.
    """
    files = dict(_files(folder, manifest, problem))
    listed: set[str] = set()
    sound: set[str] = set()
    for record in manifest.files:
        path = files.get(record.path)
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
    for name in sorted(set(files) - listed - {MANIFEST}):
        problem(_unwanted(name, "is not listed in manifest.json; remove it"))
    return frozenset(sound)


def is_complete(folder: Path) -> bool:
    """True if a published folder has every file that its manifest lists, unchanged."""
    try:
        manifest = read_manifest(folder)
    except IntegrityError:
        return False
    return len(check_files(folder, manifest, lambda sentence: None)) == len(manifest.files)


def _files(folder: Path, manifest: Manifest, problem: Problem) -> Iterator[tuple[str, Path]]:
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


# Position in the order of publication, image, and its original where that is given.
_Row = tuple[int, Record, Pixels | None]


# Image, problem with it, and its distance from the original, or from itself without one.
def _bytes_of(row: _Row) -> int:
    _, record, clean = row
    return len(record.data) if clean is None else clean.nbytes


_Checked = tuple[Record, str | None, Change | None]


class _Images:
    def __init__(self, manifest: Manifest, against: ImageSet | None, problems: _Problems) -> None:
        self.count = 0
        self.tally = Tally()
        self._manifest = manifest
        self._against = against
        self._problems = problems
        self._place = {} if against is None else {id: place for place, id in enumerate(against.ids)}
        self._sample = ssim_positions(manifest.count)
        self._labels: Counter[int] = Counter()
        self._ids: set[str] = set()
        self._constant: list[str] = []
        self._codecs: set[str] = set()
        if against is not None and against.classes != manifest.classes:
            problems.add(f"{MANIFEST}: the classes are not those of the originals; compare with the right originals")

    def paired(self, records: Iterator[Record]) -> Iterator[_Row]:
        """Rows with their originals, which are read here because a reader need not stand several threads."""
        for position, record in enumerate(records):
            if record.id in self._ids:
                self._problems.add(f"{record.where}: the id '{record.id}' came before; publish again")
            self._ids.add(record.id)
            self._labels[record.label] += 1
            if not 0 <= record.label < len(self._manifest.classes):
                last = len(self._manifest.classes) - 1
                self._problems.add(f"{record.where}: the label {record.label} is not 0..{last}")
            yield position, record, None if self._against is None else self._original(record, self._against)

    def _original(self, record: Record, against: ImageSet) -> Pixels | None:
        place = self._place.get(record.id)
        if place is None:
            self._problems.add(f"{record.where}: the originals have no image '{record.id}'")
            return None
        if int(against.labels[place]) != record.label:
            self._problems.add(f"{record.where}: the label is not that of the original '{record.id}'")
        return against.read(place)

    def check(self, position: int, record: Record, clean: Pixels | None) -> _Checked:
        problem = metadata_problem(record.data)
        if problem is None and not IMAGE_NAME.fullmatch(record.name):
            problem = f"is stored under the name '{record.name}', which may tell where it came from"
        if problem is not None:
            return record, problem, None
        try:
            pixels = decode_strips(record.data)
            if clean is None:
                return record, None, Change(0, 0, 0, pixels.shape, is_constant(pixels))
            if clean.shape != pixels.shape:
                return record, f"has the shape {pixels.shape}, its original {clean.shape}", None
            change = compare(clean, pixels, position in self._sample)
        except DataError as error:
            return record, str(error), None
        if not change.same_alpha:
            return record, "has another alpha channel than its original", None
        allowed = self._manifest.budget.levels
        if change.levels > allowed:
            problem = f"differs by {change.levels} levels from its original, more than the budget of {allowed}"
        return record, problem, change

    def add(self, record: Record, problem: str | None, change: Change | None) -> None:
        self.count += 1
        self._codecs.add(kind_of(record.data))
        if problem is not None:
            self._problems.add(f"{record.where}: {problem}")
        if change is not None:
            self.tally.add(change)
            if change.constant:
                self._constant.append(record.where)

    def check_totals(self) -> None:
        """Compare sums with the manifest's claims; only sensible if every file was as listed."""
        claimed = self._manifest
        before = self._problems.count
        single = claimed.measured.constant_images
        if self._against is None and len(self._constant) > single:
            for where in self._constant:
                self._problems.add(
                    f"{where}: the image is of one single colour; {single} such are claimed, "
                    f"{len(self._constant)} are there"
                )
        if self._problems.count == before and self.tally.changes and SizeRecord.of(self.tally.shapes) != claimed.size:
            self._problems.add(f"{MANIFEST}: the claimed image sizes are not those of the images; publish again")
        codec = "mixed" if len(self._codecs) > 1 else "".join(self._codecs)
        if codec and codec != claimed.codec:
            self._problems.add(f"{MANIFEST}: claims the codec {claimed.codec}, the images are {codec}; publish again")
        if self.count != claimed.count:
            self._problems.add(f"{MANIFEST}: claims {claimed.count} images, {self.count} are there")
        for label, (name, wanted) in enumerate(zip(claimed.classes, claimed.class_counts, strict=False)):
            if self._labels[label] != wanted:
                self._problems.add(
                    f"{MANIFEST}: claims {wanted} images of class '{name}', {self._labels[label]} are there"
                )
        if self._against is not None and self._problems.count == before and self.tally.changes == claimed.count:
            self._check_measured()

    def _check_measured(self) -> None:
        for name, value in self.tally.measured().model_dump().items():
            claim = getattr(self._manifest.measured, name)
            same = claim is value
            if claim is not None and value is not None:
                same = math.isclose(value, claim, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            if not same:
                self._problems.add(f"{MANIFEST}: claims {name} = {claim}, measured was {value}")


def _check_claims(manifest: Manifest, problem: Problem) -> None:
    if len(manifest.class_counts) != len(manifest.classes) or sum(manifest.class_counts) != manifest.count:
        problem(f"{MANIFEST}: count, classes and class_counts contradict one another; publish again")
    if manifest.budget.levels != Budget(manifest.budget.rho).levels:
        problem(f"{MANIFEST}: the budget's rho and levels contradict one another; publish again")
    if manifest.measured.linf_levels > manifest.budget.levels:
        problem(f"{MANIFEST}: the measured change exceeds the budget; do not use this folder")


def _check_pages(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> None:
    """Report pages for people that say other things than the manifest; checked for pages of this version only."""
    if manifest.tool_version != code_version():
        return
    for name, make in PAGES:
        try:
            same = name not in sound or (folder / name).read_bytes() == make(manifest).encode()
        except (LookupError, TypeError, ValueError):  # method_details are free, and a stranger's
            same = False
        if not same:
            problem(f"{name} is not the page that follows from {MANIFEST}; fetch the folder again")
        elif all(record.path != name for record in manifest.files):
            problem(f"{name} is not listed in {MANIFEST}; fetch the folder again")
