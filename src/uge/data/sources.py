"""A path, a hub id or the name of the embedded set, opened as an image set."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from uge.data.formats import EMBEDDED, FORMATS, SCHEMES
from uge.data.formats.base import Splits, choose_split
from uge.data.images import ImageSet
from uge.errors import DataError, UsageError

logger = logging.getLogger(__name__)


def load_images(source: str | Path, split: str = "train", limit: int | None = None) -> ImageSet:
    """Open one split of a labelled image source; pixels are read when asked for.

    Args:
        source: A path (image folder, Parquet, npz, CIFAR files, tar shards, a published folder),
            ``hf://owner/name[@revision]``, or the name of the embedded set, ``"photos"``.
            An existing path goes before the embedded set.
        split: ``"train"``, ``"test"`` or what the source calls it; a validation split stands in
            for a test split that is not there.
        limit: The first so many images; where they are sorted by class (folders), the first of each
            class, in its share. None for all.

    Returns:
        The set, with labels, class names and ids checked. Whether it can be trained on is for
        ``ImageSet.check_trainable`` to say.

    Raises:
        UsageError: The source does not exist, or ``limit`` is below 1.
        DataError: There is no such split, or its labels or files cannot be used.
    """
    try:
        there = _splits(source)
        chosen = choose_split(there, split)
        if chosen is None:
            names = ", ".join(there) or "none"
            raise DataError(f"{source} has no split '{split}' (there are: {names}); add it or ask for another")
        if chosen != split:
            logger.info("%s: the split '%s' is used as '%s'", source, chosen, split)
        images = there[chosen]().check()
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"cannot read {error.filename or source}: {error.strerror}; check the path") from error
    if limit is None:
        return images
    # Folders come class by class: there the first rows would be of one class only.
    by_class = bool((np.diff(images.labels) >= 0).all())
    return images.sample(limit) if by_class else images.take(limit)


def has_split(source: str | Path, split: str) -> bool:
    """Whether ``load_images(source, split)`` would find that split (or its stand-in).

    Raises:
        UsageError: The source does not exist.
        DataError: The source is of no known format.
    """
    return choose_split(_splits(source), split) is not None


def _splits(source: str | Path) -> Splits:
    text = str(source)
    if not text.strip():
        raise UsageError("the source is empty; give a path, hf://owner/name or 'photos'")
    for scheme, opener in SCHEMES.items():
        if text.startswith(scheme):
            return opener(text.removeprefix(scheme))
    path = Path(text).expanduser()
    embedded: Mapping[str, Callable[[], Splits]] = {} if isinstance(source, Path) else EMBEDDED
    if not path.exists():
        if text in embedded:
            return embedded[text]()
        raise UsageError(_missing(text, path))
    if text in embedded:
        logger.warning("the path '%s' is used, not the embedded set of that name", path)
    for form in FORMATS:
        if form.detect(path):
            return form.splits(path)
    known = ", ".join(form.name for form in FORMATS)
    raise DataError(f"{path} is of no known format ({known}); convert it to an image folder")


def _missing(text: str, path: Path) -> str:
    parent = path.parent
    siblings = {str(parent / entry.name): entry.name for entry in parent.iterdir()} if parent.is_dir() else {}
    near = difflib.get_close_matches(path.name, [*siblings.values(), *EMBEDDED], n=1, cutoff=0.6)
    places = {name: place for place, name in siblings.items()} | {name: name for name in EMBEDDED}
    guess = f"; did you mean '{places[near[0]]}'?" if near else ""
    hub = f"; for the Hugging Face hub write hf://{text}" if not guess and text.count("/") == 1 else ""
    return f"there is no file or folder '{text}'{guess}{hub} (the embedded set is called {', '.join(EMBEDDED)})"
