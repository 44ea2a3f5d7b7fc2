"""Training with a key: ``uge train``."""

import glob
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uge.cases.material import key_network, key_recipe
from uge.data import ImageSet, load_images
from uge.data.formats.sealed import SCHEME
from uge.data.store import PixelStore
from uge.errors import UsageError, refuse
from uge.files import check_output, fingerprint, recover, writes
from uge.learning.recipes import Recipe, with_epochs
from uge.learning.recipes import recipe as named_recipe
from uge.learning.training import fit
from uge.networks import ImageClassifier, build, check_name, load_weights, save_weights, weights_hash
from uge.pipeline.images import read_store
from uge.pipeline.keys import is_private_key
from uge.pipeline.originals import clean_images
from uge.publishing import read_manifest
from uge.publishing.manifest import MANIFEST
from uge.runtime import stream_seed
from uge.sealing.opening import opened_by
from uge.sealing.signature import check_owner
from uge.session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Training set, decoded for it, network and recipe of a training."""

    images: ImageSet
    store: PixelStore
    network: ImageClassifier
    recipe: Recipe


@writes("save")
def run_train(
    out: Path,
    key: Path,
    test_source: str | None,
    *,
    network: str | None = None,
    recipe: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    seed: int = 1,
    limit_test: int | None = None,
    save: Path | None = None,
    trust_plugins: bool = False,
    owner: str | None = None,
    session: Session,
) -> dict[str, Any]:
    """Train on a published folder by what a key file holds.

    θ0 of an authorised network is trained on the published images. The private key of a recipient opens the sealed
    originals, and any network is trained on them; sources ``sealed:FOLDER`` are then read by it, too.

    Args:
        out: The published folder.
        key: θ0 with its recipe, or the private key of a recipient.
        test_source: Clean test images to measure on; None trains without measuring.
        network: Network for the originals; ``"cnn"`` by default.
        recipe: Named recipe for the originals; ``"short"`` by default.
        size: Side length for training on the originals; the manifest's or the native one by default.
        epochs: If other than the recipe's.
        seed: Of data order and augmentation, and of a network for the originals.
        limit_test: First N test images.
        save: File for the trained weights; until it is written, a checkpoint lies beside it.
        trust_plugins: Allow a key that names code of others, which is then run as its network.
        owner: Key that must have signed the folder; without one, opening originals warns.
        session: Device, progress, whether to overwrite ``save``, to resume, to train at all.

    Returns:
        Accuracies in percent, by epoch too; ``images`` says which were trained on, ``"published"`` or ``"originals"``.

    Raises:
        UsageError: ``epochs`` is below 1, the key is none, ``save`` is a folder or lies in ``out``, the training to
            resume had no ``save`` or other settings, ``network``, ``recipe`` or ``size`` is given with θ0, or nothing
            is sealed in the folder that a private key is for.
        IntegrityError: The sealed originals are not those that were sealed, or ``owner`` did not sign the folder.
    """
    _check_save(save, out, session)
    sealed = is_private_key(key)
    if owner is not None:
        check_owner(out, owner)
    with opened_by(key if sealed else None, owner):
        if sealed:
            start = _from_originals(out, network, recipe, size, epochs, seed, session)
        else:
            given = {"network": network, "recipe": recipe, "size": size}
            start = _from_key(out, key, given, epochs, trust_plugins, session)
        test = (
            None
            if test_source is None
            else read_store(clean_images(test_source, start.images, limit_test), *start.store.shape, session)
        )
    trained_on = {"trained_on": "originals" if sealed else "published"}
    if session.dry_run:
        return {
            "network": start.network.name,
            "images": len(start.store),
            "recipe": start.recipe.json_dict(),
            **trained_on,
        }
    return _trained(start, test, seed, save, session) | trained_on


def _from_key(
    out: Path, key: Path, given: dict[str, Any], epochs: int | None, trust_plugins: bool, session: Session
) -> Start:
    """Published images and θ0 of a key file."""
    recover(key.parent)
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name} is for training on sealed originals, got the weights file {key}, which has its own; leave "
                f"--{name} out, or give the private key of a recipient"
            )
    published = load_images(str(out)).check_trainable()
    recipe = with_epochs(key_recipe(key), epochs)
    metadata = load_weights(key)[1]
    try:
        size, channels = (int(metadata[name]) for name in ("size", "channels"))
    except (KeyError, ValueError):
        raise UsageError(
            f"{key} is no key file of this project; give OUT.private/authorized-0.key.safetensors"
        ) from None
    store = read_store(published, size, channels, session)
    network = key_network(key, store, plugins=trust_plugins)
    _warn_of_another_key(out, key, network)
    return Start(published, store, network, recipe)


def _from_originals(
    out: Path,
    network: str | None,
    recipe: str | None,
    size: int | None,
    epochs: int | None,
    seed: int,
    session: Session,
) -> Start:
    """Sealed originals and a network with fresh weights."""
    name = network or "cnn"
    check_name(name)
    chosen = with_epochs(named_recipe(recipe or "short"), epochs)
    originals = load_images(f"{SCHEME}{out}").check_trainable()
    details = read_manifest(out).method_details
    side = size or originals.native_size() or details.get("training_size")
    store = read_store(originals, side if isinstance(side, int) else None, None, session)
    fresh = build(name, len(store.classes), seed=seed, channels=store.channels, size=store.size)
    return Start(originals, store, fresh, chosen)


def _trained(start: Start, test: PixelStore | None, seed: int, save: Path | None, session: Session) -> dict[str, Any]:
    network, store, recipe = start.network, start.store, start.recipe
    checkpoint = save and checkpoint_of(
        save,
        {
            "network": weights_hash(network),
            "data": store.digest(),
            "recipe": recipe.json_dict(),
            "test": test and test.digest(),
            "seed": seed,
            "precision": session.runtime.precision,
        },
        resume=session.resume,
    )
    with session.progress.stage(f"train {network.name}") as on_progress:
        history = fit(
            network,
            store,
            recipe,
            seed=stream_seed(seed, "train"),
            runtime=session.runtime,
            test=test,
            checkpoint=checkpoint,
            progress=on_progress,
        )
    if save and checkpoint:
        save_weights(save, network, {"recipe": recipe.model_dump_json()})
        checkpoint.unlink(missing_ok=True)
    best = history.best
    return {
        "network": network.name,
        "last": None if best is None else history.last,
        "best": None if best is None else best.test_accuracy,
        "best_epoch": None if best is None else best.epoch,
        "train_accuracy": history.epochs[-1].train_accuracy,
        "epochs": history.to_json()["epochs"],
        "recipe": recipe.json_dict(),
        "seconds": round(history.seconds, 2),
        "weights": None if save is None else str(save),
        "environment": session.runtime.environment(),
    }


def _check_save(save: Path | None, out: Path, session: Session) -> None:
    if save is None:
        if session.resume:
            raise UsageError("--resume goes on from the checkpoint beside the weights; give --save FILE as before")
        return
    half_done = session.resume and any(checkpoints_of(save))  # Killed between the weights and their checkpoint's end.
    check_output(save, overwrite=session.overwrite or half_done)
    refuse(
        {
            f"expected a file name for the weights, got the folder {save}; name a file in it": save.is_dir(),
            f"the weights file {save} lies inside the published folder {out}; choose another place": (
                save.resolve().is_relative_to(out.resolve())
            ),
        }
    )


def checkpoint_of(save: Path, settings: dict[str, Any], *, resume: bool) -> Path:
    """Checkpoint of a training that ends in ``save``, named by its settings; those of other settings are removed.

    Raises:
        UsageError: The training to resume had other settings.
    """
    wanted = save.with_name(f".{save.name}.{fingerprint(settings)[:12]}.checkpoint")
    others = [path for path in checkpoints_of(save) if path != wanted]
    if resume and others and not wanted.exists():
        raise UsageError(
            f"the training that was interrupted before it wrote {save} had other images, settings or another key; "
            "give the same, or leave --resume out to start again"
        )
    for path in others if resume else [*others, wanted]:
        path.unlink(missing_ok=True)
    return wanted


def checkpoints_of(save: Path) -> list[Path]:
    """Checkpoints of interrupted trainings that were to end in ``save``."""
    return sorted(save.parent.glob(f".{glob.escape(save.name)}.*.checkpoint"))


def _warn_of_another_key(out: Path, key: Path, network: ImageClassifier) -> None:
    """Warn where a folder was published for other networks; training goes on."""
    if not (out / MANIFEST).is_file():
        return
    made_for = read_manifest(out).authorized
    digest = weights_hash(network)
    if made_for and digest not in {entry.weights_sha256 for entry in made_for}:
        names = ", ".join(
            f"{entry.network} {entry.weights_sha256[:12]}" + (f" (request {entry.request.id})" if entry.request else "")
            for entry in made_for
        )
        log.warning(
            "%s was made for %s, but %s holds %s %s; expect it to learn as a hacker does, or ask for the right key",
            *(out, names, key, network.name, digest[:12]),
        )
