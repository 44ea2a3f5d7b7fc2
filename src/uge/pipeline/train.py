"""Training as the authorised user: ``uge train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uge.audit.runner import key_network, key_recipe
from uge.data import load_images
from uge.errors import UsageError
from uge.networks import load_weights, save_weights
from uge.pipeline.session import Session
from uge.pipeline.stages import clean_test, read_store
from uge.runs import check_output
from uge.runtime import stream_seed
from uge.training import fit


def run_train(
    out: Path,
    key: Path,
    test_source: str | None,
    *,
    epochs: int | None = None,
    seed: int = 1,
    limit_test: int | None = None,
    save: Path | None = None,
    session: Session,
) -> dict[str, Any]:
    """Train as the authorised user: a published folder and a key file give a trained network.

    Args:
        out: The published folder.
        key: θ0 with its recipe.
        test_source: Clean test images to measure on; None trains without measuring.
        epochs: If other than the recipe's.
        seed: Of data order and augmentation.
        limit_test: First N test images.
        save: Where the trained weights go.
        session: Device, progress, whether to overwrite ``save``, whether to train at all.

    Returns:
        Accuracies in percent, by epoch too.
    """
    if save is not None:
        check_output(save, overwrite=session.overwrite)
        if save.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"the weights file {save} lies inside the published folder {out}; choose another place")
    published = load_images(str(out)).check_trainable()
    found = key_recipe(key)
    recipe = found if epochs is None else found.model_copy(update={"epochs": epochs})
    size, channels = _key_shape(key)
    store = read_store(published, size, channels, session)
    network = key_network(key, store)
    test = None
    if test_source is not None:
        test = read_store(clean_test(test_source, published, limit_test), size, channels, session)
    if session.dry_run:
        return {"network": network.name, "images": len(store), "recipe": recipe.json_dict()}
    with session.progress.stage(f"train {network.name}") as tell:
        history = fit(
            network, store, recipe, seed=stream_seed(seed, "train"), runtime=session.runtime, test=test, progress=tell
        )
    if save is not None:
        save_weights(save, network, {"recipe": recipe.model_dump_json()})
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


def _key_shape(key: Path) -> tuple[int, int]:
    metadata = load_weights(key)[1]
    try:
        return int(metadata["size"]), int(metadata["channels"])
    except (KeyError, ValueError):
        raise UsageError(
            f"{key} is no key file of this project; give OUT.private/authorized-0.key.safetensors"
        ) from None
