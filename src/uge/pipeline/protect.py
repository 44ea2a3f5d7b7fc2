"""From a source to a published folder with its private one: ``uge protect``."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.images import Pixels, Strips, bytes_of
from uge.data.store import PixelStore
from uge.encoders import FeatureSpace
from uge.errors import DataError, UsageError
from uge.files import Move, code_version, fingerprint, locked, read_json, write_json
from uge.learning.trajectory import Trajectory
from uge.methods import METHODS, ImagesInfo, Perturbation, Task
from uge.networks import ImageClassifier, weights_hash
from uge.pipeline.images import check_original, publish_stream, read_store
from uge.pipeline.private_folder import PrivateFolder, key_path, with_seed, write_keys
from uge.pipeline.seal import asked_recipients, check_sealing, sealed_only_images, sealing_of
from uge.publishing import Manifest, Provenance, is_complete, read_manifest
from uge.publishing.manifest import Authorized
from uge.publishing.private import STATE, close_contents, keep_claims, was_added_to
from uge.requests.configure import (
    check_fits,
    describe_requests,
    mark_requests,
    show_requests,
    split_requests,
    with_requests,
)
from uge.session import Session


@dataclass(frozen=True)
class ProtectResult:
    """Result of a protection run: published and private folder, manifest and key files."""

    manifest: Manifest
    out: Path
    private: Path
    keys: list[Path]


DIGEST = "run/images.json"
"""Digest of all images in a private folder, for a method that reads them only while they are published."""


class ProtectRun:
    """One run of ``uge protect``; making it checks everything that can be checked without training.

    It holds the lock of the output from its making to the end of :meth:`run`, except in a dry run.

    Args:
        source: Anything that :func:`uge.data.load_images` takes.
        out: The folder to publish; secrets go to ``OUT.private`` beside it.
        config: How to protect.
        publishing: How to write.
        session: Device, progress, and whether to resume or overwrite.

    Raises:
        UsageError: A setting is wrong, or another process is writing the output.
        DataError: The images cannot be used.
        OutputExistsError: An output exists and may not be replaced.
    """

    def __init__(
        self, source: str, out: Path, config: ProtectConfig, publishing: PublishConfig, session: Session
    ) -> None:
        self.source = source
        self.out = out
        self.publishing = publishing
        self.session = session
        with contextlib.ExitStack() as lock:
            if not session.dry_run:
                lock.enter_context(locked(out))
            self._read(config)
            self._lock = lock.pop_all()

    def _read(self, config: ProtectConfig) -> None:
        config, self.originals = split_requests(config)
        self.config, self.requests = with_requests(config)
        self.method = METHODS[self.config.method]
        self.budget = self.method.budget(self.config)
        self.method.check(self.config)
        self.asked = asked_recipients(self.originals)
        self.recipients = check_sealing(self.publishing, self.asked)
        check_original(self.source, again=self.publishing.again)
        self.images = _usable(load_images(self.source, split="train", limit=config.limit, labels=False), self.config)
        self.sealed_only = sealed_only_images(self.source, self.publishing, self.images)
        self.info = ImagesInfo.of(self.images)
        check_fits(self.config, self.requests, self.info)
        show_requests(
            [*self.requests, *self.originals.values()], self.session.progress, pinned=bool(self.config.expect_signer)
        )
        self.private = PrivateFolder(self.out, self.images.root, self.session)
        self.stated = self.config
        self.config = with_seed(self.config, self.private.folder / STATE, resume=self.private.resuming)
        self.networks = self.method.networks(self.info, self.config)
        self.task = protect_task(
            self.images, self.info, self.config, self.networks, self.session, folder=self.private.folder
        )

    def describe(self) -> dict[str, Any]:
        """Summary of the run, for ``--dry-run``."""
        return {
            "source": self.source,
            "images": len(self.images),
            "classes": list(self.images.classes),
            "out": str(self.out),
            "private": str(self.private.place),
            "authorized": [network.name for network in self.networks],
            "requests": describe_requests(self.requests),
            "sealed": self.publishing.seal,
            "to": {name: recipient.text for name, recipient in self.recipients.items()},
            "rho": self.budget.rho,
            "levels": self.budget.levels,
            "config": self.stated.model_dump(mode="json"),
            "environment": self.session.runtime.environment(),
        }

    def run(self) -> ProtectResult:
        """Do every stage that is not done yet, and publish.

        Raises:
            UsageError: The run to resume has other settings or images.
            UGEError: A stage failed; finished stages stay for ``--resume``.
        """
        self._note_sizes()
        about = {**self.describe(), "authorized_seed": self.config.authorized_seed}
        place = self.private.place
        with self._lock, self.private.opened(self._fingerprint(), about, trains=self.method.trains):
            manifest = self._finished() or self._publish()
        keys = [key_path(place, number) for number in range(len(self.networks))]
        return ProtectResult(manifest, self.out, place, keys)

    def _note_sizes(self) -> None:
        size = self.networks[0].size if self.networks else self.config.size
        if size is not None and self.info.native_size != size:
            own = "mixed sizes" if self.info.native_size is None else f"{self.info.native_size} px"
            self.session.progress.note(
                f"images of {own} are perturbed at {size} px, and the change is scaled to each image's size; what an "
                f"audit measures holds for training at {size} px"
            )

    def _fingerprint(self) -> str:
        return fingerprint(
            {
                "config": self.config.model_dump(mode="json"),
                "publishing": self.publishing.model_dump(mode="json"),
                "to": {name: recipient.text for name, recipient in self.recipients.items()},
                "data": self.task.store.digest() if self.method.reads_store else self.info.digest,
                "ids": list(self.images.ids),
                "theta0": [weights_hash(network) for network in self.networks],
                "precision": self.session.runtime.precision,
                "version": code_version().split("+")[0],
            }
        )

    def _finished(self) -> Manifest | None:
        """Manifest of the published folder, where an earlier run ended and the folder is whole."""
        whole = self.private.finished and is_complete(self.out)
        if not whole and was_added_to(self.private.folder):
            raise UsageError(
                f"files in {self.out} are missing or changed, and --resume would lose images that were added to it; "
                "bring back a whole copy of it, or protect all images anew (--overwrite)"
            )
        if not self.private.finished:
            return None
        if not whole:
            self.session.progress.note(f"files in {self.out} are missing or changed; it is published again")
            return None
        if not self.method.reads_store:
            digest = hashlib.sha256()
            for sample in self.images:
                for part in bytes_of(sample.pixels):
                    digest.update(part)
                del sample  # Not kept while the next one is read.
            self.private.check(read_json(self.private.folder / DIGEST).get("sha256"), digest.hexdigest())
        self.session.progress.note(f"{self.out} is finished already")
        return read_manifest(self.out)

    def _publish(self) -> Manifest:
        write_keys(self.private.folder, self.networks, self.config.recipe)
        sealing = sealing_of(self.publishing, self.private.folder, self.asked)
        close_contents(self.private.folder)
        perturbation = self.method.perturb(self.task)
        digest = hashlib.sha256()

        def pairs() -> Iterator[tuple[Pixels | Strips, Pixels | Strips]]:
            for clean, protected in perturbation.pairs(self.images, self.session.runtime):
                for part in bytes_of(clean):
                    digest.update(part)
                yield clean, protected

        def finish(manifest: Manifest) -> list[Move]:
            if not self.method.reads_store:
                write_json(self.private.folder / DIGEST, {"sha256": digest.hexdigest()})
            moves = self.private.seal()
            keep_claims(self.private.folder, manifest)
            return moves

        return publish_stream(
            self.images,
            pairs(),
            self.out,
            self.budget,
            mark_requests(provenance_of(self.config, self.networks, perturbation), self.requests),
            self.publishing,
            self.session,
            overwrite=self.session.overwrite or self.private.resuming,
            sealing=sealing,
            sealed_only=self.sealed_only,
            together=finish,
        )


def protect_task(
    images: ImageSet,
    info: ImagesInfo,
    config: ProtectConfig,
    networks: Sequence[ImageClassifier],
    session: Session,
    *,
    folder: Path | None = None,
    trajectories: Sequence[Trajectory] = (),
    space: FeatureSpace | None = None,
) -> Task:
    """Task of a method: these images under these settings; see :class:`uge.methods.Task` for the arguments."""

    def read() -> PixelStore:
        size = networks[0].size if networks else info.training_size(config.size)
        return read_store(images, size, info.channels, session)

    return Task(
        images=images,
        settings=config,
        budget=METHODS[config.method].budget(config),
        networks=networks,
        runtime=session.runtime,
        read=read,
        progress=session.progress,
        folder=folder,
        trajectories=trajectories,
        space=space,
    )


def provenance_of(config: ProtectConfig, networks: Sequence[ImageClassifier], perturbation: Perturbation) -> Provenance:
    """Record of a perturbation for the manifest."""
    return Provenance(
        method=config.method,
        seeds={"seed": config.seed},
        authorized=tuple(
            Authorized(id=f"authorized-{number}", network=network.name, weights_sha256=weights_hash(network))
            for number, network in enumerate(networks)
        ),
        encoder=perturbation.encoder,
        config_sha256=fingerprint(config.model_dump(mode="json", exclude={"authorized_seed"})),
        method_details=perturbation.details,
    )


def _usable(images: ImageSet, config: ProtectConfig) -> ImageSet:
    try:
        return METHODS[config.method].check_images(images, config)
    except DataError as error:
        if config.limit is None:
            raise
        raise DataError(f"{error}; of the source only --limit {config.limit} images were taken, so try more") from error
