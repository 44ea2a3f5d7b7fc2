"""Scales of experiments: sizes, recipes, seeds and stand-ins. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from uge.config import MOST_SEEDS
from uge.errors import UnknownNameError, UsageError
from uge.learning.recipes import Recipe, recipe


@dataclass(frozen=True)
class DataSet:
    """Data set of the tables.

    Attributes:
        label: Name in the paper.
        source: Source unless ``--data`` gives another; empty where it must be given.
    """

    label: str
    source: str


DATA = {
    "cifar10": DataSet("CIFAR-10", "hf://uoft-cs/cifar10"),
    "cifar100": DataSet("CIFAR-100", "hf://uoft-cs/cifar100"),
    "tinyimagenet": DataSet("TinyImageNet", "hf://zh-plus/tiny-imagenet"),
    "tinyimagenet20": DataSet("TinyImageNet-20 (20 of 200 classes)", ""),
}
PHOTOS = "photos"
SEED_STRIDE = 1000
"""Distance of repetitions in the seeds of θ0, since the k-th authorised network of one gets seed + k."""


class Scale(BaseModel):
    """Sizes, recipes and seeds of experiments.

    Attributes:
        name: ``smoke``, ``cpu`` or ``paper``.
        about: One sentence for the page.
        limit: Number of training images; None for all.
        limit_test: Number of test images; None for all.
        size: Side length in training, in pixels; None for the native one.
        seeds: Number of repetitions, each with its own protection, keys and hackers.
        networks: Network of the paper to the one that stands in for it.
        recipes: ``DATA/NETWORK``, ``DATA`` or ``*`` to a recipe; the most exact name counts.
        protect: Settings of ``uge protect`` for every copy.
        losses: Data set to weights of the losses (Table 5).
        steps: Data set to generator steps (Table 6: epochs times batches of 128).
        baselines: Method to settings that differ from the published ones.
        rhos: Budgets of Fig. 3, as ``uge protect --rho`` takes them.
        networks_most: Largest number of authorised networks in Fig. 7.
        pictures: Number of images shown in Figs. 4 and 6.
        stand_in: Source used for every data set that was not given; empty: those in :data:`DATA`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str = ""
    limit: int | None = Field(None, ge=1)
    limit_test: int | None = Field(None, ge=1)
    size: int | None = Field(None, ge=16)
    seeds: int = Field(1, ge=1)
    networks: dict[str, str] = Field(default_factory=dict)
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    protect: dict[str, Any] = Field(default_factory=dict)
    losses: dict[str, dict[str, float]] = Field(default_factory=dict)
    steps: dict[str, int] = Field(default_factory=dict)
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    rhos: tuple[str, ...] = ("0.01", "0.02", "0.04", "0.08")
    networks_most: int = Field(5, ge=1)
    pictures: int = Field(6, ge=1)
    stand_in: str = ""

    def recipe(self, data: str, network: str) -> Recipe:
        """Recipe of a network on a data set."""
        names = (f"{data}/{network}", data, "*")
        return next((self.recipes[name] for name in names if name in self.recipes), Recipe())

    def named(self, data: str, given: dict[str, str]) -> str:
        """Name of a data set in cases: a stand-in has its own name, shared by all that it stands in for."""
        return self.stand_in if self.stand_in and data not in given else data

    def sources(self, given: dict[str, str]) -> dict[str, str]:
        """Source of the images by name of a data set or stand-in; empty where none is known."""
        known = {name: given.get(name) or data.source for name, data in DATA.items()}
        return {**known, self.stand_in: self.stand_in} if self.stand_in else known

    def changed(
        self,
        *,
        limit: int | None = None,
        epochs: int | None = None,
        seeds: int | None = None,
        cnn_recipe: str | None = None,
    ) -> Scale:
        """Scale with other numbers; milestones of a recipe keep their place in the run.

        Where fewer test images than all are used anyway, there are at most as many as training images.

        Args:
            limit: Number of training images.
            epochs: Epochs of every network.
            seeds: Number of repetitions.
            cnn_recipe: Name of the recipe of plain CNNs, where these have one of their own.

        Raises:
            UnknownNameError: There is no such recipe.
            UsageError: A number is below 1, there are more than 1000 seeds, or plain CNNs have no recipe of their own.
        """
        if seeds is not None and seeds > MOST_SEEDS:
            raise UsageError(f"--seeds must be at most {MOST_SEEDS}, got {seeds}")
        for name, number in {"limit": limit, "epochs": epochs, "seeds": seeds}.items():
            if number is not None and number < 1:
                raise UsageError(f"--{name} must be at least 1, got {number}")
        new: dict[str, Any] = {"limit": limit or self.limit, "seeds": seeds or self.seeds}
        if limit and self.limit_test:
            new["limit_test"] = min(self.limit_test, limit)
        recipes = dict(self.recipes)
        if cnn_recipe is not None:
            own = [name for name in recipes if name.endswith("/cnn")]
            if not own:
                raise UsageError(f"--cnn-recipe needs a scale with a recipe of the plain CNN's own, not {self.name}")
            recipes |= dict.fromkeys(own, recipe(cnn_recipe))
        if epochs:
            recipes = {name: _shorter(each, epochs) for name, each in recipes.items()}
        new["recipes"] = recipes
        return self.model_copy(update=new)


def _shorter(recipe: Recipe, epochs: int) -> Recipe:
    milestones = tuple(max(1, milestone * epochs // recipe.epochs) for milestone in recipe.milestones)
    return recipe.model_copy(update={"epochs": epochs, "milestones": milestones})


def label(name: str) -> str:
    """Name of a data set in tables."""
    return DATA[name].label if name in DATA else f"{name} (embedded photographs)" if name == PHOTOS else name


_TABLE_5 = {
    "cifar10": {"lambda_fd": 1.0, "lambda_ud": 0.1, "alpha": 0.1, "omega": 0.1, "temperature": 4.0},
    "cifar100": {"lambda_fd": 1.0, "lambda_ud": 0.1, "alpha": 0.1, "omega": 0.1, "temperature": 20.0},
    "tinyimagenet": {"lambda_fd": 1.0, "lambda_ud": 1.0, "alpha": 0.1, "omega": 0.01, "temperature": 20.0},
}
_TABLE_5["tinyimagenet20"] = _TABLE_5["tinyimagenet"]

SCALES = {
    "smoke": Scale(
        name="smoke",
        about="Every cell once, on a handful of images: it shows that the machinery works, its accuracies say nothing.",
        limit=60,
        limit_test=60,
        size=16,
        networks={"resnet18": "resnet18-w16", "resnetc32": "resnetc20"},
        recipes={"*": Recipe(epochs=1, batch_size=20)},
        protect={
            "hacker": "cnn",
            "snapshots": 2,
            "encoder_recipe": {"epochs": 1, "batch_size": 20},
            "generator": {"width": 4, "blocks": 1, "batch_size": 20, "max_steps": 2},
            "refine": True,
            "refinement": {"passes": 1, "step": 4, "batch_size": 20},
        },
        baselines={
            "em": {"surrogate": "cnn", "theta_steps": 2, "steps": 1, "batch_size": 20},
            "rem": {
                **{"surrogate": "cnn", "theta_steps": 1, "steps": 1, "adversary_steps": 1, "samples": 1},
                "batch_size": 20,
            },
            "tap": {"surrogate": "cnn", "epochs": 1, "steps": 2, "step": 4.0, "restarts": 1, "batch_size": 20},
            "ntga": {"steps": 1, "step": 8.0, "block": 30, "held_out": 20},
            "pil": {"epochs": 1, "steps": 2},
        },
        rhos=("0.02", "0.04"),
        stand_in=PHOTOS,
    ),
    "cpu": Scale(
        name="cpu",
        about="The same cases with fewer images and epochs, for one night on two cores; ResNets are shallower, "
        "ResNet-18 has a quarter of its width, and perturbations are optimised directly, without a generator.",
        limit=5000,
        limit_test=2000,
        networks={"resnet18": "resnet18-w16", "resnetc20": "resnet8", "resnetc32": "resnetc20"},
        # Enough images and steps for a shortcut to be learned: with 2,000 images half of the methods showed nothing.
        recipes={"*": recipe("short", epochs=10, batch_size=64)},
        protect={
            "refine": True,
            # A short generator fills the budget with what does not help, and direct optimisation cannot leave it again.
            "generator": {"max_steps": 0},
            "refinement": {"passes": 8, "step": 3, "batch_size": 128},
            "encoder_recipe": {"epochs": 12},
            "snapshots": 6,
        },
        losses=_TABLE_5,
        # Each takes about a minute of one core for 2,000 CIFAR-10 images. Budgets are the published ones. Fewer sign
        # steps are longer, so that a perturbation still reaches its bound, and TAP has one trial. Chosen by what lowers
        # the accuracy of a CNN.
        baselines={
            "em": {"surrogate": "cnn", "theta_steps": 100, "steps": 3, "step": 2.7},
            "em-class": {"surrogate": "cnn", "rounds": 10},
            "tap": {"surrogate": "cnn", "epochs": 10, "steps": 20, "step": 1.6, "restarts": 1},
            "tap-untargeted": {"surrogate": "cnn", "epochs": 10, "steps": 20, "step": 1.6, "restarts": 1},
            "rem": {
                **{"surrogate": "cnn", "theta_steps": 100, "lr": 0.05, "steps": 2, "step": 8.0},
                **{"samples": 1, "adversary_steps": 1, "adversary_step": 4.0},
            },
        },
    ),
    "paper": Scale(
        name="paper",
        about="The recipes of Tables 5 and 6 on whole data sets, for a GPU.",
        seeds=3,
        recipes={
            "cifar10": recipe("paper-cifar10"),
            "cifar10/cnn": recipe("paper-cifar10-cnn"),
            "cifar100": recipe("paper-cifar100"),
            "tinyimagenet": recipe("paper-tinyimagenet"),
            "tinyimagenet20": recipe("paper-tinyimagenet"),
        },
        protect={
            "encoder": "clip:openai/clip-vit-base-patch32",
            "loss": {"targets": "image"},
            "generator": {"width": 64, "tolerance": 0.0},
        },
        losses=_TABLE_5,
        steps={"cifar10": 50 * 391, "cifar100": 100 * 391, "tinyimagenet": 100 * 782, "tinyimagenet20": 100 * 79},
        rhos=("0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.08"),
    ),
}
"""Scales by name."""


def scale(name: str) -> Scale:
    """Scale by name.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if name not in SCALES:
        raise UnknownNameError("scale", name, SCALES)
    return SCALES[name]


def parse_data(texts: tuple[str, ...]) -> dict[str, str]:
    """Sources by data set from texts ``NAME=SOURCE``.

    Raises:
        UsageError: A text has another form, or a name comes twice.
        UnknownNameError: There is no such data set.
    """
    sources: dict[str, str] = {}
    for text in texts:
        name, _, source = text.partition("=")
        if not source:
            raise UsageError(f"expected a data set as NAME=SOURCE, for instance cifar10=data/cifar10, got '{text}'")
        if name not in DATA:
            raise UnknownNameError("data set", name, DATA)
        if name in sources:
            raise UsageError(f"the data set '{name}' was given twice; give it once")
        sources[name] = source
    return sources
