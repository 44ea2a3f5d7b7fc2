"""From a source to a published folder with its private one: ``uge protect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.store import PixelStore, Records
from uge.errors import DataError
from uge.files import code_version, fingerprint
from uge.methods.apply import Perturber, protected_images
from uge.methods.uge.settings import BASELINE_NAMES
from uge.networks import weights_hash
from uge.pipeline.baseline import run_baseline
from uge.pipeline.perturbation import NoiseRun, key_path, write_keys
from uge.pipeline.private_folder import PrivateWork
from uge.pipeline.stages import (
    authorized_networks,
    budget_of,
    check_names,
    publish_stream,
    read_store,
    training_size,
)
from uge.publishing import Manifest, Provenance, is_complete, read_manifest
from uge.requests.configure import check_fits, describe_requests, mark_requests, with_requests
from uge.session import Session


@dataclass(frozen=True)
class ProtectResult:
    """What a protection run left behind."""

    manifest: Manifest
    out: Path
    private: Path
    keys: list[Path]


class ProtectRun:
    """One run of ``uge protect``; making it checks everything that can be checked without training.

    Args:
        source: What :func:`uge.data.load_images` takes.
        out: The folder to publish; secrets go to ``OUT.private`` beside it.
        config: How to protect.
        publishing: How to write.
        session: Device, progress, and whether to resume or overwrite.

    Raises:
        UsageError: A setting is wrong.
        DataError: The images cannot be used.
        OutputExistsError: Something is there already and may not be replaced.
    """

    def __init__(
        self, source: str, out: Path, config: ProtectConfig, publishing: PublishConfig, session: Session
    ) -> None:
        config, self.requests = with_requests(config)
        self.source, self.out, self.config, self.publishing, self.session = source, out, config, publishing, session
        self.budget = budget_of(config)
        check_names(config)
        self.images = _trainable(load_images(source, split="train", limit=config.limit), config.limit)
        check_fits(config, self.requests, self.images)
        self.work = PrivateWork(out, self.images.root, session)
        self.networks = authorized_networks(config, self.images)

    def describe(self) -> dict[str, Any]:
        """What would be done, for ``--dry-run``."""
        return {
            "source": self.source,
            "images": len(self.images),
            "classes": list(self.images.classes),
            "out": str(self.out),
            "private": str(self.work.private),
            "authorized": [network.name for network in self.networks],
            "requests": describe_requests(self.requests),
            "rho": self.budget.rho,
            "levels": self.budget.levels,
            "config": self.config.model_dump(mode="json"),
            "environment": self.session.runtime.environment(),
        }

    def run(self) -> ProtectResult:
        """Do every stage that is not done yet, publish, and return what was published.

        Raises:
            UsageError: The run to resume has other settings.
            UGEError: A stage failed; what was finished stays for ``--resume``.
        """
        size = self.networks[0].size if self.networks else training_size(self.config, self.images)
        store = read_store(self.images, size, self.images.channels(), self.session)
        with self.work.opened(self._fingerprint(store), self.describe()):
            manifest = self._finished() or self._make(store)
        keys = [key_path(self.work.private, number) for number in range(len(self.networks))]
        return ProtectResult(manifest, self.out, self.work.private, keys)

    def _finished(self) -> Manifest | None:
        if not self.work.finished:
            return None
        if not is_complete(self.out):
            self.session.progress.note(f"files in {self.out} are missing or changed; it is published again")
            return None
        self.session.progress.note(f"{self.out} is finished already")
        return read_manifest(self.out)

    def _make(self, store: PixelStore) -> Manifest:
        generator, delta, provenance = self._noise(store)
        return publish_stream(
            self.images,
            protected_images(self.images, generator, self.session.runtime, delta=delta, budget=self.budget),
            self.out,
            self.budget,
            provenance,
            self.publishing,
            self.session,
            overwrite=self.session.overwrite or self.work.resuming,
        )

    def _noise(self, store: PixelStore) -> tuple[Perturber | None, Records | None, Provenance]:
        """Of a baseline there is the perturbation alone: no key, and nothing that protects other images."""
        if self.config.method in BASELINE_NAMES:
            return (None, *run_baseline(self.config, store, self.session, self.work.folder / "run"))
        write_keys(self.work.folder, self.networks, self.config.recipe)
        noise = NoiseRun(self.config, store, self.networks, self.session, self.work.folder).run()
        return noise.generator, noise.delta, mark_requests(noise.provenance, self.requests)

    def _fingerprint(self, store: PixelStore) -> str:
        return fingerprint(
            {
                "config": self.config.model_dump(mode="json"),
                "publishing": self.publishing.model_dump(mode="json"),
                "data": store.digest(),
                "ids": list(self.images.ids),
                "theta0": [weights_hash(network) for network in self.networks],
                "precision": self.session.runtime.precision,
                "version": code_version().split("+")[0],
            }
        )


def _trainable(images: ImageSet, limit: int | None) -> ImageSet:
    try:
        return images.check_trainable()
    except DataError as error:
        if limit is None:
            raise
        raise DataError(f"{error}; of the source only --limit {limit} images were taken, so try more") from error
