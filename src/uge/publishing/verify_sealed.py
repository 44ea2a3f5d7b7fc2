"""Check of sealed originals: their files without a key, and every row group with one."""

import hmac
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from uge.data.images import Pixels, Strips
from uge.data.pixels import decode
from uge.errors import DataError, IntegrityError
from uge.files import open_regular
from uge.publishing.layout import Problem, Record
from uge.publishing.manifest import MANIFEST, Manifest
from uge.publishing.sources import Sources
from uge.sealing import Identity, SealedFolder, SealedRow, ShardReader, open_folder, pixels_sha256
from uge.sealing.record import RECIPIENTS

AGE = b"age-encryption.org/v1\n"
PARQUET = b"PARE"


def check_files(folder: Path, manifest: Manifest, sound: frozenset[str], problem: Problem) -> None:
    """Report sealed files that are not encrypted, and claims that contradict one another."""
    if manifest.sealed is None:
        return
    for path, _, _ in manifest.sealed.files():
        if path in sound:
            with open_regular(folder / path) as handle:
                start = AGE if path.startswith(f"{RECIPIENTS}/") else PARQUET
                if handle.read(len(start)) != start:
                    problem(f"{path} is not encrypted; do not publish this folder")
    counts = Counter({shard.split: 0 for shard in manifest.sealed.shards})
    for shard in manifest.sealed.shards:
        counts[shard.split] += shard.count
    if counts[manifest.split] != manifest.count:
        problem(
            f"{MANIFEST}: {counts[manifest.split]} originals are sealed of {manifest.count} published images; publish "
            "again"
        )
    if len({shard.path for shard in manifest.sealed.shards}) < len(manifest.sealed.shards):
        problem(f"{MANIFEST}: a sealed shard is listed twice; publish again")


class SealedRows:
    """Sealed originals of the published images, for comparison with these.

    Making it reads and authenticates every row group of the folder.

    Args:
        folder: The published folder.
        identity: Private key of a recipient, or the content key.
        against: The originals' sources; every sealed original of it is compared with them.
        problem: Takes one sentence for each deviation.

    Attributes:
        count: Number of originals that were opened.

    Raises:
        UsageError: Nothing is sealed, or the key is that of no recipient.
    """

    def __init__(self, folder: Path, identity: Identity, against: Sources | None, problem: Problem) -> None:
        self.count = 0
        self._rows: dict[str, tuple[int, int, bytes | None]] = {}
        self._against = against
        self._problem = problem
        self.opened = False
        try:
            sealed = open_folder(folder, identity)
        except IntegrityError as error:
            for sentence in error.problems:
                problem(sentence)
            return
        self.opened = True
        for split in sealed.splits:
            published = split == sealed.split
            for position, (where, row) in enumerate(self._read(sealed.of(split))):
                self._check(where, row, sealed, published=published)
                if published:
                    self._rows[row.id] = (position, row.label, row.sha256)

    def compare(self, position: int, record: Record, pixels: Pixels | Strips) -> str | None:
        """Deviation of a public image from what was sealed with its original; None where there is none.

        Args:
            position: Its place in the order of publication.
            record: The image as it lies on disk.
            pixels: The same, decoded.
        """
        if not self.opened:
            return None
        if record.id not in self._rows:
            return f"no original is sealed for '{record.id}'"
        place, label, digest = self._rows[record.id]
        if label != record.label:
            return f"has the label {record.label}, its sealed original {label}"
        if digest is None or not hmac.compare_digest(digest, pixels_sha256(pixels)):
            return "its pixels are not those that were sealed with its original"
        return None if place == position else f"stands at place {position}, its sealed original at {place}"

    def _read(self, sealed: SealedFolder) -> Iterator[tuple[str, SealedRow]]:
        for shard in sealed.shards:
            try:
                reader = ShardReader(sealed.folder, shard, sealed.key, sealed.record.data_set, check_all=False)
            except IntegrityError as error:
                self._problem(str(error))
                continue
            for group in range(len(reader.groups)):
                try:
                    rows = reader.read(group)
                except IntegrityError as error:
                    self._problem(str(error))
                    continue
                yield from ((f"{shard.path} row group {group}", row) for row in rows)
            reader.close()

    def _check(self, where: str, row: SealedRow, sealed: SealedFolder, *, published: bool) -> None:
        self.count += 1
        if not sealed.has_label(row.label):
            self._problem(f"{where}: the label {row.label} of '{row.id}' is not {sealed.labels_expected}")
        if published and row.id in self._rows:
            self._problem(f"{where}: the id '{row.id}' came before")
        source = self._against.find(row.id) if published and self._against is not None else None
        if source is None:
            return
        against, place = source
        data = against.encoded(place)
        try:
            same = row.image == data or (
                sealed.record.metadata == "dropped" and np.array_equal(decode(row.image, row.id), against.read(place))
            )
        except DataError as error:
            self._problem(f"{where}: {error}")
            return
        if not same:
            self._problem(f"{where}: the original of '{row.id}' is not that of {against.name}")
