"""Write a protected data set: encode, decode again, measure, and let the folder appear only when all of it is right."""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from uge.budget import Budget
from uge.data.codec import OPTIONS, Encoded, decode_strips, encode, storable
from uge.data.images import ImageSet, Pixels, Strips
from uge.data.pixels import public_id
from uge.errors import DataError, UnknownNameError, UsageError
from uge.files import Move, check_output, staged_folder, write_atomic
from uge.publishing.card import dataset_card
from uge.publishing.croissant import CROISSANT, croissant
from uge.publishing.layout import LAYOUTS, Layout, Row, class_folders, default_rows, file_record
from uge.publishing.manifest import (
    CARD,
    GUIDE,
    BudgetRecord,
    Codec,
    FileRecord,
    Format,
    License,
    Manifest,
    Provenance,
    SizeRecord,
    created_date,
    is_published,
    signed_digests,
)
from uge.publishing.quality import Change, Tally, compare, ssim_positions
from uge.publishing.rights import TDM_FILE, tdm_reservation
from uge.publishing.stream import batches, ordered_map
from uge.publishing.training_guide import training_guide
from uge.sealing.originals import original_bytes
from uge.sealing.shards import SealedRow, pixels_sha256
from uge.sealing.signature import write_signature
from uge.sealing.writer import Sealing, SealWriter

Protected: TypeAlias = tuple[int, Pixels | Strips, Pixels | Strips]
"""(index in the image set, original pixels, protected pixels), both uint8 height × width × channels.

Strips are closed when they are written.
"""
PAGES: tuple[tuple[str, Callable[[Manifest], str | None]], ...] = (
    (CARD, dataset_card),
    (GUIDE, training_guide),
    (CROISSANT, croissant),
    (TDM_FILE, tdm_reservation),
)
"""Pages for people and for programs, and what writes each from the manifest; one that gives None is left out."""


def pages_of(manifest: Manifest) -> dict[str, str]:
    """Content of every page of a folder, by its name."""
    return {name: text for name, make in PAGES if (text := make(manifest)) is not None}


def publish(
    pairs: Iterable[Protected],
    out: Path,
    *,
    images: ImageSet,
    budget: Budget,
    provenance: Provenance,
    format: Format = "parquet",
    codec: Codec | None = None,
    overwrite: bool = False,
    together: Callable[[Manifest], Sequence[Move]] | None = None,
    sealing: Sealing | None = None,
    sealed_only: ImageSet | None = None,
    license: License | None = None,
    reservation: str | None = None,
    rows_per_file: int | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write protected images as an ordinary data set, and measure the stored files.

    Images stream through: about 50 MB of them are in memory, or one larger image, whatever the size of the set. The
    encoded bytes of a large image go to a temporary file without a name in the new folder. Every image is decoded
    again from its encoded bytes and compared with its original. Equal inputs give equal bytes, but for what is sealed:
    each publication draws its own content key.

    Args:
        pairs: Originals with their protected form, in the order of ``images``, all of them. An array must not be
            written to after it was handed over.
        out: The folder to write. It takes its place only when everything is written.
        images: The set that was protected: ids, labels and class names come from it.
        budget: The bound that every stored image must keep.
        provenance: Method, seeds and networks, for the manifest.
        format: ``"parquet"`` (Hugging Face layout), ``"imagefolder"`` or ``"webdataset"`` (tar shards).
        codec: ``"webp"`` (lossless, the default in Parquet) or ``"png"`` (the default in an image folder). Images
            that WebP cannot hold unchanged (gray, or with an alpha channel that is opaque) become PNG anyhow.
        overwrite: Replace a folder that was published before.
        together: Called with the manifest when the folder is complete; gives more that takes its place at the same
            moment (see :func:`uge.files.staged_folder`).
        sealing: Recipients of the originals, which are sealed as they stream by; None seals nothing.
        sealed_only: Images of another split that are sealed without public copies; only with ``sealing``.
        license: Licence of the copy, for the manifest, the card and ``croissant.json``.
        reservation: Wording by which the owner reserves rights; None reserves nothing.
        rows_per_file: Images per Parquet file; ``None`` for about 100 MB, at most 25,000 images.
        workers: Threads that encode.
        progress: Called with the number of images finished so far.

    Returns:
        The manifest, as written.

    Raises:
        UsageError: Unknown format or codec, no worker, ``out`` and the source overlap, ``out`` holds files of
            another program, or another process is writing it.
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        StorageError: The disk is full or read-only.
        DataError: An image exceeds the budget, changed its shape or alpha channel, or is missing; or none was changed.
    """
    out = Path(out)
    if format not in LAYOUTS:
        raise UnknownNameError("format", format, LAYOUTS)
    layout = LAYOUTS[format]
    if format == "webdataset" and not images.classes:
        raise UsageError("tar shards need labels, which these images have not; leave out --format webdataset")
    codec = codec or layout.codec
    _check_arguments(codec, workers, rows_per_file)
    check_output(out, source=images.root, overwrite=overwrite, ours=is_published)
    _check_names(images)
    created = created_date(provenance.created)
    rows = rows_per_file or default_rows(max(map(np.size, images.probe(8))))
    manifest: Manifest
    beside = None if together is None else lambda: together(manifest)
    with (
        staged_folder(out, overwrite=overwrite, together=beside) as folder,
        _seal_writer(folder, sealing, images, rows) as seal,
    ):
        keeps = sealing is not None and sealing.keep_metadata
        stream = Stream(layout, codec, budget, rows, workers, keep_metadata=keeps)
        written = stream.write(pairs, folder, images, seal, progress=progress)
        if seal is not None and sealing is not None and sealed_only is not None:
            _seal_apart(seal, sealing, sealed_only, rows, workers)
        measured = written.tally.measured()
        if measured.unchanged_images == len(images):
            raise DataError(
                "no image was changed; nothing was published, since that copy would protect nothing; check if the "
                "images are gray or the method did too few steps"
            )
        manifest = Manifest(
            **{name: getattr(provenance, name) for name in Provenance.model_fields} | {"created": created},
            name=images.name,
            split=images.split,
            classes=images.classes,
            class_counts=images.class_counts,
            count=len(images),
            size=SizeRecord.of(written.tally.shapes),
            format=format,
            codec=codec_of(written.codecs),
            class_folders=class_folders(images.classes) if format == "imagefolder" else None,
            budget=BudgetRecord(rho=budget.rho, levels=budget.levels),
            measured=measured,
            files=tuple(written.files),
            license=license,
            reservation=reservation,
        )
        if seal is not None and sealing is not None:
            record = seal.finish(json.loads(manifest.model_dump_json()), sealing)
            manifest = manifest.model_copy(update={"sealed": record})
        manifest = write_claims(folder, manifest, None if sealing is None else sealing.signer)
    return manifest


def write_claims(folder: Path, manifest: Manifest, signer: Ed25519PrivateKey | None) -> Manifest:
    """Write manifest, pages and signature of an otherwise finished folder; gives the manifest as written.

    Args:
        folder: The folder.
        manifest: Its claims; records of the pages in it are replaced.
        signer: Key of the owner; None signs nothing.

    Raises:
        StorageError: The disk is full or read-only.
    """
    written = pages_of(manifest)
    for name, text in written.items():
        write_atomic(folder / name, text)
    pages = [file_record(folder, name) for name in written]
    others = (record for record in manifest.files if record.path not in dict(PAGES))
    manifest = manifest.model_copy(update={"files": (*pages, *others)})
    manifest.write(folder)
    if signer is not None:
        write_signature(folder, signed_digests(folder, manifest), signer)
    return manifest


def codec_of(codecs: Set[Codec]) -> Literal["png", "webp", "mixed"]:
    """Codec of a folder, for its manifest, from those of its images."""
    return next(iter(codecs)) if len(codecs) == 1 else "mixed"


@dataclass(frozen=True)
class Written:
    """Images as they were written.

    Attributes:
        files: Files with images, and an index of them.
        tally: Distances from the originals.
        codecs: Codecs of the images.
    """

    files: Sequence[FileRecord]
    tally: Tally
    codecs: Set[Codec]


@dataclass(frozen=True)
class Stream:
    """Writes protected images into a folder while they stream by, with their originals where these are sealed.

    Attributes:
        layout: Form of the folder.
        codec: Codec where an image can be stored in it.
        budget: The bound that every stored image must keep.
        rows: Images per Parquet file.
        workers: Threads that encode.
        keep_metadata: Seal files of images as they are, byte for byte.
        addition: Number of the addition; 0 for a new folder.
        first: Number of images that were published before.
        sample: Positions in the whole folder on which SSIM is measured; by default those of the images alone.
    """

    layout: Layout
    codec: Codec
    budget: Budget
    rows: int
    workers: int = 2
    keep_metadata: bool = False
    addition: int = 0
    first: int = 0
    sample: frozenset[int] | None = None

    def write(
        self,
        pairs: Iterable[Protected],
        folder: Path,
        images: ImageSet,
        seal: SealWriter | None,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Written:
        """Write all images; see :func:`publish` for the arguments.

        Raises:
            DataError: An image exceeds the budget, changed its shape or alpha channel, or is missing.
            StorageError: The disk is full or read-only.
        """
        sample = ssim_positions(len(images)) if self.sample is None else self.sample
        stored = _Rows(images, progress, seal, self.first)
        encoder = _Encoder(self, images.ids, sample, folder, seals=seal is not None)
        sources = _in_order(pairs, images, with_files=seal is not None)
        ordered = batches(sources, lambda source: source[2].nbytes)
        with closing(ordered_map(encoder, ordered, workers=self.workers, size_of=_bytes_of)) as encoded:
            rows = stored.rows(encoded)
            files = self.layout.write(folder, rows, images.classes, len(images), self.rows, self.addition)
        return Written(files, stored.tally, stored.codecs)


def _seal_writer(folder: Path, sealing: Sealing | None, images: ImageSet, rows: int) -> SealWriter | nullcontext[None]:
    if sealing is None:
        return nullcontext()
    return SealWriter(folder, split=images.split, count=len(images), rows_per_file=rows)


def _seal_apart(seal: SealWriter, sealing: Sealing, images: ImageSet, rows: int, workers: int) -> None:
    """Seal all images of a split that has no public copies."""
    seal.begin(images.split, len(images), rows, stem="sealed-only")

    def sealed(batch: list[tuple[int, Pixels, bytes | None]]) -> list[SealedRow]:
        rows = []
        for index, pixels, data in batch:
            id = images.ids[index]
            original = _original(id, data, pixels, keep_metadata=sealing.keep_metadata)
            rows.append(SealedRow(original, int(images.labels[index]), public_id(id), None))
        return rows

    sources = ((index, images.read(index), images.encoded(index)) for index in range(len(images)))
    grouped = batches(sources, lambda source: source[1].nbytes)
    whole = ordered_map(
        sealed, grouped, workers=workers, size_of=lambda batch: sum(source[1].nbytes for source in batch)
    )
    with closing(whole) as results:
        for row in itertools.chain.from_iterable(results):
            seal.write(row)


def _original(id: str, data: bytes | None, pixels: Pixels | Strips, *, keep_metadata: bool) -> bytes:
    return original_bytes(data, pixels, keep_metadata=keep_metadata, name=f"image '{id}'")[0]


# Index in the image set, original, protected pixels, and the original's encoded bytes where they are sealed.
_Source: TypeAlias = tuple[int, Pixels | Strips, Pixels | Strips, bytes | None]


def _bytes_of(batch: Sequence[_Source]) -> int:
    # Both images of strips are made of one array.
    return sum(
        clean.nbytes + (0 if isinstance(protected, Strips) else protected.nbytes) for _, clean, protected, _ in batch
    )


# Original as it is sealed, and the digest of its public pixels.
_Sealed: TypeAlias = tuple[bytes, bytes]
# Index in the image set, codec, encoded bytes, distance from the original, and the sealed original.
_Stored: TypeAlias = tuple[int, Codec, Encoded, Change, _Sealed | None]


@dataclass
class _Rows:
    images: ImageSet
    progress: Callable[[int], None] | None
    seal: SealWriter | None
    first: int
    tally: Tally = field(default_factory=Tally)
    codecs: set[Codec] = field(default_factory=set)

    def rows(self, encoded: Iterable[list[_Stored]]) -> Iterator[Row]:
        for batch in encoded:
            while batch:  # A large image is not kept while the next one is encoded.
                index, codec, data, change, sealed = batch.pop(0)
                label = int(self.images.labels[index])
                id = public_id(self.images.ids[index])
                yield f"{self.first + index:08d}.{codec}", data, label, id
                del data
                if self.seal is not None and sealed is not None:
                    self.seal.write(SealedRow(sealed[0], label, id, sealed[1]))
                del sealed
                self.tally.add(change)
                self.codecs.add(codec)
            if self.progress is not None:
                self.progress(self.tally.changes)


@dataclass(frozen=True)
class _Encoder:
    """Encodes a batch in a thread, decodes it again and compares it with its originals."""

    stream: Stream
    ids: Sequence[str]
    sample: frozenset[int]
    scratch: Path
    seals: bool

    def __call__(self, batch: list[_Source]) -> list[_Stored]:
        indices, originals, protected, files = zip(*batch, strict=True)
        # All encoded first, then all decoded: in turn, small images take a tenth longer.
        codecs = [storable(pixels, self.stream.codec) for pixels in protected]
        encoded = [encode(pixels, codec, self.scratch) for pixels, codec in zip(protected, codecs, strict=True)]
        stored = [decode_strips(data) for data in encoded]
        changes = [self._change(*triple) for triple in zip(indices, originals, stored, strict=True)]
        sealed = [self._sealed(*each) for each in zip(indices, files, originals, stored, strict=True)]
        for pixels in (*originals, *protected):
            if isinstance(pixels, Strips):
                pixels.close()
        return list(zip(indices, codecs, encoded, changes, sealed, strict=True))

    def _sealed(
        self, index: int, data: bytes | None, clean: Pixels | Strips, stored: Pixels | Strips
    ) -> _Sealed | None:
        if not self.seals:
            return None
        original = _original(self.ids[index], data, clean, keep_metadata=self.stream.keep_metadata)
        return original, pixels_sha256(stored)

    def _change(self, index: int, clean: Pixels | Strips, stored: Pixels | Strips) -> Change:
        where = f"image '{self.ids[index]}'"
        if stored.shape != clean.shape:
            raise DataError(f"{where}: expected the shape {clean.shape} of the original, stored was {stored.shape}")
        change = compare(clean, stored, self.stream.first + index in self.sample)
        if not change.same_alpha:
            raise DataError(f"{where}: the alpha channel changed; protect the colour channels only")
        budget = self.stream.budget
        if change.levels > budget.levels:
            raise DataError(
                f"{where}: a value changed by {change.levels} levels, more than the {budget.levels} that rho "
                f"{budget.rho:g} allows; nothing was published"
            )
        return change


def _in_order(pairs: Iterable[Protected], images: ImageSet, *, with_files: bool) -> Iterator[_Source]:
    expected = 0
    for index, clean, protected in pairs:
        if index != expected or index >= len(images):
            raise DataError(
                f"expected protected image {expected} of {len(images)}, got {index}; give each one, in order"
            )
        for role, pixels in (("original", clean), ("protected", protected)):
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or not pixels.size:
                raise DataError(
                    f"image '{images.ids[index]}' ({role}): expected uint8 pixels, height × width × 1 to 4 channels, "
                    f"got {pixels.dtype} {pixels.shape}"
                )
        # Read here because a reader need not stand several threads.
        yield index, clean, protected, images.encoded(index) if with_files else None
        del clean, protected, pixels  # Not kept while the next ones are made.
        expected += 1
    if expected != len(images):
        raise DataError(f"expected {len(images)} protected images, got {expected}; nothing was published")


def _check_arguments(codec: str, workers: int, rows_per_file: int | None) -> None:
    if codec not in OPTIONS:
        raise UnknownNameError("codec", codec, OPTIONS, hint="lossy ones would destroy the protection")
    for name, value in (("workers", workers), ("rows_per_file", rows_per_file)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")


def _check_names(images: ImageSet) -> None:
    for text in (*images.check().classes, *images.ids):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name {text!r} is not valid Unicode; rename the file or class") from None
