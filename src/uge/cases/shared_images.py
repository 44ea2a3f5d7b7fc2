"""An audit that several processes open: its decoded images lie in files that they share."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from uge.cases.run import Audit
from uge.data.store import PixelStore, Records
from uge.files import storage_errors
from uge.learning.recipes import Recipe
from uge.runtime import Runtime

SHARED = ".images-"
"""Start of the name of the folder, inside the audit folder, in which decoded images lie while workers run."""


@dataclass(frozen=True)
class StoredImages:
    """A pixel store in a file, which any process can open."""

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
    """All that another process needs to run the cases of an audit."""

    folder: Path
    images: Mapping[str, StoredImages | None]
    digests: Mapping[str, str | None]
    keys: tuple[Path, ...]
    recipe: Recipe
    seed: int
    device: str
    precision: str
    threads: int
    plugins: bool

    def open(self) -> Audit:
        """The audit, in this process, which takes its share of the threads."""
        torch.set_num_threads(self.threads)
        runtime = Runtime.create(self.device, self.precision)
        stores = {name: None if one is None else one.open(runtime.device) for name, one in self.images.items()}
        protected, test = stores["protected"], stores["test"]
        assert protected is not None
        assert test is not None
        return Audit(
            self.folder,
            protected,
            stores["clean"],
            test,
            public=stores["public"],
            keys=self.keys,
            recipe=self.recipe,
            seed=self.seed,
            runtime=runtime,
            digests=self.digests,
            plugins=self.plugins,
        )


@contextlib.contextmanager
def shared(audit: Audit, workers: int) -> Iterator[Setup]:
    """An audit for other processes, with its images in files for as long as the block lasts.

    The files are read, not copied: what one process has read, the system keeps for all of them.

    Args:
        audit: The audit.
        workers: Processes; they divide this process's threads among them.
    """
    place = audit.folder / f"{SHARED}{os.getpid()}"
    with storage_errors(place):
        _remove_orphans(audit.folder)
        place.mkdir(parents=True, exist_ok=True)
    try:
        images = {
            name: None if store is None else StoredImages.write(store, place / f"{name}.uint8")
            for name, store in audit.stores.items()
        }
        yield Setup(
            audit.folder,
            images,
            dict(audit.digests),
            audit.keys,
            audit.recipe,
            audit.seed,
            str(audit.runtime.device),
            audit.runtime.precision,
            threads_each(workers),
            audit.plugins,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _remove_orphans(folder: Path) -> None:
    """Remove what audits left that were killed the hard way."""
    for place in folder.glob(f"{SHARED}*"):
        try:
            os.kill(int(place.name.removeprefix(SHARED)), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(place, ignore_errors=True)
        except PermissionError:
            continue  # Somebody else's process is at work there.


def threads_each(workers: int) -> int:
    """Threads of each of so many processes, out of those that this one has."""
    return max(1, torch.get_num_threads() // workers)
