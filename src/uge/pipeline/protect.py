"""From a source to a published folder with its private one: ``uge protect``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.budget import Budget
from uge.config import ProtectConfig, PublishConfig
from uge.data import load_images
from uge.data.store import PixelStore
from uge.networks import weights_hash
from uge.pipeline.noise import NoiseRun, key_path, write_keys
from uge.pipeline.session import Session
from uge.pipeline.stages import authorized_networks, check_names, publish_stream, read_store
from uge.pipeline.work import PrivateWork
from uge.protect.apply import protected_images
from uge.publish import Manifest, read_manifest
from uge.runs import code_version, fingerprint


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
        self.source, self.out, self.config, self.publishing, self.session = source, out, config, publishing, session
        self.budget = Budget.parse(config.rho)
        check_names(config)
        self.images = load_images(source, split="train", limit=config.limit).check_trainable()
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
        first = self.networks[0]
        store = read_store(self.images, first.size, first.channels, self.session)
        with self.work.opened(self._fingerprint(store), self.describe()):
            manifest = self._finished() or self._make(store)
        keys = [key_path(self.work.private, number) for number in range(len(self.networks))]
        return ProtectResult(manifest, self.out, self.work.private, keys)

    def _finished(self) -> Manifest | None:
        if not self.work.finished:
            return None
        self.session.progress.note(f"{self.out} is finished already")
        return read_manifest(self.out)

    def _make(self, store: PixelStore) -> Manifest:
        write_keys(self.work.folder, self.networks, self.config.recipe)
        noise = NoiseRun(self.config, store, self.networks, self.session, self.work.folder).run()
        return publish_stream(
            self.images,
            protected_images(self.images, noise.generator, self.session.runtime, delta=noise.delta),
            self.out,
            self.budget,
            noise.provenance,
            self.publishing,
            self.session,
            overwrite=self.session.overwrite or self.work.resuming,
        )

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
