"""From the names of the paper to specifications at one scale. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uge.learning.recipes import Recipe
from uge.methods.uge.settings import LOSSES
from uge.paper.scale import Scale
from uge.paper.specs import ORIGINAL, Copy, Federation, Images, Unit

NETWORKS = {
    "CNN": "cnn",
    "ResNetC-20": "resnetc20",
    "ResNetC-32": "resnetc32",
    "ResNet-18": "resnet18",
    "MobileNetV2": "mobilenetv2",
    "ShuffleNetV2": "shufflenetv2",
}
"""Networks as the paper writes them."""
LARGER = ("MobileNetV2", "ShuffleNetV2", "ResNet-18")
HACKERS = {
    "cifar10": ("CNN", "ResNetC-20", "ResNetC-32", "ResNet-18"),
    "cifar100": LARGER,
    "tinyimagenet": LARGER,
    "tinyimagenet20": LARGER,
}
"""Hackers of Table 1 on each data set."""
RHO = "0.04"
"""The paper's budget."""
KEYED = "keyed"


def authorized_name(method: str, network: str) -> str:
    """The authorised network's name: method ``keyed`` puts its key in front."""
    return f"{KEYED}:{network}" if method == KEYED else network


@dataclass(frozen=True)
class Lists:
    """Makes specifications.

    Attributes:
        scale: How much is done.
        given: Data sets that the user has, by name, and where.
    """

    scale: Scale
    given: dict[str, str] = field(default_factory=dict)

    def data_sets(self, *names: str) -> list[str]:
        """Those of the paper, and others only where they were given."""
        return [name for name in names if name != "tinyimagenet20" or name in self.given]

    def network(self, name: str) -> str:
        """What a network of the paper is here."""
        return self.scale.network(NETWORKS[name])

    def images(self, data: str) -> Images:
        """Clean images of a data set, or of what stands in for it."""
        scale = self.scale
        name = scale.named(data, self.given)
        return Images(name=name, limit=scale.limit, limit_test=scale.limit_test, size=scale.size)

    def copy(self, data: str, method: str, authorized: Sequence[str], seed: int, rho: str | None = RHO) -> Copy:
        """A published copy; the originals are the same for every seed and everybody."""
        images = self.images(data)
        if method == ORIGINAL:
            return Copy(images=images, method=method)
        names = tuple(authorized_name(method, name) for name in authorized)
        settings = self._settings(images.name, method, names)
        return Copy(images=images, method=method, authorized=names, rho=rho, seed=seed, settings=settings)

    def authorized(self, data: str, method: str, names: Sequence[str], number: int, seed: int, rho: str = RHO) -> Unit:
        """Authorised network ``number``, trained from θ0 on a copy (or on the originals)."""
        of = self.copy(data, method, names, seed, rho)
        return Unit(
            of=of,
            role="authorized",
            network=authorized_name(method, names[number]),
            number=number,
            recipe=self._recipe(of, names[number]),
            seed=seed,
        )

    def hacker(
        self,
        data: str,
        method: str,
        authorized: Sequence[str],
        network: str,
        seed: int,
        teacher: int | None = None,
        rho: str = RHO,
    ) -> Unit:
        """A stranger, trained on labels or by asking authorised network ``teacher``."""
        of = self.copy(data, method, authorized, seed, rho)
        return Unit(
            of=of,
            role="hacker",
            network=network,
            scheme="direct" if teacher is None else "distill",
            recipe=self._recipe(of, network),
            seed=seed,
            teacher=None if teacher is None else self.authorized(data, method, authorized, teacher, seed, rho),
        )

    def clean(self, data: str, network: str, seed: int) -> Unit:
        """The clean control: a stranger on the originals."""
        return self.hacker(data, ORIGINAL, (), network, seed)

    def victim(self, data: str, method: str, network: str, seed: int) -> Unit:
        """Who is to fail on an unlearnable copy: the paper's own are those of Table 1, on the authorised network."""
        if LOSSES.get(method):
            return self.authorized(data, method, [network], 0, seed)
        if method == KEYED:
            return self.hacker(data, method, [network], network, seed)
        of = self.copy(data, method, (), seed, rho=None)
        return Unit(of=of, role="hacker", network=network, recipe=self._recipe(of, network), seed=seed)

    def federation(self, data: str, seed: int) -> Federation:
        """Table 9's run: two servers, a ResNet-18 for all of them."""
        images, network = self.images(data), self.network("ResNet-18")
        settings, hackers = self._settings(images.name, "uge", (network,)), (self.network("CNN"), network)
        recipes = {name: self.scale.recipe(images.name, name) for name in hackers}
        return Federation(
            images=images,
            method="uge",
            network=network,
            hackers=hackers,
            rho=RHO,
            recipe=recipes[network],
            recipes={name: one for name, one in recipes.items() if one != recipes[network]},
            seed=seed,
            settings=settings,
        )

    def _recipe(self, of: Copy, network: str) -> Recipe:
        recipe = self.scale.recipe(of.images.name, network)
        # A wave key cannot follow rotations, so nobody rotates what it protects.
        rotated = of.method == KEYED and recipe.augment == "rotate-flip"
        return recipe.model_copy(update={"augment": "crop-flip"}) if rotated else recipe

    def _settings(self, data: str, method: str, names: Sequence[str]) -> dict[str, Any]:
        """Settings of ``uge protect`` that this method looks at."""
        scale = self.scale
        if not LOSSES.get(method):
            options = scale.baselines.get(method)
            return {"baseline": {name: str(value) for name, value in options.items()}} if options else {}
        settings = dict(scale.protect)
        settings["recipe"] = scale.recipe(data, names[0]).json_dict()
        if data in scale.losses:
            settings["loss"] = {**settings.get("loss", {}), **scale.losses[data]}
        if data in scale.steps:
            settings["generator"] = {**settings.get("generator", {}), "max_steps": scale.steps[data]}
        return settings
