"""Material that several processes open: its decoded images lie in files that they share."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uge.cases.material import CopyMaterial
from uge.data.store import PixelStore, Records
from uge.files import storage_errors
from uge.runtime import Runtime

SHARED = ".images-"
"""Start of the name of the folder, inside the ledger's, in which decoded images lie while workers run."""
_SETTINGS = ("recipe", "keys", "recipes", "seed", "plugins", "digests")


@dataclass(frozen=True)
class StoredImages:
    """Pixel store in a file that any process can open."""

    path: Path
    count: int
    shape: tuple[int, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    @classmethod
    def write(cls, store: PixelStore, path: Path) -> StoredImages:
        """Write a store to a file.

        Raises:
            StorageError: The disk is full or read-only.
        """
        Records(len(store), store.pixels.shape, torch.uint8, path=path).copy(store.pixels)
        return cls(path, len(store), store.pixels.shape, tuple(store.labels.tolist()), store.classes)

    def open(self, device: torch.device) -> PixelStore:
        """The store; on a CPU it reads the file, which all processes share, on another device it is copied there."""
        pixels = Records(self.count, self.shape, torch.uint8, device=device, path=self.path)
        if device.type != "cpu":
            resident = Records(self.count, self.shape, torch.uint8, device=device)
            resident.copy(pixels)
            pixels = resident
        return PixelStore(pixels, torch.tensor(self.labels, device=device), self.classes)


@dataclass(frozen=True)
class Setup:
    """Description of material from which another process opens it.

    Attributes:
        folder: Folder of the ledger.
        images: Images by name.
        settings: Recipes, keys, seed and digests.
        device: Name of the device.
        precision: As for :meth:`uge.runtime.Runtime.create`.
        threads: Threads of each process.
    """

    folder: Path
    images: Mapping[str, StoredImages]
    settings: Mapping[str, Any]
    device: str
    precision: str
    threads: int

    def open(self) -> CopyMaterial:
        """The material, in this process, which takes its share of the threads."""
        torch.set_num_threads(self.threads)
        runtime = Runtime.create(self.device, self.precision)
        stores: dict[str, Any] = {name: images.open(runtime.device) for name, images in self.images.items()}
        return CopyMaterial(self.folder, runtime=runtime, **stores, **self.settings)


@contextlib.contextmanager
def shared(material: CopyMaterial, workers: int) -> Iterator[Setup]:
    """Describe material for other processes, with its images in files for as long as the block lasts.

    The files are read, not copied: the system keeps for all processes the parts that one of them has read.

    Args:
        material: The material.
        workers: Processes; they divide this process's threads among them.

    Raises:
        StorageError: The disk is full or read-only.
    """
    place = material.folder / f"{SHARED}{os.getpid()}"
    with storage_errors(place):
        _remove_orphans(material.folder)
        place.mkdir(parents=True, exist_ok=True)
    try:
        yield Setup(
            material.folder,
            {name: StoredImages.write(store, place / f"{name}.uint8") for name, store in material.stores.items()},
            {name: getattr(material, name) for name in _SETTINGS},
            str(material.runtime.device),
            material.runtime.precision,
            threads_each(workers),
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_orphans(folder: Path) -> None:
    """Remove the images of processes that were killed."""
    for place in folder.glob(f"{SHARED}*"):
        try:
            os.kill(int(place.name.removeprefix(SHARED)), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(place, ignore_errors=True)
        except PermissionError:
            continue  # A process of another user is at work there.


def threads_each(workers: int) -> int:
    """Threads of each of several processes, out of those of this one."""
    return max(1, torch.get_num_threads() // workers)
