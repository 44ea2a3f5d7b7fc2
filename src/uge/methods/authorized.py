"""Methods that protect for authorised networks: names, θ0 and common checks. Needs no torch until it builds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uge.errors import UsageError
from uge.methods.base import ImagesInfo, Method, MethodSettings
from uge.names import CHECKPOINT, KEYED, behind_key, is_keyed

if TYPE_CHECKING:
    from uge.networks import ImageClassifier


class ForNetworks(Method):
    """Base of the methods that protect for authorised networks."""

    authorizes = True

    def network_name(self, name: str) -> str:
        """Full name of an authorised network: with the wave key in front where the method's networks carry one.

        Raises:
            UsageError: It starts from parameters that others may have, or has a wave key under a method without one.
        """
        plain = behind_key(name)
        if plain.startswith(CHECKPOINT):
            raise UsageError(
                f"an authorised network cannot start from parameters that others may have, got '{name}'; give the "
                "architecture, and with --authorized-weights a private file"
            )
        if self.wave_key:
            return KEYED + plain
        if is_keyed(name):
            raise UsageError(
                f"method '{self.name}' protects for networks without a wave key, got '{name}'; "
                f"give {plain}, or --method keyed"
            )
        return name

    def check(self, settings: MethodSettings) -> None:
        """Refuse names and settings that a later stage could not follow.

        Raises:
            UnknownNameError: The encoder or a hacker in the loop is unknown.
            UsageError: The method does not suit the networks, or hackers in the loop or the generator have nothing to
                learn from.
        """
        from uge.encoders import find_encoder
        from uge.networks import check_name

        super().check(settings)
        for name in split_names(settings.authorized):
            self.network_name(name)
        hackers = settings.refinement.hacker_names
        for name in hackers:
            check_name(name)
        if hackers and settings.refinement.hacker_term == "student" and not self.needs_paths:
            raise UsageError(
                f"method '{self.name}' trains no authorised network, from which hackers in the loop could learn; "
                "give --method uge, or another --refinement.hacker-term"
            )
        if settings.generator.imitate and not settings.refine:
            raise UsageError("--generator.imitate learns what --refine finds; give that as well, or leave it out")
        find_encoder(settings.encoder)

    def networks(self, info: ImagesInfo, settings: MethodSettings) -> list[ImageClassifier]:
        """θ0 of every authorised network, from its seed and the clean images, or from its weights file.

        A seed alone would be no key: the manifest names the architecture and the digest of θ0, so anybody could try
        seeds. Clean images cannot be tried.

        Raises:
            UnknownNameError: There is no such network.
            UsageError: No size is known, or there are fewer or more weights files than networks.
            WeightsError: A weights file does not fit.
        """
        from uge.networks import build, load_weights, restore
        from uge.runtime import stream_seed

        names = [self.network_name(name) for name in split_names(settings.authorized)]
        files = settings.authorized_weights
        size = info.training_size(settings.size)
        if files and len(files) != len(names):
            raise UsageError(f"{len(names)} authorised networks need as many --authorized-weights, got {len(files)}")
        networks = []
        for number, name in enumerate(names):
            seed = stream_seed(settings.authorized_seed + number, "theta0", info.digest)
            network = build(name, len(info.classes), channels=info.channels, size=size, seed=seed)
            if files:
                restore(network, *load_weights(files[number]))
            networks.append(network)
        return networks


def split_names(text: str) -> list[str]:
    """Names separated by commas, without blanks.

    Raises:
        UsageError: There is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"expected names separated by commas, got '{text}'")
    return names


def public_name(network: str) -> str:
    """Network's name for a manifest: a checkpoint is named by its content, not by its place."""
    from uge.networks.checkpoint import checkpoint_hash

    name = behind_key(network)
    if not name.startswith(CHECKPOINT):
        return network
    return network.removesuffix(name) + CHECKPOINT + checkpoint_hash(name)[:12]
