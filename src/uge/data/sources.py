"""Path, hub id or name of the embedded set, opened as an image set; the table of formats."""

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from uge.data.formats import cifar, folder, hub, npz, parquet, part, photos, published, sealed, webdataset
from uge.data.formats.base import COLUMNS, SAME_SPLIT, Columns, Splits, UnlabelledError, choose_split, read_columns
from uge.data.images import ImageSet
from uge.errors import DataError, UsageError
from uge.files import recover
from uge.files.remote import fetched, is_remote

logger = logging.getLogger(__name__)

FORMATS: Mapping[str, Callable[[Path], Splits | None]] = {
    "NumPy archive": npz.splits,
    "part of a source": lambda path: part.splits(path, load_images),
    "published folder": published.splits,
    "Parquet files": parquet.splits,
    "CIFAR files": cifar.splits,
    "tar shards": webdataset.splits,
    "image folder": folder.splits,
}
"""Name of a format → splits of a path of that format, else None; the first format that has some opens the path."""
EMBEDDED: Mapping[str, Callable[[], Splits]] = {"photos": photos.splits}
SCHEMES: Mapping[str, Callable[[str], Splits]] = {"hf://": hub.splits, sealed.SCHEME: sealed.splits}


def load_images(
    source: str | Path,
    split: str = "train",
    limit: int | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    labels: bool = True,
) -> ImageSet:
    """Open one split of an image source; pixels are read when an image is asked for.

    Args:
        source: A path (image folder, Parquet, npz, CIFAR files, tar shards, a published folder),
            ``hf://owner/name[@revision]``, an address that fsspec knows (``s3://``, ``gs://``), ``sealed:FOLDER``
            (the originals of a published folder, where a private key was given), or the name of the embedded set,
            ``"photos"``.
            An existing path goes before the embedded set.
        split: ``"train"``, ``"test"`` or the source's own name; a validation split stands in
            for a test split that is missing or has no labels.
        limit: Number of images, at least 1: the first ones; where they are sorted by class (folders),
            the first of each class, in its share. None for all.
        image_column: Column of images in Parquet files or a set of the hub; by default the one called ``image``.
        label_column: Column of labels; by default the one called ``label``.
        labels: False takes a set without labels, too: an image folder without class folders, a table without a column
            of labels, or a folder that was published so.

    Returns:
        The set, with labels, class names and ids checked. ``ImageSet.check_trainable`` checks that it
        can be trained on.

    Raises:
        UsageError: The source does not exist, or ``limit`` is below 1.
        DataError: There is no such split, its labels or files cannot be used, or it has no labels.
    """
    columns = COLUMNS.get()
    columns = Columns(image_column or columns.image, label_column or columns.label, labels)
    try:
        with read_columns(columns):
            images = _opened(source, split).check()
            if labels and not images.labelled:
                raise UnlabelledError(
                    f"{images.name} ({images.split}) has no labels, which are needed here; sort its images into classes"
                )
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"cannot read {error.filename or source}: {error.strerror}; check the path") from error
    if limit is None:
        return images
    # Folders come class by class: there the first rows would be of one class only.
    by_class = bool((np.diff(images.labels) >= 0).all())
    return images.sample(limit) if by_class else images.take(limit)


def _opened(source: str | Path, split: str) -> ImageSet:
    splits = _splits(source)
    chosen = choose_split(splits, split)
    if chosen is None:
        names = ", ".join(splits) or "none"
        raise DataError(f"{source} has no split '{split}' (there are: {names}); add it or ask for another")
    if chosen != split:
        logger.info("%s: the split '%s' is used as '%s'", source, chosen, split)
    instead = choose_split(splits, "validation") if "test" in SAME_SPLIT.get(chosen.lower(), ()) else None
    try:
        images = splits[chosen]()
    except UnlabelledError:
        if instead is None:
            raise
    else:
        if instead is None or not len(images) or (images.labels >= 0).any():
            return images
    logger.warning("%s: the split '%s' has no labels; '%s' is used for it", source, chosen, instead)
    return splits[instead]()


def has_split(source: str | Path, split: str) -> bool:
    """True if ``load_images(source, split)`` would find that split (or its stand-in).

    Raises:
        UsageError: The source does not exist.
        DataError: The source is of no known format.
    """
    return choose_split(_splits(source), split) is not None


def _splits(source: str | Path) -> Splits:
    text = str(source)
    if not text.strip():
        raise UsageError("the source is empty; give a path, hf://owner/name or 'photos'")
    for scheme, fetch in SCHEMES.items():
        if text.startswith(scheme):
            return fetch(text.removeprefix(scheme))
    path = fetched(text) if is_remote(text) else Path(text).expanduser()
    recover(path)
    is_embedded = text in EMBEDDED and not isinstance(source, Path)
    if not path.exists():
        if is_embedded:
            return EMBEDDED[text]()
        raise UsageError(_missing(text, path))
    if is_embedded:
        logger.warning("the path '%s' is used, not the embedded set of that name", path)
    for opener in FORMATS.values():
        splits = opener(path)
        if splits is not None:
            return splits
    raise DataError(f"{path} is of no known format ({', '.join(FORMATS)}); convert it to an image folder")


def _missing(text: str, path: Path) -> str:
    parent = path.parent
    places = {entry.name: str(parent / entry.name) for entry in parent.iterdir()} if parent.is_dir() else {}
    places |= {name: name for name in EMBEDDED}
    near = difflib.get_close_matches(path.name, places, n=1, cutoff=0.6)
    guess = f"; did you mean '{places[near[0]]}'?" if near else ""
    hub_id = f"; for the Hugging Face hub write hf://{text}" if not guess and text.count("/") == 1 else ""
    return f"there is no file or folder '{text}'{guess}{hub_id} (the embedded set is called {', '.join(EMBEDDED)})"
