"""The clean side of an audit: test images, originals of a published folder, images of another data set."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from uge.auditing.quality import Pair
from uge.data import ImageSet, has_split, load_images
from uge.data.images import Pixels
from uge.data.pixels import public_id, resize, to_channels
from uge.data.store import PixelStore
from uge.errors import DataError
from uge.publishing.sources import Sources
from uge.runtime import stream

logger = logging.getLogger(__name__)

LABELLED = 10
"""Labelled clean images of each class that the attackers of the worst case have."""
_PROBES = 16
_FEW = 8
_THUMBNAIL = 8
_ROWS = 1000


@dataclass(frozen=True)
class Originals:
    """Clean counterparts of published images in a source.

    Attributes:
        images: The originals, one for each image in the same order; None where the source lacks them.
        label_agreement: Share of published images with the label of the image of the same id; None where ids do not
            match.
    """

    images: ImageSet | None = None
    label_agreement: float | None = None


def aligned(images: ImageSet, classes: tuple[str, ...], kind: str) -> ImageSet:
    """Image set with labels as indices into ``classes``: two folders may list the same classes in other orders.

    Raises:
        DataError: Their classes are not the same.
    """
    if images.classes == classes:
        return images
    if sorted(images.classes) != sorted(classes):
        raise DataError(
            f"the {kind} have the classes {list(images.classes)}, but the published folder has {list(classes)}; "
            "give those of the same data"
        )
    place = np.array([classes.index(name) for name in images.classes], dtype=np.int64)
    return replace(images, classes=classes, labels=place[images.labels])


def clean_images(source: str, published: ImageSet, limit: int | None) -> ImageSet:
    """Clean test images of a source: its test split, or the whole where it has only one split.

    Raises:
        DataError: Their classes are not those of the published images, or they are the originals of those.
    """
    split = "test" if has_split(source, "test") else "train"
    test = load_images(source, split=split, limit=limit)
    lacking = set(published.classes) - set(test.classes)
    if lacking and set(test.classes) < set(published.classes):
        logger.warning("%s: the test images lack %d classes, such as '%s'", source, len(lacking), min(lacking))
        test = test.relabelled(published.classes)
    test = aligned(test, published.classes, "test images")
    place = {public_id(name): number for number, name in enumerate(published.ids)}
    rows = [number for number, name in enumerate(test.ids) if public_id(name) in place]
    if len(rows) < max(_FEW, len(test) / 2):
        return test
    common = test.subset(rows)
    copies = published.subset([place[public_id(name)] for name in common.ids])
    if _same_shapes(common, copies) and _alike(common, copies):
        raise DataError(
            f"the test images are the originals of the published ones ({len(rows)} of {len(test)} have their ids and "
            "look like them); give test images that were not protected, such as a source with a test split"
        )
    return test


def labelled_images(source: str, published: ImageSet, test: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """Labelled clean images of the worst case, and the test images that are still measured.

    Ten images of each class are drawn by the stream ``labelled`` of ``seed`` from the source's test images beyond
    ``test``. Where a class has fewer there, the rest is drawn from ``test`` and measured no more. A class gives at most
    half of its images.

    Args:
        source: Source of the test images.
        published: The published images.
        test: The test images of :func:`clean_images`, all or a part of the source's.
        seed: Root seed of the audit.

    Raises:
        DataError: No class has two test images.
    """
    everything = clean_images(source, published, None)
    measured = {name: row for row, name in enumerate(test.ids)}
    draws = torch.randperm(len(everything), generator=stream(seed, "labelled")).numpy()
    beyond = np.array([everything.ids[row] not in measured for row in draws])
    order = np.concatenate([draws[beyond], draws[~beyond]])
    labels = everything.labels[order]
    chosen = [order[labels == label][: min(LABELLED, int((labels == label).sum()) // 2)] for label in np.unique(labels)]
    if not (rows := np.sort(np.concatenate(chosen))).size:
        raise DataError(f"{source} has too few test images to label some of each class; give at least two a class")
    if (fewest := min(map(len, chosen))) < LABELLED:
        logger.warning("%s: only %d labelled images for some class, expected %d", source, fewest, LABELLED)
    few = everything.subset(rows)
    taken = set(few.ids)
    return few, test.subset([row for name, row in measured.items() if name not in taken])


def find_originals(test_source: str, clean_source: str | None, published: ImageSet, additions: int = 0) -> Originals:
    """Clean originals of the published images, from ``clean_source`` or the train split of ``test_source``.

    Images are matched by id, else by order where there are as many with the same labels that look alike. Images of
    other labels, sizes or channels are not the originals, whatever their ids.

    Args:
        test_source: Source of the test images.
        clean_source: Source of the originals, where one is given.
        published: The published images.
        additions: Number of times that images were added to them, from the source as it grew.

    Raises:
        DataError: ``clean_source`` is given and lacks the originals.
    """
    if clean_source is None and not (has_split(test_source, "test") and has_split(test_source, "train")):
        return Originals()
    source = test_source if clean_source is None else clean_source
    images = load_images(source, split="train" if has_split(source, "train") else "test")
    if clean_source is None and sorted(images.classes) != sorted(published.classes):
        return Originals()
    originals = _matched(aligned(images, published.classes, "originals"), published, additions)
    if clean_source is not None and originals.images is None:
        raise DataError(
            f"{clean_source} has not the originals of the published images: expected {len(published)} images of the "
            f"same sizes with the same ids, or in the same order with the same labels, got {len(images)} others; "
            "give the set that was protected, or leave --clean out"
        )
    return originals


def _matched(images: ImageSet, published: ImageSet, additions: int) -> Originals:
    sources = Sources([images], additions, published.classes)
    places = [found[1] for name in published.ids if (found := sources.find(name)) is not None]
    if len(places) == len(published):
        originals = images.subset(places)
        agreement = float((originals.labels == published.labels).mean())
        return Originals(originals if agreement == 1 and _same_shapes(originals, published) else None, agreement)
    same = np.array_equal(images.labels, published.labels) and _same_shapes(images, published)
    return Originals(images if same and _alike(images, published) else None)


def _same_shapes(images: ImageSet, published: ImageSet) -> bool:
    return all(
        clean.shape == copy.shape for clean, copy in zip(images.probe(_PROBES), published.probe(_PROBES), strict=True)
    )


def _alike(images: ImageSet, published: ImageSet) -> bool:
    """True where most images at the same place resemble each other more than those at other places."""
    clean, copies = (np.stack([_thumbnail(pixels) for pixels in each.probe(_PROBES)]) for each in (images, published))
    return bool(((copies @ clean.T).argmax(1) == np.arange(len(clean))).mean() > 0.5)


def _thumbnail(pixels: Pixels) -> NDArray[np.float64]:
    """Small gray picture of mean 0 and length 1."""
    values = to_channels(resize(pixels, _THUMBNAIL), 1).astype(np.float64).ravel()
    values -= values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-9))


def hashes(store: PixelStore) -> Iterator[bytes]:
    """Hash of the pixels of every image in a store."""
    for rows in torch.split(torch.arange(len(store)), _ROWS):
        for pixels in store.pixels.read(rows).cpu().numpy():
            yield hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()


def pairs(
    originals: ImageSet, published: ImageSet, most: int, *, clean: PixelStore, protected: PixelStore
) -> Iterator[Pair]:
    """Label, original and published pixels of up to ``most`` images, evenly spread over the set.

    ``clean`` and ``protected`` are the same images for training: where they are exact, nothing is decoded again.
    """
    rows = np.unique(np.linspace(0, len(published) - 1, min(most, len(published))).astype(np.int64))
    originals_pixels = _read(originals, clean, rows)
    for row, original, copy in zip(rows.tolist(), originals_pixels, _read(published, protected, rows), strict=True):
        yield int(published.labels[row]), original, copy


def _read(images: ImageSet, store: PixelStore, rows: NDArray[np.int64]) -> Iterator[Pixels]:
    if not store.exact:
        yield from (images.read(row) for row in rows.tolist())
        return
    for some in torch.split(torch.from_numpy(rows), _ROWS):
        yield from store.pixels.read(some).permute(0, 2, 3, 1).cpu().numpy()
