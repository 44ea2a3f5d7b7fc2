"""Pieces that several commands share: reading, θ0, the encoder, publishing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from uge.budget import Budget
from uge.config import ProtectConfig, PublishConfig
from uge.data.images import ImageSet, Pixels
from uge.data.store import PixelStore, load_pixels
from uge.encoders import ClipSpace, FeatureSpace, LocalSpace
from uge.errors import UnknownNameError, UsageError
from uge.methods.baselines import BASELINES, read_settings
from uge.methods.keyed.wave_code import shared_key
from uge.methods.uge.settings import DEFAULT_RHO, METHODS, NEED_PATH
from uge.names import CHECKPOINT, KEYED, behind_key, is_keyed
from uge.networks import ImageClassifier, KeyedClassifier, build, check_name, load_weights, restore
from uge.networks.wave_key import MOST_LEVELS
from uge.publishing import Manifest, Provenance, publish
from uge.runtime import stream_seed
from uge.session import Session


def split_names(text: str) -> list[str]:
    """Names separated by commas, without blanks.

    Raises:
        UsageError: There is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"expected names separated by commas, got '{text}'")
    return names


def budget_of(config: ProtectConfig) -> Budget:
    """The budget that a configuration names, or the default of its method.

    Raises:
        UsageError: It is no budget.
    """
    if config.rho is not None:
        return Budget.parse(config.rho)
    return Budget(BASELINES[config.method].rho if config.method in BASELINES else DEFAULT_RHO)


def read_store(images: ImageSet, size: int | None, channels: int | None, session: Session) -> PixelStore:
    """Decode a set at one size, with a progress bar."""
    done = 0
    with session.progress.stage(f"read {len(images)} {images.split} images") as on_progress:

        def count(new: int) -> None:
            nonlocal done
            done += new
            on_progress(done, len(images), {})

        return load_pixels(images, size=size, channels=channels, device=session.runtime.device, progress=count)


def authorized_networks(config: ProtectConfig, images: ImageSet) -> list[ImageClassifier]:
    """θ0 of every authorised network, from its seed and the clean images, or from its weights file.

    A seed alone would be no key: the manifest names the architecture and the digest of θ0, so anybody
    could try seeds. Nobody can try clean images.

    Raises:
        UnknownNameError: There is no such network.
        UsageError: No size is known, there are fewer or more weights files than networks, or the method
            does not suit the images or the networks.
        WeightsError: A weights file does not fit.

    Returns:
        None at all for a baseline: it knows no authorised network.
    """
    if config.method in BASELINES:
        return []
    names, files = authorized_names(config), config.authorized_weights
    size = training_size(config, images)
    if files and len(files) != len(names):
        raise UsageError(f"{len(names)} authorised networks need as many --authorized-weights, got {len(files)}")
    networks, secret = list[ImageClassifier](), _content_digest(images)
    for number, name in enumerate(names):
        seed = stream_seed(config.authorized_seed + number, "theta0", secret)
        network = build(name, len(images.classes), channels=images.channels(), size=size, seed=seed)
        if files:
            restore(network, *load_weights(files[number]))
        if isinstance(network, KeyedClassifier) and not files:
            network.key.levels.fill_(_pattern_levels(config))
            if networks:
                network.key = shared_key(networks)  # One copy is made for all of them.
        networks.append(network)
    return networks


def _pattern_levels(config: ProtectConfig) -> int:
    """How strong a key's patterns are under a budget: the whole of it.

    Raises:
        UsageError: The key would have to clip away too much of an image.
    """
    levels = budget_of(config).levels
    if levels > MOST_LEVELS:
        raise UsageError(
            f"method 'keyed' gives up the ends of the range of pixels and takes a rho of at most {MOST_LEVELS}/255, "
            f"got {config.rho}; give a smaller --rho, or --method uge"
        )
    return levels


def training_size(config: ProtectConfig, images: ImageSet) -> int:
    """Side length in pixels that a configuration names, or that the images have.

    Raises:
        UsageError: Neither is known.
    """
    size = config.size or images.native_size()
    if size is None:
        raise UsageError(f"the images of {images.name} have mixed or non-square sizes; give --size N (for instance 64)")
    return size


def authorized_names(config: ProtectConfig) -> list[str]:
    """Names of the authorised networks: with method ``keyed`` each carries a key, with others none.

    Raises:
        UsageError: A keyed network under a method of the paper.
    """
    names = split_names(config.authorized)
    for name in names:
        if behind_key(name).startswith(CHECKPOINT):
            raise UsageError(
                f"an authorised network cannot start from parameters that others may have, got '{name}'; give the "
                "architecture, and with --authorized-weights a private file"
            )
    if config.method == "keyed":
        return [name if is_keyed(name) else KEYED + name for name in names]
    for name in names:
        if is_keyed(name):
            plain = behind_key(name)
            raise UsageError(
                f"method '{config.method}' protects for networks without a wave key, got '{name}'; "
                f"give --authorized {plain}, or --method keyed"
            )
    return names


def _content_digest(images: ImageSet) -> str:
    """sha256 of up to 64 clean images, evenly spread."""
    digest = hashlib.sha256()
    for pixels in images.probe():
        digest.update(str(pixels.shape).encode() + pixels.tobytes())
    return digest.hexdigest()


def check_names(config: ProtectConfig) -> None:
    """Refuse names that a later stage could not know, before any work is done.

    Raises:
        UnknownNameError: The encoder is neither ``local`` nor ``clip:ID``, or there is no such network.
        UsageError: The method does not go with the networks, with refinement or with the recipe's
            augmentation, or a setting of a baseline is wrong.
    """
    if config.method in BASELINES:
        read_settings(BASELINES[config.method].settings, config.baseline)
        if config.refine:
            raise UsageError(f"method '{config.method}' has nothing to refine; leave out --refine")
        return
    if config.baseline:
        name = next(iter(config.baseline))
        raise UsageError(
            f"method '{config.method}' is no baseline, got --baseline.{name}; leave that out, or name a baseline "
            f"({', '.join(BASELINES)})"
        )
    authorized_names(config)
    if config.method == "keyed" and config.refine:
        raise UsageError("method 'keyed' has nothing to refine; leave out --refine, or choose --method uge")
    if config.method == "keyed" and config.recipe.augment == "rotate-flip":
        raise UsageError(
            "method 'keyed' cannot follow rotations, got the augmentation 'rotate-flip'; give "
            "--recipe.augment crop-flip, or --method uge"
        )
    _check_refinement(config)
    kind, _, name = config.encoder.partition(":")
    if config.encoder != "local" and not (kind == "clip" and name):
        raise UnknownNameError("encoder", config.encoder, ["local", "clip:ID"], "ID is a hub id or a local folder")
    if "undistill" in METHODS[config.method]:
        check_name(config.hacker)


def _check_refinement(config: ProtectConfig) -> None:
    """Refuse hackers in the loop that are not known or have nobody to learn from, and imitation of nothing."""
    for name in config.refinement.hacker_names:
        check_name(name)
    learning = config.refinement.hacker_names and config.refinement.hacker_term == "student"
    if learning and not METHODS[config.method] & NEED_PATH:
        raise UsageError(
            f"method '{config.method}' trains no authorised network, from which hackers in the loop could learn; "
            "give --method uge, or another --refinement.hacker-term"
        )
    if config.generator.imitate and not config.refine:
        raise UsageError("--generator.imitate learns what --refine finds; give that as well, or leave it out")


def open_encoder(config: ProtectConfig, store: PixelStore, session: Session, path: Path | None) -> FeatureSpace:
    """The feature space that a configuration names; a local one is trained unless ``path`` exists.

    Raises:
        UnknownNameError: It is neither ``local`` nor ``clip:ID``.
        UsageError: CLIP's weights cannot be had.
    """
    check_names(config)
    if config.encoder != "local":
        return ClipSpace.load(config.encoder.partition(":")[2], session.runtime.device)
    with session.progress.stage("local encoder") as on_progress:
        return LocalSpace.train(
            store,
            seed=config.seed,
            runtime=session.runtime,
            recipe=config.encoder_recipe,
            path=path,
            progress=on_progress,
        )


def publish_stream(
    images: ImageSet,
    pairs: Iterator[tuple[Pixels, Pixels]],
    out: Path,
    budget: Budget,
    provenance: Provenance,
    publishing: PublishConfig,
    session: Session,
    *,
    overwrite: bool,
) -> Manifest:
    """Publish a stream of (clean, protected) pixels in the order of ``images``, with a progress bar."""
    with session.progress.stage("publish") as on_progress:
        return publish(
            ((number, clean, protected) for number, (clean, protected) in enumerate(pairs)),
            out,
            images=images,
            budget=budget,
            provenance=provenance,
            format=publishing.format,
            codec=publishing.codec,
            overwrite=overwrite,
            progress=lambda done: on_progress(done, len(images), {}),
        )
