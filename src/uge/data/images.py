"""Image set that never needs to be in memory as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from uge.errors import DataError, UsageError

if TYPE_CHECKING:
    from uge.data.views import TorchImages

Pixels = NDArray[np.uint8]
NO_LABEL = -1
"""Label of every image in a set without labels."""
Codec = Literal["png", "webp"]
"""Lossless format of a stored image."""

LARGE = 2**22
"""Pixels (height × width) above which an image is handled strip by strip and published as PNG."""
_STRIP = 2**16


class Strips:
    """Large image as strips of rows that are made when they are asked for; stands for an array of its shape.

    Args:
        shape: Height × width × channels.
        make: Gives uint8 strips from top to bottom, each of :func:`strip_rows` rows, the last one of what is left.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, shape: tuple[int, ...], make: Callable[[], Iterator[Pixels]]) -> None:
        self.shape = shape
        self.size = int(np.prod(shape))
        self.nbytes = self.size
        self._make: Callable[[], Iterator[Pixels]] | None = make

    @classmethod
    def of(cls, pixels: Pixels) -> Strips:
        """Strips of an array."""
        rows = strip_rows(pixels.shape[1])
        return cls(pixels.shape, lambda: (pixels[top : top + rows] for top in range(0, len(pixels), rows)))

    def __iter__(self) -> Iterator[Pixels]:
        if self._make is None:
            raise ValueError("the strips of this image are closed; read the image again")
        return self._make()

    def close(self) -> None:
        """Let go of all that the strips are made of; streams hold on to an image while the next one is read."""
        self._make = None


def is_large(shape: tuple[int, ...]) -> bool:
    """True for images, by height × width × channels, of more than ``LARGE`` pixels."""
    return shape[0] * shape[1] > LARGE


def strip_rows(width: int) -> int:
    """Rows of a strip of an image of that width."""
    return max(1, _STRIP // width)


def strips_of(image: Pixels | Strips) -> Iterator[Pixels]:
    """Strips of an image from top to bottom; an image that is not large is a strip of its own."""
    if isinstance(image, Strips):
        return iter(image)
    return iter(Strips.of(image)) if is_large(image.shape) else iter([image])


def bytes_of(image: Pixels | Strips) -> Iterator[bytes]:
    """Parts of ``image.tobytes()``."""
    return (strip.tobytes() for strip in strips_of(image))


def whole(image: Pixels | Strips) -> Pixels:
    """Array of an image."""
    return np.concatenate(list(image)) if isinstance(image, Strips) else image


class Reader(Protocol):
    """Random access to the decoded images of a source, cheap when rows are read in order.

    The reader of a source of encoded images has ``encoded(row)`` as well: their bytes, as the source holds them.
    """

    def read(self, row: int) -> Pixels:
        """Image of a row: uint8, height × width × channels (1 gray, 2 gray+alpha, 3 RGB, 4 RGBA).

        Raises:
            DataError: The image cannot be decoded; the message names it.
        """


@dataclass(frozen=True)
class Sample:
    """Labelled image: sample id, uint8 pixels (height × width × channels), index of its class."""

    id: str
    pixels: Pixels
    label: int


@dataclass(frozen=True)
class ImageSet:
    """Images with labels and stable ids; pixels are read when an image is asked for.

    A set without labels has no class names, and -1 as the label of every image.

    Attributes:
        name: Name of the set in reports, for instance ``"cifar10"``.
        split: ``"train"``, ``"test"`` or the source's own name.
        classes: Class names; a label is an index into them.
        labels: int64, one per image; all are -1 in a set without labels.
        ids: Stable sample ids, unique, one per image; a perturbation belongs to an id.
        reader: Source of the pixels.
        rows: int64, the reader's row of each image.
        root: Folder or file that was read, if any; an output must not lie inside.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    ids: Sequence[str]
    reader: Reader
    rows: NDArray[np.int64]
    root: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """False for a set without labels."""
        return bool(self.classes)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Number of images of every class; empty without labels."""
        return tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist()) if self.labelled else ()

    def read(self, index: int) -> Pixels:
        """Image ``index`` as uint8, height × width × channels (1, 2, 3 or 4).

        Raises:
            DataError: The image cannot be decoded.
        """
        return self.reader.read(int(self.rows[index]))

    def encoded(self, index: int) -> bytes | None:
        """Encoded image ``index``, byte for byte as its source holds it; None for sources of arrays.

        Cheap beside :meth:`read` of the same image; Parquet files are read in order.

        Raises:
            DataError: The image cannot be read.
        """
        encoded: Callable[[int], bytes] | None = getattr(self.reader, "encoded", None)
        return encoded(int(self.rows[index])) if encoded else None

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield Sample(self.ids[index], self.read(index), int(self.labels[index]))

    def torch(self, transform: Callable[[Any], Any] | None = None) -> TorchImages:
        """Set as a ``torch.utils.data.Dataset`` of pairs of image and label, for any program that trains with PyTorch.

        Args:
            transform: Takes a PIL image, as the transforms of torchvision do. Without one, images are float32
                tensors in [0, 1], channels × height × width.

        Example:
            >>> import uge
            >>> image, label = uge.load_images("photos").torch()[0]
            >>> tuple(image.shape), label
            ((3, 32, 32), 0)
        """
        from uge.data.views import TorchImages

        return TorchImages(self, transform)

    def hf(self, cache_dir: Path | str | None = None) -> Any:
        """Set as a ``datasets.Dataset`` with the columns image, label and id; without labels there is no column label.

        The library keeps a copy of all images in its cache, where others may read it.

        Args:
            cache_dir: Folder of that cache; the library's own by default.

        Raises:
            MissingExtraError: The library ``datasets`` is not installed.
        """
        from uge.data.views import hugging_face

        return hugging_face(self, cache_dir)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> ImageSet:
        """Images at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, labels=self.labels[chosen], ids=[self.ids[i] for i in chosen], rows=self.rows[chosen])

    def relabelled(self, classes: Sequence[str]) -> ImageSet:
        """Same images with labels as indices into other class names, which must hold all of those in use.

        A server of a federation holds some of the classes, and its labels must mean the same as on every other server.

        Raises:
            DataError: A class in use is not among ``classes``.
        """
        index = {name: number for number, name in enumerate(classes)}
        missing = [self.classes[i] for i in np.unique(self.labels) if self.classes[i] not in index]
        if missing:
            raise DataError(
                f"{self.name} ({self.split}): class '{missing[0]}' is not among the shared classes {list(classes)}; "
                "agree on one list of classes first"
            )
        numbers = np.array([index.get(name, -1) for name in self.classes], dtype=np.int64)
        return replace(self, classes=tuple(classes), labels=numbers[self.labels])

    def take(self, count: int) -> ImageSet:
        """First ``count`` images, or all of them where there are fewer.

        Raises:
            UsageError: ``count`` is below 1.
        """
        return self.subset(np.arange(min(_at_least_one(count), len(self))))

    def sample(self, count: int) -> ImageSet:
        """``count`` images, each class in its share: a fair part of sources sorted by class, too.

        Within a class the first images are chosen, and their order stays, so that little is read.

        Raises:
            UsageError: ``count`` is below 1.
        """
        if not self.labelled:
            return self.take(count)
        order = np.argsort(self.labels, kind="stable")
        counts = np.bincount(self.labels)
        rank = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        # Image r of a class of n stands at (r + 1/2) / n of its class; the lowest shares are taken.
        share = (rank + 0.5) / counts[self.labels[order]]
        return self.subset(np.sort(order[np.argsort(share, kind="stable")[: _at_least_one(count)]]))

    def probe(self, count: int = 64) -> Iterator[Pixels]:
        """Up to ``count`` images spread evenly over the set, one at a time."""
        return (self.read(int(i)) for i in np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64)))

    def channels(self) -> int:
        """1 if every probed image is gray, else 3."""
        return 1 if all(shape[2] <= 2 for shape in map(np.shape, self.probe())) else 3

    def native_size(self) -> int | None:
        """Side length in pixels if all probed images are square and of one size, else None."""
        shapes = {shape[:2] for shape in map(np.shape, self.probe())}
        height, width = next(iter(shapes))
        return int(height) if len(shapes) == 1 and height == width else None

    def check(self) -> ImageSet:
        """Return this set if it can be read and protected.

        Raises:
            DataError: No image, labels out of range, two classes of one name, or ids that repeat.
        """
        return self._refuse(_faults(self))

    def check_trainable(self) -> ImageSet:
        """Return this set if a classifier can be trained on it.

        Raises:
            DataError: As ``check``; or no labels, fewer than two classes in use, or a class with one image.
        """
        return self.check()._refuse(_faults_for_training(self))

    def _refuse(self, faults: Iterator[str]) -> ImageSet:
        for fault in faults:
            raise DataError(f"{self.name} ({self.split}): {fault}")
        return self


def _at_least_one(count: int) -> int:
    if count < 1:
        raise UsageError(f"limit must be at least 1, got {count}")
    return count


def _faults(images: ImageSet) -> Iterator[str]:
    if not len(images):
        yield "no image was found; give a folder with one sub-folder of images per class"
    count = len(images.classes)
    bad = images.labels[(images.labels < 0) | (images.labels >= count)]
    if bad.size and (images.labelled or (images.labels != NO_LABEL).any()):
        yield f"label {bad[0]} is out of range for {count} classes; labels must be 0..{count - 1}"
    for name, uses in Counter(images.classes).most_common(1):
        if uses > 1:
            yield f"two classes are both named '{name}'; rename one"
    if len(set(images.ids)) < len(images.ids):
        yield "sample ids repeat; each image needs an id of its own"


def _faults_for_training(images: ImageSet) -> Iterator[str]:
    if not images.labelled:
        yield "the images have no labels, which training needs; sort them into one sub-folder per class"
    counts = images.class_counts
    used = np.flatnonzero(counts)
    if len(used) < 2:
        yield f"all images are of one class ('{images.classes[used[0]]}'); at least two classes are needed"
    few = [images.classes[i] for i in used if counts[i] < 2]
    if few:
        yield f"class '{few[0]}' has one image; at least two per class are needed"
