"""Specifications that tables need: from the paper's names to training runs at one scale. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from uge.learning.recipes import Recipe
from uge.methods.table import METHODS
from uge.methods.uge.settings import LOSSES
from uge.names import KEYED
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
"""Networks by their names in the paper."""
LARGER = ("MobileNetV2", "ShuffleNetV2", "ResNet-18")
HACKERS = {
    "cifar10": ("CNN", "ResNetC-20", "ResNetC-32", "ResNet-18"),
    "cifar100": LARGER,
    "tinyimagenet": LARGER,
    "tinyimagenet20": LARGER,
}
"""Hackers of Table 1 on each data set."""
RHO = "0.04"
"""Budget of the paper."""


def has_key(method: str) -> bool:
    """True where authorised networks carry a wave key."""
    return method != ORIGINAL and METHODS[method].wave_key


def authorized_name(method: str, network: str) -> str:
    """Name of an authorised network, with the prefix of its wave key."""
    return f"{KEYED}{network}" if has_key(method) else network


@dataclass(frozen=True)
class TableSpecs:
    """Makes the specifications of tables.

    Attributes:
        scale: Sizes, recipes and seeds.
        given: Sources of the data sets that the user has, by name.
    """

    scale: Scale
    given: dict[str, str] = field(default_factory=dict)

    def data_sets(self, *names: str) -> list[str]:
        """Data sets of the paper, and others only where they were given."""
        return [name for name in names if name != "tinyimagenet20" or name in self.given]

    def network(self, name: str) -> str:
        """Network that stands for one of the paper."""
        return self.scale.networks.get(NETWORKS[name], NETWORKS[name])

    def images(self, data: str) -> Images:
        """Clean images of a data set, or of its stand-in."""
        name = self.scale.named(data, self.given)
        return Images(name=name, limit=self.scale.limit, limit_test=self.scale.limit_test, size=self.scale.size)

    def copy(self, data: str, method: str, authorized: Sequence[str], *, seed: int, rho: str | None = RHO) -> Copy:
        """Published copy; the originals are the same for every seed and every network."""
        images = self.images(data)
        if method == ORIGINAL:
            return Copy(images=images, method=method)
        names = tuple(authorized_name(method, name) for name in authorized)
        settings = self._settings(images.name, method, names)
        return Copy(images=images, method=method, authorized=names, rho=rho, seed=seed, settings=settings)

    def authorized(
        self, data: str, method: str, names: Sequence[str], number: int, *, seed: int, rho: str = RHO
    ) -> Unit:
        """Training of authorised network ``number`` from θ0 on a copy (or on the originals)."""
        of = self.copy(data, method, names, seed=seed, rho=rho)
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
        *,
        seed: int,
        teacher: int | None = None,
        rho: str | None = RHO,
    ) -> Unit:
        """Training of a hacker, on labels or on the answers of authorised network ``teacher``."""
        of = self.copy(data, method, authorized, seed=seed, rho=rho)
        return Unit(
            of=of,
            role="hacker",
            network=network,
            scheme="direct" if teacher is None else "distill",
            recipe=self._recipe(of, network),
            seed=seed,
            teacher=None
            if teacher is None
            else self.authorized(data, method, authorized, teacher, seed=seed, rho=rho or RHO),
        )

    def clean(self, data: str, network: str, *, seed: int) -> Unit:
        """Clean control: a hacker on the originals."""
        return self.hacker(data, ORIGINAL, (), network, seed=seed)

    def victim(self, data: str, method: str, network: str, *, seed: int) -> Unit:
        """Network that an unlearnable copy is to hold back; the paper's own runs are those of Table 1."""
        if LOSSES.get(method):
            return self.authorized(data, method, [network], 0, seed=seed)
        if has_key(method):
            return self.hacker(data, method, [network], network, seed=seed)
        return self.hacker(data, method, (), network, seed=seed, rho=None)

    def federation(self, data: str, *, seed: int) -> Federation:
        """Federated run of Table 9: two servers, a ResNet-18 for all of them."""
        images = self.images(data)
        network = self.network("ResNet-18")
        hackers = (self.network("CNN"), network)
        recipes = {name: self.scale.recipe(images.name, name) for name in hackers}
        return Federation(
            images=images,
            method="uge",
            network=network,
            hackers=hackers,
            rho=RHO,
            recipe=recipes[network],
            recipes={name: recipe for name, recipe in recipes.items() if recipe != recipes[network]},
            seed=seed,
            settings=self._settings(images.name, "uge", (network,)),
        )

    def _recipe(self, of: Copy, network: str) -> Recipe:
        recipe = self.scale.recipe(of.images.name, network)
        # A wave key cannot follow rotations, so no network rotates the images that it protects.
        rotated = has_key(of.method) and recipe.augment == "rotate-flip"
        return recipe.model_copy(update={"augment": "crop-flip"}) if rotated else recipe

    def _settings(self, data: str, method: str, names: Sequence[str]) -> dict[str, Any]:
        """Settings of ``uge protect`` that matter to this method."""
        scale = self.scale
        if not LOSSES.get(method):
            options = scale.baselines.get(method)
            return {"baseline": {name: str(value) for name, value in options.items()}} if options else {}
        settings = {**scale.protect, "recipe": scale.recipe(data, names[0]).json_dict()}
        if data in scale.losses:
            settings["loss"] = {**settings.get("loss", {}), **scale.losses[data]}
        if data in scale.steps:
            settings["generator"] = {**settings.get("generator", {}), "max_steps": scale.steps[data]}
        return settings
