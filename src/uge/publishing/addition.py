"""Images added to a published folder: those that are new, and the folder with them, measured as a whole."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uge.budget import Budget
from uge.data.codec import decode_strips, kind_of
from uge.data.images import ImageSet
from uge.data.pixels import added_id, decode
from uge.errors import DataError, IntegrityError, printable
from uge.files import code_version, link_folder
from uge.publishing.layout import LAYOUTS, Record, default_rows, stem_of
from uge.publishing.manifest import Codec, Manifest, SizeRecord
from uge.publishing.quality import Change, Tally, compare, ssim_positions
from uge.publishing.stream import batches, ordered_map
from uge.publishing.writer import Protected, Stream, codec_of, write_claims
from uge.sealing import SealedFolder, SealedRow, SealWriter, pixels_sha256


@dataclass
class Present:
    """Images that are published before an addition, compared with their originals.

    Attributes:
        tally: Distances from the originals; SSIM is not among them.
        codecs: Codecs of the published images.
        labels: Labels of every original by the digest of its pixels.
    """

    tally: Tally = field(default_factory=Tally)
    codecs: set[Codec] = field(default_factory=set)
    labels: dict[bytes, tuple[int, ...]] = field(default_factory=dict)


_Pair = tuple[Record, SealedRow]


def read_present(
    manifest: Manifest, sealed: SealedFolder, *, workers: int = 2, progress: Callable[[int], None] | None = None
) -> Present:
    """Read a whole folder: every public image with its original.

    Args:
        manifest: Its manifest.
        sealed: Its originals.
        workers: Threads that decode.
        progress: Called with the number of images read so far.

    Raises:
        IntegrityError: A file is damaged, or an image is not the one that was sealed with its original.
    """
    present = Present()
    grouped = batches(_pairs(manifest, sealed), lambda pair: len(pair[0].data) + len(pair[1].image))
    compared = ordered_map(lambda batch: [_compared(*pair) for pair in batch], grouped, workers=workers)
    with closing(compared) as results:
        for batch in results:
            for digest, label, codec, change in batch:
                present.labels[digest] = (*present.labels.get(digest, ()), label)
                present.codecs.add(codec)
                present.tally.add(change)
            if progress is not None:
                progress(present.tally.changes)
    if not present.tally.changes == manifest.count == sealed.count:
        raise IntegrityError([f"{sealed.folder} lacks images that its manifest claims; look at what uge verify says"])
    return present


def _pairs(manifest: Manifest, sealed: SealedFolder) -> Iterator[_Pair]:
    def fail(sentence: str) -> None:
        raise IntegrityError([sentence])

    files = frozenset(record.path for record in manifest.files)
    records = LAYOUTS[manifest.format].records(sealed.folder, manifest, files, fail)
    yield from zip(records, sealed.rows(), strict=False)


def _compared(record: Record, row: SealedRow) -> tuple[bytes, int, Codec, Change]:
    original = decode(row.image, f"the sealed original '{row.id}'")
    published = decode_strips(record.data)
    if (record.id, record.label, pixels_sha256(published)) != (row.id, row.label, row.sha256):
        raise IntegrityError(
            [f"{record.where}: is not the image that was sealed with its original; look at what uge verify says"]
        )
    return pixels_sha256(original), row.label, kind_of(record.data), compare(original, published)


def new_images(images: ImageSet, present: Present, progress: Callable[[int], None] | None = None) -> ImageSet:
    """Images that are not published yet, by their pixels; perhaps none.

    Args:
        images: Further images, with the folder's classes.
        present: What is published.
        progress: Called with the number of images read so far.

    Raises:
        DataError: An image is published already in another class.
    """
    rows = []
    for row in range(len(images)):
        labels = present.labels.get(pixels_sha256(images.read(row)))
        label = int(images.labels[row])
        if labels is None:
            rows.append(row)
        elif label not in labels:
            raise DataError(
                f"image '{printable(images.ids[row])}' is published already, in the class "
                f"'{printable(images.classes[labels[0]])}' and not '{printable(images.classes[label])}'; correct the "
                "source"
            )
        if progress is not None:
            progress(row + 1)
    return images.subset(rows)


def numbered(images: ImageSet, manifest: Manifest) -> ImageSet:
    """Same images with the sample ids of the next addition to a folder, which none of its images has."""
    return replace(images, ids=[added_id(id, len(manifest.additions) + 1) for id in images.ids])


def add_images(
    pairs: Iterable[Protected],
    folder: Path,
    *,
    images: ImageSet,
    manifest: Manifest,
    present: Present,
    sealed: SealedFolder,
    details: Mapping[str, Any],
    signer: Ed25519PrivateKey,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write a published folder with further images into an empty one.

    Files that are there keep names and bytes, and so do shards of originals. Figures are measured on all images.
    Further shards are sealed under the same content key; see :class:`uge.sealing.writer.SealWriter` on why no file key
    meets a nonce twice.

    Args:
        pairs: Further originals with their protected form, in the order of ``images``.
        folder: The empty folder.
        images: Further images, with the folder's classes and ids of :func:`numbered`.
        manifest: Claims of the folder without them.
        present: Its images.
        sealed: Its originals.
        details: What the method says of all images together.
        signer: The owner's key.
        workers: Threads that encode.
        progress: Called with the number of images finished so far.

    Returns:
        The new manifest, as written.

    Raises:
        DataError: As of :func:`uge.publishing.publish`.
        IntegrityError: The folder was changed meanwhile.
        StorageError: The disk is full or read-only.
    """
    link_folder(sealed.folder, folder)
    addition = len(manifest.additions) + 1
    count = manifest.count + len(images)
    sample = ssim_positions(count)
    rows = default_rows(max(map(np.size, images.probe(8))))
    stream = Stream(
        LAYOUTS[manifest.format],
        "png" if manifest.codec == "png" else "webp",
        Budget(manifest.budget.rho),
        rows,
        workers,
        keep_metadata=sealed.record.metadata == "kept",
        addition=addition,
        first=manifest.count,
        sample=sample,
    )
    with SealWriter(
        folder,
        split=manifest.split,
        count=len(images),
        rows_per_file=rows,
        stem=stem_of("train", addition),
        key=sealed.key,
        data_set=sealed.record.data_set,
    ) as seal:
        written = stream.write(pairs, folder, images, seal, progress=progress)
        shards = (*sealed.record.shards, *seal.shards())
    if written.tally.measured().unchanged_images == len(images):
        raise DataError("none of the new images was changed, so that nothing was added; check if they are gray")
    tally = replace(present.tally, shapes=set(present.tally.shapes), psnrs=list(present.tally.psnrs))
    tally.ssims = _similarities(manifest, sealed, sample)
    tally.extend(written.tally)
    names = {record.path for record in written.files}
    counts = zip(manifest.class_counts, images.class_counts, strict=True)
    manifest = manifest.model_copy(
        update={
            "tool_version": code_version(),
            "method_details": dict(details),
            "class_counts": tuple(before + more for before, more in counts),
            "count": count,
            "size": SizeRecord.of(tally.shapes),
            "codec": codec_of(present.codecs | written.codecs),
            "measured": tally.measured(),
            "additions": (*manifest.additions, len(images)),
            "files": (*(record for record in manifest.files if record.path not in names), *written.files),
        }
    )
    record = sealed.record.model_copy(update={"shards": shards})
    record = record.marked(sealed.key, json.loads(manifest.model_dump_json()))
    return write_claims(folder, manifest.model_copy(update={"sealed": record}), signer)


def _similarities(manifest: Manifest, sealed: SealedFolder, sample: frozenset[int]) -> list[float]:
    """SSIM of the published images at some positions, where it can be measured."""
    values = []
    for position, (record, row) in enumerate(_pairs(manifest, sealed)):
        if position in sample:
            values.append(compare(decode(row.image, row.id), decode_strips(record.data), with_ssim=True).ssim)
    return [value for value in values if value is not None]
