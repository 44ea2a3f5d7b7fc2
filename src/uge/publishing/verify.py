"""Check a published folder from disk, trusting nothing but the bytes that are there."""

import contextlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.data import load_images
from uge.data.codec import decode_strips, kind_of, metadata_problem
from uge.data.depth import warn_if_dark
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, IntegrityError, UsageError
from uge.files import UnreadableError, code_version, file_sha256, open_regular, read_bytes
from uge.progress import Display
from uge.publishing.layout import IMAGE_NAME, LAYOUTS, PUBLISHABLE, Problem, Record
from uge.publishing.manifest import MANIFEST, Manifest, Measured, SizeRecord, read_manifest
from uge.publishing.private import CLAIMS, changed_claims, private_folder
from uge.publishing.quality import Change, Tally, compare, ssim_positions, unpaired
from uge.publishing.sources import Sources
from uge.publishing.stream import batches, ordered_map
from uge.publishing.verify_sealed import SealedRows, check_files
from uge.publishing.writer import PAGES
from uge.sealing import Identity, read_identity
from uge.sealing.signature import SIGNATURE, Signed, check, unpinned

PROBLEM_LIMIT = 1000
TOLERANCE = 1e-3
SECRET_WORDS = re.compile(
    r"\.(safetensors|pt|pth|ckpt|pkl|pickle|npy|npz|key|agekey|pem)$|(?<![a-z])(trajectory|generator|encoder|private|authorized)(?![a-z])",
    re.IGNORECASE,
)
PRIVATE_KEY = re.compile(rb"AGE-SECRET-KEY-(PQ-)?1|-----BEGIN [A-Z ]*PRIVATE KEY-----")
HUB_FILES = re.compile(r"\.gitattributes|\.cache/huggingface(/.+)?")
"""Files and folders that the Hugging Face hub and its downloads add to a data set."""
KEY_SEARCHED = 1 << 20  # Bytes of a file in which a private key is looked for.


@dataclass(frozen=True)
class Verification:
    """Findings on a published folder.

    Attributes:
        folder: The folder.
        manifest: Its manifest; ``None`` if that is missing or invalid.
        images: Number of images that were decoded and checked.
        measured: Measured anew against the originals; ``None`` without them.
        problems: One sentence per deviation, each naming its file; empty if all is well.
        not_compared: One sentence for each comparison that could not be made.
        opened: Number of sealed originals that were opened and authenticated.
        signed_by: Fingerprint of the key that signed the manifest; None where it is not signed, or not by that.
        brightest: Largest value of a colour, of 255.
    """

    folder: Path
    manifest: Manifest | None = field(repr=False)
    images: int = 0
    measured: Measured | None = None
    problems: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()
    opened: int = 0
    signed_by: str | None = None
    brightest: int = 255

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


def verify(
    folder: Path,
    *,
    against: ImageSet | Sequence[ImageSet] | None = None,
    private: Path | None = None,
    key: Identity | None = None,
    signed_by: str | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Verification:
    """Read a published folder again and compare it with its manifest, and with its originals where they are given.

    Files must be those listed, byte for byte, and nothing else; every image must decode to 8-bit pixels without
    metadata; labels, ids and counts must be as claimed. Images in a file that was changed are not decoded.

    Args:
        folder: The published folder.
        against: The originals, in any order, found by id; more than were published do no harm. With them the
            change of every image is measured, and must keep the budget and equal the manifest's claims. Where images
            were added from other sources, these stand behind the first, in the order of the additions.
        private: Its private folder, with the digests of every field of the manifest; ``OUT.private`` by default.
        key: Private key that opens the sealed originals: every row group is opened, the public pixels are compared
            with the digests that were sealed, and the originals with ``against``.
        signed_by: Key that must have signed the manifest: its fingerprint, or a file with it.
        workers: Threads that decode.
        progress: Called with the number of images checked so far.

    Returns:
        The findings. Ask ``ok`` or call ``raise_for_problems``.

    Raises:
        UsageError: There is no such folder, a newer version published it, ``private`` has no such digests, nothing is
            sealed, ``key`` is that of no recipient, or ``signed_by`` is no fingerprint.
        DataError: An original cannot be read, or the digests are damaged.
    """
    try:
        manifest = read_manifest(folder)
    except IntegrityError as error:
        return Verification(folder, None, problems=tuple(error.problems))
    changed = changed_claims(private or private_folder(folder), folder)
    if private is not None and changed is None:
        raise UsageError(f"{private} has no {CLAIMS}, the digests of a manifest; give the private folder of {folder}")
    problems = list(changed or ())
    signed: Signed | None = None
    try:
        signed = check(folder, signed_by)
    except IntegrityError as error:
        problems += error.problems
    given = [against] if isinstance(against, ImageSet) else list(against or ())
    sources = Sources(given, len(manifest.additions), manifest.classes) if given else None
    _check_claims(manifest, sources, problems)
    sound = _check_files(folder, manifest, problems.append)
    pinned = signed is not None and signed_by is not None
    not_compared = _check_pages(folder, manifest, sound, problems.append, proven=pinned or changed == [])
    if changed is None and signed_by is None:
        not_compared.append(
            f"{MANIFEST} is not signed, and was not compared with what was published; give its --private folder"
            if signed is None
            else unpinned(folder, signed, "--signed-by")
        )
    check_files(folder, manifest, sound, problems.append)
    originals = None if key is None else SealedRows(folder, key, sources, problems.append)
    if manifest.sealed is not None and originals is None:
        not_compared.append("the sealed originals were not opened; give the --key of a recipient to check them")
    images = _Images(manifest, sources, problems, originals)
    rows = images.paired(LAYOUTS[manifest.format].records(folder, manifest, sound, problems.append))
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
                progress(images.codecs.total())
    if len(sound) == len(manifest.listed):
        images.check_totals()
    measured = images.tally.measured() if sources is not None and images.tally.changes else None
    if problems and given and len(given) <= len(manifest.additions):
        not_compared.append(
            f"images were added {len(manifest.additions)} times; where they came from other sources, give --against "
            "for each, in that order"
        )
    if left := len(problems[PROBLEM_LIMIT:]):
        problems[PROBLEM_LIMIT:] = [f"{MANIFEST}: {left} further deviations are not listed"]
    return Verification(
        folder,
        manifest,
        images.codecs.total(),
        measured,
        tuple(problems),
        tuple(not_compared),
        opened=0 if originals is None else originals.count,
        signed_by=None if signed is None else signed.fingerprint,
        brightest=images.tally.brightest,
    )


def run_verify(
    out: Path,
    against: Sequence[str],
    progress: Display,
    private: Path | None = None,
    key: Path | None = None,
    signed_by: str | None = None,
) -> dict[str, Any]:
    """Check a published folder as ``uge verify`` does.

    Args:
        out: The published folder.
        against: Sources of the originals, see :func:`verify`; none leave out the checks that need them.
        progress: Shows images.
        private: Its private folder; ``OUT.private`` by default.
        key: File of a private key that opens the sealed originals.
        signed_by: Key that must have signed the manifest: its fingerprint, or a file with it.

    Returns:
        ``count``, ``sealed`` (names of the recipients; None where nothing is sealed), ``opened`` (number of originals),
        ``measured``, ``problems`` (one sentence per deviation, each naming its file), ``not_compared`` (one for each
        comparison that could not be made) and ``signed_by`` (fingerprint; None without a signature).
    """
    identity = None if key is None else read_identity(key)
    try:
        manifest = read_manifest(out)
    except IntegrityError as error:
        return {
            "count": 0,
            "sealed": None,
            "opened": 0,
            "measured": None,
            "problems": error.problems,
            "not_compared": [],
            "signed_by": None,
        }
    originals = [load_images(source, split=manifest.split, labels=False) for source in against]
    with progress.stage("verify") as on_progress:
        result = verify(
            out,
            against=originals,
            private=private,
            key=identity,
            signed_by=signed_by,
            progress=lambda done: on_progress(done, manifest.count, {}),
        )
    if result.ok:
        warn_if_dark(manifest.name, manifest.split, result.brightest)
    return {
        "count": result.images,
        "sealed": None if manifest.sealed is None else list(manifest.sealed.recipients),
        "opened": result.opened,
        "measured": result.measured and result.measured.model_dump(mode="json"),
        "problems": list(result.problems),
        "not_compared": list(result.not_compared),
        "signed_by": result.signed_by,
    }


def _check_files(folder: Path, manifest: Manifest, problem: Problem) -> frozenset[str]:
    # Listed files that are exactly as listed, byte for byte; each other file is a problem.
    files = dict(_files(folder, problem))
    listed: set[str] = set()
    sound: set[str] = set()
    for record in manifest.listed:
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
    for name in sorted(set(files) - listed - {MANIFEST, SIGNATURE}):
        if not HUB_FILES.fullmatch(name):
            problem(_unwanted(name, "is not listed in manifest.json; remove it"))
    for name in sorted(name for name, path in files.items() if holds_private_key(path)):
        problem(f"{name} holds a private key; never publish it, and take a new key where it was public")
    return frozenset(sound)


def is_complete(folder: Path) -> bool:
    """True if a published folder has every file that its manifest lists, unchanged."""
    try:
        manifest = read_manifest(folder)
    except IntegrityError:
        return False
    return len(_check_files(folder, manifest, lambda sentence: None)) == len(manifest.listed)


def holds_private_key(path: Path) -> bool:
    """True for a file that begins with, or is a text that contains, a private key; images and shards are none."""
    if path.suffix in (".png", ".webp", ".parquet"):
        return False
    with contextlib.suppress(UnreadableError), open_regular(path) as handle:
        return PRIVATE_KEY.search(handle.read(KEY_SEARCHED)) is not None
    return False


def _files(folder: Path, problem: Problem) -> Iterator[tuple[str, Path]]:
    """Regular files by their path in the folder; links out of it, devices and empty folders are problems instead."""
    root = folder.resolve()
    for here, folders, names in os.walk(folder):
        relative = Path(here).relative_to(folder).as_posix()
        if not folders and not names and not HUB_FILES.fullmatch(relative):
            problem(_unwanted(relative, "is an empty folder that is not part of the data set; remove it"))
        for name in [*names, *(name for name in folders if Path(here, name).is_symlink())]:
            path = Path(here, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
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


def _deviations(where: str, faults: dict[str, bool]) -> list[str]:
    return [f"{where}: {sentence}" for sentence, there in faults.items() if there]


def _check_claims(manifest: Manifest, against: Sources | None, problems: list[str]) -> None:
    counts = manifest.class_counts
    problems += _deviations(
        MANIFEST,
        {
            "count, classes and class_counts contradict one another; publish again": (
                len(counts) != len(manifest.classes) or (bool(counts) and sum(counts) != manifest.count)
            ),
            "more images are claimed to be added than there are; publish again": (
                sum(manifest.additions) >= manifest.count
            ),
            "the budget's rho and levels contradict one another; publish again": (
                manifest.budget.levels != Budget(manifest.budget.rho).levels
            ),
            "the measured change exceeds the budget; do not use this folder": (
                manifest.measured.linf_levels > manifest.budget.levels
            ),
            "more images are claimed to be unchanged or of one colour than there are; publish again": (
                max(manifest.measured.unchanged_images, manifest.measured.constant_images) > manifest.count
            ),
            "the classes are not those of the originals; compare with the right originals": (
                against is not None and any(names != manifest.classes for names in against.classes)
            ),
        },
    )


# Position in the order of publication, image, and its original where that is given.
_Row = tuple[int, Record, Pixels | None]


def _bytes_of(row: _Row) -> int:
    _, record, clean = row
    return len(record.data) if clean is None else clean.nbytes


class _Images:
    def __init__(
        self, manifest: Manifest, against: Sources | None, problems: list[str], originals: SealedRows | None
    ) -> None:
        self.tally = Tally()
        self._manifest = manifest
        self._against = against
        self._originals = originals
        self._problems = problems
        self._sample = ssim_positions(manifest.count)
        self._labels: Counter[int] = Counter()
        self.codecs: Counter[str] = Counter()
        self._ids: set[str] = set()
        self._constant: list[str] = []

    def paired(self, records: Iterator[Record]) -> Iterator[_Row]:
        """Rows with their originals, which are read here because a reader need not stand several threads."""
        against = self._against
        last = len(self._manifest.classes) - 1
        for position, record in enumerate(records):
            source = None if against is None else against.find(record.id)
            original_label = record.label if source is None else int(source[0].labels[source[1]])
            self._problems += _deviations(
                record.where,
                {
                    f"the id '{record.id}' came before; publish again": record.id in self._ids,
                    f"the label {record.label} is not 0..{last}": last >= 0 and not 0 <= record.label <= last,
                    f"the originals have no image '{record.id}'": against is not None and source is None,
                    f"the label is not that of the original '{record.id}'": original_label != record.label,
                },
            )
            self._ids.add(record.id)
            self._labels[record.label] += 1
            yield position, record, None if source is None else source[0].read(source[1])

    def check(self, position: int, record: Record, clean: Pixels | None) -> tuple[Record, str | Change]:
        """Image with the problem with it, or with its distance from the original (from itself without one)."""
        try:
            if problem := metadata_problem(record.data):
                raise DataError(problem)
            if not IMAGE_NAME.fullmatch(record.name):
                raise DataError(f"is stored under the name '{record.name}', which may tell where it came from")
            pixels = decode_strips(record.data)
            if self._originals is not None and (problem := self._originals.compare(position, record, pixels)):
                raise DataError(problem)
            if clean is None:
                return record, unpaired(pixels)
            if clean.shape != pixels.shape:
                return record, f"has the shape {pixels.shape}, its original {clean.shape}"
            change = compare(clean, pixels, position in self._sample)
        except DataError as error:
            return record, str(error)
        return record, change if change.same_alpha else "has another alpha channel than its original"

    def add(self, record: Record, outcome: str | Change) -> None:
        self.codecs[kind_of(record.data)] += 1
        if isinstance(outcome, str):
            self._problems.append(f"{record.where}: {outcome}")
            return
        self.tally.add(outcome)
        allowed = self._manifest.budget.levels
        excess = f"differs by {outcome.levels} levels from its original, more than the budget of {allowed}"
        self._problems += _deviations(record.where, {excess: outcome.levels > allowed})
        if outcome.constant:
            self._constant.append(record.where)

    def check_totals(self) -> None:
        """Compare sums with the manifest's claims; only sensible if every file was as listed."""
        claimed = self._manifest
        before = len(self._problems)
        single = claimed.measured.constant_images
        there = len(self._constant)
        if self._against is None and there > single:
            fault = f"the image is of one single colour; {single} such are claimed, {there} are there"
            self._problems += [f"{where}: {fault}" for where in self._constant]
        measurable = len(self._problems) == before and self.tally.changes > 0
        sizes = SizeRecord.of(self.tally.shapes) if measurable else claimed.size
        count = self.codecs.total()
        codec = "mixed" if len(self.codecs) > 1 else "".join(self.codecs)
        faults = {
            "the claimed image sizes are not those of the images; publish again": sizes != claimed.size,
            f"claims the codec {claimed.codec}, the images are {codec}; publish again": (
                codec not in ("", claimed.codec)
            ),
            f"claims {claimed.count} images, {count} are there": count != claimed.count,
        }
        for label, (name, wanted) in enumerate(zip(claimed.classes, claimed.class_counts, strict=False)):
            images = self._labels[label]
            faults[f"claims {wanted} images of class '{name}', {images} are there"] = images != wanted
        self._problems += _deviations(MANIFEST, faults)
        if self._against is None or len(self._problems) > before or self.tally.changes != claimed.count:
            return
        for name, value in self.tally.measured():
            claim = getattr(claimed.measured, name)
            same = claim is value  # Both are None where a figure does not exist.
            if None not in (claim, value):
                same = math.isclose(value, claim, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
            self._problems += _deviations(MANIFEST, {f"claims {name} = {claim}, measured was {value}": not same})


def _check_pages(
    folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem, *, proven: bool
) -> list[str]:
    """Report pages for people that say other things than the manifest; gives the pages that were not compared.

    Another version may have made them in another form. They are as published where the manifest is ``proven``.
    """
    not_compared = []
    for name, make in PAGES:
        try:
            expected = make(manifest)
            same = name not in sound or (expected is not None and read_bytes(folder / name) == expected.encode())
        except (UnreadableError, LookupError, TypeError, ValueError):  # method_details are free, and a stranger's
            expected, same = "", False
        if expected is None and name not in sound:
            continue
        if all(record.path != name for record in manifest.files):
            problem(f"{name} is not listed in {MANIFEST}; fetch the folder again")
        elif not same and manifest.tool_version == code_version():
            problem(f"{name} is not the page that follows from {MANIFEST}; fetch the folder again")
        elif not same and not proven:
            not_compared.append(
                f"{name} says other things than this version would, and was not compared with {MANIFEST}: version "
                f"{manifest.tool_version} wrote it, as that says itself"
            )
    return not_compared
