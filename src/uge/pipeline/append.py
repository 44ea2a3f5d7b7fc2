"""Images added to a folder that was protected and sealed: ``uge protect --append``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from uge.budget import Budget
from uge.config import ProtectConfig, PublishConfig
from uge.data import ImageSet, load_images
from uge.data.images import Pixels, Strips
from uge.errors import DataError, IntegrityError, UsageError, printable, refuse
from uge.files import check_output, check_writable, read_json
from uge.methods import METHODS, Method
from uge.methods.base import Earlier, ImagesInfo, Task
from uge.pipeline.images import check_original, read_store
from uge.pipeline.private_folder import FEDERATION
from uge.pipeline.recipients import Owned, owned_folder
from uge.publishing import Manifest, is_complete, private_folder, read_manifest
from uge.publishing.addition import Present, add_images, new_images, numbered, read_present
from uge.publishing.private import CLAIMS, MODE, OWNER_KEY, STATE, keep_claims
from uge.sealing import SealedFolder, open_folder, parse_recipients, read_identity
from uge.session import Session

_OF_THE_SOURCE = {"limit", "expect_signer"}
"""Settings that say nothing about how images are perturbed."""


@dataclass(frozen=True)
class AppendResult:
    """Result of an addition.

    Attributes:
        manifest: Claims of the folder, with the new images unless in a dry run.
        out: The folder.
        added: Number of images that were added, or would be.
        skipped: Number of those that were published already.
    """

    manifest: Manifest
    out: Path
    added: int
    skipped: int


def run_append(
    source: str, out: Path, config: ProtectConfig, publishing: PublishConfig, session: Session
) -> AppendResult:
    """Perturb new images as a sealed folder's own were, and publish and seal them in it.

    Images whose pixels the folder has already are left out, so that the source may be the first one, grown. Others get
    sample ids of their own, whatever their names. Files of public images and sealed shards that are there keep names
    and bytes, and all recipients stay; figures of the manifest are measured again on the whole folder.

    Args:
        source: Anything that :func:`uge.data.load_images` takes, with classes of the folder.
        out: The folder.
        config: Settings; those that were given must be those of the folder, except ``limit``, which is of the source.
        publishing: Likewise.
        session: Device and progress.

    Raises:
        UsageError: A setting differs, the method cannot perturb further images, the private folder lacks what is
            needed, the folder is part of a federation, nothing is sealed in it, or its owner's key did not sign it.
        DataError: A class is not the folder's, or an image is published already in another class.
        IntegrityError: The folder was changed.
    """
    refuse(
        {
            "--append goes on with a finished folder; leave out --resume and --overwrite": (
                session.resume or session.overwrite
            )
        }
    )
    _recorded_settings(out, read_manifest(out))  # Says what is wrong with folders that no owner can change.
    with owned_folder(out, None if publishing.identity is None else Path(publishing.identity)) as owned:
        recorded = _recorded_settings(out, owned.manifest)
        _check_settings(owned, config, recorded, publishing)
        details = owned.manifest.method_details
        settings = recorded.model_copy(update={"size": details.get("training_size", recorded.size)})
        method = METHODS[recorded.method]
        earlier = Earlier(owned.private, owned.manifest.count, details)
        method.check_adding(settings, earlier)
        check_original(source, again=publishing.again)
        images = _with_classes(
            load_images(source, split="train", limit=config.limit, labels=False).check(), owned.manifest, out
        )
        check_output(out, source=images.root, overwrite=True)
        check_writable(out)
        if not is_complete(out):
            raise IntegrityError([f"{out} has files that are missing or changed; look at what uge verify says"])
        sealed = open_folder(out, read_identity(owned.private / OWNER_KEY))
        present, new = _compare(images, owned.manifest, sealed, session)
        skipped = len(images) - len(new)
        if skipped:
            session.progress.note(f"{skipped} of {len(images)} images are in {out} already and are left out")
        manifest = owned.manifest
        if len(new) and not session.dry_run:
            numbers = numbered(new, manifest)
            manifest = _add(owned, method, settings, earlier, numbers, present, sealed, session)
    return AppendResult(manifest, out, len(new), skipped)


def _recorded_settings(out: Path, manifest: Manifest) -> ProtectConfig:
    """Settings of the run that published a folder."""
    state = private_folder(out) / STATE
    federation = out.resolve().parent.parent / FEDERATION
    refuse(
        {
            f"{out} is the part of a server in the federation {federation.parent}, and images cannot be added to it; "
            "run uge federated anew": federation.is_file(),
            f"{out} holds nothing sealed, and images are added to sealed folders alone; protect all of them anew": (
                manifest.sealed is None
            ),
            f"{out} was not made by uge protect (method '{printable(manifest.method)}'), so that nothing here perturbs "
            "further images; publish them in a folder of their own": manifest.method not in METHODS,
            f"{state} is missing, which has the settings of {out}; bring the private folder back": not state.is_file(),
        }
    )
    return ProtectConfig.checked(**dict(read_json(state).get("config") or {}))


def _check_settings(owned: Owned, given: ProtectConfig, recorded: ProtectConfig, publishing: PublishConfig) -> None:
    """Refuse settings that were given and are not those of the folder."""
    manifest = owned.manifest
    way_out = "leave it out, since images are added by the settings of the folder"
    for name, wanted, there in _changed(given, recorded):
        before = f"without {name}" if there is None else f"with {name} {there}"
        raise UsageError(f"{owned.out} was protected {before}, got {wanted}; {way_out}")
    form: dict[str, tuple[Any, Any]] = {
        "format": (manifest.format, publishing.format),
        "codec": ("png" if manifest.codec == "png" else "webp", publishing.codec),
        "keep_metadata": (owned.record.metadata == "kept", publishing.keep_metadata),
    }
    for name, (there, wanted) in form.items():
        if name in publishing.model_fields_set and wanted != there:
            raise UsageError(f"{owned.out} was published with {_flag(name)} {there}, got {wanted}; {way_out}")
    known = set(owned.known_keys().values())
    stranger = next((text for text in publishing.to if parse_recipients(text)[0].text not in known), None)
    refuse(
        {
            f"--append keeps the recipients, and '{stranger}' is none of them; use uge grant for it": (
                stranger is not None
            ),
            "--append seals new originals like the others; leave out --no-seal": not publishing.seal,
            "--append keeps the names of recipients; leave out --anonymous": publishing.anonymous,
            "--append adds images of the published split; leave out --sealed-only": publishing.sealed_only is not None,
        }
    )


def _changed(given: BaseModel, recorded: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Flag, given and recorded value of every setting that was given and differs."""
    for name in type(given).model_fields:
        if name not in given.model_fields_set or (not prefix and name in _OF_THE_SOURCE):
            continue
        wanted, there = getattr(given, name), getattr(recorded, name)
        if isinstance(wanted, BaseModel):
            yield from _changed(wanted, there, f"{prefix}{name}.")
        elif wanted != there:
            yield _flag(prefix + name), wanted, there


def _flag(name: str) -> str:
    return "--for" if name == "requests" else f"--{name.replace('_', '-')}"


def _with_classes(images: ImageSet, manifest: Manifest, out: Path) -> ImageSet:
    """Same images with labels of the folder's classes."""
    if not images.labelled:
        if manifest.classes:
            raise DataError(
                f"{images.name} has no labels, and {out} has; sort its images into one sub-folder per class"
            )
        return images
    used = {images.classes[label] for label in images.labels.tolist()}
    unknown = sorted(used - set(manifest.classes))
    if unknown:
        raise DataError(
            f"the class '{printable(unknown[0])}' is none of {out}; leave its images out, or protect all images anew "
            "(--overwrite)"
        )
    return images.relabelled(manifest.classes)


def _compare(images: ImageSet, manifest: Manifest, sealed: SealedFolder, session: Session) -> tuple[Present, ImageSet]:
    with session.progress.stage("read the folder") as on_progress:
        present = read_present(manifest, sealed, progress=lambda done: on_progress(done, manifest.count, {}))
    with session.progress.stage(f"compare {len(images)} images") as on_progress:
        new = new_images(images, present, lambda done: on_progress(done, len(images), {}))
    return present, new


def _add(
    owned: Owned,
    method: Method,
    settings: ProtectConfig,
    earlier: Earlier,
    images: ImageSet,
    present: Present,
    sealed: SealedFolder,
    session: Session,
) -> Manifest:
    info = ImagesInfo.of(images)
    channels = earlier.details.get("channels", info.channels)
    task = Task(
        images=images,
        settings=settings,
        budget=Budget(owned.manifest.budget.rho),
        networks=(),
        runtime=session.runtime,
        read=lambda: read_store(images, info.training_size(settings.size), channels, session),
        progress=session.progress,
    )
    perturbation = method.add(task, earlier)

    def pairs() -> Iterator[tuple[int, Pixels | Strips, Pixels | Strips]]:
        for number, (clean, protected) in enumerate(perturbation.pairs(images, session.runtime)):
            yield number, clean, protected

    with (
        owned.hold.staged(owned.out) as folder,
        owned.hold.staged(owned.private, mode=MODE) as secret,
        session.progress.stage("publish") as on_progress,
    ):
        manifest = add_images(
            pairs(),
            folder,
            images=images,
            manifest=owned.manifest,
            present=present,
            sealed=sealed,
            details=perturbation.details,
            signer=owned.signer,
            progress=lambda done: on_progress(done, len(images), {}),
        )
        keep_claims(secret, manifest)
        owned.hold.exchange([(folder, owned.out), (secret / CLAIMS, owned.private / CLAIMS)])
    return manifest
