"""Originals of a sealed folder as an image set."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uge.data.formats.base import Splits, choose_split
from uge.data.formats.sealed import OPENER, Opener
from uge.data.images import ImageSet, Pixels
from uge.data.pixels import decode
from uge.errors import UsageError
from uge.sealing.age import Identity, read_identity
from uge.sealing.folder import SealedFolder, open_folder
from uge.sealing.signature import check_owner


@dataclass(frozen=True)
class SealedReader:
    """Reads originals by row group; every process that it comes to opens the shards anew."""

    sealed: SealedFolder

    def read(self, row: int) -> Pixels:
        """Original ``row``, decoded."""
        original = self.sealed.row(row)
        return decode(original.image, f"'{original.id}' of {self.sealed.folder}")

    def encoded(self, row: int) -> bytes:
        """Encoded bytes of original ``row``, as they were sealed."""
        return self.sealed.row(row).image


def sealed_splits(folder: Path, identity: Identity, owner: str | None = None) -> Splits:
    """Splits of the originals of a published folder, each opened when it is asked for.

    Args:
        folder: The published folder.
        identity: Private key.
        owner: Key that must have signed the folder; without one, a warning says whose signature it has.

    Raises:
        UsageError: Nothing is sealed in the folder, or the key is that of no recipient.
        IntegrityError: A wrapped key, the content key, the manifest or its signature is not that which was sealed.
    """
    sealed = open_folder(folder, identity)
    check_owner(folder, owner)
    return {split: functools.partial(_image_set, sealed.of(split)) for split in sealed.splits}


def opener(key: Path, owner: str | None = None) -> Opener:
    """Opener of sources ``sealed:FOLDER`` by the private key in a file.

    Args:
        key: The file.
        owner: Key that must have signed the folders, see :func:`uge.sealing.signature.check_owner`.

    Raises:
        UsageError: The file holds no private key that can be used here.
    """
    identity = read_identity(key)
    return Opener(key, functools.cache(lambda folder: sealed_splits(folder, identity, owner)))


@contextlib.contextmanager
def opened_by(key: Path | None, owner: str | None = None) -> Iterator[None]:
    """Read sources ``sealed:FOLDER`` by this private key inside the block; without one, as before.

    Args:
        key: File with the private key.
        owner: Key that must have signed the folders.

    Raises:
        UsageError: The file holds no private key that can be used here.
    """
    token = OPENER.set(OPENER.get() if key is None else opener(key, owner))
    try:
        yield
    finally:
        OPENER.reset(token)


def open(
    folder: str | Path, *, key: str | Path | Identity, split: str | None = None, owner: str | None = None
) -> ImageSet:
    """Open the originals of a published folder with the private key of a recipient.

    Nothing is decrypted but labels and ids until an image is asked for; then one row group is, and the last ones stay
    in memory, up to 256 MB. ``ImageSet.torch`` and ``ImageSet.hf`` give the set to other libraries.

    Args:
        folder: The published folder.
        key: File with the private key (``uge keygen``, ``age-keygen``, ssh-ed25519), or with the content key that
            ``age -d`` gives; or what :func:`uge.sealing.read_identity` read of one.
        split: Sealed split; by default the one whose copies are published.
        owner: Key of the folder's owner, who must have signed it: its fingerprint, or a file with it or with the
            public key. Without it a stranger's folder opens as well, and a warning says so.

    Returns:
        The set, in the order of the public images.

    Raises:
        UsageError: Nothing is sealed in the folder, it has no such split, or the key is that of no recipient.
        IntegrityError: A shard, a wrapped key, the manifest or its signature is not that which was sealed; the message
            names it.

    Example:
        ``images = uge.open("out/mine", key="me.agekey")``, then ``DataLoader(images.torch(transform), 128, True)``.
    """
    identity = key if isinstance(key, Identity) else read_identity(Path(key).expanduser())
    splits = sealed_splits(Path(folder).expanduser(), identity, owner)
    wanted = split or next(iter(splits))
    chosen = choose_split(splits, wanted)
    if chosen is None:
        raise UsageError(f"{folder} has no sealed split '{wanted}'; there are: {', '.join(splits)}")
    return splits[chosen]()


def _image_set(sealed: SealedFolder) -> ImageSet:
    return ImageSet(
        name=sealed.folder.resolve().name,
        split=sealed.split,
        classes=sealed.classes,
        labels=sealed.labels(),
        ids=sealed.ids(),
        reader=SealedReader(sealed),
        rows=np.arange(sealed.count, dtype=np.int64),
        root=sealed.folder,
    ).check()
