"""Write a protected data set: encode, decode again, measure, and let the folder appear only when all of it is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from uge.budget import Budget
from uge.data.images import ImageSet, Pixels
from uge.errors import DataError, UnknownNameError, UsageError
from uge.files import check_output, file_sha256, staged_folder, write_atomic
from uge.publishing.card import dataset_card
from uge.publishing.codec import OPTIONS, decode, encode, storable
from uge.publishing.layout import SINKS, Sink, class_folders, default_rows
from uge.publishing.manifest import (
    CARD,
    GUIDE,
    BudgetRecord,
    Codec,
    FileRecord,
    Format,
    Manifest,
    Provenance,
    SizeRecord,
    created_date,
    is_published,
)
from uge.publishing.quality import Change, Tally, compare_all, ssim_positions
from uge.publishing.stream import batches, ordered_map
from uge.publishing.training_guide import training_guide

Protected: TypeAlias = tuple[int, Pixels, Pixels]
"""(index in the image set, original pixels, protected pixels), both uint8 height × width × channels."""


@dataclass(frozen=True)
class _Stored:
    index: int
    codec: Codec
    data: bytes
    shape: tuple[int, ...]
    change: Change


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
    rows_per_file: int | None = None,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write protected images as a data set that anybody can load, and measure what was stored.

    Images stream through: a few batches are in memory, whatever the size of the set. Every image is decoded again
    from its encoded bytes and compared with its original. Equal inputs give equal bytes.

    Args:
        pairs: Originals with their protected form, in the order of ``images``, all of them. An array must not be
            written to after it was handed over.
        out: The folder to write. It takes its place only when everything is written.
        images: The set that was protected: ids, labels and class names come from it.
        budget: The bound that every stored image must keep.
        provenance: How the images came about, for the manifest.
        format: ``"parquet"`` (Hugging Face layout) or ``"imagefolder"``.
        codec: ``"webp"`` (lossless, the default in Parquet) or ``"png"`` (the default in an image folder). Images
            that WebP cannot hold unchanged (gray, or with an alpha channel that is opaque) become PNG anyhow.
        overwrite: Replace a folder that was published before.
        rows_per_file: Images per Parquet file; ``None`` for about 100 MB, at most 25,000 images.
        workers: Threads that encode.
        progress: Called with the number of images finished so far.

    Returns:
        The manifest, as written.

    Raises:
        UsageError: Unknown format or codec, no worker, ``out`` and the source overlap, or ``out`` holds what this
            package did not write.
        OutputExistsError: ``out`` is not empty and ``overwrite`` is false.
        StorageError: The disk is full or read-only.
        DataError: An image exceeds the budget, changed its shape or alpha channel, or is missing; or none was changed.
    """
    out = Path(out)
    codec = codec or ("webp" if format == "parquet" else "png")
    _check_arguments(format, codec, workers, rows_per_file)
    check_output(out, source=images.root, overwrite=overwrite, ours=is_published)
    _check_images(images)
    created = created_date(provenance.created)
    rows = rows_per_file or default_rows(max(image.nbytes for image in images.probe(8)))
    tally, sizes, codecs = Tally(), set[tuple[int, ...]](), set[Codec]()
    work = _Work(images, budget, codec)
    with staged_folder(out, overwrite=overwrite) as folder:
        sink: Sink = SINKS[format](folder, classes=images.classes, count=len(images), rows_per_file=rows)
        ordered = batches(_in_order(pairs, images), lambda pair: pair[2].nbytes)
        results = ordered_map(work, ordered, workers=workers)
        with closing(results), ExitStack() as cleanup:
            cleanup.callback(sink.abandon)
            for stored in results:
                for one in stored:
                    name = f"{one.index:08d}.{one.codec}"
                    sink.add(name, one.data, int(images.labels[one.index]), images.ids[one.index])
                    tally.add(one.change)
                    sizes.add(one.shape)
                    codecs.add(one.codec)
                if progress is not None:
                    progress(tally.changes)
            files = sink.close()
        measured = tally.measured()
        if measured.unchanged_images == len(images):
            raise DataError(
                "no image was changed; nothing was published, since that copy would protect nothing; look whether the "
                "images are gray or the method did too few steps"
            )
        manifest = Manifest(
            **{name: getattr(provenance, name) for name in Provenance.model_fields} | {"created": created},
            name=images.name,
            split=images.split,
            classes=images.classes,
            class_counts=tuple(np.bincount(images.labels, minlength=len(images.classes)).tolist()),
            count=len(images),
            size=SizeRecord.of(sizes),
            format=format,
            codec=codecs.pop() if len(codecs) == 1 else "mixed",
            class_folders=class_folders(images.classes) if format == "imagefolder" else None,
            budget=BudgetRecord(rho=budget.rho, levels=budget.levels),
            measured=measured,
            files=tuple(files),
        )
        pages = [_page(folder / name, make(manifest)) for name, make in ((CARD, dataset_card), (GUIDE, training_guide))]
        manifest = manifest.model_copy(update={"files": (*pages, *files)})
        manifest.write(folder)
    return manifest


def _page(path: Path, text: str) -> FileRecord:
    write_atomic(path, text)
    return FileRecord(path=path.name, sha256=file_sha256(path), bytes=path.stat().st_size)


class _Work:
    """What a thread does with a batch: encode, decode again, compare with the originals."""

    def __init__(self, images: ImageSet, budget: Budget, codec: Codec) -> None:
        self._images, self._budget, self._codec = images, budget, codec
        self._sample = ssim_positions(len(images))

    def __call__(self, batch: list[Protected]) -> list[_Stored]:
        # All encoded first, then all decoded: in turn, small images take a tenth longer.
        codecs = [storable(protected, self._codec) for _, _, protected in batch]
        encoded = [encode(protected, codec) for (_, _, protected), codec in zip(batch, codecs, strict=True)]
        stored = [decode(data) for data in encoded]
        for (index, clean, _), pixels in zip(batch, stored, strict=True):
            self._check_shape(index, clean, pixels)
        originals, sampled = [clean for _, clean, _ in batch], [index in self._sample for index, _, _ in batch]
        changes = compare_all(originals, stored, with_ssim=sampled)
        return [
            self._stored(index, codec, data, pixels.shape, change)
            for (index, _, _), codec, data, pixels, change in zip(batch, codecs, encoded, stored, changes, strict=True)
        ]

    def _check_shape(self, index: int, clean: Pixels, stored: Pixels) -> None:
        if stored.shape != clean.shape:
            raise DataError(
                f"{self._where(index)}: expected the shape {clean.shape} of the original, stored was {stored.shape}"
            )
        if clean.shape[2] in (2, 4) and not np.array_equal(stored[..., -1], clean[..., -1]):
            raise DataError(f"{self._where(index)}: the alpha channel changed; protect the colour channels only")

    def _stored(self, index: int, codec: Codec, data: bytes, shape: tuple[int, ...], change: Change) -> _Stored:
        if change.levels > self._budget.levels:
            raise DataError(
                f"{self._where(index)}: a value changed by {change.levels} levels, more than the "
                f"{self._budget.levels} that rho {self._budget.rho:g} allows; nothing was published"
            )
        return _Stored(index, codec, data, shape, change)

    def _where(self, index: int) -> str:
        return f"image '{self._images.ids[index]}'"


def _in_order(pairs: Iterable[Protected], images: ImageSet) -> Iterator[Protected]:
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
        yield index, clean, protected
        expected += 1
    if expected != len(images):
        raise DataError(f"expected {len(images)} protected images, got {expected}; nothing was published")


def _check_arguments(format: str, codec: str, workers: int, rows_per_file: int | None) -> None:
    if format not in SINKS:
        raise UnknownNameError("format", format, SINKS)
    if codec not in OPTIONS:
        raise UnknownNameError("codec", codec, OPTIONS, hint="lossy ones would destroy the protection")
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    if rows_per_file is not None and rows_per_file < 1:
        raise UsageError(f"rows_per_file must be at least 1, got {rows_per_file}")


def _check_images(images: ImageSet) -> None:
    for text in (*images.check().classes, *images.ids):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(f"the name {text!r} is not valid Unicode; rename the file or class") from None
