"""Methods that protect for authorised networks: by a wave key, or as the paper does. Names need no torch."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from uge.errors import UsageError
from uge.methods.base import ANEW, Earlier, ImagesInfo, Method, MethodSettings, Perturbation, Task
from uge.methods.uge.settings import LOSSES, NEED_PATH
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
        for name in network_names(settings):
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

        Without a seed one is drawn from the operating system's random source. The k-th network gets seed + k. A small
        seed alone would be no key: the manifest names the architecture and the digest of θ0, so anybody could try
        seeds. Clean images cannot be tried.

        Raises:
            UnknownNameError: There is no such network.
            UsageError: No size is known, or there are fewer or more weights files than networks.
            WeightsError: A weights file does not fit.
        """
        from uge.networks import build, load_weights, restore
        from uge.runtime import stream_seed

        names = [self.network_name(name) for name in network_names(settings)]
        files = settings.authorized_weights
        seed = draw_seed() if settings.authorized_seed is None else settings.authorized_seed
        size = info.training_size(settings.size)
        if files and len(files) != len(names):
            raise UsageError(f"{len(names)} authorised networks need as many --authorized-weights, got {len(files)}")
        networks = [
            build(
                name,
                len(info.classes),
                channels=info.channels,
                size=size,
                seed=stream_seed(seed + number, "theta0", info.digest),
            )
            for number, name in enumerate(names)
        ]
        for network, file in zip(networks, files, strict=False):
            restore(network, *load_weights(file))
        return networks

    def check_adding(self, settings: MethodSettings, earlier: Earlier) -> None:
        """Refuse a run without its perturber, or one that refined each image while nothing imitates that."""
        from uge.methods.apply import GENERATOR

        earlier.file(GENERATOR)
        if settings.refine and not settings.generator.imitate:
            raise UsageError(
                f"--refine optimised every image of {earlier.folder} itself, and its generator alone is weaker; {ANEW}"
            )

    def add(self, task: Task, earlier: Earlier) -> Perturbation:
        """Generator or wave code of the earlier run, for further images."""
        from uge.methods.apply import GENERATOR, load_perturber

        return Perturbation(task.budget, load_perturber(earlier.file(GENERATOR)), details=dict(earlier.details))


class Keyed(ForNetworks):
    """Adds patterns of a wave key to images at their own size; nothing is trained, and images are read only once."""

    name = "keyed"
    about = (
        "held by obscurity, since an audit that knows it breaks it: every class has secret wave patterns of its own, "
        "which the authorised network's key finds and takes out again; other networks take the waves for the classes"
    )
    reads_store = False
    trains = False
    wave_key = True

    def check(self, settings: MethodSettings) -> None:
        """Refuse, besides unknown names, refinement and rotations."""
        super().check(settings)
        if settings.recipe.augment == "rotate-flip":
            raise UsageError(
                f"method '{self.name}' cannot follow rotations, got the augmentation 'rotate-flip'; give "
                "--recipe.augment crop-flip, or --method uge"
            )

    def networks(self, info: ImagesInfo, settings: MethodSettings) -> list[ImageClassifier]:
        """θ0 of every authorised network; those from seeds share one key, which is as strong as the budget.

        Raises:
            UsageError: As in :meth:`ForNetworks.networks`, or the key would have to clip away too much of an image.
        """
        from uge.methods.keyed.wave_code import share_key
        from uge.networks.wave_key import MOST_LEVELS

        networks = super().networks(info, settings)
        if settings.authorized_weights:
            return networks
        levels = self.budget(settings).levels
        if levels > MOST_LEVELS:
            raise UsageError(
                f"method '{self.name}' gives up the ends of the range of pixels and takes a rho of at most "
                f"{MOST_LEVELS}/255, got {settings.rho}; give a smaller --rho, or --method uge"
            )
        share_key(networks, levels)
        return networks

    def perturb(self, task: Task) -> Perturbation:
        """Wave code of the networks' key, which perturbs any image."""
        from uge.methods.apply import GENERATOR, save_perturber
        from uge.methods.keyed.wave_code import WaveCode, shared_key

        code = WaveCode(shared_key(task.networks), task.budget, task.images.classes)
        if task.folder is not None:
            save_perturber(task.folder / GENERATOR, code)
        network = task.networks[0]
        details = {
            "training_size": network.size,
            "channels": network.channels,
            "recipe": task.settings.recipe.json_dict(),
        }
        return Perturbation(task.budget, code, details=details)


class Paper(ForNetworks):
    """Trains a generator under losses of the paper (Algorithm 1), and refines images where asked to.

    Args:
        name: A name in :data:`uge.methods.uge.settings.LOSSES`.
        about: One sentence for lists of methods.
    """

    refines = True

    def __init__(self, name: str, about: str) -> None:
        self.name = name
        self.about = about
        self.needs_paths = bool(LOSSES[name] & NEED_PATH)
        self.revision = int("undistill" in LOSSES[name])  # L_ud once had no factor T².

    def check(self, settings: MethodSettings) -> None:
        """Refuse, besides other unknown names, that of the undistill loss's hacker."""
        from uge.networks import check_name

        super().check(settings)
        if "undistill" in LOSSES[self.name]:
            check_name(settings.hacker)

    def perturb(self, task: Task) -> Perturbation:
        """Trained generator, and refined perturbations where asked for."""
        from uge.methods.uge.stages import Stages

        return Stages(task, LOSSES[self.name]).run()


FORMS = (
    Paper(
        "uge",
        "three losses at once: gradient matching keeps the images learnable for the authorised network, feature "
        "distance leads other networks astray, undistill makes the authorised network a poor teacher",
    ),
    Paper(
        "uge-no-ud",
        "two losses: gradient matching keeps the images learnable for the authorised network, feature distance leads "
        "other networks astray; nothing is done against distillation",
    ),
    Paper("unlearn", "the feature distance alone, which leads every network astray; no network is favoured"),
    Paper("undistill", "the undistill loss alone, which makes the authorised network a poor teacher"),
)
"""The variants of the paper's Table 1."""


def draw_seed() -> int:
    """Secret seed of 256 bits from the operating system's random source."""
    return secrets.randbits(256)


def network_names(settings: MethodSettings) -> list[str]:
    """Authorised networks that settings name, as they are written; the plain CNN where they name none.

    Raises:
        UsageError: There are commas alone.
    """
    return split_names(settings.authorized or "cnn")


def split_names(text: str) -> list[str]:
    """Names separated by commas, without blanks.

    Raises:
        UsageError: There is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"expected names separated by commas, got '{text}'")
    return names
