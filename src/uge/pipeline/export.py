"""Export of sealed originals as an image folder, or of sealed weights as a file: ``uge export``."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uge.errors import IntegrityError
from uge.files import check_output, staged_folder, write_atomic, writes
from uge.progress import Display
from uge.publishing.fulfilment import DOCUMENT, open_weights, read_fulfilment
from uge.publishing.layout import image_folders, index_columns
from uge.publishing.manifest import INDEX, MANIFEST
from uge.publishing.private import MODE
from uge.sealing.age import read_identity
from uge.sealing.folder import SealedFolder, open_folder
from uge.sealing.originals import ending
from uge.sealing.signature import check_owner


@writes("dest")
def run_export(
    out: Path, dest: Path, key: Path, *, owner: str | None = None, overwrite: bool = False, progress: Display
) -> dict[str, Any]:
    """Write the originals of a sealed folder as an image folder that its owner alone may enter.

    Every image is the file that was sealed, byte for byte: ``DEST/SPLIT/CLASS/00000000.jpg``, numbered in the order of
    the published folder, without ``CLASS/`` where no labels are. ``DEST/index.csv`` has path, label and sample id of
    each. One row group is in memory.

    Args:
        out: The published folder.
        dest: The folder to write.
        key: File with the private key of a recipient.
        owner: Key that must have signed the folder; without one, a warning says whose signature it has.
        overwrite: Replace an earlier export.
        progress: Shows images.

    Returns:
        ``out`` (the new folder), ``images`` by split, ``metadata`` (``"dropped"`` or ``"kept"``).

    Raises:
        UsageError: Nothing is sealed in the folder, or the key is that of no recipient.
        IntegrityError: A shard is damaged or not the one that was sealed, or ``owner`` did not sign the folder;
            nothing is written then.
        OutputExistsError: ``dest`` holds something and ``overwrite`` is false.
        StorageError: The disk is full or read-only.
    """
    check_output(dest, source=out, overwrite=overwrite, ours=_is_export)
    sealed = open_folder(out, read_identity(key))
    check_owner(out, owner)
    with (
        progress.stage("export") as on_progress,
        staged_folder(dest, overwrite=overwrite, mode=MODE) as folder,
        (folder / INDEX).open("w", newline="", encoding="utf-8") as handle,
    ):
        index = csv.writer(handle, lineterminator="\n")
        index.writerow(index_columns(sealed.classes))
        for split in sealed.splits:
            part = sealed.of(split)
            for number, line in enumerate(_written(part, folder), 1):
                index.writerow(line)
                on_progress(number, part.count, {})
    images = {split: sealed.of(split).count for split in sealed.splits}
    return {"out": str(dest), "images": images, "metadata": sealed.record.metadata}


@writes("dest")
def export_weights(
    out: Path, dest: Path, key: Path, *, owner: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the trained weights of a fulfilled request as a safetensors file that its owner alone may read.

    Args:
        out: Folder that ``uge fulfil`` wrote.
        dest: The file.
        key: File with the private key of the requester.
        owner: Key that must have signed the folder; without one, a warning says whose signature it has.
        overwrite: Replace a file.

    Returns:
        ``out`` (the file), ``network``, ``sha256`` of the weights' tensors, as the card says it.

    Raises:
        UsageError: The folder holds no fulfilled request, or the key is another one.
        IntegrityError: A file was changed, or ``owner`` did not sign the folder.
        OutputExistsError: ``dest`` exists and ``overwrite`` is false.
        StorageError: The disk is full or read-only.
    """
    check_output(dest, overwrite=overwrite)
    check_owner(out, owner, DOCUMENT)
    claims = read_fulfilment(out)
    write_atomic(dest, open_weights(out, read_identity(key)), secret=True)
    return {"out": str(dest), "network": claims.network, "sha256": claims.weights_sha256}


def _written(sealed: SealedFolder, folder: Path) -> Iterator[tuple[str | int, ...]]:
    """Path, label (if there are any) and id of every original of a split, which was written when its line comes."""
    folders = image_folders(sealed.classes, sealed.split)
    for number, row in enumerate(sealed.rows()):
        if row.label not in folders:
            raise IntegrityError([f"{sealed.folder}: the sealed label {row.label} is not {sealed.labels_expected}"])
        path = f"{folders[row.label]}/{number:08d}.{ending(row.image)}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(row.image)
        yield (path, row.label, row.id) if sealed.classes else (path, row.id)


def _is_export(folder: Path) -> bool:
    return (folder / INDEX).is_file() and not (folder / MANIFEST).exists()
