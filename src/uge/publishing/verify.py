"""Check a published folder from disk, trusting nothing but the bytes that are there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, IntegrityError
from uge.files import code_version
from uge.publishing.card import dataset_card
from uge.publishing.codec import decode, kind_of, metadata_problem
from uge.publishing.manifest import CARD, GUIDE, MANIFEST, Manifest, Measured, SizeRecord, read_manifest
from uge.publishing.quality import Change, Tally, compare, is_constant, ssim_positions
from uge.publishing.reader import Record, records
from uge.publishing.stream import batches, ordered_map
from uge.publishing.training_guide import training_guide
from uge.publishing.tree import check_files

PROBLEM_LIMIT = 1000
NEUTRAL = re.compile(r"\d{8}\.(png|webp)")
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Verification:
    """What was found in a published folder.

    Attributes:
        folder: The folder.
        manifest: Its manifest; ``None`` if that is missing or invalid.
        images: How many images were decoded and checked.
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
        """Whether nothing deviates."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Do nothing if all is well.

        Raises:
            IntegrityError: Something deviates; it lists what.
        """
        if self.problems:
            raise IntegrityError(list(self.problems))

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON values."""
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
    metadata; labels, ids and counts must be as claimed. Images in a file that was changed are not looked at.

    Args:
        folder: The published folder.
        against: The originals, in any order, found by id; more than were published do no harm. With them the
            change of every image is measured, and must keep the budget and equal the manifest's claims.
        workers: Threads that decode.
        progress: Called with the number of images checked so far.

    Returns:
        What was found. Ask ``ok`` or call ``raise_for_problems``.

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
    complete = len(sound) == len(manifest.files)
    findings = _Findings(manifest, against, problems)
    rows = batches(findings.paired(records(folder, manifest, sound, problems.add)), _row_bytes)
    with closing(ordered_map(findings.check_batch, rows, workers=workers)) as results:
        for batch in results:
            for checked in batch:
                findings.add(checked)
            if progress is not None:
                progress(findings.images)
    if complete:
        findings.check_totals()
    measured = findings.tally.measured() if against is not None and findings.tally.changes else None
    return Verification(folder, manifest, findings.images, measured, problems.listed())


@dataclass
class _Problems:
    count: int = 0
    kept: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.count += 1
        if len(self.kept) < PROBLEM_LIMIT:
            self.kept.append(sentence)

    def listed(self) -> tuple[str, ...]:
        left = self.count - len(self.kept)
        return (*self.kept, *([f"{MANIFEST}: {left} further deviations are not listed"] if left else []))


@dataclass(frozen=True)
class _Row:
    position: int
    record: Record
    clean: Pixels | None


@dataclass(frozen=True)
class _Checked:
    record: Record
    problem: str | None = None
    constant: bool = False
    change: Change | None = None
    shape: tuple[int, ...] | None = None


def _row_bytes(row: _Row) -> int:
    return len(row.record.data) if row.clean is None else row.clean.nbytes


class _Findings:
    """Everything that is known about the images so far."""

    def __init__(self, manifest: Manifest, against: ImageSet | None, problems: _Problems) -> None:
        self.images = 0
        self.tally = Tally()
        self._manifest, self._against, self._problems = manifest, against, problems
        self._place = {} if against is None else {id: place for place, id in enumerate(against.ids)}
        self._sample = ssim_positions(manifest.count)
        self._counts = np.zeros(len(manifest.classes), dtype=np.int64)
        self._ids: set[str] = set()
        self._shapes: set[tuple[int, ...]] = set()
        self._constant: list[str] = []
        self._codecs: set[str] = set()
        if against is not None and against.classes != manifest.classes:
            problems.add(f"{MANIFEST}: the classes are not those of the originals; compare with the right originals")

    def paired(self, found: Iterator[Record]) -> Iterator[_Row]:
        """Rows with their originals, which are read here because a reader need not stand several threads."""
        for position, record in enumerate(found):
            clean = None
            if record.id in self._ids:
                self._problems.add(f"{record.where}: the id '{record.id}' came before; publish again")
            self._ids.add(record.id)
            if 0 <= record.label < len(self._counts):
                self._counts[record.label] += 1
            else:
                self._problems.add(f"{record.where}: the label {record.label} is not 0..{len(self._counts) - 1}")
            if self._against is not None:
                place = self._place.get(record.id)
                if place is None:
                    self._problems.add(f"{record.where}: the originals have no image '{record.id}'")
                elif int(self._against.labels[place]) != record.label:
                    self._problems.add(f"{record.where}: the label is not that of the original '{record.id}'")
                clean = None if place is None else self._against.read(place)
            yield _Row(position, record, clean)

    def check_batch(self, rows: list[_Row]) -> list[_Checked]:
        """Decode and measure, in a thread."""
        return [self._check(row) for row in rows]

    def _check(self, row: _Row) -> _Checked:
        record, clean = row.record, row.clean
        problem = metadata_problem(record.data)
        if problem is None and not NEUTRAL.fullmatch(record.name):
            problem = f"is stored under the name '{record.name}', which may tell where it came from"
        if problem is not None:
            return _Checked(record, problem)
        try:
            pixels = decode(record.data)
        except DataError as error:
            return _Checked(record, str(error))
        if clean is None:
            return _Checked(record, constant=is_constant(pixels), shape=pixels.shape)
        if clean.shape != pixels.shape:
            return _Checked(record, f"has the shape {pixels.shape}, its original {clean.shape}")
        if clean.shape[2] in (2, 4) and not np.array_equal(clean[..., -1], pixels[..., -1]):
            return _Checked(record, "has another alpha channel than its original")
        change = compare(clean, pixels, with_ssim=row.position in self._sample)
        allowed = self._manifest.budget.levels
        problem = (
            f"differs by {change.levels} levels from its original, more than the budget of {allowed}"
            if change.levels > allowed
            else None
        )
        return _Checked(record, problem, change.constant, change, pixels.shape)

    def add(self, checked: _Checked) -> None:
        """Take in one image."""
        self.images += 1
        if checked.problem is not None:
            self._problems.add(f"{checked.record.where}: {checked.problem}")
        if checked.constant:
            self._constant.append(checked.record.where)
        if checked.change is not None:
            self.tally.add(checked.change)
        if checked.shape is not None:
            self._shapes.add(checked.shape)
        self._codecs.add(kind_of(checked.record.data))

    def check_totals(self) -> None:
        """Compare sums with the manifest's claims; only sensible if every file was as listed."""
        before = self._problems.count
        claimed = self._manifest
        if self._against is None and len(self._constant) > claimed.measured.constant_images:
            for where in self._constant:
                self._problems.add(
                    f"{where}: the image is of one single colour; {claimed.measured.constant_images} such are claimed, "
                    f"{len(self._constant)} are there"
                )
        if self._shapes and self._problems.count == before and SizeRecord.of(self._shapes) != claimed.size:
            self._problems.add(f"{MANIFEST}: the claimed image sizes are not those of the images; publish again")
        codec = "mixed" if len(self._codecs) > 1 else "".join(self._codecs)
        if self._codecs and codec != claimed.codec:
            self._problems.add(f"{MANIFEST}: claims the codec {claimed.codec}, the images are {codec}; publish again")
        if self.images != claimed.count:
            self._problems.add(f"{MANIFEST}: claims {claimed.count} images, {self.images} are there")
        for name, found, wanted in zip(claimed.classes, self._counts, claimed.class_counts, strict=False):
            if found != wanted:
                self._problems.add(f"{MANIFEST}: claims {wanted} images of class '{name}', {found} are there")
        if self._against is None or self._problems.count > before or self.tally.changes != claimed.count:
            return
        for name, value in self.tally.measured().model_dump().items():
            claim = getattr(claimed.measured, name)
            if claim is None or value is None:
                differs = claim is not value
            else:
                differs = not math.isclose(value, claim, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            if differs:
                self._problems.add(f"{MANIFEST}: claims {name} = {claim}, measured was {value}")


def _check_claims(manifest: Manifest, problem: Callable[[str], None]) -> None:
    """Claims that contradict one another."""
    if len(manifest.class_counts) != len(manifest.classes) or sum(manifest.class_counts) != manifest.count:
        problem(f"{MANIFEST}: count, classes and class_counts contradict one another; publish again")
    if manifest.budget.levels != Budget(manifest.budget.rho).levels:
        problem(f"{MANIFEST}: the budget's rho and levels contradict one another; publish again")
    if manifest.measured.linf_levels > manifest.budget.levels:
        problem(f"{MANIFEST}: the measured change exceeds the budget; do not use this folder")


def _check_pages(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Callable[[str], None]) -> None:
    """The pages for people must say what the manifest says; only this version knows how it writes them."""
    if manifest.tool_version != code_version():
        return
    for name, make in ((CARD, dataset_card), (GUIDE, training_guide)):
        try:
            same = name not in sound or (folder / name).read_bytes() == make(manifest).encode()
        except (LookupError, TypeError, ValueError):  # method_details are free, and a stranger's
            same = False
        if not same:
            problem(f"{name} is not the page that follows from {MANIFEST}; fetch the folder again")
        elif all(record.path != name for record in manifest.files):
            problem(f"{name} is not listed in {MANIFEST}; fetch the folder again")
